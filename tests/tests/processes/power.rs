//! The power of all machines goes at once: the hardest test of what was said to be on disk.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};

use anyhow::{Result, ensure};
use raftkv_tests::lossy_disk::LossyDisk;
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, ClusterOptions, LoadOptions, PATIENCE, number_from_env};

use crate::three;

fn disk() -> Option<LossyDisk> {
    LossyDisk::mount().inspect_err(|error| notice(&format!("SKIPPED: no disk that loses power: {error:#}"))).ok()
}

/// The disk itself: what was synced is there, what was not may be gone; and so it is with names.
#[test]
fn a_lossy_disk_keeps_what_was_synced_and_nothing_else_for_sure() -> Result<()> {
    let Some(disk) = disk() else { return Ok(()) };
    let (mut kept, mut gone) = (0, 0);
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let path = disk.path().join(format!("file{seed}"));
        let mut file = File::create(&path)?;
        file.write_all(&[1; 1000])?;
        file.sync_data()?;
        File::open(disk.path())?.sync_all()?;
        file.write_all(&[2; 1000])?;
        File::create(disk.path().join(format!("unsynced{seed}")))?;
        drop(file);
        disk.lose_power(&mut random);
        let mut found = Vec::new();
        OpenOptions::new().read(true).open(&path)?.read_to_end(&mut found)?;
        ensure!(found.len() >= 1000 && found[..512].iter().all(|byte| *byte == 1), "what was synced is gone");
        let whole = found.len() == 2000 && found[1000..].iter().all(|byte| *byte == 2);
        let name = disk.path().join(format!("unsynced{seed}")).exists();
        kept += u32::from(whole) + u32::from(name);
        gone += u32::from(!whole) + u32::from(!name);
    }
    ensure!(kept > 5 && gone > 20, "unsynced: {kept} kept, {gone} gone");

    let path = disk.path().join("renamed");
    let mut file = File::create(disk.path().join("file"))?;
    file.write_all(b"old")?;
    file.seek(SeekFrom::Start(0))?;
    std::fs::rename(disk.path().join("file"), &path)?;
    std::fs::create_dir(disk.path().join("dir"))?;
    let mut names: Vec<_> = std::fs::read_dir(disk.path())?.flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| !name.to_string_lossy().ends_with(char::is_numeric));
    names.sort();
    ensure!(names == ["dir", "renamed"], "{names:?}");
    ensure!(std::fs::read(&path)? == b"old" && file.metadata()?.len() == 3);
    Ok(())
}

/// All three servers die under load, and each disk loses what was not synced. Every acknowledged write is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_a_loss_of_power_everywhere() -> Result<()> {
    lose_power_everywhere(&[]).await
}

/// The same with contents in databases, which are synced by images alone here: what they lose comes from the log again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_in_databases_survive_a_loss_of_power_everywhere() -> Result<()> {
    lose_power_everywhere(&["--engine", "redb", "--snapshot-entries", "100", "--trailing-entries", "5"]).await
}

async fn lose_power_everywhere(args: &[&str]) -> Result<()> {
    let _alone = exclusive().await?;
    let mut disks = BTreeMap::new();
    for id in 1..=3 {
        let Some(disk) = disk() else { return Ok(()) };
        disks.insert(id, disk);
    }
    let rounds = number_from_env("RAFTKV_TEST_ROUNDS", 4)?;
    let seed = number_from_env("RAFTKV_TEST_SEED", u64::from(fastrand::u32(..)))?;
    let mut random = fastrand::Rng::with_seed(seed);
    notice(&format!("power: {rounds} rounds; RAFTKV_TEST_SEED={seed}"));

    let data = disks.iter().map(|(id, disk)| (*id, disk.path().join("data"))).collect();
    let mut cluster = Cluster::start(ClusterOptions { data, ..three().with(args) }).await?;
    let load = cluster.load(LoadOptions::default())?;
    let (mut pending, mut lost) = (0, 0);
    for _ in 0..rounds {
        load.wait_for(50, PATIENCE).await?;
        for id in cluster.ids() {
            cluster.kill(id)?;
        }
        for id in cluster.ids() {
            let loss = disks[&id].lose_power(&mut random);
            pending += loss.pending;
            lost += loss.lost;
            cluster.launch(id)?;
        }
    }
    load.wait_for(50, PATIENCE).await?;
    let history = load.stop().await?;
    let summary = cluster.verify(&history).await?;
    notice(&format!(
        "power: {rounds} losses everywhere, {lost} of {pending} unsynced sectors and names gone; {summary:?}"
    ));
    ensure!(lost > 0, "nothing was ever at stake");
    cluster.finish()
}
