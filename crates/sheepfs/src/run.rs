//! Life cycle of a mount, from connecting to the cluster to releasing its locks.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sheep_cli::cluster::Cluster;
use sheep_cli::daemon::ParentLink;
use sheep_cli::pidfile::Pidfile;
use sheep_cli::signals::Signals;
use sheep_cli::{embedded, notify};
use sheep_client::GatewayAddress;
use sheep_embedded::Server;
use sheepfs_fuse::{Mount, MountConfig, check_mountable, mount, prefault_thread};
use sheepfs_vfs::Tree;
use tokio::runtime::{self, Handle};
use tokio::time::timeout;

use crate::memory;
use crate::mountpoint::TempMountpoint;
use crate::settings::Settings;
use crate::status::{status, status_loop};

/// Worker threads of the runtime. They are mostly idle: responses are completed on
/// the threads that read them.
const WORKERS: usize = 2;
/// Bytes of heap that a worker needs for requests in flight.
const WORKER_HEAP: usize = 1 << 20;

/// Timeouts of the steps of shutdown, in their order. Their sum is less than the ten
/// seconds within which the process promises to end.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(2);
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Mounts and serves the tree until it is unmounted or a signal arrives.
///
/// # Errors
/// Why mounting failed, or which steps of shutdown were skipped.
pub(crate) fn mount_and_serve(settings: &Settings, parent: &ParentLink) -> anyhow::Result<()> {
    prefault_thread(WORKER_HEAP);
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("sheepfs-work")
        .on_thread_start(|| prefault_thread(WORKER_HEAP))
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let result = runtime.block_on(serve(settings, parent));
    // Tasks that exceeded the timeout of their step end with the process.
    runtime.shutdown_background();
    result
}

async fn serve(settings: &Settings, parent: &ParentLink) -> anyhow::Result<()> {
    let mut signals = Signals::new("the tree was mounted")?;
    let running = RunningMount::start(settings, &mut signals).await?;
    tracing::info!(
        "{} is mounted on {}",
        running.source,
        running.mount.mountpoint().display()
    );
    if !settings.tree.read_only {
        memory::warn_unless_io_flusher();
    }
    let now = status(&running.tree).await;
    if let Err(error) = parent.ready(&now) {
        return running.end().await.and(Err(error));
    }

    let result = tokio::select! {
        ended = running.mount.ended() => {
            tracing::info!("unmounted");
            ended.map_err(Into::into)
        }
        () = status_loop(&running.tree, now) => unreachable!("status_loop never returns"),
        name = signals.next() => {
            tracing::info!("{name}: unmounting");
            Ok(())
        }
    };
    notify::stopping("Unmounting and releasing locks");
    tokio::select! {
        end = running.end() => result.and(end),
        name = signals.next() => {
            tracing::error!("{name} again: exiting without cleanup");
            process::exit(1);
        }
    }
}

/// A served mount and everything that shutdown has to release.
struct RunningMount {
    source: GatewayAddress,
    server: Option<Server>,
    tree: Arc<Tree>,
    mount: Mount,
    pidfile: Option<Pidfile>,
    /// After `mount`, because it must be dropped last.
    _temp_mountpoint: Option<TempMountpoint>,
}

impl RunningMount {
    /// Connects, attaches and mounts. Checks that need no cluster come first.
    async fn start(settings: &Settings, signals: &mut Signals) -> anyhow::Result<Self> {
        // An embedded sheep gets a mountpoint if there is none.
        let temp_mountpoint = match settings.cluster.cluster {
            Cluster::Embedded(_) => TempMountpoint::make(&settings.mountpoint)?,
            Cluster::Running(_) => None,
        };
        // Fail early if mounting is impossible.
        check_mountable(&settings.mountpoint, settings.access)?;
        // Start the embedded sheep, if any, and connect.
        let (server, addresses) = match &settings.cluster.cluster {
            Cluster::Running(addresses) => (None, addresses.clone()),
            Cluster::Embedded(directory) => {
                let server = embedded::start(directory.as_deref()).await?;
                let address = embedded::address(&server);
                (Some(server), vec![address])
            }
        };
        let client = signals
            .unless_interrupted(settings.cluster.connect(addresses))
            .await?;
        if server.is_some() {
            embedded::create_demo_volume(&client).await?;
        }
        // Build the tree, with its mount options for a later remount.
        let source = client.address();
        let tree = Tree::new(client, settings.tree);
        let options = settings.mount_options();
        let options = options
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"));
        tree.set_mount_options(options.collect());
        // Attach the volumes and mount.
        let mounted = Self::mount(settings, &tree, &source);
        match signals.unless_interrupted(mounted).await {
            Ok((mount, pidfile)) => Ok(Self {
                source,
                server,
                tree,
                mount,
                pidfile,
                _temp_mountpoint: temp_mountpoint,
            }),
            Err(error) => {
                // Release the locks of volumes attached so far.
                let close = tree.attachments().close();
                let _closed = with_timeout("releasing locks", CLOSE_TIMEOUT, close).await;
                Err(error)
            }
        }
    }

