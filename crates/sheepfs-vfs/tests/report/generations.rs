//! What the `dog` of older releases printed, on three nodes of its own release.

use jiff::tz::TimeZone;
use sheep_client::Client;
use sheep_proto::{Generation, ResultCode};
use sheepfs_vfs::report::{Format, Report, cluster_info, vdi_list};

use crate::scripted_transport::Sheep;

/// A release, its generation, when its cluster was formatted and its epochs began, its
/// vnodes, and the width of the column of copies.
const RELEASES: [(&str, Generation, [&str; 4], u32, &str); 3] = [
    (
        "0.7.5",
        Generation::V0_7,
        ["04:08:25", "04:08:33", "04:08:29", "04:08:25"],
        64,
        "    2",
    ),
    (
        "0.8.3",
        Generation::V0_8,
        ["04:09:46", "04:09:52", "04:09:49", "04:09:46"],
        128,
        "     2",
    ),
    (
        "0.9.5",
        Generation::V0_9,
        ["04:11:14", "04:11:19", "04:11:16", "04:11:14"],
        128,
        "     2",
    ),
];

fn captured(release: &str, generation: Generation) -> Client {
    let path = format!("../sheep-proto/tests/golden/{release}/03-cluster-state.jsonl");
    Sheep::captured_of(generation, &path, 0, u64::MAX).client()
}

#[tokio::test]
async fn cluster_info_of_older_releases_is_what_their_dog_printed() {
    for (release, generation, [created, third, second, first], ..) in RELEASES {
        let client = captured(release, generation);
        let status = client.cluster().history().await.unwrap();
        let text = cluster_info::format_text(&status, &TimeZone::UTC);
        let expected = format!(
            "Cluster status: running, auto-recovery enabled\n\n\
             Cluster created at Sat Nov 28 {created} 2026\n\n\
             Epoch Time           Version\n\
             2026-11-28 {third}      3 [127.0.0.1:7820, 127.0.0.1:7821, 127.0.0.1:7822]\n\
             2026-11-28 {second}      2 [127.0.0.1:7820, 127.0.0.1:7821]\n\
             2026-11-28 {first}      1 [127.0.0.1:7820, 127.0.0.1:7821, 127.0.0.1:7822]\n"
        );
        assert_eq!(String::from_utf8(text).unwrap(), expected, "{release}");
    }
}

#[tokio::test]
async fn cluster_info_of_an_unformatted_cluster_ends_with_an_empty_line_since_1_0() {
    let line = "Cluster status: Waiting for cluster to be formatted\n";
    for generation in Generation::ALL {
        let mut sheep = Sheep::new();
        sheep.generation = generation;
        sheep.nodes = vec![1; generation.node_record_len()];
        sheep.status = ResultCode::WaitForFormat;
        let client = sheep.client();
        let text = Report::ClusterInfo.render(Format::Text, &client);
        let expected = match generation {
            Generation::V1_0 => format!("{line}\n"),
            _ => line.to_owned(),
        };
        assert_eq!(String::from_utf8(text.await.unwrap()).unwrap(), expected);
    }
}

#[tokio::test]
async fn node_and_vdi_lists_of_older_releases_are_what_their_dog_printed() {
    for (release, generation, [created, ..], vnodes, copies) in RELEASES {
        let client = captured(release, generation);
        let text = Report::NodeList.render(Format::Text, &client);
        let expected = format!(
            "  Id   Host:Port         V-Nodes       Zone\n   \
             0   127.0.0.1:7820      \t{vnodes}   16777343\n   \
             1   127.0.0.1:7821      \t{vnodes}          1\n   \
             2   127.0.0.1:7822      \t{vnodes}          2\n"
        );
        assert_eq!(String::from_utf8(text.await.unwrap()).unwrap(), expected);

        let vdis = vdi_list::query(&client).await.unwrap().unwrap();
        let text = vdi_list::format_text(&vdis, generation, &TimeZone::UTC);
        let minute = &created[..5];
        let expected = format!(
            "  Name        Id    Size    Used  Shared    Creation time   VDI id  Copies  Tag\n  \
             v            0   16 MB  0.0 MB  0.0 MB 2026-11-28 {minute}    20609 {copies} {:13}\n",
            ""
        );
        assert_eq!(String::from_utf8(text).unwrap(), expected, "{release}");
    }
}

#[tokio::test]
async fn cluster_info_json_names_the_generation_and_what_is_not_known_is_null() {
    for (release, generation, ..) in RELEASES {
        let client = captured(release, generation);
        let json = Report::ClusterInfo.render(Format::Json, &client);
        let json: serde_json::Value = serde_json::from_slice(&json.await.unwrap()).unwrap();
        assert_eq!(json["generation"], generation.to_string(), "{release}");
        assert_eq!(json["object_size"], 4 << 20, "{release}");
        let is_known = generation != Generation::V0_7;
        assert_eq!(json["copies"] == 2, is_known, "{json}");
        assert_eq!(json["store"] == "plain", is_known, "{json}");
        assert_eq!(json["copies"].is_null(), !is_known, "{json}");
        assert_eq!(json["store"].is_null(), !is_known, "{json}");
    }
}
