//! What is known of the cluster: where to look for a sheep, which one is the
//! gateway, and which cluster it belongs to. No I/O.

use std::net::SocketAddr;

use sheep_proto::Malformed;
use sheep_proto::cluster::ClusterInfoHeader;
use sheep_proto::node::NodeRecord;

use crate::address::GatewayAddress;

/// Most nodes of the cluster that are remembered for failover.
const MAX_NODES: usize = 64;

/// The addresses of a cluster, and its identity.
#[derive(Debug)]
pub(crate) struct Topology {
    /// The addresses from the configuration, never empty.
    seeds: Vec<GatewayAddress>,
    cluster: Membership,
    /// The address of the gateway in use, or of the one being tried.
    gateway: GatewayAddress,
    /// The gateway last connected to.
    peer: Option<SocketAddr>,
    generation: Generation,
}

/// Counts the calls of `switch_gateway`. Connections and queries of an earlier
/// generation are discarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation(u64);

/// What a sheep reports about its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    /// When the cluster was formatted, which identifies it; 0 when it is not
    /// formatted, or when the sheep is too old to report it.
    ctime: u64,
    nodes: Vec<SocketAddr>,
}

/// Why a sheep cannot be the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// The gateway was switched in between.
    Outdated,
    /// The sheep is up, but in another cluster.
    OtherCluster,
}

impl Topology {
    /// # Panics
    /// Without any seed.
    pub(crate) fn new(seeds: Vec<GatewayAddress>) -> Self {
        let gateway = seeds
            .first()
            .expect("a client needs the address of a sheep");
        Self {
            gateway: gateway.clone(),
            seeds,
            cluster: Membership::default(),
            peer: None,
            generation: Generation::default(),
        }
    }

    /// The first address of the configuration.
    pub(crate) fn seed(&self) -> &GatewayAddress {
        &self.seeds[0]
    }

    /// The address of the gateway in use, or of the one being tried.
    pub(crate) fn gateway(&self) -> &GatewayAddress {
        &self.gateway
    }

    /// The node that is the gateway; `None` before the first connection.
    pub(crate) fn gateway_node(&self) -> Option<SocketAddr> {
        self.peer
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Where to look for a gateway, in this order: the last one, the seeds, the
    /// nodes of the cluster. Each once, since a dead host takes its time whenever
    /// it is tried.
    pub(crate) fn candidates(&self) -> Vec<GatewayAddress> {
        let last = self.peer.map(GatewayAddress::from);
        let nodes = self.cluster.nodes.iter().map(|&node| node.into());
        let mut candidates = Vec::new();
        for address in last
            .into_iter()
            .chain(self.seeds.iter().cloned())
            .chain(nodes)
        {
            if !candidates.contains(&address) {
                candidates.push(address);
            }
        }
        candidates
    }

    /// Notes that `address` is being tried.
    pub(crate) fn try_gateway(&mut self, generation: Generation, address: &GatewayAddress) {
        if generation == self.generation {
            self.gateway = address.clone();
        }
    }

    /// Makes a sheep the gateway; `membership` is its first response, and `None`
    /// for one more connection to the same sheep.
    ///
    /// A node list may contain addresses that belong to another host here, so a
    /// sheep of another cluster is rejected.
    pub(crate) fn connected(
        &mut self,
        generation: Generation,
        peer: SocketAddr,
        membership: Option<Membership>,
    ) -> Result<(), Rejected> {
        if generation != self.generation {
            return Err(Rejected::Outdated);
        }
        if let Some(membership) = membership {
            if membership.is_other_than(&self.cluster) {
                return Err(Rejected::OtherCluster);
            }
            self.cluster.update(membership);
        }
        self.peer = Some(peer);
        Ok(())
    }

    /// Takes over what the gateway reports now. True when the cluster was
    /// formatted since.
    pub(crate) fn observe(&mut self, generation: Generation, membership: Membership) -> bool {
        if generation != self.generation {
            return false;
        }
        let was_formatted = membership.is_other_than(&self.cluster);
        self.cluster.update(membership);
        was_formatted
    }

    /// Makes a sheep the gateway because the user says so, whatever its cluster.
    pub(crate) fn switch_gateway(
        &mut self,
        address: GatewayAddress,
        peer: SocketAddr,
        membership: Membership,
    ) {
        self.seeds = vec![address.clone()];
        self.gateway = address;
        self.peer = Some(peer);
        self.cluster = membership;
        self.generation.0 += 1;
    }
}

impl Membership {
    /// Reads the payload of a CLUSTER_INFO response.
    ///
    /// # Errors
    /// [`Malformed`] for one that no sheep sends.
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let (header, nodes) = ClusterInfoHeader::parse(payload)?;
        Ok(Self {
            ctime: header.ctime.get(),
            nodes: nodes
                .iter()
                .map(NodeRecord::address)
                .take(MAX_NODES)
                .collect(),
        })
    }

