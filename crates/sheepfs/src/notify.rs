//! Notifications to systemd, if it started this process: sd_notify(3).

use std::env;
use std::time::Duration;

use sd_notify::NotifyState;
use sheepfs_vfs::{Chain, Ino, Tree};
use tokio::time::{MissedTickBehavior, interval};

/// Interval at which the line shown by `systemctl status` is updated.
const STATUS_PERIOD: Duration = Duration::from_secs(2);

/// Reports that this process serves the tree.
pub(crate) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that process `pid` serves the tree and is the main process from now on.
/// It cannot do so itself, because systemd accepts notifications only from the
/// process it started until that one sends MAINPID.
pub(crate) fn notify_main_pid(pid: u32, status: &str) {
    notify(&[
        NotifyState::MainPid(pid),
        NotifyState::Ready,
        NotifyState::Status(status),
    ]);
}

/// Reports that shutdown has begun.
pub(crate) fn stopping() {
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("Unmounting and releasing locks"),
    ]);
}

/// Sends the status whenever it differs from `last`; never returns.
pub(crate) async fn status_loop(tree: &Tree, mut last: String) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    let mut ticks = interval(STATUS_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = status(tree).await;
        if now != last {
            notify(&[NotifyState::Status(&now)]);
            last = now;
        }
    }
}

/// One line with the sheep in use and the number of volumes.
pub(crate) async fn status(tree: &Tree) -> String {
    let directory = tree.lookup(Ino::ROOT, b"volume").await;
    let volumes = match directory.and_then(|directory| tree.readdir(directory.ino)) {
        Ok(volumes) if volumes.len() == 1 => "1 volume attached".to_owned(),
        Ok(volumes) => format!("{} volumes attached", volumes.len()),
        Err(error) => format!("volumes cannot be counted: {}", Chain(&error)),
    };
    match tree.client().peer() {
        Some(sheep) => format!("Connected to sheep {sheep}, {volumes}"),
        None => format!("No sheep responds, requests wait; {volumes}"),
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
