//! A process that stands still for a while, as in a virtual machine that is moved, and does not know it.

use std::time::Duration;

use anyhow::{Result, ensure};
use raftkv_tests::process::exclusive;
use raftkv_tests::{Cluster, LoadOptions, PATIENCE};
use tokio::task::JoinSet;

use crate::three;

const ROUNDS: usize = 3;
const READS: usize = 20;

/// A leader that slept through its own succession must not answer from its old state, not even requests that were waiting for
/// it when it woke up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_gives_no_stale_answers() -> Result<()> {
    let _alone = exclusive().await?;
    let cluster = Cluster::start(three()).await?;
    let load = cluster.load(LoadOptions::default())?;
    for round in 1..=ROUNDS {
        load.wait_for(50, PATIENCE).await?;
        let old = cluster.leader().await?;
        cluster.client(old.id)?.put("mark", &format!("before {round}"), PATIENCE).await?;
        cluster.pause(old.id)?;
        let new = cluster.leader_among(&cluster.others(old.id)).await?;
        ensure!(new.id != old.id && new.term > old.term, "{new:?} after {old:?}");
        let after = format!("after {round}");
        let written = cluster.client(new.id)?.put("mark", &after, PATIENCE).await?;

        let mut waiting = JoinSet::new();
        for _ in 0..READS {
            let sleeper = cluster.client(old.id)?.clone();
            waiting.spawn(async move { sleeper.get("mark", false, PATIENCE).await });
        }
        // Time for the requests to arrive in the sleeper's socket.
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.resume(old.id)?;
        // An error is a fine answer; an old value is none.
        for found in waiting.join_all().await.into_iter().flatten() {
            ensure!(
                found.kvs.first().is_some_and(|kv| kv.value == after) && found.revision >= written,
                "STALE: {found:?} after {after:?} was acknowledged at revision {written}"
            );
        }
        cluster.caught_up(old.id).await?;
        let now = cluster.leader().await?;
        ensure!(now.term >= new.term, "{now:?} after {new:?}");
    }
    let history = load.stop().await?;
    cluster.verify(&history).await?;
    cluster.finish()
}

/// A paused follower costs nothing but itself: the same leader goes on, and the sleeper catches up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_follower_holds_nobody_up() -> Result<()> {
    let _alone = exclusive().await?;
    let cluster = Cluster::start(three()).await?;
    let load = cluster.load(LoadOptions::default())?;
    load.wait_for(50, PATIENCE).await?;
    let leader = cluster.leader().await?;
    let sleeper = cluster.others(leader.id)[0];
    cluster.pause(sleeper)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.wait_for(100, PATIENCE).await?;
    cluster.resume(sleeper)?;
    cluster.caught_up(sleeper).await?;
    let history = load.stop().await?;
    let now = cluster.converged().await?;
    crate::cut::ensure_calm(leader.term, now.term)?;
    cluster.verify(&history).await?;
    cluster.finish()
}
