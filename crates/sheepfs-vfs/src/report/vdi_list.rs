//! `vdi/list`: VDIs, snapshots and clones, as `dog vdi list` prints them.

use std::borrow::Cow;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::tz::TimeZone;
use serde::Serialize;
use sheep_client::error::OperationId;
use sheep_client::{Client, ClientError, VdiInfo};
use sheep_proto::inode::packed_seconds;
use sheep_proto::limits::DEFAULT_BLOCK_SIZE_SHIFT;
use sheep_proto::{Generation, Oid, Opcode, ResultCode, Vid};

use super::human_size::human_size;
use super::json;
use super::local_time::local_time;
use crate::error::Chain;

/// Requests of a report in flight.
pub(super) const PARALLEL: usize = 32;

const HEADER: &[u8] =
    b"  Name        Id    Size    Used  Shared    Creation time   VDI id  Copies  Tag";
const OBJECT_SIZE_HEADER: &[u8] = b"   Block Size Shift";

/// A VDI and the space its objects take, in one copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdiUsage {
    /// The header of its inode.
    pub vdi: VdiInfo,
    /// Bytes of the objects it owns.
    pub used: u64,
    /// Bytes of the objects an ancestor owns.
    pub shared: u64,
}

impl VdiUsage {
    /// True for a VDI made from a snapshot that has no snapshots of its own yet.
    fn is_fresh_clone(&self) -> bool {
        !self.vdi.is_snapshot() && self.vdi.snap_id == 1 && self.vdi.parent.is_some()
    }

    /// The number in the column `Id`: 0 for a working VDI.
    fn id(&self) -> u32 {
        if self.vdi.is_snapshot() {
            self.vdi.snap_id
        } else {
            0
        }
    }
}

/// The VDIs as dog prints them, in the system's time zone; only the header
/// while the cluster waits for its format or its nodes.
///
/// A VDI that is deleted during the query is skipped. A VDI with a missing or corrupt
/// inode is skipped with a warning in the log.
///
/// # Errors
/// As [`Cluster::status`](sheep_client::Cluster::status),
/// [`Cluster::list_vids`](sheep_client::Cluster::list_vids) and
/// [`Index::for_each_slot`](sheep_client::Index::for_each_slot); `Refused`
/// while the cluster goes down.
pub async fn text(client: &Client) -> Result<Vec<u8>, ClientError> {
    let generation = client.generation().await?;
    let vdis = query(client).await?.unwrap_or_default();
    Ok(format_text(&vdis, generation, &TimeZone::system()))
}

/// The VDIs as JSON; `null` while the cluster waits.
///
/// # Errors
/// As [`text`].
pub async fn json(client: &Client) -> Result<Vec<u8>, ClientError> {
    Ok(format_json(query(client).await?.as_deref()))
}

/// The VDIs and their usage in ascending order of VID; `None` while the cluster
/// waits for its format or its nodes.
///
/// # Errors
/// As [`text`].
pub async fn query(client: &Client) -> Result<Option<Vec<VdiUsage>>, ClientError> {
    match client.cluster().status().await? {
        ResultCode::Success => {}
        // The sheep knows the VIDs, but refuses to read inodes in this state.
        code @ (ResultCode::WaitForFormat | ResultCode::WaitForJoin) => {
            tracing::warn!("vdi/list shows no VDIs: {code}");
            return Ok(None);
        }
        code => {
            let operation = OperationId {
                opcode: Opcode::StatCluster,
                oid: None,
            };
            return Err(ClientError::Refused { operation, code });
        }
    }
    let vdis = for_each_vdi(client, |vid| usage(client, vid)).await?;
    Ok(Some(vdis))
}

/// Runs `look` for all VDIs and returns the results in ascending order of VID.
///
/// A VDI without a result is skipped, and so is one with a missing or corrupt inode.
pub(super) async fn for_each_vdi<T, F>(
    client: &Client,
    look: impl Fn(Vid) -> F,
) -> Result<Vec<T>, ClientError>
where
    F: Future<Output = Result<Option<T>, ClientError>>,
{
    stream::iter(client.cluster().list_vids().await?)
        .map(|vid| {
            let found = look(vid);
            async move {
                match found.await {
                    Err(error) if is_corrupt(&error) => {
                        tracing::warn!("skipped VDI {vid} in a report: {}", Chain(&error));
                        Ok(None)
                    }
                    outcome => outcome,
                }
            }
        })
        .buffered(PARALLEL)
        .try_filter_map(|found| async move { Ok(found) })
        .try_collect()
        .await
}

/// True for an error of one inode, as opposed to one of the cluster.
fn is_corrupt(error: &ClientError) -> bool {
    error.is_malformed() || error.is_missing_object()
}

/// The facts of a VDI; `None` when it was deleted, or is an access list.
///
/// Some servers make VDIs with objects of any size. No volume can be opened on
/// them, but dog lists them.
pub(super) async fn facts(client: &Client, vid: Vid) -> Result<Option<VdiInfo>, ClientError> {
    let mut header = client.inode(vid).header().await?;
    let odd_shift = header.object_shift().is_none();
    let shift = header.block_size_shift;
    if odd_shift {
        header.block_size_shift = DEFAULT_BLOCK_SIZE_SHIFT;
    }
    let generation = client.generation().await?;
    let vdi = VdiInfo::from_header(vid, &header, generation);
    let vdi = vdi.map_err(|source| ClientError::Malformed {
        operation: OperationId {
            opcode: Opcode::ReadObj,
            oid: Some(Oid::inode(vid)),
        },
        source,
    })?;
    Ok(vdi.map(|vdi| VdiInfo {
        object_shift: if odd_shift { shift } else { vdi.object_shift },
        ..vdi
    }))
}

