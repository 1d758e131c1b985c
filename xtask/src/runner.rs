//! Runs cargo so that an interruption leaves no process, mount or file behind.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tests::SHEEP_VARIABLE;

use crate::leftovers::{Scratch, reap_orphans};
use crate::step::cargo;

/// Interval between two checks of the command and of the signals.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest run of one cargo command; a test that hangs does not end by itself.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Runs commands in a [`Scratch`], until the first signal.
pub(crate) struct Runner<'a> {
    interrupted: Arc<AtomicBool>,
    scratch: &'a Scratch,
}

impl<'a> Runner<'a> {
    /// From now on signals do not end this process but the command it runs.
    pub(crate) fn new(scratch: &'a Scratch) -> anyhow::Result<Self> {
        let interrupted = Arc::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .context("cannot watch for signals")?;
        }
        Ok(Self {
            interrupted,
            scratch,
        })
    }

    /// Runs cargo with `arguments` and `environment`, and cleans up after it. `servers` are children of this process that stay.
    ///
    /// # Errors
    /// When it fails, takes too long, or a signal comes.
    pub(crate) fn cargo(
        &self,
        arguments: &[&str],
        environment: &[(&str, String)],
        servers: &[u32],
    ) -> anyhow::Result<()> {
        let line = format!("cargo {}", arguments.join(" "));
        eprintln!("$ {line}");
        let mut command = cargo(arguments);
        // Of its own group: a Ctrl-C on the terminal is for us alone.
        command.stdin(Stdio::null()).process_group(0);
        command.env("TMPDIR", self.scratch.path());
        // Variables inherited from the caller must not select another cluster.
        command.env_remove(SHEEP_VARIABLE);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let result = self.wait(&mut command, servers);
        self.scratch.end_tests();
        let status = result?;
        if !status.success() {
            bail!("`{line}` failed: {status}");
        }
        Ok(())
    }

    /// True after a signal: nothing more is to be run.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn wait(&self, command: &mut Command, servers: &[u32]) -> anyhow::Result<ExitStatus> {
        let mut child = command.spawn().context("cannot start cargo")?;
        let waited_for = [servers, &[child.id()]].concat();
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "still running after {LIMIT:?}");
            if self.is_interrupted() {
                bail!("interrupted");
            }
            reap_orphans(&waited_for);
            thread::sleep(PAUSE);
        }
    }
}
