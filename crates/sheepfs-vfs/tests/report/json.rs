//! The JSON twins: every field of the text, exactly, and more.

use serde_json::{Value, json};
use sheep_client::node::StoreSpace;
use sheep_proto::{Redundancy, SnapshotTag, Vid};
use sheepfs_vfs::report::vdi_list::{self, VdiUsage};
use sheepfs_vfs::report::{Format, Report};

use crate::scripted_transport::{Sheep, address, vdi};

const CAPTURE: &str = "tests/report/golden/cluster.jsonl";

async fn document(report: Report, sheep: Sheep) -> Value {
    let bytes = report.render(Format::Json, &sheep.client()).await.unwrap();
    assert!(bytes.ends_with(b"\n"));
    serde_json::from_slice(&bytes).unwrap()
}

fn captured() -> Sheep {
    Sheep::captured(CAPTURE, 0, u64::MAX)
}

#[test]
fn json_vdi_has_all_fields_as_numbers() {
    let mut snapshot = vdi(0x76_d396, b"demo");
    snapshot.tag = SnapshotTag::new(b"first").unwrap();
    snapshot.snap_id = 7;
    snapshot.snap_ctime = 1_795_426_999 << 32 | 5;
    snapshot.parent = Vid::new(0x76_d395);
    snapshot.redundancy = Redundancy::from_wire(6, 0x22);
    let usage = VdiUsage {
        vdi: snapshot,
        used: 8 << 20,
        shared: 4 << 20,
    };
    let document: Value = serde_json::from_slice(&vdi_list::format_json(Some(&[usage]))).unwrap();
    assert_eq!(
        document,
        json!({"vdis": [{
            "name": "demo",
            "tag": "first",
            "snapshot": true,
            "clone": false,
            "id": 7,
            "snap_id": 7,
            "size": 4 << 20,
            "used": 8 << 20,
            "shared": 4 << 20,
            "create_time": 1_795_426_656,
            "snapshot_time": 1_795_426_999,
            "vdi_id": 0x76_d396,
            "vdi_id_hex": "76d396",
            "parent_vdi_id": 0x76_d395,
            "redundancy": "4:2",
            "copies": 6,
            "object_size": 4 << 20,
            "object_size_shift": 22,
            "hypervolume": false,
        }]})
    );
}

#[tokio::test]
async fn json_non_utf_8_name_is_exact() {
    let list = document(Report::VdiList, captured()).await;
    let named: Vec<_> = list["vdis"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|vdi| vdi.get("name_hex").is_some())
        .collect();
    assert_eq!(named.len(), 1);
    assert_eq!(named[0]["name"], "bad\u{fffd}\u{fffd}name");
    assert_eq!(named[0]["name_hex"], "626164fffe6e616d65");
}

#[tokio::test]
async fn json_has_every_row_of_text() {
    let list = document(Report::VdiList, captured()).await;
    let text = String::from_utf8_lossy(include_bytes!("golden/vdi-list.txt"));
    let rows: Vec<_> = text.lines().skip(1).collect();
    let vdis = list["vdis"].as_array().unwrap();
    assert_eq!(vdis.len(), rows.len());
    for (vdi, row) in vdis.iter().zip(rows) {
        assert!(row[2..].starts_with(vdi["name"].as_str().unwrap()), "{row}");
        assert!(row.contains(vdi["vdi_id_hex"].as_str().unwrap()), "{row}");
        assert_eq!(vdi["snapshot"], row.starts_with('s'), "{row}");
        assert_eq!(vdi["clone"], row.starts_with('c'), "{row}");
    }
}

#[tokio::test]
async fn json_cluster_has_settings_and_epochs() {
    let cluster = document(Report::ClusterInfo, captured()).await;
    assert_eq!(cluster["status"], "running, auto-recovery enabled");
    assert_eq!(cluster["running"], true);
    assert_eq!(cluster["create_time"], 1_795_456_389);
    assert_eq!(cluster["store"], "plain");
    assert_eq!(cluster["redundancy"], "2");
    assert_eq!(cluster["object_size"], 4 << 20);
    let epochs = cluster["epochs"].as_array().unwrap();
    let numbers: Vec<_> = epochs.iter().map(|epoch| &epoch["epoch"]).collect();
    assert_eq!(numbers, [4, 3, 2, 1]);
    assert_eq!(epochs[1]["nodes"][2]["port"], 7472);
}

#[tokio::test]
async fn json_names_unresponsive_nodes_with_reason() {
    let mut sheep = captured();
    let space = StoreSpace {
        total: 1000,
        free: 250,
    };
    sheep.stores.insert(address("127.0.0.1:7471"), Ok(space));
    let info = document(Report::NodeInfo, sheep).await;
    assert_eq!(info["nodes"].as_array().unwrap().len(), 1);
    assert_eq!(info["nodes"][0]["id"], 0);
    assert_eq!(info["nodes"][0]["port"], 7471);
    assert_eq!(info["nodes"][0]["used"], 750);
    assert_eq!(info["total"]["used_percent"], 75);
    assert_eq!(info["virtual_size"], 23_100_195_339_777_u64);
    assert_eq!(info["silent_nodes"][0]["port"], 7470);
    let error = info["silent_nodes"][0]["error"].as_str().unwrap();
    assert!(error.contains("connection refused"), "{error}");
}

#[tokio::test]
async fn json_nodes_have_address_and_zone() {
    let list = document(Report::NodeList, captured()).await;
    assert_eq!(list["nodes"][1]["id"], 1);
    assert_eq!(list["nodes"][1]["host"], "127.0.0.1");
    assert_eq!(list["nodes"][1]["vnodes"], 128);
    assert_eq!(list["nodes"][1]["zone"], 1);
}
