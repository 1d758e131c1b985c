//! `cargo xtask bench`: the speed of sheepfs, compared with that of other programs.
//!
//! Machines differ and are noisy, so nothing here is compared across runs.
//! Every round measures all targets one after the other, and what counts
//! is the median of the rounds' ratios.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tests::RealSheep;

use self::results::Results;
use self::target::Testbed;
use self::work::Work;
use crate::leftovers::Scratch;
use crate::runner::Runner;
use crate::step::root;

mod costs;
mod empty;
mod files;
mod process;
mod results;
mod target;
mod wire;
mod work;

pub(crate) use empty::serve as serve_empty;

/// Where everything is kept while it is measured.
const TMPFS: &str = "/dev/shm";

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The C `sheep` daemon; by default the one on PATH, else only sheep-embedded
    #[arg(long, value_name = "PATH")]
    sheep: Option<PathBuf>,
    /// The `dog` that goes with it; by default the one near it, then on PATH
    #[arg(long, value_name = "PATH", requires = "sheep")]
    dog: Option<PathBuf>,
    /// The C `sheepfs`; by default the one on PATH
    #[arg(long, value_name = "PATH")]
    original: Option<PathBuf>,
    /// Times everything is measured
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    rounds: u32,
    /// Length of one measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    seconds: u64,
    /// Only the work with this in its name; `costs` for what is not speed, `copies` for
    /// copies of a whole volume
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Where to write all numbers
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
}

impl Options {
    /// The same on the command line of another process.
    fn arguments(&self) -> Vec<String> {
        let paths = [
            ("--sheep", &self.sheep),
            ("--dog", &self.dog),
            ("--original", &self.original),
        ];
        let mut all: Vec<String> = paths
            .into_iter()
            .filter_map(|(flag, path)| Some(format!("{flag}={}", path.as_ref()?.display())))
            .collect();
        all.push(format!("--rounds={}", self.rounds));
        all.push(format!("--seconds={}", self.seconds));
        all.push(format!("--only={}", self.only));
        all.push(format!("--json={}", self.json.display()));
        all
    }
}

/// Builds in release mode, measures, and cleans up.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let scratch = Scratch::new(tmpfs()?)?;
    let runner = Runner::new(&scratch)?;
    let arguments = options.arguments();
    let mut line = vec!["run", "--release", "--package=xtask", "--", "bench-here"];
    line.extend(arguments.iter().map(String::as_str));
    runner.cargo(&line, &[], &[])
}

/// A directory on tmpfs.
fn tmpfs() -> anyhow::Result<&'static Path> {
    let directory = Path::new(TMPFS);
    let there = statfs(directory).with_context(|| TMPFS.to_owned())?;
    ensure!(
        there.filesystem_type() == TMPFS_MAGIC,
        "{TMPFS} is no tmpfs: a disk would be measured"
    );
    Ok(directory)
}

/// The measurement that [`run`] starts; [`run`] removes its temporary directory.
pub(crate) fn run_here(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rounds > 0 && options.seconds > 0, "nothing to do");
    let directory = env::temp_dir();
    // The clusters: a real one if its daemon is found, and an embedded one.
    let programs = RealSheep::find(options.sheep.as_deref(), options.dog.as_deref())?;
    let mut results = Results::default();
    let mut testbeds = Vec::new();
    match &programs {
        Some(programs) => testbeds.push(Testbed::real(&directory, programs)?),
        None => results.missing("a `sheep` on PATH or given with --sheep"),
    }
    testbeds.push(Testbed::embedded(&directory)?);
    // The programs under measurement on these clusters, and those without a cluster.
    let mut targets = Vec::new();
    for testbed in &testbeds {
        targets.extend(testbed.targets()?);
    }
    if let Some(testbed) = testbeds.first().filter(|_| programs.is_some()) {
        match target::original(options.original.as_deref())? {
            Some(program) => targets.push(testbed.original(&program)?),
            None => results.missing("the C sheepfs on PATH or given with --original"),
        }
    }
    target::others(&directory, &mut targets, &mut results)?;

    // Each round measures all targets, so that a slow phase of the machine affects all.
    let time = Duration::from_secs(options.seconds);
    let chosen: Vec<&Work> = work::ALL
        .iter()
        .filter(|work| work.name.contains(&options.only))
        .collect();
    for round in 1..=options.rounds {
        for work in &chosen {
            eprintln!("round {round} of {}: {}", options.rounds, work.name);
            for target in targets.iter().filter(|some| some.does(work)) {
                let measured = target.measure(work, time);
                results.add(work, target.name(), measured);
            }
        }
    }
    if "copies".contains(&options.only) {
        costs::copies(&testbeds[0], &mut results)?;
    }
    // Memory, times of listing and attaching, and file descriptors.
    if "costs".contains(&options.only) {
        costs::measure(&testbeds[0], &mut results)?;
    }
    // Mounts end before their clusters, and both before the report.
    drop(targets);
    drop(testbeds);
    println!("{results}");
    let json = serde_json::to_string_pretty(&results.json())?;
    let path = root().join(&options.json);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&path, json).with_context(|| path.display().to_string())?;
    if results.failures() > 0 {
        bail!("{} measurements of sheepfs failed", results.failures());
    }
    Ok(())
}
