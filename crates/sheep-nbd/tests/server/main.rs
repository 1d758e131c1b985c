//! The server as a client sees it that writes its bytes by hand.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod device;
mod handshake;
mod hostile;
mod raw_client;
mod transmission;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use sheep_nbd::export::Exports;
use sheep_nbd::{DeviceExports, Listener, Server};
use sheepfs_vfs::BlockDevice;
use tempfile::TempDir;
use tokio::net::UnixListener;

use raw_client::RawClient;

/// A server with a socket of its own.
struct TestServer<X> {
    server: Arc<Server<X>>,
    socket: PathBuf,
    _directory: TempDir,
}

impl<D: BlockDevice> TestServer<DeviceExports<D>> {
    fn start(devices: impl IntoIterator<Item = (&'static str, Arc<D>)>) -> Self {
        let named = devices.into_iter();
        Self::with_names(named.map(|(name, device)| (name.as_bytes(), device)))
    }

    fn with_names(devices: impl IntoIterator<Item = (&'static [u8], Arc<D>)>) -> Self {
        let named = devices
            .into_iter()
            .map(|(name, device)| (Bytes::from_static(name), device));
        Self::with_exports(DeviceExports::new(named))
    }
}

impl<X: Exports> TestServer<X> {
    fn with_exports(exports: X) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("socket");
        let listener = Listener::Unix(UnixListener::bind(&socket).unwrap());
        let server = Server::new(exports);
        let serving = Arc::clone(&server);
        tokio::spawn(async move { serving.serve(listener).await });
        Self {
            server,
            socket,
            _directory: directory,
        }
    }

    /// A client that was greeted.
    async fn connect(&self) -> RawClient {
        RawClient::connect(&self.socket).await
    }

    /// A client in the transmission phase with simple replies.
    async fn simple(&self) -> RawClient {
        let mut client = self.connect().await;
        client.go("disk").await;
        client
    }

    /// One with structured replies and `base:allocation`.
    async fn structured(&self) -> RawClient {
        let mut client = self.connect().await;
        client.structured().await;
        client.select("disk", &["base:allocation"]).await;
        client.go("disk").await;
        client
    }
}
