//! Debian's `tgtd`, which has a client of its own for sheep: a VDI over iSCSI.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use crate::process::{self, wait_for_exit};
use crate::program::{output, run_within, spawn};
use crate::wait::{free_ports, wait_until};

/// From the start of the daemon to its first response.
const START_LIMIT: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of the daemon.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Longest run of one `tgtadm` command.
const ADMIN_LIMIT: Duration = Duration::from_secs(30);
/// The one target; every daemon has a port of its own.
const NAME: &str = "iqn.2026-01.example:vdi";
/// Where the daemon keeps the socket for `tgtadm`.
const SOCKETS: &str = "/var/run/tgtd";

/// A `tgtd` that serves one VDI on a loopback port; dropping it ends the daemon.
#[derive(Debug)]
pub struct IscsiTarget {
    port: u16,
    child: Child,
    directory: TempDir,
}

impl IscsiTarget {
    /// Opens the VDI `name` on the sheep at `address`.
    ///
    /// # Errors
    /// When the daemon does not start or cannot open the VDI.
    pub fn serve(address: &str, name: &str) -> anyhow::Result<Self> {
        let port = free_ports(1)?[0];
        let directory = TempDir::with_prefix("sheepfs-test-tgt-")?;
        let log = File::create(directory.path().join("log"))?;
        let child = spawn(
            Command::new("tgtd")
                .args(["--foreground", "--control-port", &port.to_string()])
                .args(["--iscsi", &format!("portal=127.0.0.1:{port}")])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        let mut target = Self {
            port,
            child,
            directory,
        };
        target.open(&format!("tcp:{address}:{name}"))?;
        Ok(target)
    }

    /// What qemu's tools and libiscsi call the disk.
    #[must_use]
    pub fn url(&self) -> String {
        format!("iscsi://127.0.0.1:{}/{NAME}/1", self.port)
    }

    /// Closes the VDI and ends the daemon.
    ///
    /// # Errors
    /// When it does not give the VDI back.
    pub fn close(self) -> anyhow::Result<()> {
        self.admin(&["--mode", "logicalunit", "--op", "delete", "--lun", "1"])
    }

    fn open(&mut self, path: &str) -> anyhow::Result<()> {
        let (child, port) = (&mut self.child, self.port);
        wait_until("tgtd answers", START_LIMIT, || {
            if let Some(status) = child.try_wait()? {
                bail!("it ended: {status}");
            }
            let mut show = tgtadm(port);
            show.args(["--mode", "sys", "--op", "show"]);
            Ok(output(ADMIN_LIMIT, &mut show)?.status.success())
        })
        .with_context(|| self.log_text())?;
        self.admin(&["--mode", "target", "--op", "new", "--targetname", NAME])?;
        let unit = ["--mode", "logicalunit", "--op", "new", "--lun", "1"];
        let store = ["--bstype", "sheepdog", "--backing-store", path];
        self.admin(&[unit.as_slice(), &store].concat())?;
        let anyone = ["--mode", "target", "--op", "bind"];
        self.admin(&[anyone.as_slice(), &["--initiator-address", "127.0.0.1"]].concat())
    }

    fn admin(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = tgtadm(self.port);
        command
            .args(["--lld", "iscsi", "--tid", "1"])
            .args(arguments);
        run_within(ADMIN_LIMIT, &mut command).with_context(|| self.log_text())?;
        Ok(())
    }

    fn log_text(&self) -> String {
        fs::read_to_string(self.directory.path().join("log"))
            .unwrap_or_else(|error| format!("no log: {error}"))
    }
}

fn tgtadm(port: u16) -> Command {
    let mut command = Command::new("tgtadm");
    command.args(["--control-port", &port.to_string()]);
    command
}

impl Drop for IscsiTarget {
    fn drop(&mut self) {
        // It does not end while it has a target, nor always on a signal.
        let mut end = tgtadm(self.port);
        end.args(["--mode", "sys", "--op", "delete"]);
        let ended = self
            .admin(&["--mode", "target", "--op", "delete", "--force"])
            .and_then(|()| run_within(ADMIN_LIMIT, &mut end))
            .and_then(|_printed| wait_for_exit(&mut self.child, STOP_LIMIT));
        if let Err(error) = ended {
            eprintln!("{error:#}");
        }
        process::end(&mut self.child, STOP_LIMIT);
        let socket = format!("socket.{}", self.port);
        for leftover in [format!("{socket}.lock"), socket] {
            let leftover = Path::new(SOCKETS).join(leftover);
            // Gone already when the daemon did not come so far.
            let _result = fs::remove_file(leftover);
        }
    }
}
