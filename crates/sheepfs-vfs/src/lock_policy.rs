//! Whether a volume's VDI is to be locked.

use std::time::Duration;

use sheep_client::Client;
use sheep_proto::ClusterFlags;
use tokio::time::Instant;

use crate::volume::VolumeError;

/// How long it is believed that a cluster locks VDIs or not.
const CAPABILITY_TTL: Duration = Duration::from_secs(10);

/// What to do about VDI locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Lock where the cluster was formatted with locking.
    Auto,
    /// Refuse to attach where it was not.
    Require,
    /// Never lock.
    Off,
}

/// Decides for one cluster, which it asks now and then.
///
/// ```no_run
/// # use sheepfs_vfs::{LockMode, LockPolicy, VolumeError, VolumeOptions};
/// # async fn example(client: sheep_client::Client) -> Result<(), VolumeError> {
/// let policy = LockPolicy::new(LockMode::Auto);
/// let options = VolumeOptions {
///     read_only: false,
///     lock: policy.lock_on_attach(&client).await?,
/// };
/// # let _ = options;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LockPolicy {
    mode: LockMode,
    /// Whether the cluster locks VDIs, and when it was asked.
    capability: tokio::sync::Mutex<Option<(Instant, bool)>>,
}

impl LockPolicy {
    /// A policy that has asked nothing yet.
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

    /// Whether locks mean something here. Where the cluster was formatted without
    /// locking, taking and giving one back would do nothing, and cost a turn of the
    /// whole cluster each.
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

    /// Forgets what the cluster said: from now on it is another one, which may be
    /// formatted differently.
    pub async fn forget(&self) {
        *self.capability.lock().await = None;
    }
}
