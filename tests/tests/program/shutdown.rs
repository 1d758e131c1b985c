//! Shutdown during operations: it takes at most ten seconds, and the exit status shows
//! whether all data was written.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::gettid;

use crate::support::{Place, Running, Sheep, State, Wire, program, until};

/// Documented limit of a shutdown.
const AT_MOST: Duration = Duration::from_secs(10);

fn mounted(place: &Place, wire: &Wire) -> Running {
    let mut command = program("sheepfs");
    command.args(["-a", &wire.address.to_string()]);
    Running::start(place, command)
}

/// Ends it and returns its exit status.
fn ended(place: &Place, running: &mut Running) -> Option<i32> {
    let asked = Instant::now();
    running.signal(Signal::SIGTERM);
    let status = running.wait();
    assert!(asked.elapsed() < AT_MOST, "it took {:?}", asked.elapsed());
    assert!(!place.is_mounted(), "its mount is still there");
    status.code()
}

#[test]
fn shutdown_finishes_in_flight_writes() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let wire = Wire::to(sheep.address());
    let mut running = mounted(&place, &wire);
    let path = place.volume("v");
    let file = File::options().write(true).open(&path).unwrap();
    wire.set(State::Silent);
    let writer = write_in_flight(file);
    running.signal(Signal::SIGTERM);
    until("it is detached", || !place.is_mounted());
    wire.set(State::Up);
    writer
        .join()
        .unwrap()
        .expect("the write thread has been started");
    assert_eq!(running.wait().code(), Some(0));

    let mut running = mounted(&place, &wire);
    fs::write(place.mnt.join("vdi/mount"), "v").unwrap();
    let written = fs::read(&path).unwrap();
    assert!(written[..1 << 20].iter().all(|byte| *byte == 2));
    assert_eq!(ended(&place, &mut running), Some(0));
}

#[test]
fn shutdown_timeout_reports_unwritten_data() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let wire = Wire::to(sheep.address());
    let mut running = mounted(&place, &wire);
    let path = place.volume("v");
    let file = File::options().write(true).open(path).unwrap();
    wire.set(State::Silent);
    let writer = write_in_flight(file);
    assert_eq!(ended(&place, &mut running), Some(1));
    assert!(
        writer.join().unwrap().is_err(),
        "the outcome of the write is unknown"
    );
    let log = running.log();
    assert!(
        log.contains("ended without completing requests in flight"),
        "{log}"
    );
}

#[test]
fn shutdown_is_quick_when_cluster_is_dead() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let wire = Wire::to(sheep.address());
    let mut running = mounted(&place, &wire);
    let path = place.volume("v");
    let file = File::options().write(true).open(path).unwrap();
    wire.set(State::Dead);
    drop(sheep);
    let writer = write_in_flight(file);
    assert_eq!(ended(&place, &mut running), Some(1));
    assert!(writer.join().unwrap().is_err());
}

#[test]
fn shutdown_with_open_file_succeeds() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let wire = Wire::to(sheep.address());
    let mut running = mounted(&place, &wire);
    let path = place.volume("v");
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.write_all_at(b"acknowledged", 0).unwrap();
    assert_eq!(ended(&place, &mut running), Some(0));
    let error = file.read_at(&mut [0; 4], 0).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(nix::errno::Errno::ENOTCONN as i32)
    );
    let log = running.log();
    assert!(log.contains("is in use"), "{log}");
}

/// Starts a write, and returns when the kernel waits for sheepfs to do it.
fn write_in_flight(file: File) -> JoinHandle<io::Result<()>> {
    let (tell, told) = mpsc::channel();
    let writer = thread::spawn(move || {
        tell.send(gettid()).unwrap();
        file.write_all_at(&[2; 1 << 20], 0)
    });
    let path = format!("/proc/self/task/{}/syscall", told.recv().unwrap());
    let call = format!("{} ", nix::libc::SYS_pwrite64);
    until("a write waits for the sheep", || {
        fs::read_to_string(&path).is_ok_and(|text| text.starts_with(&call))
    });
    writer
}
