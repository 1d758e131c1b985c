//! The program in a cluster with locking.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sheep_client::cluster::FormatOptions;
use sheep_client::proto::ClusterFlags;
use sheep_client::{Client, ClientConfig, NewVdi, VdiName};
use sheep_embedded::{Config, Server, StoreKind};
use sheep_nbd::export::{ExportError, Exports as _};
use sheep_nbd::volumes::{AttachOptions, Selection, Volumes};
use sheepfs_vfs::LockMode;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of the greeting, and of the reply to `EXPORT_NAME`.
const GREETING_LEN: usize = 18;
const EXPORT_LEN: usize = 134;

fn start(sheep: &Server, socket: &Path, options: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sheep-nbd"))
        .args(["--foreground", "--lock=require", "--address"])
        .arg(sheep.local_address().to_string())
        .arg("--socket")
        .arg(socket)
        .args(options)
        .arg("disk")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// A client in the transmission phase.
async fn connect(socket: &Path) -> UnixStream {
    let connected = async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(_not_yet) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let mut stream = timeout(LIMIT, connected).await.unwrap();
    stream.read_exact(&mut [0; GREETING_LEN]).await.unwrap();
    let export_name = b"\0\0\0\x01IHAVEOPT\0\0\0\x01\0\0\0\x04disk";
    stream.write_all(export_name).await.unwrap();
    stream.read_exact(&mut [0; EXPORT_LEN]).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_releases_locks_of_volumes_in_use() {
    let sheep = Server::start(Config::new(StoreKind::Memory)).await.unwrap();
    let config = ClientConfig::new(sheep.local_address().into());
    let client = Client::connect(config).await.unwrap();
    let format = FormatOptions::default().with_flags(ClusterFlags::USE_LOCK);
    client.cluster().format(&format).await.unwrap();
    let new = NewVdi::new(VdiName::new("disk").unwrap(), 8 << 20);
    client.cluster().create_vdi(&new).await.unwrap();
    let lock = AttachOptions {
        read_only: false,
        lock: LockMode::Require,
    };
    let directory = TempDir::new().unwrap();
    let socket: PathBuf = directory.path().join("socket");
    for options in [&[][..], &["--attach"]] {
        let mut program = start(&sheep, &socket, options);
        let mut connected = connect(&socket).await;
        // Another client of the cluster, which remembers nothing of the last round.
        let others = Volumes::new(client.clone(), Selection::All, lock);
        let refused = others.open(b"disk").await.unwrap_err();
        assert!(matches!(refused, ExportError::InUse(_)), "{refused}");

        let id = i32::try_from(program.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
        let status = timeout(LIMIT, program.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(connected.read(&mut [0]).await.unwrap(), 0);
        drop(others.open(b"disk").await.unwrap());
        others.detached().await;
    }
}
