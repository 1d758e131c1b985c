//! Waiting for a condition with a deadline, and ports to wait for.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How long to let the machine do something else between two looks.
const PAUSE: Duration = Duration::from_millis(20);

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

/// `count` different TCP ports of 127.0.0.1 that nobody listened on just now.
///
/// # Errors
/// When the system has no port left.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<Vec<_>, _>>()
        .context("looking for free ports")?;
    listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}
