//! A local cluster of C `sheep` daemons.

use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;

use crate::process;
use crate::program::{output, run_within, spawn};
use crate::wait::{free_ports, wait_until};

/// From the start of a node to its place in the node list.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// Longest run of one `dog` command.
const DOG_LIMIT: Duration = Duration::from_secs(30);
/// `dog cluster shutdown` sometimes waits for ever.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);
/// From SIGTERM to SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The programs of an installed Sheepdog.
#[derive(Clone, Debug)]
pub struct RealSheep {
    /// The daemon.
    pub sheep: PathBuf,
    /// The administrator's command, found near the daemon or on `PATH`.
    pub dog: PathBuf,
}

impl RealSheep {
    /// The programs named, else those on `PATH`; `None` when there is no daemon.
    ///
    /// # Errors
    /// When a named program does not exist, or the daemon has no `dog`.
    pub fn find(sheep: Option<&Path>, dog: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let Some(sheep) = sheep.map(Path::to_owned).or_else(|| on_path("sheep")) else {
            ensure!(
                dog.is_none(),
                "a dog without a sheep: name the sheep as well"
            );
            return Ok(None);
        };
        ensure!(sheep.is_file(), "there is no {}", sheep.display());
        let dog = match dog {
            Some(dog) => dog.to_owned(),
            None => beside(&sheep)
                .or_else(|| on_path("dog"))
                .with_context(|| format!("found {} but no dog for it", sheep.display()))?,
        };
        ensure!(dog.is_file(), "there is no {}", dog.display());
        Ok(Some(Self { sheep, dog }))
    }

    /// The releases it belongs to: `0.7`, `0.8`, `0.9` or `1.0`.
    ///
    /// # Errors
    /// When the daemon does not say its version.
    pub fn generation(&self) -> anyhow::Result<String> {
        // "Sheepdog daemon version 0.8.3", or "1.0_173_g3ebe5ea7"
        let text = run_within(DOG_LIMIT, Command::new(&self.sheep).arg("--version"))?;
        let text = String::from_utf8(text).context("sheep prints text")?;
        let version = text
            .lines()
            .next()
            .and_then(|line| line.split(' ').next_back())
            .with_context(|| format!("{} says no version", self.sheep.display()))?;
        let mut numbers = version.split(['.', '_']);
        let (major, minor) = (numbers.next(), numbers.next());
        match (major, minor) {
            (Some(major), Some(minor)) => Ok(format!("{major}.{minor}")),
            _ => bail!("{}: `{version}` is no version", self.sheep.display()),
        }
    }

