//! The lock policy: whether to lock the VDI of a volume.

use std::time::Duration;

use sheep_client::Client;
use sheep_client::cluster::LockSupport;
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
    capability: tokio::sync::Mutex<Option<(Instant, LockSupport)>>,
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
    /// `NoLocking` when locks are required and the cluster was formatted without, or
    /// its sheep have none or do not say; `Cluster` when it does not answer.
    pub async fn lock_on_attach(&self, client: &Client) -> Result<bool, VolumeError> {
        let support = self.support(client).await?;
        if self.mode == LockMode::Require && support != LockSupport::Yes {
            return Err(VolumeError::NoLocking);
        }
        Ok(support != LockSupport::No)
    }

    /// Whether the cluster was formatted with locking. Without it, lock and unlock have no
    /// effect, but each is still a cluster-wide event.
    ///
    /// # Errors
    /// `Cluster` when the cluster does not answer.
    pub async fn is_locking(&self, client: &Client) -> Result<bool, VolumeError> {
        Ok(self.support(client).await? != LockSupport::No)
    }

    async fn support(&self, client: &Client) -> Result<LockSupport, VolumeError> {
        if self.mode == LockMode::Off {
            return Ok(LockSupport::No);
        }
        let mut capability = self.capability.lock().await;
        match *capability {
            Some((asked, support)) if asked.elapsed() < CAPABILITY_TTL => Ok(support),
            _ => {
                let asked = Instant::now();
                let support = client.cluster().lock_support().await?;
                *capability = Some((asked, support));
                Ok(support)
            }
        }
    }

    /// Drops the cached capability: the new gateway may belong to a cluster with another
    /// locking mode.
    pub async fn forget(&self) {
        *self.capability.lock().await = None;
    }
}
