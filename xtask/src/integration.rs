//! `cargo xtask integration`: the whole-system tests, on one local cluster after another.

use std::path::{Path, PathBuf};
use std::{env, fmt, fs, iter};

use ::tests::{
    DOG_VARIABLE, EmbeddedSheep, GENERATION_VARIABLE, NEWEST_GENERATION, RealCluster, RealSheep,
    SHEEP_BINARY_VARIABLE, SHEEP_VARIABLE,
};
use anyhow::{bail, ensure};
use clap::Args;

mod exceptions;

use crate::leftovers::Scratch;
use crate::requirements;
use crate::runner::Runner;

/// Two copies of everything, and one node more, so that one may be missing.
const NODES: usize = 3;
/// Packages with tests that use `SHEEPFS_TEST_SHEEP`.
const PACKAGES: [&str; 2] = ["--package=tests", "--package=sheepfs-vfs"];

/// Which clusters to start.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A C `sheep` daemon; of several, each is tested. By default the one on PATH, else sheep-embedded
    #[arg(long, value_name = "PATH")]
    sheep: Vec<PathBuf>,
    /// The `dog` of each `--sheep`, in the same order; by default those near them, then on PATH
    #[arg(long, value_name = "PATH", requires = "sheep")]
    dog: Vec<PathBuf>,
    /// Test on sheep-embedded, like the sheep of these releases; of several, each is tested
    #[arg(
        long,
        value_name = "VERSION",
        conflicts_with = "sheep",
        value_parser = ["0.7", "0.8", "0.9", NEWEST_GENERATION],
    )]
    generation: Vec<String>,
}

/// What the tests run on.
struct Subject {
    generation: String,
    /// `None` for sheep-embedded.
    programs: Option<RealSheep>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.programs {
            Some(programs) => write!(f, "{} ({})", programs.sheep.display(), self.generation),
            None => write!(f, "sheep-embedded ({})", self.generation),
        }
    }
}

impl Options {
    fn subjects(&self) -> anyhow::Result<Vec<Subject>> {
        if !self.generation.is_empty() {
            let embedded = |generation: &String| Subject {
                generation: generation.clone(),
                programs: None,
            };
            return Ok(self.generation.iter().map(embedded).collect());
        }
        ensure!(
            self.dog.is_empty() || self.dog.len() == self.sheep.len(),
            "{} --sheep and {} --dog: give every sheep its dog, in the same order, or none",
            self.sheep.len(),
            self.dog.len()
        );
        if self.sheep.is_empty() {
            return Ok(vec![Subject::new(RealSheep::find(None, None)?)?]);
        }
        let dogs = self.dog.iter().map(Some).chain(iter::repeat(None));
        self.sheep
            .iter()
            .zip(dogs)
            .map(|(sheep, dog)| {
                let dog = dog.map(PathBuf::as_path);
                Subject::new(RealSheep::find(Some(sheep), dog)?)
            })
            .collect()
    }
}

impl Subject {
    fn new(programs: Option<RealSheep>) -> anyhow::Result<Self> {
        let generation = match &programs {
            Some(programs) => programs.generation()?,
            None => NEWEST_GENERATION.to_owned(),
        };
        Ok(Self {
            generation,
            programs,
        })
    }

    /// Arguments that leave out the tests that do not apply, each of which is told.
    fn skipped(&self) -> Vec<&'static str> {
        let mut arguments = vec!["--", "--exact"];
        for (test, why) in exceptions::of(&self.generation) {
            eprintln!("integration: not on {self}: {test}: {why}");
            arguments.extend(["--skip", test]);
        }
        arguments
    }
}

/// The cluster under test, which ends when it is dropped.
enum Cluster {
    Real(RealCluster),
    Embedded(EmbeddedSheep),
}

