//! The client: handles for typed operations, and what they send requests with.

use std::net::SocketAddr;
use std::sync::Arc;

use sheep_proto::{Generation, Vid};

use crate::address::GatewayAddress;
use crate::cluster::Cluster;
use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::index::Index;
use crate::inode::Inode;
use crate::node::Node;
use crate::object::Objects;
use crate::object_cache::ObjectCache;
use crate::pool::Pool;
use crate::request::{Request, Response};
use crate::sender::Sender;
use crate::session::Session;
use crate::transport::{Completion, Transport};
use crate::vdi::Vdi;
use crate::vdi_info::{VdiInfo, VdiSelector};

/// A cluster to talk to. Clones share its connections.
///
/// The operations are grouped by what they act on: see [`Client::vdi`],
/// [`Client::cluster`], [`Client::node`], [`Client::objects`], [`Client::inode`]
/// and [`Client::index`].
///
/// ```
/// use sheep_client::{Client, ClientConfig, NewVdi, VdiName, VdiSelector};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let address = server.local_address().into();
/// // Usually `"127.0.0.1:7000".parse()?`.
/// let client = Client::connect(ClientConfig::new(address)).await?;
/// let name = VdiName::new("disk0")?;
/// client.cluster().create_vdi(&NewVdi::new(name.clone(), 1 << 30)).await?;
/// let disk = client.vdi(&VdiSelector::working(name)).stat().await?;
/// assert_eq!(disk.size, 1 << 30);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    sender: Sender,
}

impl Client {
    /// Connects to the first sheep that answers.
    ///
    /// # Errors
    /// `Connect` or `Unreachable` with the last address tried when none answers.
    ///
    /// # Panics
    /// Outside a tokio runtime, or when the configuration names no sheep.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        Ok(Self::with_transport(Arc::new(Pool::connect(config).await?)))
    }

    /// A client over another transport than TCP connections.
    #[doc(hidden)]
    pub fn with_transport(transport: Arc<dyn Transport>) -> Self {
        Self {
            sender: Sender { transport },
        }
    }

    /// A VDI, or a snapshot of it, by its name.
    pub fn vdi<'a>(&'a self, selector: &'a VdiSelector) -> Vdi<'a> {
        Vdi::new(&self.sender, selector)
    }

    /// The cluster as a whole: its state, its VDIs.
    pub fn cluster(&self) -> Cluster<'_> {
        Cluster::new(&self.sender)
    }

    /// One node of the cluster, asked at its own address.
    pub fn node(&self, address: SocketAddr) -> Node<'_> {
        Node::new(&self.sender, address)
    }

    /// Objects, by their numbers.
    pub fn objects(&self) -> Objects<'_> {
        Objects::new(&self.sender)
    }

    /// A VDI by its number.
    pub fn inode(&self, vid: Vid) -> Inode<'_> {
        Inode::new(&self.sender, vid)
    }

    /// What the object caches of sheep before 1.0 hold of a VDI.
    pub fn object_cache(&self, vid: Vid) -> ObjectCache<'_> {
        ObjectCache::new(&self.sender, vid)
    }

    /// The session with the sheep in use; also while none is connected.
    pub fn session(&self) -> Session {
        self.sender.transport.session()
    }

    /// The index of a VDI: which VID owns each data object.
    pub fn index<'a>(&'a self, vdi: &'a VdiInfo) -> Index<'a> {
        Index::new(&self.sender, vdi)
    }

    /// The sheep's address as it was given.
    pub fn address(&self) -> GatewayAddress {
        self.sender.transport.address()
    }

    /// The sheep in use now, which may be another after a failure; `None` while
    /// none is connected.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.sender.transport.peer()
    }

    /// The generation of the sheep in use. It stays the same as long as the cluster
    /// does.
    ///
    /// # Errors
    /// `Unreachable` when no sheep is connected for too long.
    pub async fn generation(&self) -> Result<Generation, ClientError> {
        self.sender.generation().await
    }

    /// Checks that a sheep answers at `address`, then uses it for every request
    /// from now on, for all clones of this client. Requests in flight complete on
    /// their old connections.
    ///
    /// # Errors
    /// `Connect` or `Unreachable` when it does not answer; the old address stays
    /// in use.
    pub async fn switch_gateway(&self, address: GatewayAddress) -> Result<(), ClientError> {
        self.sender.transport.switch_gateway(address).await
    }

    /// Sends a request and runs `completion` with the outcome where the response
    /// is read.
    ///
    /// Does not block. A refusal is an `Ok` with its result code here.
    #[doc(hidden)]
    pub fn submit(&self, request: Request, completion: Completion) {
        self.sender.submit(request, completion);
    }

    /// Sends a request and returns the response, unless it is a refusal.
    ///
    /// # Errors
    /// `Refused` with the result code; `Lost`, `Unreachable` or `Closed` without a
    /// response.
    #[doc(hidden)]
    pub async fn send(&self, request: Request) -> Result<Response, ClientError> {
        self.sender.send(request).await
    }

    /// Waits until a request that ended with [`ClientError::Lost`] can no longer
    /// be executed.
    #[doc(hidden)]
    pub async fn fence(&self) {
        self.sender.fence().await;
    }
}
