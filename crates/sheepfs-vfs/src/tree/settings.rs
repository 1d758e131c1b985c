//! The files under `config/`: settings that can be changed while mounted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use sheep_client::{Client, GatewayAddress};
use sheep_proto::limits::DEFAULT_PORT;

use super::outage::Outage;
use super::volume_table::VolumeTable;
use crate::command::{invalid, line, refused, switch};
use crate::error::{Chain, FsError};
use crate::lock_policy::LockPolicy;
use crate::node::Setting;
use crate::volume::Volume;

pub(crate) struct Settings {
    client: Client,
    outage: Arc<Outage>,
    lock_policy: Arc<LockPolicy>,
    volumes: Arc<VolumeTable>,
    page_cache: AtomicBool,
    object_cache: AtomicBool,
}

impl Settings {
    pub(super) fn new(
        client: Client,
        outage: Arc<Outage>,
        lock_policy: Arc<LockPolicy>,
        volumes: Arc<VolumeTable>,
        page_cache: bool,
        object_cache: bool,
    ) -> Self {
        Self {
            client,
            outage,
            lock_policy,
            volumes,
            page_cache: page_cache.into(),
            object_cache: object_cache.into(),
        }
    }

    /// Whether volumes are opened with the kernel's page cache.
    pub(super) fn page_cache(&self) -> bool {
        self.page_cache.load(Ordering::Relaxed)
    }

    /// Has a volume that is being opened use the object cache of the gateway, if set.
    pub(super) async fn apply_object_cache(&self, volume: &Volume) {
        let is_on = || self.object_cache.load(Ordering::Relaxed);
        if !is_on() {
            return;
        }
        let started = volume.use_object_cache().await;
        // It may have been set off in between, which does not know of this volume.
        let outcome = match started {
            Ok(()) if !is_on() => volume.stop_object_cache().await,
            other => other,
        };
        if let Err(error) = outcome {
            tracing::warn!(
                "{}: the object cache of the sheep is not used: {}",
                volume.selector(),
                Chain(&error)
            );
        }
    }

    /// Has all volumes go past the object cache; returns those that used it.
    async fn stop_object_cache(&self) -> Result<Vec<Arc<Volume>>, FsError> {
        let mut using = self.volumes.all();
        using.retain(|volume| volume.uses_object_cache());
        let stopped = join_all(using.iter().map(|volume| volume.stop_object_cache())).await;
        for outcome in stopped {
            outcome?;
        }
        Ok(using)
    }

    /// What the file of a setting contains.
    pub(super) fn text(&self, setting: Setting) -> Bytes {
        let switch = |on: &AtomicBool| {
            Bytes::from_static(if on.load(Ordering::Relaxed) {
                b"1\n"
            } else {
                b"0\n"
            })
        };
        match setting {
            Setting::PageCache => switch(&self.page_cache),
            Setting::ObjectCache => switch(&self.object_cache),
            Setting::SheepInfo => Bytes::from(format!("{}\n", self.client.address())),
        }
    }

    /// Changes a setting to the line written to its file.
    ///
    /// # Errors
    /// `Command`.
    pub(super) async fn change(&self, setting: Setting, data: &[u8]) -> Result<(), FsError> {
        let outcome = match line(data) {
            Ok(line) => self.apply(setting, line).await,
            Err(error) => Err(error),
        };
        outcome.map_err(|error| refused(setting.path(), data, error))
    }

    async fn apply(&self, setting: Setting, line: &[u8]) -> Result<(), FsError> {
        match setting {
            Setting::PageCache => self.page_cache.store(switch(line)?, Ordering::Relaxed),
            Setting::ObjectCache => {
                let is_on = switch(line)?;
                self.object_cache.store(is_on, Ordering::Relaxed);
                if !is_on {
                    self.stop_object_cache().await?;
                }
            }
            Setting::SheepInfo => {
                let text = std::str::from_utf8(line).map_err(|_| invalid("not an address"))?;
                let address = GatewayAddress::parse(text, DEFAULT_PORT)
                    .map_err(|error| invalid(error.to_string()))?;
                // What is in the cache of the old gateway would be lost with it.
                let using = self.stop_object_cache().await?;
                let switched = self.client.switch_gateway(address).await;
                for volume in using {
                    self.apply_object_cache(&volume).await;
                }
                switched?;
                // The new gateway may belong to another cluster: drop all cached state.
                self.outage.forget();
                self.lock_policy.forget().await;
            }
        }
        Ok(())
    }
}
