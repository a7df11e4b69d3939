//! A node that was away for a great many entries comes back through an image, while the others go on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use raftkv_tests::process::{exclusive, notice, run};
use raftkv_tests::{Cluster, LoadOptions, PATIENCE, number_from_env};
use serde_json::Value;

use crate::{SERVER, three};

/// How long the load generator runs at a time.
const STRETCH_SECONDS: u64 = 5;
/// What such a run may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the node may take to come back.
const RETURN_LIMIT: Duration = Duration::from_secs(120);

/// Writes through the load generator until the log of those that are there is this much longer. Returns by how much it then is.
async fn write_entries(cluster: &Cluster, there: &[u64], entries: u64) -> Result<u64> {
    let endpoints = cluster.servers_of(there).join(",");
    let leader = cluster.leader_among(there).await?.id;
    let before = cluster.status(leader).await?.commit;
    let deadline = Instant::now() + LIMIT * 20;
    loop {
        let seconds = STRETCH_SECONDS.to_string();
        let args = ["bench", "put", "--endpoints", &endpoints, "--clients", "128", "--value-size", "64", "--json"];
        let more = ["--keys", "100000", "--prefix", "away/", "--warmup", "0", "--duration", &seconds];
        let output = run(Path::new(SERVER), &[&args[..], &more[..]].concat(), &[], "", LIMIT).await?;
        ensure!(output.status.success(), "the load generator failed: {}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(report["operations"].as_u64() > Some(0), "nothing was written: {report}");
        let leader = cluster.leader_among(there).await?.id;
        let written = cluster.status(leader).await?.commit - before;
        if written >= entries {
            return Ok(written);
        }
        ensure!(Instant::now() < deadline, "only {written} of {entries} entries were written");
    }
}

/// By default some 20,000 entries, with images that are as many times smaller; `RAFTKV_AWAY_ENTRIES` says how many instead, and from 500,000 on images are
/// taken as they are by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_very_many_entries_comes_back_through_an_image() -> Result<()> {
    let _alone = exclusive().await?;
    let entries = number_from_env("RAFTKV_AWAY_ENTRIES", 20_000)?;
    let mut options = three();
    if entries < 500_000 {
        options = options.with(&["--snapshot-entries", "5000", "--trailing-entries", "500"]);
    }
    let mut cluster = Cluster::start(options).await?;
    let first = cluster.load(LoadOptions { prefix: "before/".into(), ..LoadOptions::default() })?;
    first.wait_for(200, PATIENCE).await?;
    let before = first.stop().await?;
    let away = cluster.others(cluster.leader().await?.id)[0];
    cluster.kill(away)?;
    let there = cluster.others(away);
    let began = Instant::now();
    let written = write_entries(&cluster, &there, entries).await?;
    let writing = began.elapsed();

    let load = cluster.load(LoadOptions::default())?;
    load.wait_for(100, PATIENCE).await?;
    let started = Instant::now();
    cluster.launch(away)?;
    let deadline = started + RETURN_LIMIT;
    loop {
        let leader = cluster.leader_among(&there).await?.id;
        let (goal, status) = (cluster.status(leader).await?.commit, cluster.status(away).await);
        if status.as_ref().is_ok_and(|status| status.applied + 100 >= goal) {
            break;
        }
        ensure!(Instant::now() < deadline, "n{away} is not back within {RETURN_LIMIT:?}: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let back = started.elapsed();
    // The others went on meanwhile, and do.
    load.wait_for(100, PATIENCE).await?;
    let log = cluster.process(away)?.log();
    ensure!(log.contains("a snapshot takes the place of the state"), "no image was installed:\n{log}");
    let history = load.stop().await?;
    cluster.verify(&before).await?;
    let summary = cluster.verify(&history).await?;
    notice(&format!("away for {written} entries, written in {writing:.1?}; back after {back:.1?}: {summary:?}"));
    cluster.finish()
}
