//! The lock policy: whether to lock the VDI of a volume.

use std::time::Duration;

use sheep_client::Client;
use sheep_proto::ClusterFlags;
use tokio::time::Instant;

use crate::volume::VolumeError;

/// Cache TTL of the locking capability.
const CAPABILITY_TTL: Duration = Duration::from_secs(10);

/// What to do about VDI locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockMode {
    /// Lock where the cluster was formatted with locking.
    #[default]
    Auto,
    /// Refuse to attach where it was not.
    Require,
    /// Never lock.
    Off,
}

/// The lock policy for one cluster; caches the cluster's locking capability.
///
/// ```
/// use sheepfs_vfs::{LockMode, LockPolicy, VolumeOptions};
/// # use sheepfs_vfs::client::{Client, ClientConfig, NewVdi, VdiName};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let client = Client::connect(ClientConfig::new(server.local_address().into())).await?;
/// # client.cluster().create_vdi(&NewVdi::new(VdiName::new("vm1")?, 8 << 20)).await?;
///
/// let policy = LockPolicy::new(LockMode::Auto);
/// let options = VolumeOptions::default().with_lock(policy.lock_on_attach(&client).await?);
/// assert!(!options.lock, "this cluster was formatted without locking");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LockPolicy {
    mode: LockMode,
    /// When the cluster was queried, and whether it locks VDIs.
    capability: tokio::sync::Mutex<Option<(Instant, bool)>>,
}

impl LockPolicy {
    /// A policy with an empty cache.
    pub fn new(mode: LockMode) -> Self {
        Self {
            mode,
            capability: tokio::sync::Mutex::default(),
        }
    }

    /// Whether to lock a VDI that is attached to be written.
    ///
    /// # Errors
    /// `NoLocking` when locks are required and the cluster was formatted without;
    /// `Cluster` when it does not answer.
    pub async fn lock_on_attach(&self, client: &Client) -> Result<bool, VolumeError> {
        match self.is_locking(client).await? {
            false if self.mode == LockMode::Require => Err(VolumeError::NoLocking),
            locking => Ok(locking),
        }
    }

    /// Whether the cluster was formatted with locking. Without it, lock and unlock have no
    /// effect, but each is still a cluster-wide event.
    ///
    /// # Errors
    /// `Cluster` when the cluster does not answer.
    pub async fn is_locking(&self, client: &Client) -> Result<bool, VolumeError> {
        if self.mode == LockMode::Off {
            return Ok(false);
        }
        let mut capability = self.capability.lock().await;
        match *capability {
            Some((asked, locks)) if asked.elapsed() < CAPABILITY_TTL => Ok(locks),
            _ => {
                let asked = Instant::now();
                let locks = match client.cluster().info().await {
                    Ok(info) => info.header.flags().contains(ClusterFlags::USE_LOCK),
                    // A sheep that is too old to say.
                    Err(error) if error.code().is_some() => true,
                    Err(error) => return Err(error.into()),
                };
                *capability = Some((asked, locks));
                Ok(locks)
            }
        }
    }

    /// Drops the cached capability: the new gateway may belong to a cluster with another
    /// locking mode.
    pub async fn forget(&self) {
        *self.capability.lock().await = None;
    }
}
