//! Targets of the benchmark: sheepfs and its alternatives.

use std::env;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use nix::sys::stat::{major, minor};
use tests::{
    EmbeddedSheep, Mounted, NbdServer, RealCluster, RealSheep, free_ports, is_mounted, wait_until,
};

use super::files;
use super::process;
use super::results::{
    EMBEDDED, EMBEDDED_NBD, EMBEDDED_WIRE, EMPTY, Measured, NBDFUSE, NBDKIT, ORIGINAL, QEMU,
    QEMU_NBD, Results, SHEEP_NBD, SHEEPFS, WIRE,
};
use super::wire::Wire;
use super::work::{FILL, Kind, Work};

/// The volume that all targets use in turn.
const VOLUME: &str = "bench";
/// Bytes of it.
const SIZE: u64 = 1 << 30;
/// Bytes of it in memory, where the inodes must fit as well.
const SIZE_IN_MEMORY: u64 = 896 << 20;
/// Bytes of a volume that is filled in one pass.
const THIN_SIZE: u64 = 256 << 20;
/// Read-ahead of a cached file.
const READ_AHEAD_KIB: &str = "4096";
/// From the start of a program to its file.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A sheep, and sheepfs on it.
pub(crate) struct Testbed {
    mounted: Mounted,
    server: Server,
    size: u64,
}

enum Server {
    Real(RealCluster, RealSheep),
    Embedded(EmbeddedSheep),
}

impl Testbed {
    /// One C sheep that does not wait for its disk, which is none anyway.
    pub(crate) fn real(directory: &Path, programs: &RealSheep) -> anyhow::Result<Self> {
        let directory = directory.join("sheep");
        fs::create_dir(&directory)?;
        let cluster = RealCluster::start(programs.clone(), &directory, 1, &["--copies", "1"])?;
        Self::on(Server::Real(cluster, programs.clone()), SIZE)
    }

    /// A sheep-embedded in memory.
    pub(crate) fn embedded(directory: &Path) -> anyhow::Result<Self> {
        let sheep = EmbeddedSheep::start_in_memory(directory)?;
        Self::on(Server::Embedded(sheep), SIZE_IN_MEMORY)
    }

    /// Makes the volume and writes all of it once.
    fn on(server: Server, size: u64) -> anyhow::Result<Self> {
        let address = match &server {
            Server::Real(cluster, _) => cluster.address(0),
            Server::Embedded(sheep) => sheep.address(),
        };
        let mounted = Mounted::start_with(&["--address", &address])?;
        let path = mounted.create(VOLUME, &size.to_string())?;
        files::fill(&path, size, &FILL).context("filling the volume")?;
        Ok(Self {
            mounted,
            server,
            size,
        })
    }

    pub(crate) fn mounted(&self) -> &Mounted {
        &self.mounted
    }

    /// `HOST:PORT`
    pub(crate) fn address(&self) -> String {
        match &self.server {
            Server::Real(cluster, _) => cluster.address(0),
            Server::Embedded(sheep) => sheep.address(),
        }
    }

    /// The file of the volume that is wholly allocated.
    pub(crate) fn volume(&self) -> PathBuf {
        self.mounted.volume(VOLUME)
    }

