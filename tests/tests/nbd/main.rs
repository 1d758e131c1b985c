//! Volumes as NBD exports, used by programs that others wrote.

mod boot;
mod copy;
mod durability;
mod info;
mod life;
mod mirror;
mod protocol;
mod start;
mod tls;

use std::path::PathBuf;
use std::process::Command;

use tests::{Mounted, TestCluster, run};

/// A cluster, and a mount of it to administer and to compare with.
struct Fixture {
    mounted: Mounted,
    cluster: TestCluster,
}

impl Fixture {
    fn start() -> anyhow::Result<Self> {
        let cluster = TestCluster::start()?;
        Self::on(cluster)
    }

    fn on(cluster: TestCluster) -> anyhow::Result<Self> {
        let mounted = Mounted::start(&cluster, &[])?;
        Ok(Self { mounted, cluster })
    }

    /// Creates a VDI, which is not attached.
    fn create(&self, purpose: &str, size_and_options: &str) -> anyhow::Result<String> {
        let name = self.cluster.unique_name(purpose);
        self.command("vdi/create", &format!("{name} {size_and_options}"))?;
        Ok(name)
    }

    fn command(&self, file: &str, line: &str) -> anyhow::Result<()> {
        Ok(self.mounted.command(file, line)?)
    }

    /// Its file in the mount.
    fn file(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.mounted.attach(name)
    }
}

/// Runs a program and returns what it prints.
fn text(command: &mut Command) -> anyhow::Result<String> {
    Ok(String::from_utf8(run(command)?)?)
}

fn program(name: &str, arguments: &[&str]) -> anyhow::Result<String> {
    text(Command::new(name).args(arguments))
}

/// Runs a script with libnbd's handle `h`, connected to `uri`.
fn libnbd(uri: &str, script: &str) -> anyhow::Result<String> {
    let whole = format!(
        "import nbd, sys, os, errno\nh = nbd.NBD()\nuri = sys.argv[1]\n\
         def raises(number, call):\n    \
             try:\n        call()\n    \
             except nbd.Error as error:\n        assert error.errnum == number, error\n    \
             else:\n        raise AssertionError('it succeeded')\n{script}"
    );
    // That of the system has the module, whatever else is in PATH.
    text(Command::new("/usr/bin/python3").args(["-c", &whole, uri]))
}
