//! Reports of clusters that are unformatted, waiting, degraded or damaged.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;

use jiff::tz::TimeZone;
use sheep_client::ClientError;
use sheep_client::node::StoreSpace;
use sheep_proto::ResultCode;
use sheepfs_vfs::report::{Format, Report, cluster_info};

use crate::scripted_transport::{Sheep, address, inode_oid, node};

const ALL: [Report; 4] = [
    Report::ClusterInfo,
    Report::NodeInfo,
    Report::NodeList,
    Report::VdiList,
];
const VDI_HEADER: &str = "  Name        Id    Size    Used  Shared    Creation time   VDI id  Copies  Tag   Block Size Shift\n";
const SPACE: StoreSpace = StoreSpace {
    total: 100 << 30,
    free: 75 << 30,
};

async fn text(report: Report, sheep: Sheep) -> Result<String, ClientError> {
    let text = report.render(Format::Text, &sheep.client()).await?;
    Ok(String::from_utf8(text).unwrap())
}

/// Frames 1 to 30 are from before the cluster was formatted.
fn unformatted() -> Sheep {
    let mut sheep = Sheep::captured(
        "../sheep-proto/tests/golden/01-unformatted-and-format.jsonl",
        0,
        30,
    );
    let refusal = Err(ResultCode::WaitForFormat);
    sheep.stores.insert(address("127.0.0.1:7100"), refusal);
    sheep
}

fn waiting() -> Sheep {
    let mut sheep = Sheep::captured(
        "../sheep-proto/tests/golden/13-waiting-for-join.jsonl",
        0,
        u64::MAX,
    );
    sheep.missing = ResultCode::WaitForJoin;
    sheep
}

#[tokio::test]
async fn cluster_state_unformatted_has_dog_texts() {
    let render = |report| text(report, unformatted());
    assert_eq!(
        render(Report::ClusterInfo).await.unwrap(),
        "Cluster status: Waiting for cluster to be formatted\n\n"
    );
    assert_eq!(render(Report::VdiList).await.unwrap(), VDI_HEADER);
    assert_eq!(
        render(Report::NodeInfo).await.unwrap(),
        "Id\tSize\tUsed\tAvail\tUse%\n"
    );
    let nodes = render(Report::NodeList).await.unwrap();
    assert_eq!(nodes.lines().count(), 2, "{nodes}");
}

#[tokio::test]
async fn cluster_state_waiting_shows_epochs() {
    let client = waiting().client();
    let status = client.cluster().history().await.unwrap();
    let text = cluster_info::format_text(&status, &TimeZone::UTC);
    let text = String::from_utf8(text).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("Cluster status: Waiting for other nodes to join cluster")
    );
    assert_eq!(lines.next(), Some(""));
    assert!(lines.next().unwrap().starts_with("Cluster created at "));
    assert_eq!(lines.count(), 2 + 3, "{text}");
}

#[tokio::test]
async fn cluster_state_waiting_lists_no_vdis_immediately() {
    assert_eq!(text(Report::VdiList, waiting()).await.unwrap(), VDI_HEADER);
    let document = Report::VdiList
        .render(Format::Json, &waiting().client())
        .await
        .unwrap();
    assert_eq!(document, b"{\n  \"vdis\": null\n}\n");
}

#[tokio::test]
async fn cluster_state_not_joined_fails_node_reports() {
    for report in ALL {
        for format in [Format::Text, Format::Json] {
            let mut sheep = Sheep::new();
            sheep.nodes.clear();
            sheep.status = ResultCode::WaitForJoin;
            let outcome = report.render(format, &sheep.client()).await;
            // Without a node list dog can still list the VDIs.
            if report == Report::VdiList {
                outcome.unwrap();
            } else {
                let code = outcome.unwrap_err().code();
                assert_eq!(code, Some(ResultCode::WaitForJoin), "{report:?}");
            }
        }
    }
}

