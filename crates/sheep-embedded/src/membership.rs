//! The nodes of the cluster, and its epochs.
//!
//! There is one node, unless tests start more on its store. Every node that
//! comes or goes makes an epoch. They are forgotten with the process: a start
//! is always epoch 1.

use std::net::SocketAddr;
use std::sync::RwLock;

use crate::clock::now;
use crate::poison::{read, write};

/// The nodes since some time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Epoch {
    /// Seconds since 1970.
    pub(crate) time: u64,
    /// In the order of the node list: by address, then port.
    pub(crate) nodes: Vec<SocketAddr>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Membership(RwLock<Epochs>);

#[derive(Default)]
struct Epochs {
    past: Vec<Epoch>,
    current: Epoch,
}

impl Epochs {
    fn change(&mut self, nodes: Vec<SocketAddr>) {
        let next = Epoch {
            time: now() >> 32,
            nodes,
        };
        let previous = std::mem::replace(&mut self.current, next);
        if !previous.nodes.is_empty() {
            self.past.push(previous);
        }
    }
}

impl Membership {
    pub(crate) fn join(&self, node: SocketAddr) {
        let mut epochs = write(&self.0);
        let mut nodes = epochs.current.nodes.clone();
        nodes.push(node);
        nodes.sort_unstable();
        epochs.change(nodes);
    }

    pub(crate) fn leave(&self, node: SocketAddr) {
        let mut epochs = write(&self.0);
        let mut nodes = epochs.current.nodes.clone();
        nodes.retain(|other| *other != node);
        // It may have left before it ended.
        if nodes.len() < epochs.current.nodes.len() {
            epochs.change(nodes);
        }
    }

    /// The number of the current epoch.
    pub(crate) fn epoch(&self) -> u32 {
        u32::try_from(read(&self.0).past.len() + 1).unwrap_or(u32::MAX)
    }

    pub(crate) fn nodes(&self) -> Vec<SocketAddr> {
        read(&self.0).current.nodes.clone()
    }

    /// True when every node has left: nothing is stored any more.
    pub(crate) fn is_empty(&self) -> bool {
        read(&self.0).current.nodes.is_empty()
    }

    /// All epochs with their numbers, newest first.
    pub(crate) fn epochs(&self) -> Vec<(u32, Epoch)> {
        let epochs = read(&self.0);
        let all = epochs.past.iter().chain([&epochs.current]).cloned();
        let mut numbered: Vec<_> = (1..).zip(all).collect();
        numbered.reverse();
        numbered
    }

    /// A format: the current nodes are those of epoch 1.
    pub(crate) fn reset(&self) {
        write(&self.0).past.clear();
    }
}
