//! The line shown by `systemctl status`.

use std::time::Duration;

use sheep_cli::notify;
use sheepfs_vfs::{Chain, Ino, Tree};
use tokio::time::{MissedTickBehavior, interval};

/// Interval at which the line is updated.
const STATUS_PERIOD: Duration = Duration::from_secs(2);

/// Sends the status whenever it differs from `last`; never returns.
pub(crate) async fn status_loop(tree: &Tree, mut last: String) {
    if !notify::is_enabled() {
        return std::future::pending().await;
    }
    let mut ticks = interval(STATUS_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = status(tree).await;
        if now != last {
            notify::status(&now);
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
