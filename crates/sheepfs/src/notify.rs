//! Telling systemd how it goes, when it was systemd that started us: sd_notify(3).

use std::env;
use std::time::Duration;

use sd_notify::NotifyState;
use sheepfs_vfs::{Chain, Ino, Tree};
use tokio::time::{MissedTickBehavior, interval};

/// How often the line that `systemctl status` shows is looked at.
const STATUS_PERIOD: Duration = Duration::from_secs(2);

/// Says that the tree is served by this process.
pub(crate) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that the tree is served by another process, which is the one to watch
/// from now on. It cannot say so itself: systemd listens to the process that it
/// started until that one names its successor.
pub(crate) fn notify_main_pid(pid: u32, status: &str) {
    notify(&[
        NotifyState::MainPid(pid),
        NotifyState::Ready,
        NotifyState::Status(status),
    ]);
}

/// Says that the end has begun.
pub(crate) fn stopping() {
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("Unmounting and giving locks back"),
    ]);
}

/// Keeps the status up to date; never returns. `last` is the one already told.
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

/// Which sheep, and how many volumes: one line.
pub(crate) async fn status(tree: &Tree) -> String {
    let directory = tree.lookup(Ino::ROOT, b"volume").await;
    let volumes = match directory.and_then(|directory| tree.readdir(directory.ino)) {
        Ok(volumes) if volumes.len() == 1 => "1 volume attached".to_owned(),
        Ok(volumes) => format!("{} volumes attached", volumes.len()),
        Err(error) => format!("volumes cannot be counted: {}", Chain(&error)),
    };
    match tree.client().peer() {
        Some(sheep) => format!("Connected to sheep {sheep}, {volumes}"),
        None => format!("No sheep answers, requests wait; {volumes}"),
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
