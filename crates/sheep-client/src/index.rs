//! The index of a VDI: which VID owns each data object.

use sheep_proto::limits::FLAT_INDEX_SLOTS;
use sheep_proto::{ObjectIndex, Vid};

use crate::error::ClientError;
use crate::inode::Inode;
use crate::sender::Sender;
use crate::tree::IndexTree;
use crate::vdi_info::VdiInfo;

/// The index of a VDI: which VID owns each data object; see
/// [`Client::index`](crate::Client::index).
///
/// ```
/// use sheep_client::{Client, ClientConfig, NewVdi, ObjectIndex, VdiName, VdiSelector};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let address = server.local_address();
/// # let client = Client::connect(ClientConfig::new(address.into())).await?;
/// let name = VdiName::new("v")?;
/// let new = NewVdi::new(name.clone(), 4 << 20);
/// client.cluster().create_vdi(&new).await?;
/// let vdi = client.vdi(&VdiSelector::working(name)).stat().await?;
/// let mut allocated = 0;
/// client.index(&vdi).for_each_slot(|_index, _owner| allocated += 1).await?;
/// assert_eq!(allocated, 0);
/// assert_eq!(client.index(&vdi).slot(ObjectIndex(0)).await?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Index<'a> {
    sender: &'a Sender,
    vdi: &'a VdiInfo,
}

impl<'a> Index<'a> {
    pub(crate) fn new(sender: &'a Sender, vdi: &'a VdiInfo) -> Self {
        Self { sender, vdi }
    }

    /// Calls `visit` with every slot of a VDI's index that names an owner, in
    /// ascending order of object number, up to the end of the volume.
    ///
    /// Reads only the part of the index that the volume's size needs, 128 KiB
    /// at a time. The tree of a hypervolume is read whole first, which takes 8
    /// bytes of memory for each slot.
    ///
    /// # Errors
    /// `Malformed` for an index no cluster writes, otherwise as
    /// [`Objects::read`](crate::Objects::read).
    ///
    /// Source: protocol 4.1 and 4.6.
    pub async fn for_each_slot(
        self,
        mut visit: impl FnMut(ObjectIndex, Vid),
    ) -> Result<(), ClientError> {
        let vdi = self.vdi;
        if vdi.hypervolume {
            let tree = self.tree().await?;
            tree.slots().for_each(|(index, owner)| visit(index, owner));
            return Ok(());
        }
        let count = vdi.object_count().min(u64::from(FLAT_INDEX_SLOTS));
        let count = u32::try_from(count).expect("a flat index has at most 2^20 slots");
        Inode::new(self.sender, vdi.vid)
            .for_each_flat_slot(count, visit)
            .await
    }

    /// The slot of one object, read from the cluster.
    ///
    /// # Errors
    /// As [`Index::for_each_slot`].
    pub async fn slot(self, index: ObjectIndex) -> Result<Option<Vid>, ClientError> {
        if !self.vdi.hypervolume {
            let inode = Inode::new(self.sender, self.vdi.vid);
            return Ok(inode.read_slots(index, 1).await?[0]);
        }
        Ok(self.tree().await?.slot(index))
    }

    /// Reads the index of a hypervolume, 8 bytes of memory for each slot.
    ///
    /// # Errors
    /// `NotHypervolume` for a VDI with a flat index, `Malformed` for a tree no
    /// cluster has, otherwise as [`Objects::read`](crate::Objects::read).
    #[doc(hidden)]
    pub async fn tree(self) -> Result<IndexTree, ClientError> {
        if !self.vdi.hypervolume {
            return Err(ClientError::NotHypervolume(self.vdi.vid));
        }
        IndexTree::load(self.sender, self.vdi.vid).await
    }
}
