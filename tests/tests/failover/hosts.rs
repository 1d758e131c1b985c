//! Two hosts and the cable between them: network namespaces that end with their last
//! process.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::thread;

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns, unshare};
use tests::run;

/// A host with a network of its own, and nothing else.
pub(crate) struct Host {
    namespace: File,
}

impl Host {
    fn new() -> anyhow::Result<Self> {
        // A namespace belongs to a thread, and this thread keeps its own.
        let maker = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("this test needs root, for network namespaces")?;
            let namespace = File::open("/proc/thread-self/ns/net")?;
            Ok(Self { namespace })
        });
        maker
            .join()
            .expect("the thread returns errors instead of panicking")
    }

    /// Runs `work` there; so does every program and thread that it starts.
    pub(crate) fn on<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            there
                .join()
                .expect("the thread returns errors instead of panicking")
        })
    }

    /// Runs `ip` there.
    pub(crate) fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        self.on(|| run(Command::new("ip").args(arguments.split(' '))).map(drop))
    }

    /// A path that `ip` takes for the name of this namespace.
    fn name(&self) -> String {
        let descriptor = self.namespace.as_raw_fd();
        format!("/proc/{}/fd/{descriptor}", std::process::id())
    }
}

/// Makes two hosts: one with the interface `near` and the address 10.0.0.1, and
/// one with the interface `far` and the addresses 10.0.0.2 and 10.0.0.3.
pub(crate) fn joined_by_a_cable() -> anyhow::Result<(Host, Host)> {
    let (near, far) = (Host::new()?, Host::new()?);
    near.ip(&format!(
        "link add near type veth peer name far netns {}",
        far.name()
    ))?;
    near.ip("address add 10.0.0.1/24 dev near")?;
    far.ip("address add 10.0.0.2/24 dev far")?;
    far.ip("address add 10.0.0.3/24 dev far")?;
    for (host, interface) in [(&near, "near"), (&far, "far")] {
        host.ip("link set lo up")?;
        host.ip(&format!("link set {interface} up"))?;
    }
    Ok((near, far))
}
