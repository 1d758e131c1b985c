//! Reports: the output of dog, byte for byte, and the same as JSON.
//!
//! ```text
//! Report::render ── one module per file
//!                     query      Client -> data       async
//!                     text, json data   -> bytes      pure
//! SingleFlight   ── many readers share one query
//! ```
//!
//! Each text is what `dog` prints to standard output in the same state of the
//! cluster; what dog prints to standard error goes to the log. A report that
//! cannot be produced is an error, never an empty text. A cluster that waits
//! for its format or for its nodes is no such failure: dog has a text for that.
//!
//! Cost: `node/list` one request, `cluster/info` three, `node/info` one per node
//! and one per VDI, `vdi/list` two per VDI and one per further 128 KiB of
//! index, at most 32 at once.
//!
//! Source of all formats: protocol section 9.

pub mod cluster_info;
mod human_size;
mod json;
mod local_time;
pub mod node_info;
pub mod node_list;
mod nodes;
mod single_flight;
pub mod vdi_list;

pub use single_flight::{Found, ReportText, SingleFlight};

use sheep_client::{Client, ClientError};

/// A report file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    /// `cluster/info`: status, creation time, epochs.
    ClusterInfo,
    /// `node/info`: space of each node.
    NodeInfo,
    /// `node/list`: the nodes.
    NodeList,
    /// `vdi/list`: VDIs, snapshots, clones.
    VdiList,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// As dog prints it.
    Text,
    /// The same data and more, as JSON for programs.
    Json,
}

impl Report {
    /// Queries the cluster and formats the result.
    ///
    /// # Errors
    /// As the `text` and `json` of the report's module.
    pub async fn render(self, format: Format, client: &Client) -> Result<Vec<u8>, ClientError> {
        match (self, format) {
            (Self::ClusterInfo, Format::Text) => cluster_info::text(client).await,
            (Self::ClusterInfo, Format::Json) => cluster_info::json(client).await,
            (Self::NodeInfo, Format::Text) => node_info::text(client).await,
            (Self::NodeInfo, Format::Json) => node_info::json(client).await,
            (Self::NodeList, Format::Text) => node_list::text(client).await,
            (Self::NodeList, Format::Json) => node_list::json(client).await,
            (Self::VdiList, Format::Text) => vdi_list::text(client).await,
            (Self::VdiList, Format::Json) => vdi_list::json(client).await,
        }
    }
}
