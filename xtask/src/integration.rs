//! `cargo xtask integration`: the whole-system tests on one local cluster.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use tests::{
    DOG_VARIABLE, EmbeddedSheep, RealCluster, RealSheep, SHEEP_BINARY_VARIABLE, SHEEP_VARIABLE,
};

use crate::leftovers::Scratch;
use crate::requirements;
use crate::runner::Runner;

/// Two copies of everything, and one node more, so that one may be missing.
const NODES: usize = 3;
/// Packages with tests that use `SHEEPFS_TEST_SHEEP`.
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

/// The cluster under test, which ends when it is dropped.
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

/// Fails if a test fails; cleans up in any case.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    requirements::check()?;
    let programs = RealSheep::find(options.sheep.as_deref(), options.dog.as_deref())?;
    let scratch = Scratch::new(&env::temp_dir())?;
    let runner = Runner::new(&scratch)?;
    // Built once; otherwise each test binary would wait for a build of its own.
    runner.cargo(
        &[
            "build",
            "--release",
            "--package=sheepfs",
            "--package=sheep-embedded",
        ],
        &[],
        &[],
    )?;
    let mut environment = Vec::new();
    let mut own_clusters = Ok(());
    // With a real daemon: the tests that start and stop their own clusters.
    if let Some(programs) = &programs {
        let path = |path: &Path| path.display().to_string();
        environment.push((SHEEP_BINARY_VARIABLE, path(&programs.sheep)));
        environment.push((DOG_VARIABLE, path(&programs.dog)));
        eprintln!(
            "integration: tests that start {} themselves",
            programs.sheep.display()
        );
        let own = [
            "test",
            "--release",
            "--no-fail-fast",
            "--package=tests",
            "--features=real-sheep",
            "--test=real_sheep",
            "--test=dog",
        ];
        own_clusters = runner.cargo(&own, &environment, &[]);
    }
    // All other tests share one cluster.
    let cluster = Cluster::start(programs.as_ref(), &scratch)?;
    let mut all = vec!["test", "--release", "--no-fail-fast"];
    all.extend(PACKAGES);
    environment.push((SHEEP_VARIABLE, cluster.address()));
    let shared_cluster = runner.cargo(&all, &environment, &cluster.process_ids());
    drop(cluster);
    // The second failure is seen too: cargo has printed both.
    own_clusters.and(shared_cluster)
}
