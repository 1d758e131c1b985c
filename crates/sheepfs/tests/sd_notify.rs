//! sd_notify(3) when the start fails. Tests that mount are in the `tests` package.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use tempfile::TempDir;

#[test]
fn sd_notify_is_silent_when_start_fails() {
    let directory = TempDir::with_prefix("sheepfs-service-").unwrap();
    let socket = directory.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_nonblocking(true).unwrap();
    let said = Command::new(env!("CARGO_BIN_EXE_sheepfs"))
        // SHEEPFS_* variables of the environment must not change what fails.
        .env_clear()
        .env("NOTIFY_SOCKET", &socket)
        .arg(directory.path().join("missing"))
        .output()
        .unwrap();
    let text = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(manager.recv(&mut [0; 16]).is_err());
}
