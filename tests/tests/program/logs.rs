//! Where lines go that are logged in the background.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tests::is_capability_warning;

use crate::support::{Place, SHEEPFS, in_private_namespace};

/// Creates a minimal `/dev` and `/run`, mounts in the background, writes one line that is
/// refused, and unmounts.
const SCRIPT: &str = "
    mkdir -p dev run
    for device in fuse null urandom; do
        touch dev/$device
        mount --bind /dev/$device dev/$device
    done
    here=$PWD
    mount --rbind dev /dev
    mount --bind run /run
    \"$1\" --embedded \"$here/mnt\"
    echo nothing > mnt/vdi/mount 2> refused || :
    umount mnt";

/// The standard error of the command, and the datagrams that arrived at `socket`.
fn logged(place: &Place, socket: Option<&Path>) -> (String, Vec<String>) {
    let listener = socket.map(|path| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        UnixDatagram::bind(path).unwrap()
    });
    let said = in_private_namespace(place, SCRIPT, &[SHEEPFS.as_os_str()]);
    assert!(said.status.success());
    let mut lines = Vec::new();
    if let Some(listener) = listener {
        listener.set_nonblocking(true).unwrap();
        let mut buffer = [0; 1 << 16];
        while let Ok(count) = listener.recv(&mut buffer) {
            lines.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
    }
    (String::from_utf8(said.stderr).unwrap(), lines)
}

#[test]
fn log_goes_to_journald() {
    let place = Place::new();
    let socket = place.path("run/systemd/journal/socket");
    let (said, lines) = logged(&place, Some(&socket));
    assert_eq!(said, "");
    let refused = lines
        .iter()
        .find(|line| line.contains("vdi/mount: 'nothing'"));
    let refused = refused.unwrap_or_else(|| panic!("{lines:?}"));
    assert!(refused.contains("SYSLOG_IDENTIFIER"), "{refused}");
}

#[test]
fn log_goes_to_syslog_without_journald() {
    let place = Place::new();
    let (said, lines) = logged(&place, Some(&place.path("dev/log")));
    assert_eq!(said, "");
    let refused = lines
        .iter()
        .find(|line| line.contains("vdi/mount: 'nothing'"));
    let refused = refused.unwrap_or_else(|| panic!("{lines:?}"));
    // Facility daemon (3), severity warning (4).
    assert!(refused.starts_with("<28>"), "{refused}");
    assert!(refused.contains("sheepfs["), "{refused}");
}

#[test]
fn log_without_any_daemon_is_announced() {
    let place = Place::new();
    let (said, _) = logged(&place, None);
    let said: Vec<_> = said
        .lines()
        .filter(|line| !is_capability_warning(line))
        .collect();
    assert!(
        matches!(said[..], [line] if line.contains("neither journald nor syslogd")),
        "{said:?}"
    );
}
