//! A little of everything: short campaigns of what `--bin chaos` does for hours.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use raftkv_tests::chaos::{ChaosOptions, Kind, Length, Report, run};
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, ClusterOptions, LoadOptions, PATIENCE, number_from_env, stack};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::{SERVER, three};

fn options(program: &Path, seed: u64, length: Length) -> ChaosOptions {
    let (program, nodes) = (program.to_owned(), Some(3));
    ChaosOptions { program, args: stack(), every_stack: false, seed, nodes, length, only: Vec::new(), dir: None }
}

async fn campaign(length: Length) -> Result<Report> {
    let seed = number_from_env("RAFTKV_TEST_SEED", u64::from(fastrand::u32(..)))?;
    notice(&format!("chaos: {length:?}; RAFTKV_TEST_SEED={seed}"));
    let (_go_on, stop) = watch::channel(false);
    // What servers are made of depends on the seed as well, where nobody says.
    let options = ChaosOptions { every_stack: stack().is_empty(), ..options(Path::new(SERVER), seed, length) };
    match run(&options, stop, &|_| {}).await {
        Ok(report) => {
            notice(&report.to_string());
            Ok(report)
        }
        Err(failed) => bail!(
            "with seed {}, during: {}\n  {:#}\nkept: {:?}\n{}",
            failed.seed,
            failed.doing,
            failed.error,
            failed.kept,
            failed.report
        ),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_all_kinds() -> Result<()> {
    let _alone = exclusive().await?;
    let report = campaign(Length::Time(Duration::from_secs(15))).await?;
    let done: usize = Kind::ALL.into_iter().map(|kind| report.times(kind)).sum();
    ensure!(done > 0 && report.writes.acknowledged > 0 && report.reads > 0, "hardly anything happened:\n{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_as_quickly_as_the_cluster_recovers() -> Result<()> {
    let _alone = exclusive().await?;
    let cycles = number_from_env("RAFTKV_TEST_ROUNDS", 12)?;
    let report = campaign(Length::Kills(cycles)).await?;
    ensure!(report.kill_cycles == cycles && report.killed as u64 >= cycles, "too few:\n{report}");
    Ok(())
}

/// A server that starts once, and never again: the campaign fails, says what it was at, and keeps everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_come_back_fails_the_campaign() -> Result<()> {
    let _alone = exclusive().await?;
    let dir = TempDir::with_prefix("raftkv-test-")?;
    let program = dir.path().join("server");
    // `server --id N …`
    let script = format!("#!/bin/sh\n[ -e \"$0.$3\" ] && exit 3\ntouch \"$0.$3\"\nexec {SERVER} \"$@\"\n");
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let (_go_on, stop) = watch::channel(false);
    let options = ChaosOptions { dir: Some(dir.path().to_owned()), ..options(&program, 1, Length::Kills(20)) };
    let failed = run(&options, stop, &|_| {}).await.err().context("it did not notice")?;
    let text = format!("{:#}", failed.error);
    ensure!(text.contains("by itself, with exit status: 3"), "{text}");
    ensure!(failed.seed == 1 && failed.doing.contains("kill -9"), "{failed:?}");
    let kept = failed.kept.context("nothing was kept")?;
    for id in 1..=3 {
        ensure!(kept.join(format!("n{id}.log")).exists() && kept.join(format!("n{id}")).is_dir(), "n{id} is missing");
    }
    Ok(())
}

/// Ctrl-C: the act at hand is checked as if its time were over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_that_is_stopped_ends_soon_and_is_checked() -> Result<()> {
    let _alone = exclusive().await?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        stop.send_replace(true)
    });
    let begun = Instant::now();
    let options = options(Path::new(SERVER), 1, Length::Kills(u64::MAX));
    let report = run(&options, stopped, &|_| {}).await.map_err(|failed| failed.error)?;
    ensure!(begun.elapsed() < Duration::from_secs(3) + PATIENCE, "it took {:?}", begun.elapsed());
    ensure!(report.acts == 1 && report.writes.acknowledged > 0, "it was not checked:\n{report}");
    Ok(())
}

/// The check at the end of a campaign, on a cluster that has lost everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cluster_forgets_is_found() -> Result<()> {
    let _alone = exclusive().await?;
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, ..three() }).await?;
    let load = cluster.load(LoadOptions::default())?;
    load.wait_for(50, PATIENCE).await?;
    cluster.kill(1)?;
    std::fs::remove_dir_all(cluster.data(1)?)?;
    cluster.launch(1)?;
    cluster.leader().await?;
    let history = load.stop().await?;
    let error = cluster.verify(&history).await.err().context("it did not notice")?;
    let text = format!("{error:#}");
    ensure!(["LOST", "STALE", "contradict", "not linearizable"].iter().any(|word| text.contains(word)), "{text}");
    cluster.finish()
}