    async fn mount(
        settings: &Settings,
        tree: &Arc<Tree>,
        gateway: &GatewayAddress,
    ) -> anyhow::Result<(Mount, Option<Pidfile>)> {
        // Attach before mounting, so that the volumes are there when the tree is.
        for target in &settings.attach {
            tree.attachments()
                .attach(target)
                .await
                .with_context(|| format!("cannot attach {}", String::from_utf8_lossy(target)))?;
        }
        if settings.attach_all {
            tree.attachments()
                .attach_all()
                .await
                .context("cannot attach all volumes")?;
        }
        let source = settings.source.clone();
        let source = source.unwrap_or_else(|| format!("sheepfs:{gateway}"));
        let mut config = MountConfig::new(settings.mountpoint.clone(), source);
        config.access = settings.access;
        config.read_only = settings.tree.read_only;
        config.no_exec = settings.no_exec;
        (config.uid, config.gid) = (settings.uid, settings.gid);
        config.umask = settings.umask;
        let mount = mount(Arc::clone(tree), Handle::current(), config)?;
        match settings.pidfile.as_deref().map(Pidfile::write).transpose() {
            Ok(pidfile) => Ok((mount, pidfile)),
            Err(error) => {
                // The error of the pidfile takes precedence over that of unmounting.
                let _skipped = unmount(&mount).await;
                Err(error)
            }
        }
    }

    /// Shuts down: unmounts, completes requests in flight, flushes dirty data, releases
    /// locks, and removes the pidfile and the temporary mountpoint.
    ///
    /// # Errors
    /// The steps that were skipped after a timeout. Files that are still open do not
    /// count; their I/O fails from now on.
    async fn end(self) -> anyhow::Result<()> {
        let mut skipped = unmount(&self.mount).await;
        let flushed = self.tree.attachments().flush_all_dirty();
        if !with_timeout("writing buffered data", WRITE_TIMEOUT, flushed).await {
            skipped.push("writing buffered data");
        }
        let close = self.tree.attachments().close();
        if !with_timeout("releasing locks", CLOSE_TIMEOUT, close).await {
            skipped.push("releasing locks");
        }
        // This closes the connections before the embedded sheep is stopped.
        drop(self.tree);
        if let Some(server) = self.server {
            let stop = embedded::stop(server);
            if !with_timeout("stopping the embedded sheep", STOP_TIMEOUT, stop).await {
                skipped.push("stopping the embedded sheep");
            }
        }
        if let Some(pidfile) = &self.pidfile {
            pidfile.remove();
        }
        if skipped.is_empty() {
            return Ok(());
        }
        bail!("ended without {}", skipped.join(", without "));
    }
}

/// Unmounts and waits for requests in flight; returns the steps that were skipped.
async fn unmount(mount: &Mount) -> Vec<&'static str> {
    let mut skipped = Vec::new();
    match timeout(UNMOUNT_TIMEOUT, mount.unmount()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!("{error}");
            skipped.push("unmounting");
        }
        Err(_elapsed) => skipped.push("unmounting"),
    }
    with_timeout("closing the last file", OPEN_TIMEOUT, async {
        if let Err(error) = mount.ended().await {
            tracing::error!("{error}");
        }
    })
    .await;
    if !with_timeout(
        "completing requests in flight",
        ANSWER_TIMEOUT,
        mount.close(),
    )
    .await
    {
        skipped.push("completing requests in flight");
    }
    skipped
}

/// Waits for `work` for up to `limit`; false after a timeout.
async fn with_timeout(what: &str, limit: Duration, work: impl Future<Output = ()>) -> bool {
    let ended = timeout(limit, work).await.is_ok();
    if !ended {
        tracing::warn!("{what} took more than {} s: skipped", limit.as_secs());
    }
    ended
}