    /// What keeps the daemon in the foreground, with its log on standard output.
    fn foreground_options(&self) -> anyhow::Result<&'static [&'static str]> {
        Ok(match self.generation()?.as_str() {
            "0.7" => &["--foreground", "--stdout"],
            "0.8" | "0.9" => &["--log", "dst=stdout"],
            _ => &["--foreground"],
        })
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

fn beside(sheep: &Path) -> Option<PathBuf> {
    let directory = sheep.parent()?;
    [directory.join("dog"), directory.join("../bin/dog")]
        .into_iter()
        .find(|candidate| candidate.is_file())
}

/// Several nodes on this machine that keep two copies; dropping it ends them.
#[derive(Debug)]
pub struct RealCluster {
    programs: RealSheep,
    directory: PathBuf,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    port: u16,
    child: Child,
}

impl RealCluster {
    /// Starts and formats `nodes` nodes, each its own zone, below `directory`;
    /// `format_options` are dog's.
    ///
    /// # Errors
    /// When a node does not join within half a minute.
    pub fn start(
        programs: RealSheep,
        directory: &Path,
        nodes: usize,
        format_options: &[&str],
    ) -> anyhow::Result<Self> {
        let cluster = Self::start_unformatted(programs, directory, nodes)?;
        cluster.dog(&[&["cluster", "format"], format_options].concat())?;
        Ok(cluster)
    }

    /// As [`RealCluster::start`], with nothing formatted.
    ///
    /// # Errors
    /// As [`RealCluster::start`].
    pub fn start_unformatted(
        programs: RealSheep,
        directory: &Path,
        nodes: usize,
    ) -> anyhow::Result<Self> {
        let mut cluster = Self {
            programs,
            directory: directory.to_owned(),
            nodes: Vec::new(),
        };
        // One after another: the local driver keeps its locks in one place for
        // the whole machine, and every node that starts sweeps it.
        for port in free_ports(nodes)? {
            let node = cluster.nodes.len();
            let child = cluster.launch(node, port)?;
            cluster.nodes.push(Node { port, child });
            cluster.wait_for_member(node)?;
        }
        Ok(cluster)
    }

    /// `HOST:PORT` of node `node`, counted from 0.
    #[must_use]
    pub fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[node].port)
    }

    /// The processes of the nodes that this process waits for.
    #[must_use]
    pub fn process_ids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.child.id()).collect()
    }

    /// Runs `dog` on the first node and returns its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn dog(&self, arguments: &[&str]) -> anyhow::Result<String> {
        String::from_utf8(self.dog_bytes(arguments)?).context("dog prints text")
    }

    /// As [`Self::dog`], for output that is no text.
    ///
    /// # Errors
    /// When it fails.
    pub fn dog_bytes(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        run_within(DOG_LIMIT, &mut self.dog_command(arguments))
    }

    /// Runs `dog` with `bytes` on its standard input.
    ///
    /// # Errors
    /// When it fails.
    pub fn dog_reading(&self, arguments: &[&str], bytes: &[u8]) -> anyhow::Result<()> {
        let mut command = self.dog_command(arguments);
        let mut child = spawn(command.stdin(Stdio::piped()))?;
        let mut stdin = child.stdin.take().context("a pipe was asked for")?;
        stdin.write_all(bytes).context("writing to dog")?;
        drop(stdin);
        let status = process::wait_for_exit(&mut child, DOG_LIMIT)?;
        ensure!(status.success(), "{command:?}: {status}");
        Ok(())
    }

    /// Sends a signal to node `node`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, node: usize, signal: Signal) -> anyhow::Result<()> {
        process::send_signal(&self.nodes[node].child, signal)
    }

    /// Kills all nodes simultaneously, as a power cut would, and starts them again after
    /// `pause`.
    ///
    /// # Errors
    /// As [`RealCluster::start`].
    pub fn restart_all(&mut self, pause: impl FnOnce()) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.child.kill()?;
        }
        for node in &mut self.nodes {
            node.child.wait()?;
        }
        pause();
        for node in 0..self.nodes.len() {
            self.nodes[node].child = self.launch(node, self.nodes[node].port)?;
            self.wait_for_member(node)?;
        }
        Ok(())
    }

    /// Ends node `node` as `kill -9` does, and waits until the others noticed.
    ///
    /// Not node 0, which reports the members.
    ///
    /// # Errors
    /// When it has ended by itself before, or stays a member.
    pub fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        let child = &mut self.nodes[node].child;
        if let Some(status) = child.try_wait()? {
            bail!(
                "sheep {node} had already ended: {status}\n{}",
                self.log_text(node)
            );
        }
        child.kill()?;
        child.wait()?;
        let port = self.nodes[node].port;
        wait_until("a killed node is no member", JOIN_LIMIT, || {
            Ok(!self.members()?.contains(&port))
        })
    }

    /// Starts a killed node again and waits until it is a member.
    ///
    /// # Errors
    /// As [`RealCluster::start`].
    pub fn start_again(&mut self, node: usize) -> anyhow::Result<()> {
        self.nodes[node].child = self.launch(node, self.nodes[node].port)?;
        self.wait_for_member(node)
    }

    fn dog_command(&self, arguments: &[&str]) -> Command {
        let port = self.nodes.first().map_or(0, |node| node.port);
        let mut command = Command::new(&self.programs.dog);
        command
            .args(arguments)
            .args(["-a", "127.0.0.1", "-p", &port.to_string()]);
        command
    }

    fn launch(&self, node: usize, port: u16) -> anyhow::Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(node))?;
        // The first one is what it is by default.
        let zone = (node > 0).then(|| format!("--zone={node}"));
        spawn(
            Command::new(&self.programs.sheep)
                .args(self.programs.foreground_options()?)
                .arg("--nosync")
                .args(["--bindaddr", "127.0.0.1", "--myaddr", "127.0.0.1"])
                .args(["--port", &port.to_string()])
                .args(zone)
                .arg("--cluster")
                .arg(format!(
                    "local:{}",
                    self.directory.join("members").display()
                ))
                .arg(self.directory.join(format!("node{node}")))
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                // Ctrl-C on the terminal must only reach the owner of the cluster.
                .process_group(0),
        )
    }

    fn wait_for_member(&mut self, node: usize) -> anyhow::Result<()> {
        wait_until(&format!("sheep {node} is a member"), JOIN_LIMIT, || {
            if let Some(status) = self.nodes[node].child.try_wait()? {
                bail!("it ended: {status}\n{}", self.log_text(node));
            }
            Ok(self.members()?.contains(&self.nodes[node].port))
        })
    }

    /// The ports of the nodes that are members; none while node 0 starts.
    fn members(&self) -> anyhow::Result<Vec<u16>> {
        let list = output(DOG_LIMIT, &mut self.dog_command(&["node", "list", "--raw"]))?;
        let text = String::from_utf8(list.stdout).context("dog prints text")?;
        // "0 127.0.0.1:7000 128 0"
        let port = |line: &str| line.split(' ').nth(1)?.rsplit_once(':')?.1.parse().ok();
        Ok(text.lines().filter_map(port).collect())
    }

    fn log(&self, node: usize) -> PathBuf {
        self.directory.join(format!("node{node}.log"))
    }

    /// What the daemon wrote, wherever it did.
    fn log_text(&self, node: usize) -> String {
        [
            self.log(node),
            self.directory.join(format!("node{node}/sheep.log")),
        ]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect()
    }
}

impl Drop for RealCluster {
    fn drop(&mut self) {
        if let Err(error) = output(
            SHUTDOWN_LIMIT,
            &mut self.dog_command(&["cluster", "shutdown"]),
        ) {
            eprintln!("{error:#}; ending the daemons one by one");
        }
        for node in &mut self.nodes {
            process::end(&mut node.child, STOP_LIMIT);
        }
    }
}