impl Cluster {
    /// Starts one in `directory`, which is made.
    fn start(subject: &Subject, directory: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)?;
        let Some(programs) = &subject.programs else {
            let embedded = EmbeddedSheep::start_as(directory, &subject.generation)?;
            return Ok(Self::Embedded(embedded));
        };
        eprintln!(
            "integration: {NODES} nodes of {}, two copies",
            programs.sheep.display()
        );
        Ok(Self::Real(RealCluster::start(
            programs.clone(),
            directory,
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

/// Fails if a test fails on any of the clusters; cleans up in any case.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    requirements::check()?;
    let subjects = options.subjects()?;
    let scratch = Scratch::new(&env::temp_dir())?;
    let runner = Runner::new(&scratch)?;
    // Built once; otherwise each test binary would wait for a build of its own.
    runner.cargo(
        &[
            "build",
            "--release",
            "--package=sheepfs",
            "--package=sheep-embedded",
            "--package=sheep-nbd",
        ],
        &[],
        &[],
    )?;
    let mut failed = Vec::new();
    for (number, subject) in subjects.iter().enumerate() {
        eprintln!("integration: tests on {subject}");
        let directory = scratch.path().join(format!("cluster{number}"));
        if let Err(error) = run_on(subject, &directory, &runner) {
            eprintln!("integration: on {subject}: {error:#}");
            failed.push(subject.to_string());
        }
        if runner.is_interrupted() {
            bail!("interrupted");
        }
    }
    ensure!(failed.is_empty(), "tests failed on {}", failed.join(", "));
    Ok(())
}

fn run_on(subject: &Subject, directory: &Path, runner: &Runner<'_>) -> anyhow::Result<()> {
    let skipped = subject.skipped();
    let mut environment = vec![(GENERATION_VARIABLE, subject.generation.clone())];
    let mut own_clusters = Ok(());
    // With a real daemon: the tests that start and stop their own clusters.
    if let Some(programs) = &subject.programs {
        let path = |path: &Path| path.display().to_string();
        environment.push((SHEEP_BINARY_VARIABLE, path(&programs.sheep)));
        environment.push((DOG_VARIABLE, path(&programs.dog)));
        eprintln!(
            "integration: tests that start {} themselves",
            programs.sheep.display()
        );
        let mut own = vec![
            "test",
            "--release",
            "--no-fail-fast",
            "--package=tests",
            "--features=real-sheep",
            "--test=real_sheep",
            "--test=dog",
        ];
        own.extend(&skipped);
        own_clusters = runner.cargo(&own, &environment, &[]);
    }
    // All other tests of a package share a cluster, which fills a disk with what they
    // leave, and of which a test may end a sheep.
    let mut shared_clusters = Ok(());
    for (number, package) in PACKAGES.iter().enumerate() {
        let directory = directory.join(number.to_string());
        let cluster = Cluster::start(subject, &directory)?;
        let mut all = vec!["test", "--release", "--no-fail-fast", package];
        all.extend(&skipped);
        let address = [(SHEEP_VARIABLE, cluster.address())];
        let environment = [&environment[..], &address].concat();
        let outcome = runner.cargo(&all, &environment, &cluster.process_ids());
        shared_clusters = shared_clusters.and(outcome);
        drop(cluster);
        fs::remove_dir_all(&directory)?;
    }
    // The second failure is seen too: cargo has printed both.
    own_clusters.and(shared_clusters)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn options(arguments: &[&str]) -> Options {
        let all = ["integration"].iter().chain(arguments);
        Cli::try_parse_from(all).expect("they are known").options
    }

    #[test]
    fn subjects_are_the_releases_named() {
        let subjects = options(&["--generation", "0.7", "--generation", "1.0"]).subjects();
        let subjects = subjects.expect("they need no program");
        let names: Vec<_> = subjects.iter().map(Subject::to_string).collect();
        assert_eq!(names, ["sheep-embedded (0.7)", "sheep-embedded (1.0)"]);
        assert!(
            subjects[0]
                .skipped()
                .contains(&"lock_excludes_second_writer")
        );
        assert_eq!(subjects[1].skipped(), ["--", "--exact"]);
    }

    #[test]
    fn subjects_need_as_many_dogs_as_sheep() {
        let wrong = options(&["--sheep", "a", "--sheep", "b", "--dog", "a"]).subjects();
        let error = wrong.map(drop).expect_err("one dog is missing");
        assert_eq!(
            error.to_string(),
            "2 --sheep and 1 --dog: give every sheep its dog, in the same order, or none"
        );
    }
}
