//! The header and the object map of the head.

use sheep_client::unstable::IndexTree;
use sheep_client::{Client, ClientError, VdiInfo, VdiSelector};
use sheep_proto::{ObjectIndex, Redundancy, Vid};

use super::error::VolumeError;
use super::extent_map::ExtentMap;
use super::object_map::{ObjectMap, Owners};

/// The head, and its index. One lock guards both, so that they are of one VDI.
#[derive(Debug)]
pub(super) struct HeadState {
    pub(super) info: VdiInfo,
    pub(super) map: ObjectMap,
}

impl HeadState {
    /// Reads a VDI's header and index; `None` when it was deleted. The tree is a
    /// hypervolume's.
    pub(super) async fn load(
        client: &Client,
        vid: Vid,
    ) -> Result<Option<(Self, Option<IndexTree>)>, ClientError> {
        let Some(info) = client.inode(vid).stat().await? else {
            return Ok(None);
        };
        let (owners, tree) = match info.hypervolume {
            false => (read_index(client, &info).await?, None),
            true => {
                let tree = client.index(&info).tree().await?;
                (tree_owners(&tree, &info), Some(tree))
            }
        };
        let map = ObjectMap::new(vid, owners);
        Ok(Some((Self { info, map }, tree)))
    }
}

/// Waits until the cluster can store objects of a working VDI: a node that does not know
/// it yet stores strips of an erasure-coded object wrongly. Source: placement 5.3.
pub(super) async fn prepare_writes(client: &Client, info: &VdiInfo) -> Result<(), ClientError> {
    match info.redundancy {
        Redundancy::Replicated(_) => Ok(()),
        Redundancy::Erasure { .. } => {
            client
                .cluster()
                .wait_until_known(&info.name, info.vid)
                .await
        }
    }
}

/// Reads the index of a VDI without attaching it.
///
/// # Errors
/// `Cluster` when there is no such VDI or the cluster does not answer, `Stale` when
/// it was deleted while it was read.
pub async fn load_extent_map(
    client: &Client,
    selector: &VdiSelector,
) -> Result<ExtentMap, VolumeError> {
    let vid = client.vdi(selector).lookup().await?;
    let Some(info) = client.inode(vid).stat().await? else {
        return Err(VolumeError::Stale(selector.to_string()));
    };
    let mut owners = Owners::default();
    client
        .index(&info)
        .for_each_slot(|index, owner| owners.set(index, Some(owner)))
        .await?;
    Ok(ExtentMap::new(info.size, info.object_shift, owners))
}

/// Reads a flat index.
pub(super) async fn read_index(client: &Client, info: &VdiInfo) -> Result<Owners, ClientError> {
    let mut owners = Owners::default();
    client
        .index(info)
        .for_each_slot(|index, owner| owners.set(index, Some(owner)))
        .await?;
    Ok(owners)
}

/// The slots of a hypervolume that lie inside it.
pub(super) fn tree_owners(tree: &IndexTree, info: &VdiInfo) -> Owners {
    let mut owners = Owners::default();
    let inside = |index: ObjectIndex| u64::from(index.0) < info.object_count();
    tree.slots()
        .filter(|&(index, _)| inside(index))
        .for_each(|(index, owner)| owners.set(index, Some(owner)));
    owners
}
