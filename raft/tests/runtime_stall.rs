//! A state machine that gets nothing done, and one that is only slow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::Cluster;
use raftkv::{Chunks, Config, Consistency, Event, Fatal, LogId, NodeId, Stall, StateMachine};
use tokio::time::{Instant, sleep};

/// Takes its time for each command, and for each part of an image.
#[derive(Clone, Debug, Default)]
struct Slow {
    /// In milliseconds, for each command.
    takes: Arc<AtomicU64>,
    applied: Arc<AtomicU64>,
    largest_batch: Arc<Mutex<usize>>,
}

#[async_trait]
impl StateMachine for Slow {
    async fn apply(&mut self, _at: LogId, _command: Bytes) -> Result<Bytes, Fatal> {
        sleep(Duration::from_millis(self.takes.load(Ordering::Relaxed))).await;
        self.applied.fetch_add(1, Ordering::Relaxed);
        Ok(Bytes::new())
    }

    async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
        let largest = self.largest_batch.lock().unwrap().max(batch.len());
        *self.largest_batch.lock().unwrap() = largest;
        let mut answers = Vec::new();
        for (at, command) in batch {
            answers.push(self.apply(at, command).await?);
        }
        Ok(answers)
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        let count = self.applied.load(Ordering::Relaxed);
        let chunks: Vec<_> = (0..40).map(|_| Bytes::from(count.to_be_bytes().to_vec())).collect();
        Ok(Box::new(chunks.into_iter()))
    }

    async fn restore(&mut self, mut image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let mut bytes = Vec::new();
        while let Some(chunk) = image.next().await? {
            bytes.extend_from_slice(&chunk);
            sleep(Duration::from_millis(self.takes.load(Ordering::Relaxed))).await;
        }
        let count = bytes[..8].try_into().map(u64::from_be_bytes).unwrap();
        self.applied.store(count, Ordering::Relaxed);
        Ok(())
    }
}

fn config() -> Config {
    Config { stall_timeout: Duration::from_millis(500), ..Config::default() }
}

async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_state_machine_hangs_hands_over_and_says_so() {
    let cluster = Cluster::builder(3).config(config()).start(|_| Slow::default()).await;
    let old = cluster.leader().await;
    let mut events = cluster.node(old).events();
    cluster.machine(old).takes.store(5000, Ordering::Relaxed);
    let hung = tokio::spawn({
        let node = cluster.node(old).clone();
        async move { node.write("hangs".into()).await }
    });
    wait_for("another leader", async || {
        cluster.statuses().await.iter().all(|status| status.leader.is_some_and(|id| id != old))
    })
    .await;
    let status = cluster.node(old).status().await.unwrap();
    let metrics = cluster.node(old).metrics().await.unwrap();
    assert!(status.machine_stalls && !status.disk_stalls && metrics.machine_stalls, "{status:?}");
    assert_eq!((metrics.leadership.machine_stalls, metrics.leadership.yields), (1, 1));
    let new = cluster.leader().await;
    cluster.node(new).write("goes on".into()).await.unwrap();
    sleep(Duration::from_millis(200)).await;
    let refused = cluster.node(new).transfer_leadership(Some(old)).await;
    assert!(matches!(refused, Err(raftkv::TransferError::Unwilling { .. })), "{refused:?}");

    cluster.machine(old).takes.store(0, Ordering::Relaxed);
    wait_for("the end of the stall", async || !cluster.node(old).status().await.unwrap().machine_stalls).await;
    let mut told = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(10), events.next()).await {
        if let Event::Stalled { what: Stall::StateMachine, .. } = event {
            told.push("stalled");
        }
        if let Event::Recovered { what: Stall::StateMachine, took } = event {
            assert!(took > Duration::from_secs(4), "{took:?}");
            told.push("recovered");
        }
    }
    assert_eq!(told, ["stalled", "recovered"]);
    // Its client has waited in vain, or was answered by what was applied at last.
    let _ = hung.await.unwrap();
    assert_eq!(cluster.node(new).transfer_leadership(Some(old)).await.unwrap(), old);
}

#[tokio::test(start_paused = true)]
async fn a_slow_state_machine_with_much_to_do_goes_on_leading() {
    let cluster = Cluster::builder(3).config(config()).start(|_| Slow::default()).await;
    let leader = cluster.leader().await;
    for id in cluster.ids() {
        cluster.machine(id).takes.store(1, Ordering::Relaxed);
    }
    // Far more than a batch's worth of the stall timeout.
    let commands = vec![Bytes::from_static(b"x"); 6000];
    let node = cluster.node(leader).clone();
    let written = tokio::spawn(async move { node.write_many(commands).await });
    wait_for("all to be applied", async || cluster.machine(leader).applied.load(Ordering::Relaxed) == 6000).await;
    let metrics = cluster.node(leader).metrics().await.unwrap();
    let largest = *cluster.machine(leader).largest_batch.lock().unwrap();
    assert!(largest > 10 && largest < 500, "{largest}");
    let leadership = &metrics.leadership;
    assert_eq!((leadership.machine_stalls, leadership.lost, leadership.yields), (0, 0, 0));
    let _ = written.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_takes_long_is_not_a_stall() {
    let config = Config { snapshot_entries: 20, trailing_entries: 0, snapshot_chunk_bytes: 8, ..config() };
    let mut cluster = Cluster::builder(3).config(config).start(|_| Slow::default()).await;
    let away = cluster.follower().await;
    cluster.stop(away).await;
    let leader = cluster.leader().await;
    for n in 0..60 {
        cluster.node(leader).write(n.to_string().into()).await.unwrap();
    }
    cluster.restart(away).await;
    cluster.machine(away).takes.store(200, Ordering::Relaxed);
    let mut events = cluster.node(away).events();
    wait_for("the image", async || cluster.machine(away).applied.load(Ordering::Relaxed) > 0).await;
    cluster.node(away).read(Consistency::Linearizable).await.unwrap();
    let mut installed = false;
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(10), events.next()).await {
        installed |= matches!(event, Event::SnapshotInstalled { .. });
        assert!(!matches!(event, Event::Stalled { .. }), "{event:?}");
    }
    let metrics = cluster.node(away).metrics().await.unwrap();
    assert!(installed && metrics.leadership.machine_stalls == 0, "{metrics:?}");
    assert_ne!(away, NodeId(0));
}
