//! Nodes whose contents are in a database: what was answered survives, and a start applies nothing again that it need not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, ClusterOptions, LoadOptions, PATIENCE, number_from_env};

use crate::three;

fn over_redb(more: &[&str]) -> ClusterOptions {
    three().with(&["--engine", "redb", "--engine-cache-mib", "16"]).with(more)
}

/// The entry that the contents reflected when the process started.
pub(crate) fn contents_as_of(log: &str) -> Result<u64> {
    let (_, entry) = log.rsplit_once("contents in redb, as of entry ").context("no word of the contents")?;
    let digits: String = entry.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// `kill -9` of some nodes under load, again and again; images are taken and received meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_in_a_database_survive_kill_9() -> Result<()> {
    let _alone = exclusive().await?;
    let rounds = number_from_env("RAFTKV_TEST_ROUNDS", 5)?;
    let seed = number_from_env("RAFTKV_TEST_SEED", u64::from(fastrand::u32(..)))?;
    notice(&format!("kill -9 over databases: {rounds} rounds; RAFTKV_TEST_SEED={seed}"));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start(over_redb(&["--snapshot-entries", "1000", "--trailing-entries", "10"])).await?;
    let load = cluster.load(LoadOptions::default())?;
    for round in 0..rounds {
        load.wait_for(300, PATIENCE).await?;
        let ids = cluster.ids();
        // All of them, every other time.
        let victims = if round % 2 == 0 { vec![ids[random.usize(..ids.len())]] } else { ids };
        for id in &victims {
            cluster.kill(*id)?;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..500))).await;
        for id in &victims {
            cluster.launch(*id)?;
        }
        load.first_after(Instant::now(), PATIENCE).await?;
        for id in &victims {
            cluster.caught_up(*id).await?;
        }
    }
    let history = load.stop().await?;
    let summary = cluster.verify(&history).await?;
    notice(&format!("contents in databases: {summary:?}"));
    cluster.finish()
}

/// After an orderly end the contents are at the node's last entry, and after `kill -9` no further back than what is not synced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_over_a_database_does_not_replay() -> Result<()> {
    let _alone = exclusive().await?;
    let mut cluster = Cluster::start(over_redb(&["--snapshot-entries", "500", "--trailing-entries", "10"])).await?;
    let load = cluster.load(LoadOptions::default())?;
    load.wait_for(2000, PATIENCE).await?;
    let history = load.stop().await?;
    let id = cluster.ids()[0];
    ensure!(contents_as_of(&cluster.process(id)?.log())? == 0, "it began with nothing");
    for orderly in [true, false] {
        let before = cluster.status(id).await?;
        if orderly {
            cluster.terminate(id).await?
        } else {
            cluster.kill(id)?
        }
        cluster.launch(id)?;
        cluster.caught_up(id).await?;
        let log = cluster.process(id)?.log();
        let found = contents_as_of(&log)?;
        ensure!(!log.contains("restoring the state machine"), "it was restored from an image of its own:\n{log}");
        if orderly {
            ensure!(found >= before.applied, "{found} of {} entries were there", before.applied);
        } else {
            // The image before it was made durable.
            ensure!(found + 1000 >= before.applied, "{found} of {} entries were there", before.applied);
        }
    }
    cluster.verify(&history).await?;
    cluster.finish()
}