    /// Bytes of that volume.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn socket_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.address().parse()?)
    }

    /// The wire, sheepfs, and sheep-nbd.
    pub(crate) fn targets(&self) -> anyhow::Result<[Target<'_>; 3]> {
        let (wire, sheepfs, sheep_nbd) = match self.server {
            Server::Real(..) => (WIRE, SHEEPFS, SHEEP_NBD),
            Server::Embedded(_) => (EMBEDDED_WIRE, EMBEDDED, EMBEDDED_NBD),
        };
        // Locks keep two clients apart that never write at the same time here.
        let address = self.address();
        let options = ["--address", &address, "--lock=off", "--attach", VOLUME];
        let nbd = NbdServer::start_with(&options)?;
        Ok([
            Target {
                name: wire,
                size: self.size,
                testbed: Some(self),
                way: Way::Wire(Wire::open(self.socket_address()?, VOLUME, self.size)?),
                worker: None,
                _children: Vec::new(),
                _nbd: None,
            },
            Target {
                name: sheepfs,
                size: self.size,
                testbed: Some(self),
                way: Way::Tree(self.mounted.mountpoint()),
                worker: Some(self.mounted.process_id()),
                _children: Vec::new(),
                _nbd: None,
            },
            Target {
                name: sheep_nbd,
                size: self.size,
                testbed: Some(self),
                way: Way::Nbd(nbd.uri(VOLUME)),
                worker: Some(nbd.process_id()),
                _children: Vec::new(),
                _nbd: Some(nbd),
            },
        ])
    }

    /// The C sheepfs on the same sheep and volume.
    pub(crate) fn original(&self, program: &Path) -> anyhow::Result<Target<'_>> {
        // It keeps its state in the directory it is started in.
        let directory = env::temp_dir().join("original");
        let mountpoint = directory.join("mnt");
        fs::create_dir_all(&mountpoint)?;
        let address = self.socket_address()?;
        let mut command = Command::new(program);
        command
            .current_dir(&directory)
            .args(["-f", "-a", &address.ip().to_string()])
            .args(["-p", &address.port().to_string()])
            .arg(&mountpoint);
        if let Server::Real(_, programs) = &self.server {
            // It runs `dog` for everything but reading and writing.
            let beside = programs.dog.parent().map(Path::to_owned);
            let others =
                env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
            command.env("PATH", env::join_paths(beside.into_iter().chain(others))?);
        }
        let mut child = Running::start(&mut command, &directory.join("log"))?;
        wait_until("the original serves its tree", START_LIMIT, || {
            Ok(mountpoint.join("vdi/mount").exists())
        })?;
        let worker = Some(child.child.id());
        child.mountpoint = Some(mountpoint.clone());
        tell(&mountpoint, "vdi/mount", VOLUME)?;
        Ok(Target {
            name: ORIGINAL,
            size: self.size,
            testbed: Some(self),
            way: Way::Tree(mountpoint),
            worker,
            _children: vec![child],
            _nbd: None,
        })
    }
}

/// The C sheepfs named, else the one on PATH that is not ours.
pub(crate) fn original(named: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    if let Some(program) = named {
        ensure!(program.is_file(), "there is no {}", program.display());
        return Ok(Some(program.to_owned()));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .map(|directory| directory.join("sheepfs"))
        .filter(|program| program.is_file())
        // Ours has a version.
        .find(|program| {
            let answer = Command::new(program).arg("--version").output();
            answer.is_ok_and(|answer| !answer.status.success())
        });
    Ok(found)
}

/// Adds what needs no sheep, as far as it is installed.
pub(crate) fn others(
    directory: &Path,
    targets: &mut Vec<Target<'_>>,
    results: &mut Results,
) -> anyhow::Result<()> {
    for (name, started) in [
        (NBDFUSE, nbdfuse(&directory.join(NBDFUSE))),
        (QEMU, qemu(&directory.join(QEMU))),
        (NBDKIT, nbdkit(&directory.join("nbdkit"))),
        (QEMU_NBD, qemu_nbd(&directory.join("qemu-nbd"))),
    ] {
        match started {
            Ok(target) => targets.push(target),
            Err(error) => results.missing(&format!("{name}: {error:#}")),
        }
    }
    targets.push(empty(&directory.join("empty"))?);
    Ok(())
}

/// A FUSE file on an NBD server in memory.
fn nbdfuse(directory: &Path) -> anyhow::Result<Target<'static>> {
    let (server, uri) = nbd_server(directory)?;
    let mountpoint = directory.join("mnt");
    fs::create_dir(&mountpoint)?;
    let file = mountpoint.join("volume");
    let mut command = Command::new("nbdfuse");
    command.arg(&file).arg(uri);
    let fuse = Running::start(&mut command, &directory.join("log"))?;
    let worker = Some(fuse.child.id());
    served(NBDFUSE, file, worker, vec![fuse, server])
}