    /// True when both clusters are known, and differ.
    fn is_other_than(&self, known: &Self) -> bool {
        self.ctime != 0 && known.ctime != 0 && self.ctime != known.ctime
    }

    /// Takes over what is new, and keeps what a sheep left out.
    fn update(&mut self, new: Self) {
        if new.ctime != 0 {
            self.ctime = new.ctime;
        }
        if !new.nodes.is_empty() {
            self.nodes = new.nodes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 7000))
    }

    fn membership(ctime: u64, nodes: &[u8]) -> Membership {
        Membership {
            ctime,
            nodes: nodes.iter().map(|&number| node(number)).collect(),
        }
    }

    /// Connected to node 2, with nodes 1 and 3 as seeds.
    fn connected() -> Topology {
        let mut topology = Topology::new(vec![node(1).into(), node(3).into()]);
        let first = Some(membership(7, &[2, 3, 4]));
        let generation = topology.generation();
        topology.connected(generation, node(2), first).unwrap();
        topology
    }

    fn candidates(topology: &Topology) -> Vec<GatewayAddress> {
        topology.candidates()
    }

    fn addresses(nodes: &[u8]) -> Vec<GatewayAddress> {
        nodes.iter().map(|&number| node(number).into()).collect()
    }

    #[test]
    fn failover_tries_last_gateway_then_seeds_then_nodes() {
        let seeds = Topology::new(addresses(&[1, 3]));
        assert_eq!(candidates(&seeds), addresses(&[1, 3]));
        assert_eq!(candidates(&connected()), addresses(&[2, 1, 3, 4]));
    }

    #[test]
    fn failover_rejects_a_sheep_of_another_cluster() {
        let mut topology = connected();
        let generation = topology.generation();
        let mut connect = |ctime| {
            let membership = Some(membership(ctime, &[]));
            topology.connected(generation, node(4), membership)
        };
        assert_eq!(connect(8), Err(Rejected::OtherCluster));
        // Too old to report it, and the same cluster.
        assert_eq!(connect(0), Ok(()));
        assert_eq!(connect(7), Ok(()));
        // Nothing is forgotten because one sheep did not report it.
        assert_eq!(candidates(&topology), addresses(&[4, 1, 3, 2]));
    }

    #[test]
    fn gateway_that_was_reformatted_is_reported_once() {
        let mut topology = connected();
        let generation = topology.generation();
        assert!(!topology.observe(generation, membership(7, &[5])));
        assert!(topology.observe(generation, membership(8, &[5])));
        assert!(!topology.observe(generation, membership(8, &[5])));
        assert_eq!(candidates(&topology), addresses(&[2, 1, 3, 5]));
    }

    #[test]
    fn gateway_switch_outdates_everything_before_it() {
        let mut topology = connected();
        let before = topology.generation();
        topology.switch_gateway(node(9).into(), node(9), membership(8, &[9]));
        assert_eq!(
            topology.connected(before, node(1), None),
            Err(Rejected::Outdated)
        );
        topology.try_gateway(before, &node(1).into());
        assert!(!topology.observe(before, membership(7, &[1])));
        assert_eq!(topology.gateway(), &node(9).into());
        assert_eq!(topology.seed(), &node(9).into());
        assert_eq!(topology.gateway_node(), Some(node(9)));
        assert_eq!(candidates(&topology), addresses(&[9]));
    }
}
