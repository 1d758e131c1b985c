//! `cargo xtask`: what people and CI do with this workspace.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod ci;
mod dependencies;
mod edges;
mod fuzz;
mod integration;
mod leftovers;
mod man;
mod modules;
mod requirements;
mod runner;
mod step;
mod tidy;
mod words;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The workspace's chores")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Compare speed, memory and sockets with the wire and with other programs
    Bench(bench::Options),
    /// What `bench` runs, built for speed
    #[command(hide = true)]
    BenchHere(bench::Options),
    /// What `bench` mounts to see what the kernel costs
    #[command(hide = true)]
    BenchEmpty { mountpoint: PathBuf, size: u64 },
    /// Everything a change has to pass: format, clippy, tests, docs, tidy
    Ci,
    /// Run the fuzz targets, each for a while
    Fuzz(fuzz::Options),
    /// Start a local cluster, run the whole-system tests on it, stop it
    Integration(integration::Options),
    /// Write the man pages and the shell completions
    Man,
    /// Check what the compiler does not: crate and module edges, licences, file headers, man pages, completions
    Tidy {
        /// Print the module graph of every crate instead
        #[arg(long)]
        graph: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Bench(options) => bench::run(&options),
        Task::BenchHere(options) => bench::run_here(&options),
        Task::BenchEmpty { mountpoint, size } => bench::serve_empty(&mountpoint, size),
        Task::Ci => ci::run(),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Integration(options) => integration::run(&options),
        Task::Man => man::write(),
        Task::Tidy { graph: true } => modules::print(),
        Task::Tidy { graph: false } => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