/// As [`nbdfuse`], by the program that QEMU's people made for it.
fn qemu(directory: &Path) -> anyhow::Result<Target<'static>> {
    let (server, uri) = nbd_server(directory)?;
    let (host, port) = uri
        .trim_start_matches("nbd://")
        .split_once(':')
        .context("an address")?;
    let file = directory.join("volume");
    File::create(&file)?;
    let mut command = Command::new("qemu-storage-daemon");
    command
        .arg("--blockdev")
        .arg(format!(
            "driver=nbd,node-name=memory,server.type=inet,server.host={host},server.port={port}"
        ))
        .arg("--export")
        .arg(format!(
            "type=fuse,id=export,node-name=memory,writable=on,mountpoint={}",
            file.display()
        ));
    let fuse = Running::start(&mut command, &directory.join("log"))?;
    let worker = Some(fuse.child.id());
    served(QEMU, file, worker, vec![fuse, server])
}

/// nbdkit by itself, on a Unix socket as sheep-nbd.
fn nbdkit(directory: &Path) -> anyhow::Result<Target<'static>> {
    fs::create_dir(directory)?;
    let socket = directory.join("socket");
    let mut command = Command::new("nbdkit");
    command
        .arg("--foreground")
        .arg(format!("--unix={}", socket.display()))
        .args(["memory", &SIZE_IN_MEMORY.to_string()]);
    let server = Running::start(&mut command, &directory.join("log"))?;
    exported(NBDKIT, SIZE_IN_MEMORY, &socket, server)
}

/// qemu-nbd with a file on tmpfs.
fn qemu_nbd(directory: &Path) -> anyhow::Result<Target<'static>> {
    fs::create_dir(directory)?;
    let (image, socket) = (directory.join("image"), directory.join("socket"));
    File::create(&image)?.set_len(SIZE_IN_MEMORY)?;
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--format=raw", "--persistent", "--shared=2"])
        .arg(format!("--socket={}", socket.display()))
        .arg(&image);
    let server = Running::start(&mut command, &directory.join("log"))?;
    exported(QEMU_NBD, SIZE_IN_MEMORY, &socket, server)
}

/// Waits for the socket, and writes all of the export once.
fn exported(
    name: &'static str,
    size: u64,
    socket: &Path,
    server: Running,
) -> anyhow::Result<Target<'static>> {
    wait_until("it listens", START_LIMIT, || Ok(socket.exists()))?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let mut filling = Command::new("nbdcopy");
    filling
        .args(["--", "[", "nbdkit", "--exit-with-parent", "pattern"])
        .args([&format!("size={size}"), "]", &uri]);
    tests::run(&mut filling).context("filling its export")?;
    Ok(Target {
        name,
        size,
        testbed: None,
        way: Way::Nbd(uri),
        worker: Some(server.child.id()),
        _children: vec![server],
        _nbd: None,
    })
}

/// nbdkit with a volume in memory, and where it listens.
fn nbd_server(directory: &Path) -> anyhow::Result<(Running, String)> {
    fs::create_dir(directory)?;
    let port = free_ports(1)?[0];
    let mut command = Command::new("nbdkit");
    command
        .args(["--foreground", "--ipaddr=127.0.0.1"])
        .arg(format!("--port={port}"))
        .args(["memory", &SIZE_IN_MEMORY.to_string()]);
    let server = Running::start(&mut command, &directory.join("nbdkit.log"))?;
    wait_until("nbdkit listens", START_LIMIT, || {
        Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
    })?;
    Ok((server, format!("nbd://127.0.0.1:{port}")))
}

