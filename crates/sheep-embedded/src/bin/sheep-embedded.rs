//! `sheep-embedded`: a sheep of one node as a program.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sheep_embedded::{Config, Server, StoreKind};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[path = "../cli.rs"]
mod cli;

use cli::Cli;

/// Exit status of a program that ended as a sheep of its generation does.
const DIED: u8 = 70;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match run(Cli::parse()) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(death)) => {
            eprintln!("sheep-embedded: {death}");
            ExitCode::from(DIED)
        }
        Err(error) => {
            eprintln!("sheep-embedded: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn settings(cli: Cli) -> anyhow::Result<Config> {
    let store = match cli.dir {
        Some(directory) => StoreKind::Directory(directory),
        None => {
            if !cli.memory {
                tracing::warn!("no --dir: everything is gone when this program ends");
            }
            StoreKind::Memory
        }
    };
    let mut config = Config::new(store);
    config.listen = cli.listen;
    config.sync = !cli.nosync;
    config.format_if_new = !cli.unformatted;
    config.generation = cli.generation.parse()?;
    config.object_cache = cli.object_cache;
    Ok(config)
}

/// As many connections as the server serves need more descriptors than most
/// shells give at first.
fn raise_descriptor_limit() -> nix::Result<()> {
    let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

#[tokio::main]
async fn run(cli: Cli) -> anyhow::Result<Option<String>> {
    raise_descriptor_limit().context("cannot raise the limit of open files")?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let server = Server::start(settings(cli)?).await?;
    let address = server.local_address();
    if !address.ip().is_loopback() {
        tracing::warn!(
            "no authentication: any client that reaches {address} may read, write and delete everything"
        );
    }
    tracing::info!("listening on {address}");
    tokio::select! {
        _ = terminated.recv() => tracing::info!("stopping on SIGTERM"),
        _ = interrupted.recv() => tracing::info!("stopping on SIGINT"),
        () = server.shutdown_requested() => match server.death() {
            Some(death) => return Ok(Some(death)),
            None => tracing::info!("stopping as a client asked"),
        },
    }
    server.shutdown().await.context("the last sync failed")?;
    Ok(None)
}
