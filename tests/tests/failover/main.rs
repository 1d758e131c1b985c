//! Failover under the load of 16 fio jobs that verify their data: no error, no wrong
//! byte, only a pause, which each test prints.

use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use sheep_embedded::Fault;
use tempfile::TempDir;
use tests::{EmbeddedSheep, Fio, Mounted, outage};

mod hosts;
mod nodes;
mod packet_loss;

use nodes::Nodes;

/// Interval between two faults.
const BETWEEN: Duration = Duration::from_secs(1);
/// Interval between two switches of the gateway.
const BETWEEN_MOVES: Duration = Duration::from_millis(50);

#[test]
fn failover_through_gateways_killed_in_turn() -> anyhow::Result<()> {
    let mut nodes = Nodes::start(3)?;
    let mounted = Mounted::start_with(&["--address", &nodes.address(0)])?;
    let volume = mounted.create("failover", "32M object_size=1M")?;
    let mut fio = Fio::sixteen_jobs(&volume, 8)?;
    for node in [0, 1, 2, 0] {
        ensure!(
            !fio.ends_within(BETWEEN)?,
            "fio ended before node {node} died"
        );
        nodes.kill(node);
        ensure!(
            !fio.ends_within(BETWEEN)?,
            "fio ended after node {node} died"
        );
        nodes.start_again(node)?;
    }
    fio.report("gateways that die one after another")
}

#[test]
fn failover_by_switching_gateway_under_load() -> anyhow::Result<()> {
    let nodes = Nodes::start(2)?;
    let mounted = Mounted::start_with(&["--address", &nodes.address(0)])?;
    let volume = mounted.create("moved", "32M object_size=1M")?;
    let mut fio = Fio::sixteen_jobs(&volume, 6)?;
    let mut moves = 0;
    while !fio.ends_within(BETWEEN_MOVES)? {
        moves += 1;
        mounted.command("config/sheep_info", nodes.address(moves % 2))?;
        let known = mounted.report("config/sheep_info")?;
        ensure!(known.trim_end() == nodes.address(moves % 2), "{known}");
    }
    ensure!(moves > 1, "fio ended too soon");
    fio.report(&format!("{moves} changes of the gateway"))
}

#[test]
fn timeout_is_not_reached_on_slow_network() -> anyhow::Result<()> {
    let nodes = Nodes::start(1)?;
    let server = nodes.server(0)?;
    let random = std::sync::Mutex::new(tests::seeded());
    server.inject(move |_| {
        let mut random = random
            .lock()
            .expect("drawing random numbers does not panic");
        let micros = random.u64(0..40_000);
        Some(match random.bool() {
            true => Fault::Delay(Duration::from_micros(micros)),
            false => Fault::DelayResponse(Duration::from_micros(micros)),
        })
    });
    let mounted = Mounted::start_with(&["--address", &nodes.address(0)])?;
    let volume = mounted.create("slow", "32M object_size=1M")?;
    Fio::sixteen_jobs(&volume, 4)?.report("answers up to 40 ms late")
}

#[test]
fn reconnect_after_whole_cluster_restarts_under_load() -> anyhow::Result<()> {
    let directory = TempDir::with_prefix("sheepfs-test-")?;
    let mut sheep = EmbeddedSheep::start(directory.path())?;
    let mounted = Mounted::start_with(&["--address", &sheep.address()])?;
    let volume = mounted.create("whole", "32M object_size=1M")?;
    let mut fio = Fio::sixteen_jobs(&volume, 6)?;
    ensure!(!fio.ends_within(BETWEEN)?, "fio ended too soon");
    sheep.kill()?;
    ensure!(!fio.ends_within(outage())?, "fio ended without a sheep");
    sheep.start_again()?;
    fio.report("a cluster that is away")
}

#[test]
fn timeout_is_not_reached_while_gateway_is_stopped() -> anyhow::Result<()> {
    let directory = TempDir::with_prefix("sheepfs-test-")?;
    let sheep = EmbeddedSheep::start(directory.path())?;
    let mounted = Mounted::start_with(&["--address", &sheep.address()])?;
    let volume = mounted.create("stopped", "32M object_size=1M")?;
    let mut fio = Fio::sixteen_jobs(&volume, 6)?;
    ensure!(!fio.ends_within(BETWEEN)?, "fio ended too soon");
    sheep.signal(Signal::SIGSTOP)?;
    let ended = fio.ends_within(outage());
    sheep.signal(Signal::SIGCONT)?;
    ensure!(!ended?, "fio ended while the sheep was stopped");
    fio.report("a gateway that is stopped")
}
