//! Life cycle of the service, from connecting to the cluster to releasing its locks.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sheep_cli::cluster::Cluster;
use sheep_cli::daemon::ParentLink;
use sheep_cli::pidfile::Pidfile;
use sheep_cli::signals::Signals;
use sheep_cli::{embedded, notify};
use sheep_embedded::Server as Sheep;
use sheep_nbd::export::Exports as _;
use sheep_nbd::volumes::{AttachOptions, Selection, VolumeExport, Volumes};
use sheep_nbd::{Listener, Server, tls};
use tokio::runtime;
use tokio::time::timeout;

use crate::settings::Settings;
use crate::sockets::Sockets;

/// Worker threads of the runtime.
const WORKERS: usize = 2;

/// Timeouts of the steps of shutdown, in their order. Their sum is less than the ten
/// seconds within which the process promises to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const DETACH_TIMEOUT: Duration = Duration::from_secs(3);
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the exports until a signal arrives.
///
/// # Errors
/// Why the start failed, or which steps of shutdown were skipped.
pub(crate) fn serve(settings: &Settings, parent: &ParentLink) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("sheep-nbd-work")
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let result = runtime.block_on(serve_until_signal(settings, parent));
    // Tasks that exceeded the timeout of their step end with the process.
    runtime.shutdown_background();
    result
}

async fn serve_until_signal(settings: &Settings, parent: &ParentLink) -> anyhow::Result<()> {
    let mut signals = Signals::new("the exports were ready")?;
    let (sheep, addresses) = match &settings.cluster.cluster {
        Cluster::Running(addresses) => (None, addresses.clone()),
        Cluster::Embedded(directory) => {
            let sheep = embedded::start(directory.as_deref()).await?;
            let address = embedded::address(&sheep);
            (Some(sheep), vec![address])
        }
    };
    let client = signals
        .unless_interrupted(settings.cluster.connect(addresses))
        .await?;
    if sheep.is_some() {
        embedded::create_demo_volume(&client).await?;
    }
    let options = AttachOptions {
        read_only: settings.cluster.read_only,
        lock: settings.cluster.lock,
    };
    let volumes = Volumes::new(client, settings.selection.clone(), options);
    let service = match signals
        .unless_interrupted(Service::start(settings, volumes.clone()))
        .await
    {
        Ok(service) => service,
        Err(error) => {
            // Release the locks of the volumes attached so far.
            within(DETACH_TIMEOUT, volumes.end()).await;
            if let Some(sheep) = sheep {
                embedded::stop(sheep).await;
            }
            return Err(error);
        }
    };
    drop(volumes);
    if let Err(error) = parent.ready(&service.status) {
        return service.end(sheep).await.and(Err(error));
    }
    let name = signals.next().await;
    tracing::info!("{name}: ending");
    notify::stopping("Completing requests and releasing locks");
    tokio::select! {
        ended = service.end(sheep) => ended,
        name = signals.next() => {
            tracing::error!("{name} again: exiting without cleanup");
            process::exit(1);
        }
    }
}

/// The running service and everything that shutdown has to release.
struct Service {
    server: Arc<Server<Volumes>>,
    /// Volumes of `--attach`.
    kept: Vec<Arc<VolumeExport>>,
    sockets: Sockets,
    pidfile: Option<Pidfile>,
    status: String,
}

impl Service {
    async fn start(settings: &Settings, volumes: Volumes) -> anyhow::Result<Self> {
        let tls = match &settings.tls {
            Some(files) => Some(tls::load(&files.directory, files.verify_peer)?),
            None => None,
        };
        let kept = prepare(settings, &volumes).await?;
        let server = Server::with_tls(volumes, tls);
        let mut service = Self {
            server,
            kept,
            sockets: Sockets::default(),
            pidfile: None,
            status: String::new(),
        };
        if let Err(error) = service.listen(settings).await {
            return service.end(None).await.and(Err(error));
        }
        Ok(service)
    }

    async fn listen(&mut self, settings: &Settings) -> anyhow::Result<()> {
        self.sockets = Sockets::open(settings).await?;
        let names: Vec<_> = self
            .sockets
            .listeners
            .iter()
            .map(Listener::to_string)
            .collect();
        self.status = format!("Listening on {}", names.join(" and "));
        tracing::info!("{}", self.status);
        for listener in self.sockets.listeners.drain(..) {
            let server = Arc::clone(&self.server);
            tokio::spawn(async move { server.serve(listener).await });
        }
        self.pidfile = settings
            .pidfile
            .as_deref()
            .map(Pidfile::write)
            .transpose()?;
        Ok(())
    }

    /// Completes requests in flight, releases locks, and removes the socket and the PID
    /// file.
    ///
    /// # Errors
    /// Names the steps that were skipped.
    async fn end(self, sheep: Option<Sheep>) -> anyhow::Result<()> {
        let mut unfinished = Vec::new();
        self.sockets.remove();
        self.server.shut_down();
        if !within(DRAIN_TIMEOUT, self.server.drained()).await {
            unfinished.push("completing requests in flight");
        }
        drop(self.kept);
        if !within(DETACH_TIMEOUT, self.server.exports().end()).await {
            unfinished.push("releasing locks");
        }
        // Closes the connections to the sheep before that stops.
        drop(self.server);
        if let Some(sheep) = sheep
            && !within(STOP_TIMEOUT, embedded::stop(sheep)).await
        {
            unfinished.push("stopping the embedded sheep");
        }
        if let Some(pidfile) = &self.pidfile {
            pidfile.remove();
        }
        if unfinished.is_empty() {
            return Ok(());
        }
        bail!("ended without {}", unfinished.join(", without "));
    }
}

/// Checks that every named volume exists; attaches them with `--attach`.
async fn prepare(settings: &Settings, volumes: &Volumes) -> anyhow::Result<Vec<Arc<VolumeExport>>> {
    let mut kept = Vec::new();
    let Selection::Named(names) = &settings.selection else {
        return Ok(kept);
    };
    for name in names {
        let prepared = match settings.attach {
            true => volumes.open(name).await.map(|export| kept.push(export)),
            false => volumes.describe(name).await.map(drop),
        };
        prepared.with_context(|| format!("cannot export '{}'", name.escape_ascii()))?;
    }
    Ok(kept)
}

/// Waits for `work` for up to `limit`; false after a timeout.
async fn within(limit: Duration, work: impl Future<Output = ()>) -> bool {
    timeout(limit, work).await.is_ok()
}
