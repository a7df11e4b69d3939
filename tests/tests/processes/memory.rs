//! Contents that are many times as large as what a node over a database may take of the memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use raftkv_tests::client::{Endpoint, Failure};
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, PATIENCE};
use tokio::task::JoinSet;

use crate::engine::contents_as_of;
use crate::three;

/// What is written: 128 MiB, with a cache of 8.
const VALUES: u64 = 2048;
const VALUE: usize = 64 << 10;
const DATA: u64 = VALUES * VALUE as u64;
const CACHE_MIB: &str = "8";
const OVER_A_DATABASE: &[&str] = &["--engine", "redb", "--engine-cache-mib", CACHE_MIB];
/// A log in a database has a cache of its own, beside that of the contents.
const FILES: &[&str] = &["--store", "file"];
const DATABASE: &[&str] = &["--store", "redb", "--store-cache-mib", CACHE_MIB];
/// By how much a node over a database may grow meanwhile: beside its cache there are the newest entries of the log, requests, and pages on their way to the disk.
const ROOM: u64 = DATA / 2;
/// What may be applied again after `kill -9`: a transaction is synced after 4 MiB of commands.
const UNSYNCED: u64 = (4 << 20) / VALUE as u64 + 2;
/// Clients at a time.
const CLIENTS: u64 = 8;

/// The most that a node has held of the memory since its start, in bytes.
fn peak(cluster: &Cluster, id: u64) -> Result<u64> {
    let pid = cluster.process(id)?.pid().context("the node does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

fn key(n: u64) -> String {
    format!("large/{n:06}")
}

/// Another value for each key.
fn value(n: u64) -> String {
    format!("{n:016x}").repeat(VALUE / 16)
}

/// Has this done for each key, by some clients at a time.
async fn for_each_key<F>(of: &Endpoint, work: impl Fn(Endpoint, u64) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut clients = JoinSet::new();
    for n in 0..VALUES {
        if n >= CLIENTS {
            clients.join_next().await.context("a client")???;
        }
        clients.spawn(work(of.clone(), n));
    }
    clients.join_all().await.into_iter().collect()
}

/// Writes everything, and again where the node refused for the moment.
async fn write_all(node: &Endpoint) -> Result<()> {
    for_each_key(node, |node, n| async move {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match node.put(&key(n), &value(n), PATIENCE).await {
                Ok(_) => return Ok(()),
                Err(Failure { certain: true, .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    })
    .await
}

/// Reads everything, key by key: an answer with all of it would be in the memory.
async fn read_all(node: &Endpoint) -> Result<()> {
    for_each_key(node, |node, n| async move {
        let found = node.get(&key(n), false, PATIENCE).await?;
        let values: Vec<_> = found.kvs.iter().map(|kv| &kv.value[..]).collect();
        ensure!(values == [value(n).as_bytes()], "{} has {} values, or another one", key(n), values.len());
        Ok(())
    })
    .await
}

/// One node, new. Images are taken as it is filled, as they hold all of the contents too.
async fn start(store: &[&str], engine: &[&str]) -> Result<(Cluster, u64)> {
    let options = three().with(&["--snapshot-mib", "64", "--trailing-entries", "10"]).with(store).with(engine);
    let cluster = Cluster::start(raftkv_tests::ClusterOptions { nodes: 1, ..options }).await?;
    let id = cluster.ids()[0];
    Ok((cluster, id))
}

/// By how much a node grows while it is filled, and everything is read.
async fn grows_by(cluster: &Cluster, id: u64) -> Result<u64> {
    let before = peak(cluster, id)?;
    write_all(cluster.client(id)?).await?;
    read_all(cluster.client(id)?).await?;
    Ok(peak(cluster, id)? - before)
}

/// With contents in the memory the same node grows by more than they are, so the bound says something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_in_a_database_may_be_many_times_as_large_as_the_memory_for_them() -> Result<()> {
    let _alone = exclusive().await?;
    let (in_memory, id) = start(FILES, &["--engine", "memory"]).await?;
    let with_all = grows_by(&in_memory, id).await?;
    ensure!(with_all > DATA, "with {DATA} bytes in the memory the node has grown by {with_all}: this measures nothing");
    in_memory.finish()?;

    let (mut cluster, id) = start(FILES, OVER_A_DATABASE).await?;
    let first = grows_by(&cluster, id).await?;
    ensure!(
        first < ROOM,
        "with {DATA} bytes in a database the node has grown by {first}, of which {ROOM} were allowed"
    );
    let mut peaks = vec![first >> 20];
    for orderly in [true, false] {
        // Of what is written now a part is not synced.
        for n in 0..UNSYNCED / 2 {
            cluster.client(id)?.put(&key(n), &value(n), PATIENCE).await?;
        }
        let before = cluster.status(id).await?;
        if orderly {
            cluster.terminate(id).await?;
        } else {
            cluster.kill(id)?;
        }
        let began = Instant::now();
        cluster.launch(id)?;
        cluster.leader().await?;
        let log = cluster.process(id)?.log();
        let found = contents_as_of(&log)?;
        ensure!(!log.contains("restoring the state machine"), "it was restored from an image of its own:\n{log}");
        let allowed = if orderly { before.applied } else { before.applied.saturating_sub(UNSYNCED) };
        ensure!(found >= allowed, "the contents were those of entry {found}, and {} were applied", before.applied);
        read_all(cluster.client(id)?).await?;
        let all = peak(&cluster, id)?;
        ensure!(all < DATA, "a node that was started over {DATA} bytes, and was asked for all of them, holds {all}");
        peaks.push(all >> 20);
        notice(&format!("{} MiB over a database: started and read in {:.1?}", DATA >> 20, began.elapsed()));
    }
    notice(&format!(
        "{} MiB with a cache of {CACHE_MIB}: the node grew by {} MiB, and in memory by {}; {} and {} MiB in all after restarts",
        DATA >> 20,
        peaks[0],
        with_all >> 20,
        peaks[1],
        peaks[2]
    ));
    cluster.finish()
}

/// With the cache that a log in a database has if nobody says (64 MiB) the node grows by more than is allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_a_database_takes_no_more_of_the_memory_than_it_may() -> Result<()> {
    let _alone = exclusive().await?;
    let (cluster, id) = start(DATABASE, OVER_A_DATABASE).await?;
    let grown = grows_by(&cluster, id).await?;
    notice(&format!(
        "{} MiB with caches of {CACHE_MIB} for log and contents: the node grew by {} MiB",
        DATA >> 20,
        grown >> 20
    ));
    ensure!(grown < ROOM, "with {DATA} bytes in databases the node has grown by {grown}, of which {ROOM} were allowed");
    cluster.finish()
}
