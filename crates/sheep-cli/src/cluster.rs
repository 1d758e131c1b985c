//! The cluster that the options select, and a client of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use sheep_client::config::{DEFAULT_CONNECTIONS, DEFAULT_RETRY_FOR};
use sheep_client::{Client, ClientConfig, GatewayAddress};
use sheep_proto::ResultCode;
use sheepfs_vfs::LockMode;

use crate::options::{ClusterOptions, Lock, PORT_RANGE};
use crate::usage_error::UsageError;

const DEFAULT_HOST: &str = "127.0.0.1";
const DEFAULT_PORT: u16 = 7000;
/// Variables that `dog` uses as well.
const DOG_ADDRESS: &str = "SHEEPDOG_DOG_ADDR";
const DOG_PORT: &str = "SHEEPDOG_DOG_PORT";

/// The cluster to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// A running cluster; addresses to try, at least one.
    Running(Vec<GatewayAddress>),
    /// A sheep in this process, with its data in a directory or in memory.
    Embedded(Option<PathBuf>),
}

/// The checked [`ClusterOptions`]. All paths are absolute.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// The cluster to connect to.
    pub cluster: Cluster,
    /// Connections to the sheep.
    pub connections: usize,
    /// How long requests wait while no sheep responds.
    pub retry_for: Duration,
    /// Whether to lock volumes.
    pub lock: LockMode,
    /// Refuse every write.
    pub read_only: bool,
}

impl ClusterSettings {
    /// Checks `options`. Only dog's variables are read from `environment`.
    ///
    /// # Errors
    /// The first invalid option.
    pub fn resolve(
        options: &ClusterOptions,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, UsageError> {
        Ok(Self {
            cluster: cluster(options, environment)?,
            connections: options.connections.map_or(DEFAULT_CONNECTIONS, usize::from),
            retry_for: options.retry_for.map_or(DEFAULT_RETRY_FOR, |seconds| {
                Duration::from_secs(seconds.into())
            }),
            lock: match options.lock {
                None | Some(Lock::Auto) => LockMode::Auto,
                Some(Lock::Require) => LockMode::Require,
                Some(Lock::Off) => LockMode::Off,
            },
            read_only: options.read_only,
        })
    }

    /// Connects to the cluster at `addresses`.
    ///
    /// # Errors
    /// If no sheep responds, or the cluster is not formatted.
    pub async fn connect(&self, addresses: Vec<GatewayAddress>) -> anyhow::Result<Client> {
        let mut config = ClientConfig::with_addresses(addresses);
        config.connections = self.connections;
        config.retry_for = self.retry_for;
        let client = Client::connect(config).await?;
        let status = client.cluster().history().await?.status;
        if matches!(status, ResultCode::WaitForFormat | ResultCode::NotFormatted) {
            bail!(
                "the cluster of sheep {} is not formatted yet: see `dog cluster format`",
                client.address()
            );
        }
        Ok(client)
    }
}

fn usage_error<T>(text: impl Into<String>) -> Result<T, UsageError> {
    Err(UsageError(text.into()))
}

fn cluster(
    options: &ClusterOptions,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Cluster, UsageError> {
    if let Some(directory) = &options.embedded {
        return Ok(Cluster::Embedded(match directory {
            Some(path) => Some(absolute("--embedded", path)?),
            None => None,
        }));
    }
    let dog = |variable| {
        let value = environment(variable).filter(|value| !value.is_empty());
        value.map(|value| value.to_string_lossy().into_owned())
    };
    let port = match (options.port, dog(DOG_PORT)) {
        (Some(port), _) => port,
        (None, None) => DEFAULT_PORT,
        (None, Some(text)) => match text.parse() {
            Ok(port) if port != 0 => port,
            _ => return usage_error(format!("{DOG_PORT} is '{text}': {PORT_RANGE}")),
        },
    };
    let (from, list) = match (&options.address, dog(DOG_ADDRESS)) {
        (Some(list), _) => ("--address", list.clone()),
        (None, Some(list)) => (DOG_ADDRESS, list),
        (None, None) => ("--address", DEFAULT_HOST.into()),
    };
    let addresses: Result<Vec<_>, _> = list
        .split(',')
        .map(|text| GatewayAddress::parse(text.trim(), port))
        .collect();
    match addresses {
        Ok(addresses) => Ok(Cluster::Running(addresses)),
        Err(error) => usage_error(format!("{from}: {error}")),
    }
}

/// Makes the path of `option` absolute, because the daemon child works in `/`.
///
/// # Errors
/// If the path is empty, or the working directory was removed.
pub fn absolute(option: &str, path: &Path) -> Result<PathBuf, UsageError> {
    if path.as_os_str().is_empty() {
        return usage_error(format!("{option} is empty"));
    }
    std::path::absolute(path)
        .or_else(|error| usage_error(format!("{option} {}: {error}", path.display())))
}
