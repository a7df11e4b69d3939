//! SIGTERM: a server that is asked to go, and comes back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use raftkv_tests::hung::HUNG_WHILE;
use raftkv_tests::process::exclusive;
use raftkv_tests::{Cluster, ClusterOptions, LoadOptions, PATIENCE};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::three;

/// One node after the other, and then all at once, while clients write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_nothing() -> Result<()> {
    let _alone = exclusive().await?;
    let mut cluster = Cluster::start(three()).await?;
    let load = cluster.load(LoadOptions::default())?;
    for id in cluster.ids() {
        load.wait_for(50, PATIENCE).await?;
        cluster.terminate(id).await?;
        load.first_after(Instant::now(), PATIENCE).await?;
        cluster.launch(id)?;
        cluster.caught_up(id).await?;
    }
    load.wait_for(50, PATIENCE).await?;
    for id in cluster.ids() {
        cluster.process(id)?.signal(Signal::TERM)?;
    }
    for id in cluster.ids() {
        let status = cluster.process_mut(id)?.wait(PATIENCE).await?;
        ensure!(status.success(), "n{id} ended with {status} after SIGTERM");
    }
    for id in cluster.ids() {
        cluster.launch(id)?;
    }
    load.first_after(Instant::now(), PATIENCE).await?;
    let history = load.stop().await?;
    cluster.verify(&history).await?;
    cluster.finish()
}

/// A cluster of one: its disk is all it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_restarts() -> Result<()> {
    let _alone = exclusive().await?;
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, ..three() }).await?;
    let load = cluster.load(LoadOptions::default())?;
    for round in 0..4 {
        load.wait_for(50, PATIENCE).await?;
        if round % 2 == 0 {
            cluster.kill(1)?;
        } else {
            cluster.terminate(1).await?;
        }
        cluster.launch(1)?;
        load.first_after(Instant::now(), PATIENCE).await?;
    }
    let history = load.stop().await?;
    cluster.verify(&history).await?;
    cluster.finish()
}

/// What a server is at when its disk begins to hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Start,
    Rest,
    Write,
}

/// It must: no supervisor starts a process again that is still there. With one thread that serves, the disk may hold that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_although_its_disk_does_not_answer() -> Result<()> {
    let _alone = exclusive().await?;
    let mut ways = JoinSet::new();
    for workers in ["1", "2"] {
        for at in [At::Start, At::Rest, At::Write] {
            ways.spawn(ends_on_a_hung_disk(workers, at));
        }
    }
    ways.join_all().await.into_iter().collect()
}

async fn ends_on_a_hung_disk(workers: &'static str, at: At) -> Result<()> {
    let options = ["--workers", workers, "--shutdown-timeout-ms", "200"];
    let mut cluster = Cluster::prepare(&ClusterOptions { nodes: 1, ..three() }.with(&options))?;
    let hung = cluster.dir()?.join("hung");
    cluster.process_mut(1)?.set_env(&[(HUNG_WHILE, hung.display().to_string())]);
    if at == At::Start {
        std::fs::write(&hung, "")?;
        cluster.launch(1)?;
        cluster.process(1)?.wait_for_log("the disk does not answer", PATIENCE).await?;
    } else {
        cluster.launch_all().await?;
        std::fs::write(&hung, "")?;
    }
    let mut writing = JoinSet::new();
    if at == At::Write {
        let client = cluster.client(1)?.clone();
        writing.spawn(async move { client.create("k", "v", PATIENCE).await.is_ok() });
        cluster.process(1)?.wait_for_log("slow disk", PATIENCE).await?;
    }
    cluster.process(1)?.signal(Signal::TERM)?;
    let begun = Instant::now();
    // Ten seconds for the log, and what the machine is busy with.
    let status = cluster.process_mut(1)?.wait(Duration::from_secs(40)).await?;
    let (taken, log) = (begun.elapsed(), cluster.process(1)?.log());
    // What has not begun has nothing to lose.
    let code = if at == At::Start { 0 } else { 1 };
    ensure!(status.code() == Some(code), "with {workers} workers, {at:?}: {status} after {taken:?}\n{log}");
    if at != At::Start {
        ensure!(log.contains("SIGTERM: the node did not end within"), "{workers} workers, {at:?}:\n{log}");
    }
    ensure!(writing.join_all().await != [true], "a write that is not on the disk was acknowledged");
    std::fs::remove_file(&hung)?;
    cluster.finish()
}
