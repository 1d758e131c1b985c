//! Notifications to systemd, if it started this process: sd_notify(3).

use std::env;

use sd_notify::NotifyState;

/// Reports that this process is ready.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that process `pid` is ready and is the main process from now on.
/// It cannot do so itself, because systemd accepts notifications only from the
/// process it started until that one sends MAINPID.
pub fn notify_main_pid(pid: u32, status: &str) {
    notify(&[
        NotifyState::MainPid(pid),
        NotifyState::Ready,
        NotifyState::Status(status),
    ]);
}

/// Reports that shutdown has begun, and its first step.
pub fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Reports the line shown by `systemctl status`.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// Whether a service manager listens.
pub fn is_enabled() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
