//! Nodes of one cluster, which a test can kill one by one.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use sheep_embedded::{Config, Server, StoreKind};
use tokio::runtime::Runtime;

/// Nodes in this process on one store in memory, of which some may be missing.
pub(crate) struct Nodes {
    runtime: Runtime,
    /// Keeps the store; no client starts with its address.
    keeper: Server,
    addresses: Vec<SocketAddr>,
    running: Vec<Option<Server>>,
}

impl Nodes {
    /// Starts them on ports of their own.
    pub(crate) fn start(count: usize) -> anyhow::Result<Self> {
        Self::start_on(&vec![(Ipv4Addr::LOCALHOST, 0).into(); count])
    }

    /// Starts one on each address, of the host that this thread is on.
    pub(crate) fn start_on(addresses: &[SocketAddr]) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let keeper = runtime.block_on(Server::start(Config::new(StoreKind::Memory)))?;
        let mut nodes = Self {
            runtime,
            keeper,
            addresses: Vec::new(),
            running: Vec::new(),
        };
        for &address in addresses {
            let server = nodes.runtime.block_on(nodes.keeper.add_node(address))?;
            nodes.addresses.push(server.local_address());
            nodes.running.push(Some(server));
        }
        Ok(nodes)
    }

    /// `HOST:PORT` for clients.
    pub(crate) fn address(&self, node: usize) -> String {
        self.addresses[node].to_string()
    }

    pub(crate) fn server(&self, node: usize) -> anyhow::Result<&Server> {
        self.running[node].as_ref().context("this node was killed")
    }

    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(server) = self.running[node].take() {
            self.runtime.block_on(server.kill());
        }
    }

    pub(crate) fn start_again(&mut self, node: usize) -> anyhow::Result<()> {
        let beside = self.keeper.add_node(self.addresses[node]);
        self.running[node] = Some(self.runtime.block_on(beside)?);
        Ok(())
    }
}
