//! A member of the cluster as node lists and epoch records show it.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::limits::NODE_RECORD_LEN;

/// One node, 80 bytes.
///
/// Source: protocol 8.1; `struct sd_node` in sheepdog's `include/internal_proto.h`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct NodeRecord {
    /// Tree links of the server's memory: garbage, ignore and send zero.
    pub links: [u8; 24],
    /// IPv6 address, or IPv4 in the last four bytes after twelve zeros.
    pub addr: [u8; 16],
    /// TCP port.
    pub port: U16,
    /// Separate address for I/O between sheep, zero if none.
    pub io_addr: [u8; 16],
    /// Port to go with it.
    pub io_port: U16,
    /// Padding.
    pub pad: [u8; 4],
    /// Points on the placement ring; 0 for a gateway.
    pub nr_vnodes: U16,
    /// Padding.
    pub pad2: [u8; 2],
    /// Failure domain.
    pub zone: U32,
    /// Bytes of the store.
    pub space: U64,
}

const _: () = assert!(size_of::<NodeRecord>() == NODE_RECORD_LEN);

impl NodeRecord {
    /// A node that listens on `address`.
    ///
    /// An IPv4 address that came from a dual-stack socket (`::ffff:a.b.c.d`) is
    /// recorded as the IPv4 address it is.
    pub fn new(address: SocketAddr, nr_vnodes: u16, zone: u32, space: u64) -> Self {
        let mut addr = [0; 16];
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => addr[12..].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => addr = ip.octets(),
        }
        Self {
            links: [0; 24],
            addr,
            port: address.port().into(),
            io_addr: [0; 16],
            io_port: U16::ZERO,
            pad: [0; 4],
            nr_vnodes: nr_vnodes.into(),
            pad2: [0; 2],
            zone: zone.into(),
            space: space.into(),
        }
    }

    /// Address and port where clients reach the node.
    ///
    /// The record cannot tell `::1` from 0.0.0.1. Nobody listens on the latter, so
    /// it is read as the former, although the C programs print the latter.
    pub fn address(&self) -> SocketAddr {
        let ip = match self.addr {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] if [a, b, c, d] != [0, 0, 0, 1] => {
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            octets => IpAddr::V6(Ipv6Addr::from(octets)),
        };
        SocketAddr::new(ip, self.port.get())
    }

    /// The records of a GET_NODE_LIST payload.
    ///
    /// # Errors
    /// [`Malformed`] when a record is cut off.
    pub fn parse_list(payload: &[u8]) -> Result<&[Self], Malformed> {
        <[Self]>::ref_from_bytes(payload)
            .map_err(|_| Malformed::new("node list", "a record is cut off"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_record() {
        for text in ["127.0.0.1:7149", "[2001:db8::1]:7000", "[::1]:7000"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(NodeRecord::new(address, 128, 0, 0).address(), address);
        }
    }

    #[test]
    fn node_address_of_dual_stack_socket_is_ipv4() {
        let address: SocketAddr = "[::ffff:192.0.2.7]:7000".parse().unwrap();
        let record = NodeRecord::new(address, 128, 0, 0);
        assert_eq!(
            record.addr,
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7]
        );
        assert_eq!(record.address(), "192.0.2.7:7000".parse().unwrap());
    }

    #[test]
    fn node_list_when_truncated_is_refused() {
        assert!(NodeRecord::parse_list(&[0; 81]).is_err());
        assert!(NodeRecord::parse_list(&[]).unwrap().is_empty());
    }
}
