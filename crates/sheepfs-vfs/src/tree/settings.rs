//! The files under `config/`: settings that can be changed while mounted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use sheep_client::{Client, GatewayAddress};
use sheep_proto::limits::DEFAULT_PORT;

use super::outage::Outage;
use crate::command::{invalid, line, refused, switch};
use crate::error::FsError;
use crate::lock_policy::LockPolicy;
use crate::node::Setting;

pub(crate) struct Settings {
    client: Client,
    outage: Arc<Outage>,
    lock_policy: Arc<LockPolicy>,
    page_cache: AtomicBool,
    object_cache: AtomicBool,
}

impl Settings {
    pub(super) fn new(
        client: Client,
        outage: Arc<Outage>,
        lock_policy: Arc<LockPolicy>,
        page_cache: bool,
        object_cache: bool,
    ) -> Self {
        Self {
            client,
            outage,
            lock_policy,
            page_cache: page_cache.into(),
            object_cache: object_cache.into(),
        }
    }

    /// Whether volumes are opened with the kernel's page cache.
    pub(super) fn page_cache(&self) -> bool {
        self.page_cache.load(Ordering::Relaxed)
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
            Setting::ObjectCache => self.object_cache.store(switch(line)?, Ordering::Relaxed),
            Setting::SheepInfo => {
                let text = std::str::from_utf8(line).map_err(|_| invalid("not an address"))?;
                let address = GatewayAddress::parse(text, DEFAULT_PORT)
                    .map_err(|error| invalid(error.to_string()))?;
                self.client.switch_gateway(address).await?;
                // The new gateway may belong to another cluster: drop all cached state.
                self.outage.forget();
                self.lock_policy.forget().await;
            }
        }
        Ok(())
    }
}