/// Waits for the file, and writes all of it once.
fn served(
    name: &'static str,
    file: PathBuf,
    worker: Option<u32>,
    children: Vec<Running>,
) -> anyhow::Result<Target<'static>> {
    wait_until("its file is there", START_LIMIT, || {
        Ok(fs::metadata(&file).is_ok_and(|found| found.len() == SIZE_IN_MEMORY))
    })?;
    files::fill(&file, SIZE_IN_MEMORY, &FILL).context("filling its file")?;
    Ok(Target {
        name,
        size: SIZE_IN_MEMORY,
        testbed: None,
        way: Way::File(file),
        worker,
        _children: children,
        _nbd: None,
    })
}

/// The cost of the kernel and of fuser alone.
fn empty(directory: &Path) -> anyhow::Result<Target<'static>> {
    let mountpoint = directory.join("mnt");
    fs::create_dir_all(&mountpoint)?;
    let mut command = Command::new(env::current_exe()?);
    command
        .arg("bench-empty")
        .arg(&mountpoint)
        .arg(SIZE.to_string());
    let mut child = Running::start(&mut command, &directory.join("log"))?;
    wait_until("it is mounted", START_LIMIT, || is_mounted(&mountpoint))?;
    child.mountpoint = Some(mountpoint.clone());
    // As sheepfs has it, which cannot do it either without being root.
    let device = fs::metadata(&mountpoint)?.dev();
    let read_ahead = format!(
        "/sys/class/bdi/{}:{}/read_ahead_kb",
        major(device),
        minor(device)
    );
    let _refused = fs::write(read_ahead, READ_AHEAD_KIB);
    Ok(Target {
        name: EMPTY,
        size: SIZE,
        testbed: None,
        way: Way::File(mountpoint.join(super::empty::FILE)),
        worker: Some(child.child.id()),
        _children: vec![child],
        _nbd: None,
    })
}

/// A target of the benchmark.
pub(crate) struct Target<'a> {
    name: &'static str,
    size: u64,
    /// The sheep it works with.
    testbed: Option<&'a Testbed>,
    way: Way,
    /// The process to measure the CPU time of.
    worker: Option<u32>,
    /// Kept until this goes; first those that use the others.
    _children: Vec<Running>,
    _nbd: Option<NbdServer>,
}

/// How it reaches the data.
enum Way {
    Wire(Wire),
    /// The mountpoint of a tree as sheepfs has it.
    Tree(PathBuf),
    File(PathBuf),
    /// The URI of an NBD export.
    Nbd(String),
}

