//! A sheep, a wire to it that can fail, a mountpoint, and the program.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sheep_embedded::{Config, Server, StoreKind};
use tempfile::TempDir;
use tests::sheepfs_binary;
use tokio::runtime::Runtime;

pub(crate) static SHEEPFS: LazyLock<PathBuf> = LazyLock::new(|| sheepfs_binary().unwrap());
/// Longest wait for anything that should take a moment.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);

/// A sheep in this process, its data in memory.
pub(crate) struct Sheep {
    pub(crate) server: Server,
    _runtime: Runtime,
}

impl Sheep {
    pub(crate) fn start() -> Self {
        Self::start_on("127.0.0.1:0")
    }

    pub(crate) fn start_on(address: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let mut config = Config::new(StoreKind::Memory);
        config.listen = address.parse().unwrap();
        let server = runtime.block_on(Server::start(config)).unwrap();
        Self {
            server,
            _runtime: runtime,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.local_address()
    }
}

/// What becomes of bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// They arrive.
    Up,
    /// They wait, as when the host of the sheep hangs.
    Silent,
    /// Connections are cut and refused.
    Dead,
}

/// A wire to a sheep that can fail.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

/// State and open streams, and a condition variable for changes of the state.
type Shared = (Mutex<(State, Vec<TcpStream>)>, Condvar);

impl Wire {
    pub(crate) fn to(sheep: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new((Mutex::new((State::Up, Vec::new())), Condvar::new()));
        let wire = Self {
            address,
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || {
            let mut listener = Some(listener);
            loop {
                let here = listener.take();
                let here = here.unwrap_or_else(|| TcpListener::bind(address).unwrap());
                let Ok((near, _)) = here.accept() else { return };
                let mut state = shared.0.lock().unwrap();
                if state.0 == State::Dead {
                    drop((here, near));
                    let waiting = |state: &mut (State, _)| state.0 == State::Dead;
                    drop(shared.1.wait_while(state, waiting).unwrap());
                    continue;
                }
                listener = Some(here);
                let far = TcpStream::connect(sheep).unwrap();
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || carry(from, to, &shared));
                }
                state.1.extend([near, far]);
            }
        });
        wire
    }

    pub(crate) fn set(&self, state: State) {
        let mut shared = self.shared.0.lock().unwrap();
        shared.0 = state;
        self.shared.1.notify_all();
        if state == State::Dead {
            for stream in shared.1.drain(..) {
                // It may be closed already.
                drop(stream.shutdown(Shutdown::Both));
            }
            drop(shared);
            // Wakes the listener, so that it stops accepting.
            drop(TcpStream::connect(self.address));
        }
    }

    /// Sends `bytes` to the client on one of its connections, as if the sheep had.
    pub(crate) fn send(&self, bytes: &[u8]) {
        let shared = self.shared.0.lock().unwrap();
        let mut near = shared.1.first().expect("sheepfs keeps a connection open");
        near.write_all(bytes).unwrap();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.set(State::Dead);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let state = shared.0.lock().unwrap();
        let state = shared
            .1
            .wait_while(state, |state| state.0 == State::Silent)
            .unwrap();
        drop(state);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
    drop(from.shutdown(Shutdown::Both));
}

/// A directory to mount on, and others for the test's own use.
pub(crate) struct Place {
    directory: TempDir,
    pub(crate) mnt: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        assert!(
            Path::new("/dev/fuse").exists() && nix::unistd::geteuid().is_root(),
            "this test mounts: it needs root and /dev/fuse"
        );
        let directory = TempDir::with_prefix("sheepfs-program-").unwrap();
        let mnt = directory.path().join("mnt");
        fs::create_dir(&mnt).unwrap();
        Self { directory, mnt }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mnt = self.mnt.to_str().unwrap();
        table
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(mnt))
    }

    /// Makes and attaches a volume, with its first 4 MiB written.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        fs::write(self.mnt.join("vdi/create"), format!("{name} 16M")).unwrap();
        fs::write(self.mnt.join("vdi/mount"), name).unwrap();
        let path = self.mnt.join("volume").join(name);
        fs::write(&path, vec![1; 4 << 20]).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_mounted() {
            // A test that failed may have left it; the process ends with it.
            drop(Command::new("umount").arg("-l").arg(&self.mnt).status());
        }
    }
}

/// The program, under any name.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(&*SHEEPFS);
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        if text.starts_with("SHEEP") || text == "NOTIFY_SOCKET" {
            command.env_remove(&variable);
        }
    }
    command.arg0(name).stdin(Stdio::null());
    command
}

/// The program in the foreground, ended at the end of the test.
pub(crate) struct Running {
    pub(crate) child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it on `place` and waits for the tree.
    pub(crate) fn start(place: &Place, mut command: Command) -> Self {
        let log = place.path("log");
        let file = fs::File::create(&log).unwrap();
        let child = command.arg("-f").arg(&place.mnt).stderr(file).spawn();
        let mut running = Self {
            child: child.unwrap(),
            log,
        };
        until("the tree is mounted", || {
            let ended = running.child.try_wait().unwrap();
            assert_eq!(ended, None, "{}", running.log());
            place.is_mounted()
        });
        running
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended unless the test failed.
        drop(self.child.kill());
        drop(self.child.wait());
        println!("{}", self.log());
    }
}

/// Waits for something, but not for ever.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command that ends by itself.
pub(crate) fn output(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    println!("{command:?}: {output:?}");
    output
}

/// Runs a script in a mount namespace of its own.
pub(crate) fn in_private_namespace(place: &Place, script: &str, arguments: &[&OsStr]) -> Output {
    let script = format!("set -eu; cd {}\n{script}", place.directory.path().display());
    output(
        Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
                "sh",
            ])
            .args(arguments),
    )
}