async fn usage(client: &Client, vid: Vid) -> Result<Option<VdiUsage>, ClientError> {
    let Some(vdi) = facts(client, vid).await? else {
        return Ok(None);
    };
    let (mut own, mut inherited) = (0u64, 0u64);
    client
        .index(&vdi)
        .for_each_slot(|_, owner| {
            if owner == vid {
                own += 1;
            } else {
                inherited += 1;
            }
        })
        .await?;
    Ok(Some(VdiUsage {
        used: own.saturating_mul(object_size(&vdi)),
        shared: inherited.saturating_mul(object_size(&vdi)),
        vdi,
    }))
}

/// Bytes of an object, also for a shift that no cluster should have.
fn object_size(vdi: &VdiInfo) -> u64 {
    1u64.checked_shl(vdi.object_shift.into()).unwrap_or(0)
}

/// Writes `vdis`, which are in ascending order of VID.
///
/// Source: protocol 9.5; what older dogs print is in [`Generation`].
pub fn format_text(vdis: &[VdiUsage], generation: Generation, zone: &TimeZone) -> Vec<u8> {
    let mut text = HEADER.to_vec();
    if generation.dog_shows_object_size() {
        text.extend_from_slice(OBJECT_SIZE_HEADER);
    }
    text.push(b'\n');
    for usage in vdis {
        write_row(&mut text, usage, generation, zone);
    }
    text
}

fn write_row(text: &mut Vec<u8>, usage: &VdiUsage, generation: Generation, zone: &TimeZone) {
    let vdi = &usage.vdi;
    let marker = match (vdi.is_snapshot(), usage.is_fresh_clone()) {
        (true, _) => "s ",
        (false, true) => "c ",
        (false, false) => "  ",
    };
    // Columns are counted in bytes, as printf(3) does.
    let (name, tag) = (vdi.name.as_bytes(), vdi.tag.as_bytes());
    text.extend_from_slice(marker.as_bytes());
    text.extend_from_slice(name);
    text.resize(text.len() + 8usize.saturating_sub(name.len()), b' ');
    let middle = format!(
        " {:5} {:>7} {:>7} {:>7} {}  {:7x} {:>width$} ",
        usage.id(),
        human_size(vdi.size),
        human_size(usage.used),
        human_size(usage.shared),
        local_time("%Y-%m-%d %H:%M", packed_seconds(vdi.create_time), zone),
        vdi.vid.get(),
        vdi.redundancy.to_string(),
        width = generation.dog_copies_width(),
    );
    text.extend_from_slice(middle.as_bytes());
    text.resize(text.len() + 13usize.saturating_sub(tag.len()), b' ');
    text.extend_from_slice(tag);
    if generation.dog_shows_object_size() {
        text.extend_from_slice(format!(" {:3}", vdi.object_shift).as_bytes());
    }
    text.push(b'\n');
}

/// Writes `vdis`, which are in ascending order of VID, as JSON.
pub fn format_json(vdis: Option<&[VdiUsage]>) -> Vec<u8> {
    json::document(&List {
        vdis: vdis.map(|vdis| vdis.iter().map(Row::of).collect()),
    })
}

#[derive(Serialize)]
struct List<'a> {
    vdis: Option<Vec<Row<'a>>>,
}

#[derive(Serialize)]
struct Row<'a> {
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    tag: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag_hex: Option<String>,
    snapshot: bool,
    clone: bool,
    id: u32,
    snap_id: u32,
    size: u64,
    used: u64,
    shared: u64,
    create_time: u64,
    snapshot_time: Option<u64>,
    vdi_id: u32,
    vdi_id_hex: String,
    parent_vdi_id: Option<u32>,
    redundancy: String,
    copies: u8,
    object_size: u64,
    object_size_shift: u8,
    hypervolume: bool,
}

impl<'a> Row<'a> {
    fn of(usage: &'a VdiUsage) -> Self {
        let vdi = &usage.vdi;
        Self {
            name: json::text(vdi.name.as_bytes()),
            name_hex: json::hex_unless_text(vdi.name.as_bytes()),
            tag: json::text(vdi.tag.as_bytes()),
            tag_hex: json::hex_unless_text(vdi.tag.as_bytes()),
            snapshot: vdi.is_snapshot(),
            clone: usage.is_fresh_clone(),
            id: usage.id(),
            snap_id: vdi.snap_id,
            size: vdi.size,
            used: usage.used,
            shared: usage.shared,
            create_time: packed_seconds(vdi.create_time),
            snapshot_time: vdi.is_snapshot().then(|| packed_seconds(vdi.snap_ctime)),
            vdi_id: vdi.vid.get(),
            vdi_id_hex: vdi.vid.to_string(),
            parent_vdi_id: vdi.parent.map(Vid::get),
            redundancy: vdi.redundancy.to_string(),
            copies: vdi.redundancy.nr_copies(),
            object_size: object_size(vdi),
            object_size_shift: vdi.object_shift,
            hypervolume: vdi.hypervolume,
        }
    }
}
