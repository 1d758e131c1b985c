//! `cluster/info`: status and history, as `dog cluster info` prints them.

use jiff::tz::TimeZone;
use serde::Serialize;
use sheep_client::cluster::{ClusterDefault, ClusterStatus};
use sheep_client::{Client, ClientError};
use sheep_proto::generation::{Detected, Locking};
use sheep_proto::inode::packed_seconds;
use sheep_proto::node::NodeRecord;
use sheep_proto::{ClusterFlags, Redundancy, ResultCode};

use super::json;
use super::local_time::local_time;
use super::node_list::NodeFacts;
use super::nodes::{host_and_port, member_nodes};

/// Status and history as dog prints them, in the system's time zone.
///
/// # Errors
/// `Refused(WaitForJoin)` from a sheep that has not joined yet, otherwise as
/// [`Cluster::nodes`](sheep_client::Cluster::nodes) and
/// [`Cluster::history`](sheep_client::Cluster::history).
pub async fn text(client: &Client) -> Result<Vec<u8>, ClientError> {
    let (_, status) = tokio::try_join!(member_nodes(client), client.cluster().history())?;
    Ok(format_text(&status, &TimeZone::system()))
}

/// Status, settings and history as JSON.
///
/// # Errors
/// As [`text`], and as [`Cluster::defaults`](sheep_client::Cluster::defaults).
pub async fn json(client: &Client) -> Result<Vec<u8>, ClientError> {
    let (_, status, default) = tokio::try_join!(
        member_nodes(client),
        client.cluster().history(),
        client.cluster().defaults()
    )?;
    Ok(format_json(&status, default))
}

/// Writes the status of a cluster and its epochs, newest first.
///
/// Source: protocol 9.2; what older dogs print is in [`Generation`](sheep_proto::Generation).
pub fn format_text(status: &ClusterStatus, zone: &TimeZone) -> Vec<u8> {
    let shows_vnodes = status.generation.dog_shows_vnodes();
    let mut text = format!("Cluster status: {}\n", status_text(status));
    // Where dog shows no vnodes it ends here without epochs.
    if shows_vnodes || !status.epochs.is_empty() {
        text += "\n";
    }
    if let Some(newest) = status.epochs.first() {
        let created = packed_seconds(newest.header.ctime.get());
        text += &format!(
            "Cluster created at {}\n\nEpoch Time           Version{}\n",
            local_time("%a %b %e %H:%M:%S %Y", created, zone),
            if shows_vnodes {
                " [Host:Port:V-Nodes,,,]"
            } else {
                ""
            },
        );
    }
    for epoch in &status.epochs {
        let member = |node: &NodeRecord| match shows_vnodes {
            true => format!("{}:{}", host_and_port(node), node.nr_vnodes.get()),
            false => host_and_port(node),
        };
        let nodes: Vec<_> = epoch.nodes.iter().map(member).collect();
        text += &format!(
            "{} {:6} [{}]\n",
            local_time("%Y-%m-%d %H:%M:%S", epoch.header.time.get(), zone),
            epoch.header.epoch.get(),
            nodes.join(", "),
        );
    }
    text.into_bytes()
}

/// The generation of the sheep, which cannot be told in all cases before the cluster is
/// formatted.
fn generation_name(status: &ClusterStatus) -> String {
    Detected::from_assumed(status.generation, !status.epochs.is_empty()).to_string()
}

fn auto_recovery(status: &ClusterStatus) -> bool {
    status
        .epochs
        .first()
        .is_none_or(|newest| newest.header.disable_recovery == 0)
}

/// The words after `Cluster status:`, which are dog's for a result code.
fn status_text(status: &ClusterStatus) -> &'static str {
    match status.status {
        ResultCode::Success if auto_recovery(status) => "running, auto-recovery enabled",
        ResultCode::Success => "running, auto-recovery disabled",
        ResultCode::WaitForFormat => "Waiting for cluster to be formatted",
        ResultCode::WaitForJoin => "Waiting for other nodes to join cluster",
        ResultCode::Shutdown => "System is shutting down",
        ResultCode::SystemError => "System error",
        // A sheep answers with no other code (protocol 1.10).
        other => other.meaning(),
    }
}

/// Writes the status of a cluster, its settings and its epochs as JSON.
pub fn format_json(status: &ClusterStatus, default: ClusterDefault) -> Vec<u8> {
    json::document(&Document {
        status: status_text(status),
        status_code: status.status.name(),
        running: status.status == ResultCode::Success,
        generation: generation_name(status),
        formatted: status.epochs.first().map(|newest| {
            let header = &newest.header;
            let generation = status.generation;
            let redundancy = generation.reports_redundancy().then(|| header.redundancy());
            let flag = |flag| {
                let is_locking = flag == ClusterFlags::USE_LOCK && !header.flags().contains(flag);
                if is_locking && generation.locking() == Locking::Maybe {
                    // 0.9.0 and 0.9.1 lock without the flag, too.
                    return None;
                }
                let known = generation.cluster_flags().contains(flag);
                let reported = generation.sizes_epoch_records();
                match (known, reported) {
                    (true, true) => Some(header.flags().contains(flag)),
                    (true, false) => None,
                    (false, _) => generation.reports_redundancy().then_some(false),
                }
            };
            Formatted {
                create_time: packed_seconds(header.ctime.get()),
                epoch: header.epoch.get(),
                auto_recovery: auto_recovery(status),
                store: generation
                    .reports_redundancy()
                    .then(|| json::text(header.store()).into_owned()),
                redundancy: redundancy.map(|redundancy| redundancy.to_string()),
                copies: redundancy.map(Redundancy::nr_copies),
                object_size: 1u64.checked_shl(default.object_shift.into()).unwrap_or(0),
                object_size_shift: default.object_shift,
                auto_vnodes: flag(ClusterFlags::AUTO_VNODES),
                disk_vnodes: flag(ClusterFlags::DISK_MODE),
                strict: flag(ClusterFlags::STRICT),
                locking: flag(ClusterFlags::USE_LOCK),
                recycles_vids: flag(ClusterFlags::RECYCLE_VID),
                avoids_full_disks: flag(ClusterFlags::AVOID_DISK_FULL),
            }
        }),
        epochs: status
            .epochs
            .iter()
            .map(|epoch| Epoch {
                epoch: epoch.header.epoch.get(),
                time: epoch.header.time.get(),
                nodes: epoch.nodes.iter().map(NodeFacts::of).collect(),
            })
            .collect(),
    })
}

#[derive(Serialize)]
struct Document {
    status: &'static str,
    status_code: &'static str,
    running: bool,
    generation: String,
    /// Missing before the cluster is formatted.
    #[serde(flatten)]
    formatted: Option<Formatted>,
    epochs: Vec<Epoch>,
}

#[derive(Serialize)]
struct Formatted {
    create_time: u64,
    epoch: u32,
    auto_recovery: bool,
    /// `null`, like what follows, where the sheep do not report it.
    store: Option<String>,
    redundancy: Option<String>,
    copies: Option<u8>,
    object_size: u64,
    object_size_shift: u8,
    auto_vnodes: Option<bool>,
    disk_vnodes: Option<bool>,
    strict: Option<bool>,
    locking: Option<bool>,
    recycles_vids: Option<bool>,
    avoids_full_disks: Option<bool>,
}

#[derive(Serialize)]
struct Epoch {
    epoch: u32,
    time: u64,
    nodes: Vec<NodeFacts>,
}
