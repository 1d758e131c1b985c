//! Started by systemd: sd_notify(3).

use std::fs;
use std::os::unix::net::UnixDatagram;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{LIMIT, Place, Running, Sheep, State, Wire, output, program, until};

/// systemd's side.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(place: &Place) -> Self {
        let socket = UnixDatagram::bind(place.path("notify")).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self(socket)
    }

    fn hears(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let count = self
            .0
            .recv(&mut buffer)
            .expect("a notification arrives within the timeout");
        let text = String::from_utf8(buffer[..count].to_vec()).unwrap();
        println!("notified: {text:?}");
        text.lines().map(str::to_owned).collect()
    }

    fn status(&self) -> String {
        let lines = self.hears();
        let status = lines.iter().find_map(|line| line.strip_prefix("STATUS="));
        status
            .expect("the notifications contain a status")
            .to_owned()
    }

    /// Others may come before it: the state may be looked at in between.
    fn wait_for_status(&self, expected: &str) {
        while self.status() != expected {}
    }
}

#[test]
fn sd_notify_reports_ready_and_status() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let wire = Wire::to(sheep.address());
    let manager = Manager::listen(&place);
    let mut command = program("sheepfs");
    command
        .env("NOTIFY_SOCKET", place.path("notify"))
        .args(["-a", &wire.address.to_string()]);
    let mut running = Running::start(&place, command);
    let connected = |sheep, volumes| format!("Connected to sheep {sheep}, {volumes}");
    let first = connected(wire.address, "0 volumes attached");
    assert_eq!(
        manager.hears(),
        ["READY=1".to_owned(), format!("STATUS={first}")]
    );
    place.volume("v");
    let attached = connected(wire.address, "1 volume attached");
    assert_eq!(manager.status(), attached);
    // The list of nodes has the sheep's own address.
    wire.set(State::Dead);
    let elsewhere = connected(sheep.address(), "1 volume attached");
    manager.wait_for_status(&elsewhere);
    drop(sheep);
    manager.wait_for_status("No sheep responds, requests wait; 1 volume attached");
    running.signal(Signal::SIGTERM);
    assert_eq!(manager.hears()[0], "STOPPING=1");
    running.wait();
}

#[test]
fn sd_notify_names_main_pid_of_daemon() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let manager = Manager::listen(&place);
    let pidfile = place.path("pid");
    let said = output(
        program("sheepfs")
            .env("NOTIFY_SOCKET", place.path("notify"))
            .args(["-a", &sheep.address().to_string(), "--pidfile"])
            .args([&pidfile, &place.mnt]),
    );
    assert!(said.status.success());
    let pid = fs::read_to_string(pidfile).unwrap();
    let lines = manager.hears();
    assert_eq!(
        lines[..2],
        [format!("MAINPID={}", pid.trim()), "READY=1".to_owned()]
    );
    assert!(
        lines[2].starts_with("STATUS=Connected to sheep "),
        "{lines:?}"
    );
    kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(manager.hears()[0], "STOPPING=1");
    until("it is unmounted", || !place.is_mounted());
}
