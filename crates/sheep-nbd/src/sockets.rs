//! The sockets that clients connect to.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context as _, bail};
use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname};
use nix::sys::stat::{Mode, umask};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sheep_cli::daemon::passed_fds;
use sheep_nbd::Listener;
use tokio::net::{TcpListener, UnixListener};

use crate::settings::{Settings, UnixSocket};

/// Listening sockets.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// Taken by the server.
    pub(crate) listeners: Vec<Listener>,
    /// Path of the Unix socket, if it is ours to remove.
    path: Option<PathBuf>,
}

impl Sockets {
    /// Opens the sockets of the options, else takes those of systemd.
    ///
    /// # Errors
    /// If one is in use or cannot be opened, or there is none.
    pub(crate) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let mut sockets = Self::default();
        if let Some(socket) = &settings.socket {
            sockets.listeners.push(open_unix(socket)?);
            sockets.path = Some(socket.path.clone());
        }
        if let Some(address) = &settings.listen {
            match open_tcp(address, settings.tls.is_some()).await {
                Ok(listener) => sockets.listeners.push(listener),
                Err(error) => {
                    sockets.remove();
                    return Err(error);
                }
            }
        }
        if sockets.listeners.is_empty() {
            sockets.listeners = passed(settings.tls.is_some())?;
        }
        if sockets.listeners.is_empty() {
            bail!("nowhere to listen: give --socket PATH or --listen ADDRESS");
        }
        Ok(sockets)
    }

    /// Removes the Unix socket.
    pub(crate) fn remove(&self) {
        if let Some(path) = &self.path
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

fn open_unix(socket: &UnixSocket) -> anyhow::Result<Listener> {
    let path = &socket.path;
    remove_stale(path)?;
    // bind(2) applies the umask, so no other user can connect before a chmod(2).
    let before = umask(Mode::from_bits_truncate(0o777 & !socket.mode));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok(Listener::Unix(listener))
}

/// Removes a stale socket.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot access {shown}")),
        Ok(file) if !file.file_type().is_socket() => {
            bail!("{shown} exists and is not a socket: choose another path")
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => {
            bail!("another server listens on {shown}: end it, or choose another path")
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("cannot replace the stale socket {shown}")),
        Err(error) => Err(error).with_context(|| format!("cannot tell whether {shown} is in use")),
    }
}

async fn open_tcp(address: &str, is_encrypted: bool) -> anyhow::Result<Listener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    warn_if_exposed(listener.local_addr()?, is_encrypted);
    Ok(Listener::Tcp(listener))
}

fn warn_if_exposed(local: SocketAddr, is_encrypted: bool) {
    if !local.ip().is_loopback() && !is_encrypted {
        tracing::warn!(
            "listening on {local} without encryption: every host that can reach it can read and \
             write the volumes; use --tls-certificates, or a separate network"
        );
    }
}

/// The sockets that the service manager passed: sd_listen_fds(3).
fn passed(is_encrypted: bool) -> anyhow::Result<Vec<Listener>> {
    let fds = passed_fds(|name| env::var(name).ok(), process::id());
    if fds.is_empty() {
        return Ok(Vec::new());
    }
    let this = pidfd_open(getpid(), PidfdFlags::empty()).context("cannot take passed sockets")?;
    fds.into_iter()
        .map(|number| {
            let take = || {
                let fd = pidfd_getfd(&this, number, PidfdGetfdFlags::empty())?;
                listener_of(fd, is_encrypted)
            };
            take().with_context(|| format!("cannot listen on passed descriptor {number}"))
        })
        .collect()
}

fn listener_of(fd: OwnedFd, is_encrypted: bool) -> anyhow::Result<Listener> {
    use std::os::fd::AsRawFd as _;
    let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    match address.family() {
        Some(AddressFamily::Unix) => {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Listener::Unix(UnixListener::from_std(listener)?))
        }
        Some(AddressFamily::Inet | AddressFamily::Inet6) => {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            warn_if_exposed(listener.local_addr()?, is_encrypted);
            Ok(Listener::Tcp(TcpListener::from_std(listener)?))
        }
        _ => bail!("it is neither a TCP nor a Unix socket"),
    }
}
