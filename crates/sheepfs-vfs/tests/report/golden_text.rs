//! Texts byte for byte as dog printed them.

use jiff::tz::TimeZone;
use sheep_client::node::StoreSpace;
use sheep_proto::{Generation, Redundancy, SnapshotTag, Vid};
use sheepfs_vfs::report::node_info::NodeInfo;
use sheepfs_vfs::report::vdi_list::VdiUsage;
use sheepfs_vfs::report::{Format, Report, cluster_info, node_info, node_list, vdi_list};

use crate::scripted_transport::{Sheep, node_record, vdi};

const CAPTURE: &str = "tests/report/golden/cluster.jsonl";

/// Where dog was when it printed the golden texts.
fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn captured() -> sheep_client::Client {
    Sheep::captured(CAPTURE, 0, u64::MAX).client()
}

/// Compares texts line by line, so that a difference can be read.
#[track_caller]
fn assert_text(ours: &[u8], dogs: &[u8]) {
    let lines = |text: &[u8]| -> Vec<String> {
        text.split(|&byte| byte == b'\n')
            .map(|line| line.escape_ascii().to_string())
            .collect()
    };
    let (ours, dogs) = (lines(ours), lines(dogs));
    for (ours, dogs) in ours.iter().zip(&dogs) {
        assert_eq!(ours, dogs, "ours on the left, dog's on the right");
    }
    assert_eq!(ours.len(), dogs.len(), "lines");
}

#[tokio::test]
async fn golden_cluster_info_is_what_dog_printed() {
    let status = captured().cluster().history().await.unwrap();
    assert_text(
        &cluster_info::format_text(&status, &berlin()),
        include_bytes!("golden/cluster-info.txt"),
    );
}

#[tokio::test]
async fn golden_node_list_is_what_dog_printed() {
    let text = Report::NodeList.render(Format::Text, &captured()).await;
    assert_text(&text.unwrap(), include_bytes!("golden/node-list.txt"));
}

#[tokio::test]
async fn golden_vdi_list_is_what_dog_printed() {
    let vdis = vdi_list::query(&captured()).await.unwrap().unwrap();
    assert_text(
        &vdi_list::format_text(&vdis, Generation::V1_0, &berlin()),
        include_bytes!("golden/vdi-list.txt"),
    );
}

/// The bytes are those that `dog node info -r` printed at the same time.
#[tokio::test]
async fn golden_node_info_is_what_dog_printed() {
    let mut sheep = Sheep::captured(CAPTURE, 0, u64::MAX);
    for (node, total, free) in [
        ("127.0.0.1:7470", 76_595_892_224, 76_487_700_480),
        ("127.0.0.1:7471", 76_595_888_128, 76_487_700_480),
    ] {
        let space = StoreSpace { total, free };
        sheep
            .stores
            .insert(crate::scripted_transport::address(node), Ok(space));
    }
    let client = sheep.client();
    let info = node_info::query(&client).await.unwrap();
    assert_eq!(info.virtual_size, Some(23_100_195_339_777));
    let text = node_info::text(&client).await.unwrap();
    assert_text(&text, include_bytes!("golden/node-info.txt"));
}

#[test]
fn golden_node_rows_have_width_of_dog() {
    let nodes = [
        node_record("[::1]:1", 5, u32::MAX),
        node_record("127.0.0.1:7392", 5, u32::MAX),
        node_record("[2001:0:0:1::5]:65535", 1024, 0),
    ];
    let expected = concat!(
        "  Id   Host:Port         V-Nodes       Zone\n",
        "   0   ::1:1               \t 5 4294967295\n",
        "   1   127.0.0.1:7392      \t 5 4294967295\n",
        "   2   2001:0:0:1::5:65535 \t1024          0\n",
    );
    assert_text(&node_list::format_text(&nodes), expected.as_bytes());
}

#[test]
fn golden_used_percent_is_truncated_like_dog() {
    for (total, free, percent) in [
        (0, 0, "  0%"),
        (100, 71, " 28%"),
        (100, 0, "100%"),
        (1_000_000_000_000, 420_000_000_001, " 57%"),
        (1000, 1, " 99%"),
    ] {
        let info = NodeInfo {
            answered: vec![(
                0,
                node_record("127.0.0.1:7000", 128, 0),
                StoreSpace { total, free },
            )],
            silent: Vec::new(),
            virtual_size: Some(0),
        };
        let text = String::from_utf8(node_info::format_text(&info)).unwrap();
        let row = text.lines().nth(1).unwrap();
        assert!(row.ends_with(&format!("\t{percent}")), "{row:?}");
    }
}

/// The rows of protocol 9.5 that the capture has not.
#[test]
fn golden_markers_tags_and_long_names_match_dog() {
    let usage = |vdi, used, shared| VdiUsage { vdi, used, shared };
    let mut snapshot = vdi(0x55_3135, b"averyveryverylongname");
    snapshot.snap_ctime = 1;
    snapshot.tag = SnapshotTag::new(b"a-rather-long-tag-name").unwrap();
    snapshot.size = 1023 << 20;
    snapshot.object_shift = 23;
    let mut clone = vdi(0xe1_d3ef, b"copy1");
    clone.parent = Vid::new(0x76_d396);
    let mut rolled_back = vdi(0x76_d398, b"demo");
    rolled_back.parent = Vid::new(0x76_d396);
    rolled_back.snap_id = 3;
    let mut strips = vdi(0x99_b17c, b"ec1615");
    strips.redundancy = Redundancy::from_wire(31, 0x8f);
    let vdis = [
        usage(snapshot, 0, 0),
        usage(strips, 0, 0),
        usage(clone, 0, 4 << 20),
        usage(rolled_back, 4 << 20, 0),
        usage(vdi(0x1_fd8a, b"k"), 0, 0),
    ];
    let expected = "  Name        Id    Size    Used  Shared    Creation time   VDI id  Copies  Tag   Block Size Shift
s averyveryverylongname     1 1023 MB  0.0 MB  0.0 MB 2026-11-23 09:37   553135      1 a-rather-long-tag-name  23
  ec1615       0  4.0 MB  0.0 MB  0.0 MB 2026-11-23 09:37   99b17c  16:15                22
c copy1        0  4.0 MB  0.0 MB  4.0 MB 2026-11-23 09:37   e1d3ef      1                22
  demo         0  4.0 MB  4.0 MB  0.0 MB 2026-11-23 09:37   76d398      1                22
  k            0  4.0 MB  0.0 MB  0.0 MB 2026-11-23 09:37    1fd8a      1                22
";
    assert_text(
        &vdi_list::format_text(&vdis, Generation::V1_0, &TimeZone::UTC),
        expected.as_bytes(),
    );
}
