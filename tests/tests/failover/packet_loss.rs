//! Silent packet loss, as of a pulled cable or a dead switch.

use std::time::Duration;

use anyhow::ensure;
use tests::{Fio, Mounted};

use crate::BETWEEN;
use crate::hosts::{Host, joined_by_a_cable};
use crate::nodes::Nodes;

/// How long packets vanish when they come through again.
const HOLE: Duration = Duration::from_secs(4);

/// Two nodes on the far host, and the near one, where only the first is known.
fn far_away() -> anyhow::Result<(Host, Host, Nodes, Mounted)> {
    let (near, far) = joined_by_a_cable()?;
    let addresses = [2, 3].map(|host| ([10, 0, 0, host], 7000).into());
    let nodes = far.on(|| Nodes::start_on(&addresses))?;
    let mounted = near.on(|| Mounted::start_with(&["--address", &nodes.address(0)]))?;
    Ok((near, far, nodes, mounted))
}

/// Routes packets to the first node to a MAC address without a host.
fn lose(near: &Host) -> anyhow::Result<()> {
    near.ip("neighbour replace 10.0.0.2 lladdr 02:00:00:00:00:01 nud permanent dev near")
}

#[test]
fn failover_packet_loss_is_only_a_pause() -> anyhow::Result<()> {
    let (near, far, _nodes, mounted) = far_away()?;
    let volume = mounted.create("hole", "32M object_size=1M")?;
    let mut fio = Fio::sixteen_jobs(&volume, 14)?;
    ensure!(!fio.ends_within(BETWEEN)?, "fio ended too soon");
    lose(&near)?;
    ensure!(!fio.ends_within(HOLE)?, "fio ended without a sheep");
    near.ip("neighbour del 10.0.0.2 dev near")?;
    ensure!(!fio.ends_within(BETWEEN)?, "fio ended too soon");
    far.ip("link set far down")?;
    ensure!(!fio.ends_within(HOLE)?, "fio ended without a cable");
    far.ip("link set far up")?;
    fio.report("packets that vanish for a while")?;
    mounted.stop()
}

#[test]
fn failover_replaces_host_that_drops_packets() -> anyhow::Result<()> {
    let (near, _far, nodes, mounted) = far_away()?;
    let volume = mounted.create("vanished", "32M object_size=1M")?;
    let mut fio = Fio::sixteen_jobs(&volume, 6)?;
    ensure!(!fio.ends_within(BETWEEN)?, "fio ended too soon");
    lose(&near)?;
    fio.report("a host that vanishes")?;
    let (log, next) = (mounted.log(), nodes.address(1));
    ensure!(log.contains(&format!("connected peer={next}")), "{log}");
    mounted.stop()
}
