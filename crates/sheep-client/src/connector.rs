//! What connections are made of: TCP, or what a test puts in its place.
//!
//! A simulated network plugs in here: below frames, ids, reconnects and retries,
//! and above the system calls alone. It costs one virtual call for each of these.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use crate::transport::BoxFuture;

/// Idle time before a silent host is probed.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
/// Time between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time after which a host that acknowledges nothing is dead.
const USER_TIMEOUT: Duration = Duration::from_secs(25);

/// Opens byte streams to sheep.
pub trait Connector: Debug + Send + Sync {
    /// Connects to `peer`, for as long as the system tries.
    fn connect(&self, peer: SocketAddr) -> BoxFuture<'_, io::Result<ByteStream>>;
}

/// A byte stream to one sheep.
pub struct ByteStream {
    /// What the sheep sends.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What is sent to it.
    pub writer: Box<dyn WriteHalf>,
}

impl Debug for ByteStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteStream").finish_non_exhaustive()
    }
}

/// The sending side of a [`ByteStream`], for several threads.
pub trait WriteHalf: Send + Sync {
    /// Writes as much as there is room for, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room, anything else when the stream is broken.
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Returns once there may be room.
    ///
    /// # Errors
    /// When the stream is broken.
    fn writable(&self) -> BoxFuture<'_, io::Result<()>>;

    /// Ends the stream in both directions, which wakes its reader.
    fn shut_down(&self);
}

/// The network of the machine.
#[derive(Debug)]
pub(crate) struct Tcp;

impl Connector for Tcp {
    fn connect(&self, peer: SocketAddr) -> BoxFuture<'_, io::Result<ByteStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(peer).await?;
            stream.set_nodelay(true)?;
            let socket = SockRef::from(&stream);
            let keepalive = TcpKeepalive::new()
                .with_time(KEEPALIVE_TIME)
                .with_interval(KEEPALIVE_INTERVAL);
            socket.set_tcp_keepalive(&keepalive)?;
            socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
            let (reader, writer) = stream.into_split();
            Ok(ByteStream {
                reader: Box::new(reader),
                writer: Box::new(writer),
            })
        })
    }
}

impl WriteHalf for OwnedWriteHalf {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::try_write_vectored(self, parts)
    }

    fn writable(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(Self::writable(self))
    }

    fn shut_down(&self) {
        // The socket may be gone already, which is what is wanted.
        let _ = SockRef::from(self.as_ref()).shutdown(Shutdown::Both);
    }
}
