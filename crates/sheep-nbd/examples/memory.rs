//! An NBD server of 64 MiB of memory, until it is interrupted:
//!
//! ```sh
//! cargo run -p sheep-nbd --example memory -- /tmp/nbd.sock &
//! nbdinfo nbd+unix:///?socket=/tmp/nbd.sock
//! ```

use anyhow::Context as _;
use bytes::Bytes;
use sheep_nbd::{DeviceExports, Listener, Server};
use sheepfs_vfs::volume::MemoryDevice;
use tokio::net::UnixListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).context("usage: memory SOCKET")?;
    let device = MemoryDevice::new(vec![0; 64 << 20]);
    let exports = DeviceExports::new([(Bytes::from_static(b"memory"), device)]);
    let server = Server::new(exports);
    let listener = Listener::Unix(UnixListener::bind(path)?);
    tokio::select! {
        () = server.serve(listener) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    server.shut_down();
    server.drained().await;
    Ok(())
}
