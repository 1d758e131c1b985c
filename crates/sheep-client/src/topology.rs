//! What is known of the cluster: where to look for a sheep, which one is the
//! gateway, and which cluster it belongs to. No I/O.

use std::net::SocketAddr;

use sheep_proto::Generation;
use sheep_proto::generation::Detected;
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
    /// What the gateway last connected to is.
    detected: Option<Detected>,
    /// The generation of the cluster, once it is certain.
    decided: Option<Generation>,
    /// The address of the gateway in use, or of the one being tried.
    gateway: GatewayAddress,
    /// The gateway last connected to.
    peer: Option<SocketAddr>,
    revision: Revision,
}

/// Counts the calls of `switch_gateway`. Connections and queries of an earlier
/// revision are discarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revision(u64);

/// What a sheep reports about its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    /// When the cluster was formatted, which identifies it; 0 when it is not
    /// formatted, or when the sheep is too old to report it.
    ctime: u64,
    nodes: Vec<SocketAddr>,
}

/// Why a sheep cannot be the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejected {
    /// The gateway was switched in between.
    #[error("the connection is no longer needed")]
    Outdated,
    /// The sheep is up, but in another cluster.
    #[error("this sheep belongs to another cluster")]
    OtherCluster,
    /// Not a sheep, or one of releases that are not known.
    #[error("it is no sheep of 0.7 to 1.0: it refuses the versions of all of them")]
    UnknownGeneration,
    /// The sheep is of another generation than the cluster it claims to be of.
    #[error(
        "this is sheep {found} and the cluster is {expected}: a cluster of both destroys data, \
         upgrade or stop this node"
    )]
    OtherGeneration {
        found: Detected,
        expected: Generation,
    },
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
            detected: None,
            decided: None,
            peer: None,
            revision: Revision::default(),
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

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// The generation of the cluster as far as it is known; `None` before the first
    /// connection.
    pub(crate) fn detected(&self) -> Option<Detected> {
        self.decided.map(Detected::Certain).or(self.detected)
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
    pub(crate) fn try_gateway(&mut self, revision: Revision, address: &GatewayAddress) {
        if revision == self.revision {
            self.gateway = address.clone();
        }
    }

    /// Makes a sheep the gateway; `membership` is what it reports first, and `None`
    /// for one more connection to the same sheep.
    ///
    /// A node list may contain addresses that belong to another host here, so a
    /// sheep of another cluster is rejected. So is one of another generation: 0.9
    /// joins a cluster of 0.8 without a word, although they cannot work together.
    pub(crate) fn connected(
        &mut self,
        revision: Revision,
        peer: SocketAddr,
        found: Detected,
        membership: Option<Membership>,
    ) -> Result<(), Rejected> {
        if revision != self.revision {
            return Err(Rejected::Outdated);
        }
        if let Some(membership) = &membership
            && membership.is_other_than(&self.cluster)
        {
            return Err(Rejected::OtherCluster);
        }
        self.check_generation(found)?;
        if let Some(membership) = membership {
            self.cluster.update(membership);
        }
        self.peer = Some(peer);
        self.learn_generation(found);
        Ok(())
    }

    /// Checks that a sheep is of the cluster's generation.
    pub(crate) fn check_generation(&self, found: Detected) -> Result<(), Rejected> {
        match self.decided {
            Some(expected) if !found.may_be(expected) => {
                Err(Rejected::OtherGeneration { found, expected })
            }
            _ => Ok(()),
        }
    }

    fn learn_generation(&mut self, found: Detected) {
        self.detected = Some(found);
        if let Detected::Certain(generation) = found {
            self.decided = Some(generation);
        }
    }

    /// Takes over what the gateway reports now. True when the cluster was
    /// formatted since.
    pub(crate) fn observe(&mut self, revision: Revision, membership: Membership) -> bool {
        if revision != self.revision {
            return false;
        }
        let was_formatted = membership.is_other_than(&self.cluster);
        self.cluster.update(membership);
        was_formatted
    }

    /// Makes a sheep the gateway because the user says so, whatever its cluster.
    ///
    /// # Errors
    /// `OtherGeneration` when it is the same cluster.
    pub(crate) fn switch_gateway(
        &mut self,
        address: GatewayAddress,
        peer: SocketAddr,
        found: Detected,
        membership: Membership,
    ) -> Result<(), Rejected> {
        if membership.ctime == 0 || membership.ctime != self.cluster.ctime {
            self.decided = None;
        }
        self.check_generation(found)?;
        self.learn_generation(found);
        self.seeds = vec![address.clone()];
        self.gateway = address;
        self.peer = Some(peer);
        self.cluster = membership;
        self.revision.0 += 1;
        Ok(())
    }
}

