//! Listening sockets: sheepfs has none, and its embedded sheep listens only
//! from the same machine.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use crate::support::{Place, Running, Sheep, program};

/// The state in `/proc/net/tcp` of a socket that takes connections.
const LISTENING: &str = "0A";
/// 127.0.0.1 and ::1, as they are written there.
const LOOPBACK: [&str; 2] = ["0100007F", "00000000000000000000000001000000"];

/// Local addresses at which a process can be reached, as the kernel has them,
/// without their ports.
fn reachable_at(running: &Running) -> Vec<String> {
    let process = PathBuf::from(format!("/proc/{}", running.child.id()));
    let own: HashSet<String> = fs::read_dir(process.join("fd"))
        .unwrap()
        // The descriptor may have been closed since the directory was read.
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    assert!(
        own.iter().any(|link| link.starts_with("socket:")),
        "{own:?}"
    );
    let mut found = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs::read_to_string(process.join("net").join(table)).unwrap();
        for line in text.lines().skip(1) {
            let columns: Vec<_> = line.split_whitespace().collect();
            let (address, state, inode) = (columns[1], columns[3], columns[9]);
            let takes = state == LISTENING || table.starts_with("udp");
            if takes && own.contains(&format!("socket:[{inode}]")) {
                found.push(address.split_once(':').unwrap().0.to_owned());
            }
        }
    }
    found
}

#[test]
fn mount_opens_no_listening_socket() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let mut command = program("sheepfs");
    command.args(["-a", &sheep.address().to_string()]);
    let running = Running::start(&place, command);
    place.volume("v");
    assert_eq!(reachable_at(&running), [""; 0]);
}

#[test]
fn embedded_sheep_listens_on_loopback_only() {
    let place = Place::new();
    let mut command = program("sheepfs");
    command.arg("--embedded");
    let running = Running::start(&place, command);
    place.volume("v");
    let addresses = reachable_at(&running);
    assert!(!addresses.is_empty(), "it has to listen somewhere");
    for address in &addresses {
        assert!(LOOPBACK.contains(&address.as_str()), "{addresses:?}");
    }
}
