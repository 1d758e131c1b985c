//! Malformed responses: a read is repeated on another connection, and one log line names
//! the sheep.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;

use sheep_embedded::{Fault, faults};
use sheep_proto::Opcode;
use tests::is_capability_warning;

use crate::support::{Place, Running, Sheep, Wire, program, until};

fn mounted(place: &Place, sheep: SocketAddr) -> (Running, File) {
    let mut command = program("sheepfs");
    command.args(["-a", &sheep.to_string()]);
    let running = Running::start(place, command);
    let file = File::open(place.volume("v")).unwrap();
    (running, file)
}

fn assert_reads(file: &File) {
    let mut found = vec![0; 1 << 16];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, vec![1; 1 << 16]);
}

/// Checks that the log has one line of a warning or worse, which contains these words.
fn assert_one_warning(running: &Running, words: &[&str]) {
    let log = running.log();
    let ordinary = |line: &&str| line.contains("INFO") || is_capability_warning(line);
    let odd: Vec<_> = log.lines().filter(|line| !ordinary(line)).collect();
    let [line] = odd[..] else { panic!("{log}") };
    for word in words {
        assert!(line.contains(word), "no {word} in: {line}");
    }
}

#[test]
fn malformed_response_with_unknown_id_drops_connection() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let (running, file) = mounted(&place, sheep.address());
    let wrong_id = faults::nth_request(Opcode::ReadObj, 0..1, Fault::WrongId);
    sheep.server.inject(wrong_id);
    assert_reads(&file);
    assert_reads(&file);
    assert_one_warning(&running, &["WARN", &sheep.address().to_string(), "id"]);
}

#[test]
fn malformed_response_of_garbage_drops_connection() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let wire = Wire::to(sheep.address());
    let (running, file) = mounted(&place, wire.address);
    wire.send(&b"SSH-2.0-OpenSSH_9.2\r\n".repeat(8));
    until("the log has a line", || running.log().contains("dropped"));
    assert_reads(&file);
    fs::read(place.mnt.join("vdi/list")).unwrap();
    assert_one_warning(&running, &["WARN", &wire.address.to_string(), "dropped"]);
}
