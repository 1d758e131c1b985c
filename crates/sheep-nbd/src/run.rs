//! One service, from connecting to the cluster to the last lock given back.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sheep_cli::cluster::Cluster;
use sheep_cli::daemon::ParentLink;
use sheep_cli::pidfile::Pidfile;
use sheep_cli::signals::Signals;
use sheep_cli::{embedded, notify};
use sheep_client::Client;
use sheep_embedded::Server as Sheep;
use sheep_nbd::export::Exports as _;
use sheep_nbd::volumes::{AttachOptions, Selection, VolumeExport, Volumes};
use sheep_nbd::{Listener, Server, tls};
use tokio::runtime;
use tokio::time::timeout;

use crate::settings::Settings;
use crate::sockets::Sockets;

/// Threads for what requests have to wait for.
const WORKERS: usize = 2;

/// A process that is told to end is out within ten seconds. These are the steps of
/// its end, one after the other.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const DETACH_TIMEOUT: Duration = Duration::from_secs(3);
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the exports until a signal comes.
///
/// # Errors
/// Why they could not be served; `parent` has been told, too.
pub(crate) fn serve(settings: &Settings, parent: &ParentLink) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("sheep-nbd-work")
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let result = runtime.block_on(serve_until_signal(settings, parent));
    // Whatever did not end in time ends with the process.
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
    let service = match signals
        .unless_interrupted(Service::start(settings, client))
        .await
    {
        Ok(service) => service,
        Err(error) => {
            if let Some(sheep) = sheep {
                embedded::stop(sheep).await;
            }
            return Err(error);
        }
    };
    if let Err(error) = parent.ready(&service.status) {
        return service.end(sheep).await.and(Err(error));
    }
    let name = signals.next().await;
    tracing::info!("{name}: ending");
    notify::stopping("Answering requests and giving locks back");
    tokio::select! {
        ended = service.end(sheep) => ended,
        name = signals.next() => {
            tracing::error!("{name} again: leaving at once");
            process::exit(1);
        }
    }
}

/// Everything that has to be undone at the end.
struct Service {
    server: Arc<Server<Volumes>>,
    /// Volumes that are attached whether somebody uses them or not.
    kept: Vec<Arc<VolumeExport>>,
    sockets: Sockets,
    pidfile: Option<Pidfile>,
    status: String,
}

impl Service {
    async fn start(settings: &Settings, client: Client) -> anyhow::Result<Self> {
        let options = AttachOptions {
            read_only: settings.cluster.read_only,
            lock: settings.cluster.lock,
        };
        let tls = match &settings.tls {
            Some(files) => Some(tls::load(&files.directory, files.verify_peer)?),
            None => None,
        };
        let volumes = Volumes::new(client, settings.selection.clone(), options);
        let kept = match prepare(settings, &volumes).await {
            Ok(kept) => kept,
            Err(error) => {
                // Volumes attached so far are locked.
                within(DETACH_TIMEOUT, volumes.detached()).await;
                return Err(error);
            }
        };
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

    /// Answers what was begun, gives locks back, and removes what was made.
    ///
    /// # Errors
    /// What there was no time for.
    async fn end(self, sheep: Option<Sheep>) -> anyhow::Result<()> {
        let mut unfinished = Vec::new();
        self.sockets.remove();
        self.server.shut_down();
        if !within(DRAIN_TIMEOUT, self.server.drained()).await {
            unfinished.push("answering the last request");
        }
        drop(self.kept);
        if !within(DETACH_TIMEOUT, self.server.exports().detached()).await {
            unfinished.push("giving locks back");
        }
        // The connections go with it, before the sheep they lead to.
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

/// Looks whether every named volume is there, and attaches them if they are to be
/// kept.
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

/// Waits for `work`, but not for ever; false when it did not end.
async fn within(limit: Duration, work: impl Future<Output = ()>) -> bool {
    timeout(limit, work).await.is_ok()
}
