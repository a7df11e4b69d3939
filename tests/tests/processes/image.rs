//! A node that was away for so long that the others have cut what it lacks of the log.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use raftkv_tests::mortal::DIE_AT;
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, ClusterOptions, LoadOptions, PATIENCE, number_from_env};

use crate::three;

/// Images after a few hundred entries, and little of the log kept.
fn small_images() -> ClusterOptions {
    three().with(&["--snapshot-entries", "300", "--trailing-entries", "10"])
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

/// Writes at all nodes but `away` until their leader has cut what that one lacks of the log. `written` counts the keys.
async fn leave_behind(cluster: &Cluster, away: u64, last: u64, written: &mut u64) -> Result<()> {
    loop {
        let leader = cluster.leader_among(&cluster.others(away)).await?.id;
        if cluster.status(leader).await?.log_first > last + 1 {
            return Ok(());
        }
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let keys = *written..*written + 10;
            *written = keys.end;
            let leader = cluster.client(leader)?.clone();
            clients.spawn(async move {
                for key in keys {
                    leader.create(&format!("small/{key:06}"), "x", PATIENCE).await?;
                }
                Ok::<_, raftkv_tests::client::Failure>(())
            });
        }
        for outcome in clients.join_all().await {
            outcome?;
        }
    }
}

/// Runs a node that dies at this operation of an install. Whether it did; otherwise it has caught up, and if `whole`, has done all of an install.
async fn dies_at(cluster: &mut Cluster, node: u64, at: u64, whole: bool) -> Result<bool> {
    let before = cluster.process(node)?.log().len();
    cluster.process_mut(node)?.set_env(&[(DIE_AT, at.to_string())]);
    let leader = cluster.leader_among(&cluster.others(node)).await?.id;
    let goal = cluster.status(leader).await?.commit;
    cluster.launch(node)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = cluster.process_mut(node)?.ended()? {
            ensure!(
                status.signal() == Some(9),
                "n{node} ended with {status} where it was to be killed at operation {at}"
            );
            return Ok(true);
        }
        let complete = cluster.process(node)?.log()[before..].contains("the install is complete");
        if (complete || !whole) && cluster.status(node).await.is_ok_and(|status| status.applied >= goal) {
            return Ok(false);
        }
        ensure!(Instant::now() < deadline, "n{node} has neither died at operation {at} nor caught up");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The node dies at the first operation on the disk of an install, then at the second, and so on until there are no more; and each time once more at the
/// same operation of what is left of the install. It always comes back, and holds what the others hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_at_each_operation_of_an_install_is_recovered_from() -> Result<()> {
    let _alone = exclusive().await?;
    let began = Instant::now();
    let mut cluster = Cluster::start(small_images()).await?;
    let leader = cluster.leader().await?.id;
    let node = cluster.others(leader)[0];
    // It takes two parts.
    cluster.client(leader)?.create("large", &"x".repeat(300_000), PATIENCE).await?;
    let (mut written, mut twice) = (0, 0);
    let mut at = 1;
    loop {
        ensure!(at < 60, "an install has no end");
        cluster.caught_up(node).await?;
        let last = cluster.status(node).await?.log_last;
        cluster.kill(node)?;
        leave_behind(&cluster, node, last, &mut written).await?;
        if !dies_at(&mut cluster, node, at, true).await? {
            break;
        }
        if dies_at(&mut cluster, node, at, false).await? {
            twice += 1;
            cluster.process_mut(node)?.set_env(&[]);
            cluster.launch(node)?;
        }
        at += 1;
    }
    let log = cluster.process(node)?.log();
    let reached = log.lines().filter(|line| line.contains(" of an install: "));
    let deaths = reached.clone().filter(|line| line.starts_with(&format!("operation {} of", at - 1))).count();
    ensure!(deaths > 0, "operation {} was never reached:\n{log}", at - 1);
    let of_images = [
        ("create", "part"),
        ("write", "part"),
        ("sync", "part"),
        ("cut", "part"),
        ("rename", "part"),
        ("remove", "snap"),
    ];
    for (operation, of) in of_images {
        let told = reached.clone().any(|line| line.contains(&format!(": {operation} ")) && line.ends_with(of));
        ensure!(told, "no {operation} of a file .{of} was reached:\n{log}");
    }
    let of_the_log = if three().is_over_redb() {
        ["sync files", "write log.redb", "sync log.redb"]
    } else {
        ["sync snapshots", "write 00000000000000000001.wal", "sync 00000000000000000001.wal"]
    };
    for operation in of_the_log {
        ensure!(reached.clone().any(|line| line.ends_with(operation)), "no {operation:?} was reached:\n{log}");
    }
    ensure!(twice > 5, "the node died only {twice} times in what was left of an install");
    cluster.same_contents().await?;
    let found = cluster.client(node)?.list("small/", true, PATIENCE).await?;
    ensure!(found.kvs.len() as u64 == written, "n{node} has {} of {written} keys", found.kvs.len());
    notice(&format!(
        "died at each of {} operations of an install, {twice} times once more: {:?}",
        at - 1,
        began.elapsed()
    ));
    cluster.finish()
}
