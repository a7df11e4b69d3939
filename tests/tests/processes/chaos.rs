//! A little of everything: short campaigns of what `--bin chaos` does for hours.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use raftkv_tests::chaos::{ChaosOptions, Kind, Length, Report, run};
use raftkv_tests::number_from_env;
use raftkv_tests::process::{exclusive, notice};
use tokio::sync::watch;

use crate::SERVER;

async fn campaign(length: Length) -> Result<Report> {
    let seed = number_from_env("RAFTKV_TEST_SEED", u64::from(fastrand::u32(..)))?;
    notice(&format!("chaos: {length:?}; RAFTKV_TEST_SEED={seed}"));
    let (_go_on, stop) = watch::channel(false);
    let options = ChaosOptions {
        program: SERVER.into(),
        args: Vec::new(),
        seed,
        nodes: Some(3),
        length,
        only: Vec::new(),
        dir: None,
    };
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
