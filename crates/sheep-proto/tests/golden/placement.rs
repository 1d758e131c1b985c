//! The holders of objects, as found on the disks of live clusters.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use sheep_proto::Oid;
use sheep_proto::hash::{object_point, placement};
use sheep_proto::placement::Ring;

use crate::capture::unhex;

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/placement-vectors.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn hash(value: &Value) -> u64 {
    u64::from_str_radix(text(value), 16).unwrap()
}

fn addresses(values: &[Value]) -> Vec<SocketAddr> {
    let addresses = values.iter().map(|value| text(value).parse().unwrap());
    addresses.collect()
}

#[test]
fn placement_hashes_are_those_of_the_cluster() {
    let hashes = &vectors()["hash"];
    for pair in list(&hashes["sd_hash_of_text"]) {
        assert_eq!(placement(text(&pair[0]).as_bytes()), hash(&pair[1]));
    }
    for pair in list(&hashes["sd_hash_of_oid"]) {
        assert_eq!(object_point(Oid::from_raw(hash(&pair[0]))), hash(&pair[1]));
    }
}

#[test]
fn placement_of_every_object_is_that_of_the_cluster() {
    let mut checked = 0;
    for (name, cluster) in vectors()["clusters"].as_object().unwrap() {
        let payload = unhex(text(&cluster["node_list_hex"]));
        let nodes = list(&cluster["nodes"]);
        let ring = Ring::parse(&payload, nodes.len()).unwrap();
        for object in list(&cluster["objects"]) {
            let oid = Oid::from_raw(hash(&object["oid"]));
            let holders = addresses(list(&object["holders"]));
            let copies = usize::try_from(object["copies"].as_u64().unwrap()).unwrap();
            let found: Vec<_> = ring.holders(oid).take(copies).collect();
            match text(&object["checked"]) {
                "order" => assert_eq!(found, holders, "{name} {oid}"),
                "set" => {
                    let sorted = |mut nodes: Vec<_>| {
                        nodes.sort_unstable();
                        nodes
                    };
                    assert_eq!(sorted(found), sorted(holders), "{name} {oid}");
                }
                other => panic!("{other}"),
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 186);
}
