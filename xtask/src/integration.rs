//! `cargo xtask integration`: the whole-system tests on one local cluster.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tests::{
    DOG_VARIABLE, EmbeddedSheep, RealCluster, RealSheep, SHEEP_BINARY_VARIABLE, SHEEP_VARIABLE,
};

use crate::leftovers::{Scratch, reap_orphans};
use crate::step::cargo;

/// Two copies of everything, and one node more, so that one may be missing.
const NODES: usize = 3;
/// Between two looks at the tests and at the signals.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest run of one cargo command; a test that hangs does not end by itself.
const LIMIT: Duration = Duration::from_secs(40 * 60);
/// Packages whose tests look at `SHEEPFS_TEST_SHEEP`.
const PACKAGES: [&str; 2] = ["--package=tests", "--package=sheepfs-vfs"];

/// Which cluster to start.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The C `sheep` daemon; by default the one on PATH, else sheep-embedded
    #[arg(long, value_name = "PATH")]
    sheep: Option<PathBuf>,
    /// The `dog` that goes with it; by default the one near it, then on PATH
    #[arg(long, value_name = "PATH", requires = "sheep")]
    dog: Option<PathBuf>,
}

/// Whatever serves the tests, until it is dropped.
enum Cluster {
    Real(RealCluster),
    Embedded(EmbeddedSheep),
}

impl Cluster {
    fn start(programs: Option<&RealSheep>, scratch: &Scratch) -> anyhow::Result<Self> {
        let directory = scratch.path().join("cluster");
        fs::create_dir(&directory)?;
        let Some(programs) = programs else {
            eprintln!(
                "integration: sheep-embedded, as there is no `sheep` on PATH and none was given"
            );
            return Ok(Self::Embedded(EmbeddedSheep::start(&directory)?));
        };
        eprintln!(
            "integration: {NODES} nodes of {}, two copies",
            programs.sheep.display()
        );
        Ok(Self::Real(RealCluster::start(
            programs.clone(),
            &directory,
            NODES,
            &["--copies", "2"],
        )?))
    }

    fn address(&self) -> String {
        match self {
            Self::Real(cluster) => cluster.address(0),
            Self::Embedded(sheep) => sheep.address(),
        }
    }

    fn process_ids(&self) -> Vec<u32> {
        match self {
            Self::Real(cluster) => cluster.process_ids(),
            Self::Embedded(sheep) => vec![sheep.process_id()],
        }
    }
}

/// Fails when a test does; leaves nothing behind, whatever happens.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let interrupted = Interrupted::watch()?;
    let programs = RealSheep::find(options.sheep.as_deref(), options.dog.as_deref())?;
    let scratch = Scratch::new()?;
    let runner = Runner {
        interrupted,
        scratch: &scratch,
        programs: programs.as_ref(),
    };
    // The binaries under test; the tests would build them one by one.
    runner.cargo(
        &[
            "build",
            "--release",
            "--package=sheepfs",
            "--package=sheep-embedded",
        ],
        None,
    )?;
    if let Some(programs) = &programs {
        eprintln!(
            "integration: tests that start {} themselves",
            programs.sheep.display()
        );
        let own = [
            "test",
            "--release",
            "--package=tests",
            "--features=real-sheep",
            "--test=real_sheep",
        ];
        runner.cargo(&own, None)?;
    }
    let cluster = Cluster::start(programs.as_ref(), &scratch)?;
    let mut all = vec!["test", "--release", "--no-fail-fast"];
    all.extend(PACKAGES);
    let result = runner.cargo(&all, Some(&cluster));
    drop(cluster);
    result
}

/// Runs cargo where it can be interrupted and cannot leave anything behind.
struct Runner<'a> {
    interrupted: Interrupted,
    scratch: &'a Scratch,
    programs: Option<&'a RealSheep>,
}

impl Runner<'_> {
    fn cargo(&self, arguments: &[&str], cluster: Option<&Cluster>) -> anyhow::Result<()> {
        let line = format!("cargo {}", arguments.join(" "));
        eprintln!("$ {line}");
        let mut command = cargo(arguments);
        // Of its own group: a Ctrl-C on the terminal is for us alone.
        command.stdin(Stdio::null()).process_group(0);
        command.env("TMPDIR", self.scratch.path());
        command.env_remove(SHEEP_VARIABLE);
        if let Some(programs) = self.programs {
            command.env(SHEEP_BINARY_VARIABLE, &programs.sheep);
            command.env(DOG_VARIABLE, &programs.dog);
        }
        if let Some(cluster) = cluster {
            command.env(SHEEP_VARIABLE, cluster.address());
        }
        let result = self.wait(&mut command, cluster);
        self.scratch.end_tests();
        let status = result?;
        if !status.success() {
            bail!("`{line}` failed: {status}");
        }
        Ok(())
    }

    fn wait(&self, command: &mut Command, cluster: Option<&Cluster>) -> anyhow::Result<ExitStatus> {
        let mut child = command.spawn().context("cannot start cargo")?;
        let mut waited_for = cluster.map(Cluster::process_ids).unwrap_or_default();
        waited_for.push(child.id());
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "still running after {LIMIT:?}");
            self.interrupted.check()?;
            reap_orphans(&waited_for);
            thread::sleep(PAUSE);
        }
    }
}

/// Set by the first signal that asks us to end.
struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    fn watch() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .context("cannot watch for signals")?;
        }
        Ok(Self(flag))
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}
