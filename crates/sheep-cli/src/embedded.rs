//! `--embedded`: a sheep in this process, with a demo volume.

use std::path::Path;

use anyhow::Context as _;
use sheep_client::{Client, GatewayAddress, NewVdi};
use sheep_embedded::{Config, Server, StoreKind};
use sheep_proto::VdiName;

/// Name and size in bytes of the demo volume.
const DEMO_VOLUME: (&str, u64) = ("demo", 1 << 30);

/// Starts the sheep on a free port of the loopback interface.
///
/// # Errors
/// When the directory cannot be used, or holds something else.
pub async fn start(directory: Option<&Path>) -> anyhow::Result<Server> {
    let store = directory.map_or(StoreKind::Memory, |path| StoreKind::Directory(path.into()));
    let server = Server::start(Config::new(store))
        .await
        .context("cannot start the embedded sheep")?;
    let place = directory.map_or("memory".into(), |path| path.display().to_string());
    tracing::info!(
        "embedded sheep on {}, data in {place}",
        server.local_address()
    );
    Ok(server)
}

/// Address for clients.
pub fn address(server: &Server) -> GatewayAddress {
    server.local_address().into()
}

/// Stops the sheep and makes its data durable.
pub async fn stop(server: Server) {
    if let Err(error) = server.shutdown().await {
        tracing::error!("the embedded sheep's data may not be on disk: {error}");
    }
}

/// Creates the demo volume if the cluster has no VDI.
///
/// # Errors
/// The sheep's.
pub async fn create_demo_volume(client: &Client) -> anyhow::Result<()> {
    if !client.cluster().list_vids().await?.is_empty() {
        return Ok(());
    }
    let (name, size) = DEMO_VOLUME;
    let new = NewVdi::new(VdiName::new(name)?, size);
    client
        .cluster()
        .create_vdi(&new)
        .await
        .with_context(|| format!("cannot create volume {name}"))?;
    tracing::info!("created volume {name} of {} MiB", size >> 20);
    Ok(())
}