impl Target<'_> {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it can do this at all.
    pub(crate) fn does(&self, work: &Work) -> bool {
        match (work.kind, &self.way) {
            (Kind::Nbd, Way::Tree(_)) => [SHEEPFS, EMBEDDED].contains(&self.name),
            (Kind::Nbd, Way::Wire(_) | Way::Nbd(_)) | (Kind::Direct, Way::Wire(_)) => true,
            (Kind::Nbd, Way::File(_)) | (_, Way::Nbd(_)) => false,
            (Kind::Direct, Way::Tree(_) | Way::File(_)) => true,
            (Kind::ColdRead | Kind::CachedWrite, Way::File(_)) => self.name == EMPTY,
            (Kind::Thin, Way::File(_)) => false,
            (Kind::Thin, Way::Wire(_)) | (_, Way::Tree(_)) => {
                [WIRE, SHEEPFS, ORIGINAL].contains(&self.name)
            }
            (Kind::ColdRead | Kind::CachedWrite, Way::Wire(_)) => false,
        }
    }

    /// Does it once.
    ///
    /// # Errors
    /// When any operation fails.
    pub(crate) fn measure(&self, work: &Work, time: Duration) -> anyhow::Result<Measured> {
        let before = self.cpu_time()?;
        let start = std::time::Instant::now();
        let speed = match work.kind {
            Kind::Direct | Kind::Nbd => self.direct(work, time)?,
            Kind::Thin => return self.thin(work),
            Kind::ColdRead | Kind::CachedWrite => self.cached(work)?,
        };
        let elapsed = match work.kind {
            // fio takes a while to start, when nothing is done.
            Kind::Direct | Kind::Nbd => time,
            _ => start.elapsed(),
        };
        let operations = speed * elapsed.as_secs_f64();
        let cpu = before
            .zip(self.cpu_time()?)
            .map(|(before, after)| (after - before).as_secs_f64() * 1e6 / operations);
        Ok(Measured { speed, cpu })
    }

    fn cpu_time(&self) -> anyhow::Result<Option<Duration>> {
        self.worker.map(process::cpu_time).transpose()
    }

    fn direct(&self, work: &Work, time: Duration) -> anyhow::Result<f64> {
        match &self.way {
            Way::Wire(wire) => wire.run(work, time),
            Way::Tree(tree) => files::fio(&volume(tree, VOLUME), self.size, work, time),
            Way::File(file) => files::fio(file, self.size, work, time),
            Way::Nbd(uri) => files::fio_nbd(uri, self.size, work, time),
        }
    }

    /// On a volume made for it.
    fn thin(&self, work: &Work) -> anyhow::Result<Measured> {
        let testbed = self.testbed.context("no sheep")?;
        let name = "bench-thin";
        let made = testbed.mounted.mountpoint();
        tell(&made, "vdi/create", &format!("{name} {THIN_SIZE}"))?;
        let speed = match &self.way {
            Way::Wire(_) => Wire::open(testbed.socket_address()?, name, THIN_SIZE)?.fill(work),
            Way::Tree(tree) => {
                tell(tree, "vdi/mount", name)?;
                let speed = files::fill(&volume(tree, name), THIN_SIZE, work);
                tell(tree, "vdi/unmount", name)?;
                speed
            }
            Way::File(_) | Way::Nbd(_) => unreachable!("`does` excludes it"),
        };
        tell(&made, "vdi/delete", name)?;
        Ok(Measured {
            speed: speed?,
            cpu: None,
        })
    }

    fn cached(&self, work: &Work) -> anyhow::Result<f64> {
        let Way::Tree(tree) = &self.way else {
            return self.through_the_cache(work);
        };
        tell(tree, "vdi/unmount", VOLUME)?;
        tell(tree, "vdi/mount", VOLUME)?;
        tell(tree, "config/page_cache", "1")?;
        let speed = self.through_the_cache(work);
        tell(tree, "config/page_cache", "0")?;
        speed
    }

    fn through_the_cache(&self, work: &Work) -> anyhow::Result<f64> {
        let path = match &self.way {
            Way::Tree(tree) => volume(tree, VOLUME),
            Way::File(file) => file.clone(),
            Way::Wire(_) | Way::Nbd(_) => unreachable!("there is no page cache"),
        };
        match work.kind {
            Kind::CachedWrite => files::write_cached(&path, THIN_SIZE, work),
            _ => files::read_cached(&path, self.size, work),
        }
    }
}

fn volume(tree: &Path, name: &str) -> PathBuf {
    tree.join("volume").join(name)
}

/// Writes one line to a command file.
pub(crate) fn tell(tree: &Path, file: &str, line: &str) -> anyhow::Result<()> {
    let path = tree.join(file);
    fs::write(&path, format!("{line}\n")).with_context(|| format!("{}: {line}", path.display()))
}

/// A process that ends with this, and its mount with it.
struct Running {
    child: Child,
    mountpoint: Option<PathBuf>,
}

impl Running {
    fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| command.get_program().to_string_lossy().into_owned())?;
        Ok(Self {
            child,
            mountpoint: None,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let asked = match &self.mountpoint {
            Some(mountpoint) => tests::run(Command::new("umount").arg(mountpoint)).map(drop),
            None => tests::send_signal(&self.child, Signal::SIGTERM),
        };
        let ended = asked.and_then(|()| tests::wait_for_exit(&mut self.child, START_LIMIT));
        if let Err(error) = ended {
            eprintln!("bench: {error:#}");
        }
    }
}
