//! SIGTERM: a server that is asked to go, and comes back.

use std::time::Instant;

use anyhow::{Result, ensure};
use raftkv_tests::process::exclusive;
use raftkv_tests::{Cluster, ClusterOptions, LoadOptions, PATIENCE};

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
        cluster.process(id)?.signal(rustix::process::Signal::TERM)?;
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
