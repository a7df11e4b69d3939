//! The client's own writes: none fails, and none takes effect twice, whatever happens to the servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kv_example::client::{Client, ClientOptions};
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, PATIENCE, number_from_env};

use crate::three;

const WRITERS: u64 = 8;

/// Puts a key again and again until it is told to stop. Returns how often: every put must be answered.
async fn write(client: Client, key: String, stop: Arc<AtomicBool>, puts: Arc<AtomicU64>) -> Result<u64> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let answer = client.put(key.clone(), count.to_string()).await;
        answer.with_context(|| format!("put {count} of {key}"))?;
        puts.fetch_add(1, Ordering::Relaxed);
    }
    Ok(count)
}

/// Leaders are killed and paused, nodes restarted from images, under clients that write in sessions. etcd's protocol counts for each key how often it was
/// put (`version`): a put that took effect twice, or not at all, would show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_of_a_client_takes_effect_once() -> Result<()> {
    let _alone = exclusive().await?;
    let rounds = number_from_env("RAFTKV_TEST_ROUNDS", 8)?;
    let mut cluster = Cluster::start(three().with(&["--snapshot-entries", "200", "--trailing-entries", "10"])).await?;
    let (stop, puts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let client = || {
        let options = ClientOptions { timeout: PATIENCE, ..ClientOptions::default() };
        Client::new(&cluster.servers(), options).map_err(anyhow::Error::msg)
    };
    let mut writers = Vec::new();
    for n in 0..WRITERS {
        // Two writers share a client, and with it a session.
        let client = if n % 2 == 0 { client()? } else { writers_client(&writers)? };
        let task = tokio::spawn(write(client.clone(), format!("key{n}"), stop.clone(), puts.clone()));
        writers.push((client, task));
    }
    for round in 0..rounds {
        let seen = puts.load(Ordering::Relaxed);
        while puts.load(Ordering::Relaxed) < seen + 100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let leader = cluster.leader().await?.id;
        if round % 3 == 2 {
            // What it was asked meanwhile it does in the end, when its clients have asked others long ago.
            cluster.pause(leader)?;
            tokio::time::sleep(Duration::from_millis(2500)).await;
            cluster.resume(leader)?;
        } else {
            cluster.kill(leader)?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            cluster.launch(leader)?;
        }
        cluster.caught_up(leader).await?;
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = 0;
    for (n, (client, task)) in writers.into_iter().enumerate() {
        let count = task.await??;
        let found = client.get(format!("key{n}")).await?.context("the key is gone")?;
        ensure!(
            u64::try_from(found.version)? == count && found.value == count.to_string(),
            "key{n} was put {count} times, and is at version {} with value {:?}",
            found.version,
            found.value
        );
        all += count;
    }
    notice(&format!("exactly once: {all} puts under {rounds} losses of the leader, none failed, none twice"));
    cluster.finish()
}

fn writers_client(writers: &[(Client, tokio::task::JoinHandle<Result<u64>>)]) -> Result<Client> {
    Ok(writers.last().context("there is a writer before")?.0.clone())
}
