//! fio with checksums in every block.

use std::time::Duration;

use anyhow::Context as _;
use tests::{Fio, Mounted, TestCluster};

/// 16 jobs write 4 KiB blocks, each in its own part, and verify as they go.
const SIXTEEN_JOBS: [&str; 6] = [
    "--name=verify",
    "--bs=4k",
    "--numjobs=16",
    "--size=4m",
    "--offset_increment=4m",
    "--verify_backlog=64",
];

fn has_no_errors(
    options: &str,
    sheepfs_arguments: &[&str],
    fio_arguments: &[&str],
) -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, sheepfs_arguments)?;
    let volume = mounted.create(&cluster.unique_name("fio"), &format!("64M {options}"))?;
    let fio = Fio::verifying(&volume, &[&SIXTEEN_JOBS, fio_arguments].concat())?;
    let jobs = &fio.finish()?[0];
    // 16 jobs with 1024 blocks each, all written, and verified as well.
    assert_eq!(jobs["write"]["total_ios"], 16 * 1024);
    assert!(
        jobs["read"]["total_ios"].as_u64() >= Some(16 * 1024),
        "{jobs:#}"
    );
    mounted.stop()
}

#[test]
fn fio_random_4k_with_16_jobs_verifies() -> anyhow::Result<()> {
    has_no_errors(
        "",
        &[],
        &["--rw=randwrite", "--ioengine=psync", "--direct=1"],
    )
}

#[test]
fn fio_queued_random_4k_on_small_objects_verifies() -> anyhow::Result<()> {
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
fn fio_random_4k_with_page_cache_verifies() -> anyhow::Result<()> {
    has_no_errors(
        "",
        &["--pagecache"],
        &["--rw=randwrite", "--ioengine=psync", "--fsync=64"],
    )
}

#[test]
fn snapshot_every_second_under_fio_causes_no_error() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let (mounted, administrator) = (
        Mounted::start(&cluster, &[])?,
        Mounted::start(&cluster, &[])?,
    );
    let name = cluster.unique_name("fio-snapshots");
    let volume = mounted.create(&name, "64M object_size=1M")?;
    let arguments = ["--rw=randwrite", "--ioengine=psync", "--direct=1"];
    let duration = ["--time_based", "--runtime=8"];
    let mut fio = Fio::verifying(
        &volume,
        &[&SIXTEEN_JOBS[..], &arguments, &duration].concat(),
    )?;
    let mut number = 0;
    while !fio.ends_within(Duration::from_secs(1))? {
        number += 1;
        administrator
            .command("vdi/snapshot", format!("{name} tag{number}"))
            .context("vdi/snapshot")?;
    }
    let jobs = &fio.finish()?[0];
    println!("{number} snapshots, {} writes", jobs["write"]["total_ios"]);
    assert!(number > 3, "{number} snapshots");
    mounted.stop()
}
