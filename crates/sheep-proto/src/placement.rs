//! Consistent hashing: which nodes hold an object.
//!
//! Each node has many points on a ring of 64-bit hashes. An object belongs to the
//! nodes of the points that follow its own hash, at most one node per zone. All nodes
//! and clients compute the same ring from the node list. Source: placement 1, checked
//! against objects of live clusters.

use std::net::SocketAddr;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::hash::{self, next_point, object_point};
use crate::id::Oid;
use crate::limits::{
    DISK_NODE_RECORD_LEN, DISKS_PER_NODE, MAX_HOLDERS, MAX_RING_POINTS, NODE_RECORD_LEN,
};
use crate::node::NodeRecord;

/// One disk of a node, 16 bytes. Source: placement 1.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct NodeDisk {
    /// Identity of the disk, 0 for an unused entry.
    pub id: U64,
    /// Bytes of the disk.
    pub space: U64,
}

/// A node with its disks, 592 bytes: what daemons send that place objects by disk.
///
/// Source: placement 1.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DiskNodeRecord {
    /// The node. Its `nr_vnodes` is the number of disks.
    pub node: NodeRecord,
    /// Its disks.
    pub disks: [NodeDisk; DISKS_PER_NODE],
}

/// The ring of a cluster's nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Sorted by hash.
    points: Vec<Point>,
    nodes: Vec<Node>,
    /// How many nodes can hold an object.
    zones: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    hash: u64,
    /// Index of the node in the ring.
    node: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    address: SocketAddr,
    zone: u32,
}

impl Ring {
    /// The ring of a GET_NODE_LIST payload with `node_count` records. It is empty when
    /// no node holds objects.
    ///
    /// # Errors
    /// [`Malformed`] when the records are of no known size, or when they have more
    /// points than any cluster: then the holders cannot be computed.
    pub fn parse(payload: &[u8], node_count: usize) -> Result<Self, Malformed> {
        let malformed = |what| Malformed::new("node list", what);
        let record_len = payload.len().checked_div(node_count).unwrap_or(0);
        let mut ring = Self::default();
        match record_len {
            _ if record_len * node_count != payload.len() => {
                return Err(malformed("a record is cut off"));
            }
            NODE_RECORD_LEN => {
                for record in NodeRecord::parse_list(payload)? {
                    ring.add(
                        record,
                        &[(ring_seed(record), record.nr_vnodes.get().into())],
                    )?;
                }
            }
            DISK_NODE_RECORD_LEN => {
                let records = <[DiskNodeRecord]>::ref_from_bytes(payload)
                    .map_err(|_| malformed("a record is cut off"))?;
                for record in records {
                    let disks = record.disks.iter().filter(|disk| disk.id.get() != 0);
                    let points: Vec<_> = disks
                        .map(|disk| disk_points(ring_seed(&record.node), disk))
                        .collect();
                    ring.add(&record.node, &points)?;
                }
            }
            _ if payload.is_empty() => {}
            _ => return Err(malformed("the records are of no known size")),
        }
        ring.points.sort_unstable();
        let mut zones: Vec<_> = ring.nodes.iter().map(|node| node.zone).collect();
        zones.sort_unstable();
        zones.dedup();
        ring.zones = zones.len().min(MAX_HOLDERS);
        Ok(ring)
    }

    /// Adds the points of a node: for each pair the hashes that follow the first, as
    /// many as the second.
    fn add(&mut self, record: &NodeRecord, points: &[(u64, u64)]) -> Result<(), Malformed> {
        let too_many = || Malformed::new("node list", "the nodes have too many ring points");
        let node = u16::try_from(self.nodes.len()).map_err(|_| too_many())?;
        let room = MAX_RING_POINTS - self.points.len();
        let count = points
            .iter()
            .try_fold(0_u64, |sum, (_seed, count)| sum.checked_add(*count))
            .and_then(|sum| usize::try_from(sum).ok())
            .filter(|&sum| sum <= room)
            .ok_or_else(too_many)?;
        if count == 0 {
            return Ok(());
        }
        for &(seed, count) in points {
            let mut hash = seed;
            for _ in 0..count {
                hash = next_point(hash);
                self.points.push(Point { hash, node });
            }
        }
        self.nodes.push(Node {
            address: record.address(),
            zone: record.zone.get(),
        });
        Ok(())
    }

    /// True if no node holds objects.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The nodes that hold objects, in the order of the node list.
    pub fn nodes(&self) -> impl Iterator<Item = SocketAddr> {
        self.nodes.iter().map(|node| node.address)
    }

    /// All nodes that may hold `oid`, in the order of its copies or strips. The holders
    /// of an object with n copies (or data and parity strips) are the first n; the
    /// iterator ends earlier when there are fewer zones.
    pub fn holders(&self, oid: Oid) -> Holders<'_> {
        let hash = object_point(oid);
        Holders {
            ring: self,
            next: self.points.partition_point(|point| point.hash < hash),
            zones: [0; MAX_HOLDERS],
            found: 0,
        }
    }
}

/// Hash from which the points of a node follow.
fn ring_seed(record: &NodeRecord) -> u64 {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&record.addr);
    bytes[16..].copy_from_slice(record.port.as_bytes());
    hash::placement(&bytes)
}

/// Hash from which the points of a disk follow, and their number: one per 4 GiB.
fn disk_points(seed: u64, disk: &NodeDisk) -> (u64, u64) {
    const BYTES_PER_POINT: u64 = 1 << 32;
    let hash = hash::extend(disk.id.get(), &seed.to_le_bytes());
    (hash, disk.space.get().div_ceil(BYTES_PER_POINT))
}

/// The holders of an object; see [`Ring::holders`].
#[derive(Clone, Debug)]
pub struct Holders<'a> {
    ring: &'a Ring,
    /// Index of the next point.
    next: usize,
    /// The zones of the nodes found so far.
    zones: [u32; MAX_HOLDERS],
    found: usize,
}

impl Iterator for Holders<'_> {
    type Item = SocketAddr;

    fn next(&mut self) -> Option<SocketAddr> {
        // There is a point of a zone that is not found yet.
        if self.found == self.ring.zones {
            return None;
        }
        loop {
            let point = self.ring.points.get(self.next);
            let point = point.unwrap_or_else(|| {
                self.next = 0;
                &self.ring.points[0]
            });
            self.next += 1;
            let node = self.ring.nodes[usize::from(point.node)];
            if !self.zones[..self.found].contains(&node.zone) {
                self.zones[self.found] = node.zone;
                self.found += 1;
                return Some(node.address);
            }
        }
    }
}
