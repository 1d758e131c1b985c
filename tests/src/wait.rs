//! Waiting for a condition with a deadline, and ports to wait for.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// Interval between two checks of the condition.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for an event that takes a moment on an idle machine.
pub const EVENT_LIMIT: Duration = Duration::from_secs(30);
/// Longest time without an acknowledged write that a fault may cause.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Returns as soon as `condition` holds.
///
/// # Errors
/// When `condition` fails, or does not hold after `limit`; `what` names it.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        if condition().with_context(|| format!("waiting until {what}"))? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("gave up after {limit:?} waiting until {what}");
        }
        thread::sleep(PAUSE);
    }
}

/// Below the ports that the system gives to outgoing connections, so that none
/// of those takes one that was free. More than four digits tgt cuts off.
const PORTS: Range<u16> = 2000..10_000;

/// `count` different TCP ports of 127.0.0.1 without a listener.
///
/// # Errors
/// When they are all taken.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let mut listeners = Vec::new();
    for _attempt in PORTS {
        if listeners.len() == count {
            break;
        }
        match TcpListener::bind(("127.0.0.1", fastrand::u16(PORTS))) {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).context("looking for free ports"),
        }
    }
    ensure!(listeners.len() == count, "no free port among {PORTS:?}");
    listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}