#[tokio::test]
async fn cluster_state_error_is_no_empty_list() {
    for code in [ResultCode::SystemError, ResultCode::Shutdown] {
        let mut sheep = Sheep::new();
        sheep.status = code;
        let error = text(Report::VdiList, sheep).await.unwrap_err();
        assert_eq!(error.code(), Some(code));
    }
}

#[tokio::test]
async fn node_info_skips_dead_node() {
    let mut sheep = Sheep::new();
    sheep.nodes = ["127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002"]
        .map(node)
        .concat();
    sheep.stores.insert(address("127.0.0.1:7000"), Ok(SPACE));
    sheep.stores.insert(address("127.0.0.1:7002"), Ok(SPACE));
    assert_eq!(
        text(Report::NodeInfo, sheep).await.unwrap(),
        "Id\tSize\tUsed\tAvail\tUse%\n \
         0\t100 GB\t25 GB\t75 GB\t 25%\n \
         1\t100 GB\t25 GB\t75 GB\t 25%\n\
         Total\t200 GB\t50 GB\t150 GB\t 25%\n\
         \n\
         Total virtual image size\t0.0 MB\n"
    );
}

#[tokio::test]
async fn node_info_fails_without_responsive_node() {
    let error = text(Report::NodeInfo, Sheep::new()).await.unwrap_err();
    let ClientError::Connect { source, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(source.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn vdi_list_skips_missing_or_deleted_inode() {
    let mut sheep = Sheep::new();
    sheep.add_vdi(3, b"three", 1 << 20, 20);
    sheep.mark_used(4);
    sheep.add_vdi(5, b"", 0, 22);
    sheep.add_vdi(6, b"six", 1 << 20, 20);
    let text = text(Report::VdiList, sheep).await.unwrap();
    let names: Vec<_> = text.lines().skip(1).map(|row| &row[2..7]).collect();
    assert_eq!(names, ["three", "six  "]);
}

#[tokio::test]
async fn vdi_list_fails_on_unreadable_inode() {
    for report in [Report::VdiList, Report::NodeInfo] {
        let mut sheep = Sheep::new();
        sheep.add_vdi(3, b"three", 1 << 20, 20);
        sheep.mark_used(4);
        sheep.missing = ResultCode::Eio;
        sheep.stores.insert(address("127.0.0.1:7000"), Ok(SPACE));
        let error = text(report, sheep).await.unwrap_err();
        assert_eq!(error.code(), Some(ResultCode::Eio));
    }
}

/// A server that checks nothing makes them; no volume can be opened on them.
#[tokio::test]
async fn vdi_list_shows_every_object_size() {
    let mut sheep = Sheep::new();
    sheep.add_vdi(3, b"shift9", 1 << 20, 9);
    let inode = sheep.objects.get_mut(&inode_oid(3)).unwrap();
    inode[4664..4668].copy_from_slice(&3u32.to_le_bytes());
    inode[4668..4672].copy_from_slice(&2u32.to_le_bytes());
    let text = text(Report::VdiList, sheep).await.unwrap();
    let row = text.lines().nth(1).unwrap();
    assert!(
        row.starts_with("  shift9       0  1.0 MB  0.0 MB  0.0 MB "),
        "{row}"
    );
    assert!(row.ends_with("   9"), "{row}");
}

#[tokio::test]
async fn vdi_list_of_500_is_ordered_and_bounded() {
    let mut sheep = Sheep::new();
    for vid in 1..=500 {
        sheep.add_vdi(vid, format!("vm-{vid}").as_bytes(), 8 << 20, 22);
    }
    let most_in_flight = sheep.most_in_flight();
    let text = text(Report::VdiList, sheep).await.unwrap();
    let ids: Vec<_> = text
        .lines()
        .skip(1)
        .map(|row| u32::from_str_radix(row[57..66].trim(), 16).unwrap())
        .collect();
    assert_eq!(ids, (1..=500).collect::<Vec<_>>());
    let most = most_in_flight.load(Ordering::Relaxed);
    assert!((8..=32).contains(&most), "{most} requests at once");
}
