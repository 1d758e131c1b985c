//! Command line of `sheep-embedded`; uses only clap and std, because xtask
//! includes this file to render the manual page.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// A sheep of one node, for trying things out.
///
/// Serves the Sheepdog protocol to sheepfs, dog, tgt and any other client of
/// the 1.0 series, from a directory or from memory. Whatever redundancy a VDI
/// asks for, one copy is kept. A new store is formatted at once, with one copy
/// and 4 MiB objects, and ready for use.
///
/// There is no authentication: any client that reaches the port may read, write
/// and delete everything. So it listens on the loopback interface by default.
///
/// SIGTERM, SIGINT and `dog cluster shutdown` end it: requests in flight are
/// answered, everything is made durable, and it exits with 0. Killed at any
/// moment, it loses nothing that was answered.
///
/// Its log goes to the standard error; RUST_LOG chooses what is in it, for
/// example RUST_LOG=debug.
#[derive(Debug, Parser)]
#[command(name = "sheep-embedded", version)]
pub(crate) struct Cli {
    /// Address to listen on.
    ///
    /// With port 0 the system chooses a port; the log names it. On a wildcard
    /// address each client is told the address it connected to.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7000")]
    pub(crate) listen: SocketAddr,

    /// Keep everything in this directory, which is made when it is missing.
    #[arg(long, value_name = "DIR", conflicts_with = "memory")]
    pub(crate) dir: Option<PathBuf>,

    /// Keep everything in memory, up to 1 GiB; it is gone when the program ends. The default.
    #[arg(long)]
    pub(crate) memory: bool,

    /// Answer a write before it is on the disk. A power cut may lose it; a
    /// kill does not.
    #[arg(long)]
    pub(crate) nosync: bool,

    /// Be like the sheep of these releases.
    ///
    /// Older ones lack operations, have other records, and end on some requests: then
    /// this program ends too, with the exit status 70. Where the releases of a generation
    /// differ it is like the worst one. A store stays with the generation that formatted it.
    #[arg(
        long,
        value_name = "VERSION",
        default_value = "1.0",
        value_parser = ["0.7", "0.8", "0.9", "1.0"],
    )]
    pub(crate) generation: String,

    /// Keep an object cache, as `sheep -w` does; only with an older --generation.
    ///
    /// It is in the directory `cache` of DIR, and after a start all of it counts as
    /// not written back.
    #[arg(long)]
    pub(crate) object_cache: bool,

    /// Wait for `dog cluster format` instead of formatting a new store.
    #[arg(long)]
    pub(crate) unformatted: bool,
}
