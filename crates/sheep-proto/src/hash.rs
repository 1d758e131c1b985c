//! The FNV-1a hashes of names, attributes and placement.
//!
//! Written by hand because the values must match the cluster's bit for bit.
//! Source: protocol 3.2.

use crate::id::{Oid, Vid};

const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

pub(crate) fn extend(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    })
}

/// FNV-1a with 64 bits.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    extend(OFFSET_BASIS, bytes)
}

/// The VID a server tries first for a VDI called `name` (without its NUL).
pub fn first_vid(name: &[u8]) -> Vid {
    Vid::from_low_bits(fnv1a(name))
}

/// The attribute id of `key` on a VDI, from the NUL-padded fields.
pub fn attribute_id(name: &[u8; 256], tag: &[u8; 256], snap_id: u32, key: &[u8; 256]) -> u32 {
    let hash = [name.as_slice(), tag, &snap_id.to_le_bytes(), key]
        .into_iter()
        .fold(OFFSET_BASIS, extend);
    let [a, b, c, d, ..] = hash.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The placement hash: FNV-1a, then once more over its own eight bytes.
pub fn placement(bytes: &[u8]) -> u64 {
    next_point(fnv1a(bytes))
}

/// The ring point that follows `hash`.
pub fn next_point(hash: u64) -> u64 {
    extend(hash, &hash.to_le_bytes())
}

/// Where an object falls on the ring of nodes.
pub fn object_point(oid: Oid) -> u64 {
    placement(&oid.raw().to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ObjectIndex;

    #[test]
    fn name_hash_equals_vid_of_fresh_server() {
        let long = [b'x'; 255];
        let vectors: [(&[u8], u64, u32); 11] = [
            (b"a", 0xaf63_dc4c_8601_ec8c, 0x01_ec8c),
            (b"0", 0xaf63_ad4c_8601_9caf, 0x01_9caf),
            (b"demo", 0xa5e4_1b67_4276_d396, 0x76_d396),
            (b"big", 0x0054_1119_134f_d259, 0x4f_d259),
            (b"test", 0xf9e6_e6ef_197c_2b25, 0x7c_2b25),
            (b"alpha", 0x8ac6_25bb_85ed_202b, 0xed_202b),
            (b"vm-disk-1", 0x58dd_7170_146c_b51c, 0x6c_b51c),
            (b"ubuntu-22.04", 0x3f16_9d96_f76c_35cd, 0x6c_35cd),
            ("日本".as_bytes(), 0x121d_7e35_a6d3_ce91, 0xd3_ce91),
            (&long, 0xdff6_5832_4c99_c7bf, 0x99_c7bf),
            (b"", 0xcbf2_9ce4_8422_2325, 0x22_2325),
        ];
        for (name, fnv, vid) in vectors {
            assert_eq!(fnv1a(name), fnv);
            assert_eq!(first_vid(name).get(), vid);
        }
    }

    #[test]
    fn attributes_hash_over_the_padded_fields() {
        let (mut name, mut key) = ([0; 256], [0; 256]);
        name[..3].copy_from_slice(b"att");
        key[..2].copy_from_slice(b"k1");
        assert_eq!(attribute_id(&name, &[0; 256], 0, &key), 0xc323_bb4c);
    }

    #[test]
    fn placement_matches_the_servers_ring() {
        assert_eq!(placement(b""), 0xf4ed_18eb_f16a_a5cc);
        assert_eq!(placement(b"a"), 0x35f3_4483_88db_68d5);
        assert_eq!(placement(b"foobar"), 0xf0f3_71f0_8d5f_72e8);
        let oid = Oid::data(Vid::new(0xed202b).unwrap(), ObjectIndex(0));
        assert_eq!(object_point(oid), 0x3fa5_a589_cd12_682c);
        let mut node = [0; 18];
        node[12..16].copy_from_slice(&[127, 0, 0, 1]);
        node[16..].copy_from_slice(&7110u16.to_le_bytes());
        assert_eq!(placement(&node), 0x50f2_94c2_1ff8_6085);
    }
}
