//! A node that was away for so long that the others have cut what it lacks of the log.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, ClusterOptions, LoadOptions, PATIENCE, number_from_env};

use crate::three;

/// Images after a few hundred entries, and little of the log kept.
fn small_images() -> ClusterOptions {
    let args = ["--snapshot-entries", "300", "--trailing-entries", "10"];
    ClusterOptions { args: args.map(String::from).to_vec(), ..three() }
}

/// The node comes back through an image while the others go on; it then holds what they hold, and starts from what it received.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_long_comes_back_through_an_image() -> Result<()> {
    let _alone = exclusive().await?;
    let mut cluster = Cluster::start(small_images()).await?;
    let load = cluster.load(LoadOptions::default())?;
    load.wait_for(200, PATIENCE).await?;
    let away = cluster.others(cluster.leader().await?.id)[0];
    cluster.kill(away)?;
    load.wait_for(3000, PATIENCE).await?;
    cluster.launch(away)?;
    cluster.caught_up(away).await?;
    load.wait_for(300, PATIENCE).await?;
    let log = cluster.process(away)?.log();
    ensure!(log.contains("a snapshot takes the place of the state"), "no image was installed:\n{log}");
    cluster.kill(away)?;
    cluster.launch(away)?;
    cluster.caught_up(away).await?;
    let history = load.stop().await?;
    let summary = cluster.verify(&history).await?;
    notice(&format!("away for 3000 writes: {summary:?}"));
    cluster.finish()
}

/// `kill -9` in a loop while an image is received, published and installed: each time the node goes on from what is on its disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_moment_of_an_install_survives_kill_9() -> Result<()> {
    let _alone = exclusive().await?;
    let rounds = number_from_env("RAFTKV_TEST_ROUNDS", 12)?;
    let seed = number_from_env("RAFTKV_TEST_SEED", u64::from(fastrand::u32(..)))?;
    notice(&format!("kill -9 while images are installed: {rounds} rounds; RAFTKV_TEST_SEED={seed}"));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start(small_images()).await?;
    let load = cluster.load(LoadOptions::default())?;
    load.wait_for(200, PATIENCE).await?;
    for _ in 0..rounds {
        let away = cluster.others(cluster.leader().await?.id)[0];
        cluster.kill(away)?;
        load.wait_for(800, PATIENCE).await?;
        for _ in 0..3 {
            cluster.launch(away)?;
            // It takes some tens of milliseconds to start, and as many to get the image.
            tokio::time::sleep(Duration::from_millis(random.u64(10..250))).await;
            cluster.kill(away)?;
        }
        cluster.launch(away)?;
        load.first_after(Instant::now(), PATIENCE).await?;
        cluster.caught_up(away).await?;
    }
    let history = load.stop().await?;
    let installed = cluster
        .ids()
        .into_iter()
        .filter(|id| cluster.process(*id).is_ok_and(|process| process.log().contains("takes the place of the state")));
    ensure!(installed.count() > 0, "no image was installed");
    let summary = cluster.verify(&history).await?;
    notice(&format!("{summary:?}"));
    cluster.finish()
}
