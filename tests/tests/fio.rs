//! Load with checksums: every block that was written carries its own proof.

use std::process::Command;

use anyhow::Context as _;
use tests::{Mounted, TestCluster, run};

/// 16 jobs write 4 KiB blocks, each in its own part, and verify as they go.
fn has_no_errors(
    options: &str,
    sheepfs_arguments: &[&str],
    fio_arguments: &[&str],
) -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, sheepfs_arguments)?;
    let volume = mounted.create(&cluster.unique_name("fio"), &format!("64M {options}"))?;
    let scratch = tempfile::TempDir::with_prefix("sheepfs-test-fio-")?;
    let report = scratch.path().join("report.json");
    run(Command::new("fio")
        .arg(format!("--filename={}", volume.display()))
        .args(["--name=verify", "--bs=4k", "--numjobs=16", "--thread"])
        .args([
            "--size=4m",
            "--offset_increment=4m",
            "--allow_file_create=0",
        ])
        .args(["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64"])
        .args(["--output-format=json", "--group_reporting", "--randseed=1"])
        .arg(format!("--output={}", report.display()))
        .args(fio_arguments)
        .current_dir(scratch.path()))?;
    // fio's warnings stand before its report.
    let text = std::fs::read_to_string(report)?;
    let start = text.find('{').context("fio wrote no report")?;
    let report: serde_json::Value = serde_json::from_str(&text[start..])?;
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{report:#}");
    // 16 jobs with 1024 blocks each, all written, and verified as well.
    assert_eq!(job["write"]["total_ios"], 16 * 1024);
    assert!(
        job["read"]["total_ios"].as_u64() >= Some(16 * 1024),
        "{job:#}"
    );
    mounted.stop()
}

#[test]
fn random_4k_blocks_of_16_jobs_verify() -> anyhow::Result<()> {
    has_no_errors(
        "",
        &[],
        &["--rw=randwrite", "--ioengine=psync", "--direct=1"],
    )
}

#[test]
fn random_4k_blocks_of_16_jobs_verify_on_small_objects_with_a_queue() -> anyhow::Result<()> {
    has_no_errors(
        "object_size=1M",
        &[],
        &[
            "--rw=randwrite",
            "--ioengine=libaio",
            "--iodepth=8",
            "--direct=1",
        ],
    )
}

#[test]
fn random_4k_blocks_of_16_jobs_verify_through_the_page_cache() -> anyhow::Result<()> {
    has_no_errors(
        "",
        &["--pagecache"],
        &["--rw=randwrite", "--ioengine=psync", "--fsync=64"],
    )
}