impl Membership {
    /// The cluster that was formatted at `ctime`, with its nodes.
    pub(crate) fn new(ctime: u64, nodes: &[NodeRecord]) -> Self {
        Self {
            ctime,
            nodes: nodes
                .iter()
                .map(NodeRecord::address)
                .take(MAX_NODES)
                .collect(),
        }
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

    const V1_0: Detected = Detected::Certain(Generation::V1_0);

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
        let revision = topology.revision();
        topology.connected(revision, node(2), V1_0, first).unwrap();
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
        let revision = topology.revision();
        let mut connect = |ctime| {
            let membership = Some(membership(ctime, &[]));
            topology.connected(revision, node(4), V1_0, membership)
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
        let revision = topology.revision();
        assert!(!topology.observe(revision, membership(7, &[5])));
        assert!(topology.observe(revision, membership(8, &[5])));
        assert!(!topology.observe(revision, membership(8, &[5])));
        assert_eq!(candidates(&topology), addresses(&[2, 1, 3, 5]));
    }

    #[test]
    fn gateway_switch_outdates_everything_before_it() {
        let mut topology = connected();
        let before = topology.revision();
        topology
            .switch_gateway(node(9).into(), node(9), V1_0, membership(8, &[9]))
            .unwrap();
        assert_eq!(
            topology.connected(before, node(1), V1_0, None),
            Err(Rejected::Outdated)
        );
        topology.try_gateway(before, &node(1).into());
        assert!(!topology.observe(before, membership(7, &[1])));
        assert_eq!(topology.gateway(), &node(9).into());
        assert_eq!(topology.seed(), &node(9).into());
        assert_eq!(topology.gateway_node(), Some(node(9)));
        assert_eq!(candidates(&topology), addresses(&[9]));
    }

    #[test]
    fn failover_rejects_a_sheep_of_another_generation() {
        use Generation::{V0_7, V0_8, V0_9};
        let certain = Detected::Certain;
        for (first, found, is_accepted) in [
            (certain(V0_9), certain(V0_9), true),
            (certain(V0_9), certain(V0_8), false),
            (certain(V0_8), certain(V0_9), false),
            (certain(V0_8), certain(Generation::V1_0), false),
            // It has not joined yet.
            (certain(V0_9), Detected::Undecided, true),
            (certain(V0_7), Detected::Undecided, false),
            (Detected::Undecided, certain(V0_9), true),
        ] {
            let mut topology = Topology::new(addresses(&[1]));
            let revision = topology.revision();
            let mut connect = |found| topology.connected(revision, node(1), found, None);
            connect(first).unwrap();
            assert_eq!(connect(found).is_ok(), is_accepted, "{first}, then {found}");
            let unchanged = connect(first).is_ok();
            assert!(unchanged || !matches!(first, Detected::Certain(_)));
        }
    }

    #[test]
    fn gateway_switch_accepts_another_generation_only_of_another_cluster() {
        let found = Detected::Certain(Generation::V0_8);
        let switch = |ctime| {
            connected().switch_gateway(node(9).into(), node(9), found, membership(ctime, &[9]))
        };
        assert!(matches!(switch(7), Err(Rejected::OtherGeneration { .. })));
        assert_eq!(switch(8), Ok(()));
    }
}
