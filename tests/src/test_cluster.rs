//! The cluster a test talks to: the one it was given, or one of its own.

use std::env;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use crate::embedded_sheep::EmbeddedSheep;

/// Names the cluster to test against, as `HOST:PORT`.
pub const SHEEP_VARIABLE: &str = "SHEEPFS_TEST_SHEEP";
/// Path of the `dog` of that cluster; tests compare its output with ours.
pub const DOG_VARIABLE: &str = "SHEEPFS_TEST_DOG";
/// Names the daemon from which a test starts its own cluster.
pub const SHEEP_BINARY_VARIABLE: &str = "SHEEPFS_TEST_SHEEP_BINARY";

/// A running, formatted cluster.
#[derive(Debug)]
pub struct TestCluster {
    address: String,
    own: Option<Own>,
}

/// The server before its directory: fields are dropped in this order.
#[derive(Debug)]
struct Own {
    sheep: EmbeddedSheep,
    _directory: TempDir,
}

impl TestCluster {
    /// The cluster in `SHEEPFS_TEST_SHEEP`, else a new `sheep-embedded`.
    ///
    /// # Errors
    /// When the server does not start.
    pub fn start() -> anyhow::Result<Self> {
        match env::var(SHEEP_VARIABLE) {
            Ok(address) => Ok(Self { address, own: None }),
            Err(env::VarError::NotPresent) => Self::start_own(),
            Err(error) => Err(error).context(SHEEP_VARIABLE),
        }
    }

    /// A new `sheep-embedded`, for tests that take their server down.
    ///
    /// # Errors
    /// When the server does not start.
    pub fn start_own() -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("sheepfs-test-sheep-")?;
        let sheep = EmbeddedSheep::start(directory.path())?;
        Ok(Self {
            address: sheep.address(),
            own: Some(Own {
                sheep,
                _directory: directory,
            }),
        })
    }

    /// `HOST:PORT` of the gateway.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A VDI name that no other test on this cluster uses.
    #[must_use]
    pub fn unique_name(&self, purpose: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("{purpose}-{}-{number}", process::id())
    }

    /// Whether this test has started it, rather than been given it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// The server, when this test started it.
    ///
    /// # Errors
    /// When the cluster was given from outside.
    pub fn own_sheep(&mut self) -> anyhow::Result<&mut EmbeddedSheep> {
        match &mut self.own {
            Some(own) => Ok(&mut own.sheep),
            None => bail!("the cluster at {} is not this test's own", self.address),
        }
    }

    /// Takes an own server down and up again; leaves a given cluster alone.
    ///
    /// # Errors
    /// When the server does not end cleanly or does not start again.
    pub fn restart_if_own(&mut self) -> anyhow::Result<()> {
        if let Some(own) = &mut self.own {
            own.sheep.stop()?;
            own.sheep.start_again()?;
        }
        Ok(())
    }
}
