//! Signals that cause a clean shutdown.

use std::fmt;
use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal arrived before the program was ready.
#[derive(Debug)]
pub struct Interrupted {
    /// Name of the signal.
    pub signal: &'static str,
    /// What was not done yet, as in "the tree was mounted".
    pub before: &'static str,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended by {} before {}", self.signal, self.before)
    }
}

impl std::error::Error for Interrupted {}

/// Signals that cause a clean shutdown.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
    before: &'static str,
}

impl Signals {
    /// Takes the signals over from their default action. `before` is what an early
    /// signal prevents, as in "the tree was mounted".
    ///
    /// # Errors
    /// The system's.
    pub fn new(before: &'static str) -> anyhow::Result<Self> {
        let hangup = if hangup_is_ignored() {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup,
            before,
        })
    }

    /// Runs `work` until it completes or a signal arrives.
    ///
    /// # Errors
    /// [`Interrupted`], and those of `work`.
    pub async fn unless_interrupted<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let before = self.before;
        tokio::select! {
            result = work => result,
            signal = self.next() => Err(Interrupted { signal, before }.into()),
        }
    }

    /// Waits for a signal and returns its name.
    pub async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = hangup => "SIGHUP",
        }
    }
}

/// True if SIGHUP was ignored at start, as nohup(1) does.
fn hangup_is_ignored() -> bool {
    let hangup = 1_u64 << (nix::sys::signal::Signal::SIGHUP as u32 - 1);
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let mask = status
                .lines()
                .find_map(|line| line.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        })
        .is_some_and(|ignored| ignored & hangup != 0)
}
