//! A disk that fills up, on one of three nodes.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use raftkv_tests::disk::SmallDisk;
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, ClusterOptions, LoadOptions, PATIENCE};

use crate::three;

const DISK_BYTES: u64 = 160 << 20;
/// What is left of it while it is meant to be nearly full.
const ROOM: u64 = 6 << 20;
const VICTIM: u64 = 3;

fn disk() -> Option<SmallDisk> {
    SmallDisk::mount(DISK_BYTES)
        .inspect_err(|error| notice(&format!("SKIPPED: a small disk can't be mounted: {error:#}")))
        .ok()
}

fn with_small_disk(disk: &SmallDisk) -> ClusterOptions {
    ClusterOptions { data: BTreeMap::from([(VICTIM, disk.path().join("data"))]), ..three() }
}

/// The node says what is full and what to do, and ends, whether it leads or follows; the others go on; with room again it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_under_load() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(disk) = disk() else { return Ok(()) };
    disk.fill(ROOM)?;
    let mut cluster = Cluster::start(with_small_disk(&disk)).await?;
    let load = cluster.load(LoadOptions { value_size: 30 << 10, writers: 4, ..LoadOptions::default() })?;

    let status = cluster.process_mut(VICTIM)?.wait(2 * PATIENCE).await?;
    ensure!(status.code() == Some(1), "a node whose disk is full ended with {status}");
    let log = cluster.process(VICTIM)?.log();
    let words = log.lines().rfind(|line| line.starts_with("kv-example: ")).unwrap_or_default();
    ensure!(
        words.contains("no space left")
            && words.contains("make room")
            && words.contains(&*disk.path().to_string_lossy()),
        "its last words do not say what is full and what to do: {words:?}"
    );
    load.first_after(Instant::now(), PATIENCE).await?;

    // Without room it can't come back, and says so again.
    cluster.launch(VICTIM)?;
    load.wait_for(20, PATIENCE).await?;
    if let Ok(status) = cluster.process_mut(VICTIM)?.wait(PATIENCE).await {
        ensure!(status.code() == Some(1), "a node whose disk is still full ended with {status}");
        disk.make_room()?;
        cluster.launch(VICTIM)?;
    }
    load.first_after(Instant::now(), PATIENCE).await?;
    let history = load.stop().await?;
    cluster.verify(&history).await?;
    cluster.finish()
}

/// A node that has no room for even a first segment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_from_the_start() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(disk) = disk() else { return Ok(()) };
    disk.fill(8 << 10)?;
    let mut cluster = Cluster::start(with_small_disk(&disk)).await?;
    let status = cluster.process_mut(VICTIM)?.wait(PATIENCE).await?;
    ensure!(status.code() == Some(1), "a node whose disk is full ended with {status}");
    let log = cluster.process(VICTIM)?.log();
    ensure!(log.contains("no space left") && log.contains("make room"), "it does not say what to do: {log}");
    disk.make_room()?;
    cluster.launch(VICTIM)?;
    cluster.converged().await?;
    cluster.finish()
}
