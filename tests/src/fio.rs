//! A run of `fio`, while something else happens or not.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::process;
use crate::program::spawn;
use crate::wait::wait_until;

/// Longest run.
const LIMIT: Duration = Duration::from_secs(600);
/// From SIGTERM to SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A `fio` at work on one file; dropping it ends it.
#[derive(Debug)]
pub struct Fio {
    child: Child,
    directory: TempDir,
}

impl Fio {
    /// Starts jobs on `volume`, which exists, and each of which proves with
    /// checksums that it reads what it wrote.
    ///
    /// # Errors
    /// When there is no `fio`.
    pub fn verifying(volume: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let file = format!("--filename={}", volume.display());
        Self::start(&[&[&*file, "--allow_file_create=0"], arguments].concat())
    }

    fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("sheepfs-test-fio-")?;
        let errors = File::create(directory.path().join("errors"))?;
        let child = spawn(
            Command::new("fio")
                .args(["--thread", "--randseed=1"])
                .args(["--verify=crc32c", "--verify_fatal=1"])
                .args(["--output-format=json", "--group_reporting"])
                .arg("--output=report.json")
                .args(arguments)
                .current_dir(directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(errors),
        )?;
        Ok(Self { child, directory })
    }

    /// Starts 16 jobs that write 4 KiB blocks for `seconds`, each in its own
    /// part of the first 32 MiB, and verify as they go.
    ///
    /// # Errors
    /// As [`Fio::verifying`].
    pub fn sixteen_jobs(volume: &Path, seconds: u32) -> anyhow::Result<Self> {
        Self::verifying(
            volume,
            &[
                "--name=verify",
                "--rw=randwrite",
                "--bs=4k",
                "--numjobs=16",
                "--size=2m",
                "--offset_increment=2m",
                "--verify_backlog=64",
                "--ioengine=psync",
                "--direct=1",
                "--time_based",
                &format!("--runtime={seconds}"),
            ],
        )
    }

    /// Starts a job that writes 4 KiB blocks of the first 32 MiB of an NBD export for
    /// `seconds`, 16 at a time, and verifies as it goes.
    ///
    /// # Errors
    /// As [`Fio::verifying`].
    pub fn nbd(uri: &str, seconds: u32) -> anyhow::Result<Self> {
        Self::start(&[
            "--name=verify",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--size=32m",
            "--verify_backlog=64",
            "--verify_state_save=0",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--time_based",
            &format!("--runtime={seconds}"),
        ])
    }

    /// Waits for its end and prints the longest time that a request took, under
    /// the name `what`.
    ///
    /// # Errors
    /// As [`Fio::finish`].
    pub fn report(self, what: &str) -> anyhow::Result<()> {
        let groups = self.finish().with_context(|| what.to_owned())?;
        let longest = groups
            .iter()
            .flat_map(|group| [&group["read"], &group["write"]])
            .filter_map(|part| part["lat_ns"]["max"].as_u64())
            .max();
        let longest = Duration::from_nanos(longest.unwrap_or(0));
        let writes = &groups[0]["write"]["total_ios"];
        println!("{what}: no errors, {writes} writes, longest pause {longest:.2?}");
        Ok(())
    }

    /// Whether it ends within that time.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ends_within(&mut self, limit: Duration) -> anyhow::Result<bool> {
        Ok(self.status_within(limit)?.is_some())
    }

    fn status_within(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let mut status = None;
        // A timeout is a valid outcome.
        drop(wait_until("fio ends", limit, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        }));
        Ok(status)
    }

    /// Waits for its end and returns its groups of jobs.
    ///
    /// # Errors
    /// When a job had an error, with what fio said about it.
    pub fn finish(mut self) -> anyhow::Result<Vec<Value>> {
        let status = self.status_within(LIMIT)?.context("fio still runs")?;
        let read = |name| fs::read_to_string(self.directory.path().join(name));
        let (text, errors) = (read("report.json")?, read("errors")?);
        ensure!(status.success(), "fio: {status}\n{errors}\n{text}");
        // fio prints warnings before its report.
        let start = text.find('{').context("fio wrote no report")?;
        let mut report: Value = serde_json::from_str(&text[start..])?;
        let Value::Array(groups) = report["jobs"].take() else {
            anyhow::bail!("no jobs: {report:#}");
        };
        for group in &groups {
            ensure!(group["error"] == 0, "{errors}\n{group:#}");
            for what in ["write", "read"] {
                ensure!(group[what]["total_ios"] != 0, "no {what}: {group:#}");
            }
        }
        Ok(groups)
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        process::end(&mut self.child, STOP_LIMIT);
    }
}
