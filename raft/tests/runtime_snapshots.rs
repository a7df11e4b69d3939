//! Images are taken, the log is cut for them, and nodes start from them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::{Cluster, MemLog, MemNetwork, MemSnapshots, Recorder};
use raftkv::{
    Chunks, ClusterId, Config, Consistency, Event, Fatal, LogId, LogStore, Membership, NodeId, Peer, Raft, Snapshot,
    StateMachine,
};

async fn start(config: Config, log: &MemLog, snapshots: &MemSnapshots, machine: impl StateMachine) -> Raft {
    Raft::builder(NodeId(1), ClusterId(1))
        .config(config)
        .seed(1)
        .transport(MemNetwork::new(1).transport(Peer::new(1, "a")))
        .log(log.clone())
        .snapshots(snapshots.clone())
        .state_machine(machine)
        .start()
        .await
        .unwrap()
}

fn small() -> Config {
    Config { snapshot_entries: 10, trailing_entries: 3, snapshot_chunk_bytes: 100, ..Config::default() }
}

fn commands(machine: &Recorder) -> Vec<String> {
    machine.commands().iter().map(|(_, command)| String::from_utf8_lossy(command).into_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_log_is_bounded_and_a_restart_begins_with_the_image() {
    let (log, snapshots, machine) = (MemLog::new(), MemSnapshots::new(), Recorder::default());
    let raft = start(small(), &log, &snapshots, machine.clone()).await;
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    let mut expected = Vec::new();
    for n in 0..100 {
        expected.push(n.to_string());
        raft.write(n.to_string().into()).await.unwrap();
        assert!(log.entries().len() <= 20, "{} entries are in the log", log.entries().len());
    }
    raft.shutdown().await;
    let image = snapshots.latest().await.unwrap().unwrap();
    assert!(image.meta.last.index.0 > 85 && image.meta.membership_at == LogId::new(0, 1), "{image:?}");
    assert_eq!(log.load().await.unwrap().base.index.0, image.meta.last.index.0 - 3);
    let machine = Recorder::default();
    let raft = start(small(), &log, &snapshots, machine.clone()).await;
    raft.read(Consistency::Linearizable).await.unwrap();
    assert_eq!(commands(&machine), expected);
    let status = raft.status().await.unwrap();
    assert_eq!(status.snapshot.map(|snapshot| (snapshot.last, snapshot.len)), Some((image.meta.last, image.len)));
}

#[tokio::test(start_paused = true)]
async fn an_image_is_taken_on_request_and_announced() {
    let (log, snapshots, machine) = (MemLog::new(), MemSnapshots::new(), Recorder::default());
    let raft = start(Config::default(), &log, &snapshots, machine.clone()).await;
    assert_eq!(raft.snapshot().await.unwrap(), LogId::ZERO, "nothing is applied");
    let mut events = raft.events();
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    raft.write("x".into()).await.unwrap();
    let last = raft.snapshot().await.unwrap();
    assert_eq!(last, LogId::new(1, 3));
    assert_eq!(raft.snapshot().await.unwrap(), last, "it is there already");
    let told = loop {
        if let Event::SnapshotTaken { last, .. } = events.next().await.unwrap() {
            break last;
        }
    };
    assert_eq!(told, last);
    raft.shutdown().await;
    assert!(raft.snapshot().await.is_err());
}

/// A machine whose image comes when it is let go.
#[derive(Clone, Default)]
struct Slow(Recorder, Arc<Mutex<Vec<tokio::sync::oneshot::Receiver<()>>>>);

struct Held(Option<tokio::sync::oneshot::Receiver<()>>, Box<dyn Chunks>);

#[async_trait]
impl Chunks for Held {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        if let Some(gate) = self.0.take() {
            let _ = gate.await;
        }
        self.1.next().await
    }
}

#[async_trait]
impl StateMachine for Slow {
    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        self.0.apply(at, command).await
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        let gate = self.1.lock().unwrap().pop();
        Ok(Box::new(Held(gate, self.0.snapshot().await?)))
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.0.restore(image).await
    }
}

#[tokio::test(start_paused = true)]
async fn writes_go_on_while_an_image_is_written() {
    let (log, snapshots, machine) = (MemLog::new(), MemSnapshots::new(), Slow::default());
    let (go, gate) = tokio::sync::oneshot::channel();
    machine.1.lock().unwrap().push(gate);
    let raft = start(Config::default(), &log, &snapshots, machine.clone()).await;
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    raft.write("before".into()).await.unwrap();
    let asked = tokio::spawn({
        let raft = raft.clone();
        async move { raft.snapshot().await }
    });
    for n in 0..50 {
        raft.write(format!("{n}").into()).await.unwrap();
    }
    assert!(!asked.is_finished() && snapshots.latest().await.unwrap().is_none());
    go.send(()).unwrap();
    let last = asked.await.unwrap().unwrap();
    assert!(last.index.0 < 50, "the view was frozen when it was asked for: {last}");
    raft.shutdown().await;
    let machine = Recorder::default();
    let raft = start(Config::default(), &log, &snapshots, machine.clone()).await;
    raft.read(Consistency::Linearizable).await.unwrap();
    assert_eq!(commands(&machine).len(), 51);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_the_rest_of_an_image() {
    let (log, snapshots, machine) = (MemLog::new(), MemSnapshots::new(), Recorder::default());
    let raft = start(Config { snapshot_chunk_bytes: 1, ..Config::default() }, &log, &snapshots, machine).await;
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    raft.write(vec![b'x'; 1000].into()).await.unwrap();
    let asked = tokio::spawn({
        let raft = raft.clone();
        async move { raft.snapshot().await }
    });
    tokio::task::yield_now().await;
    raft.shutdown().await;
    let _ = asked.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_node_of_a_cluster_cuts_its_log() {
    let mut cluster = Cluster::builder(3).config(small()).start(|_| Recorder::default()).await;
    let leader = cluster.leader().await;
    for n in 0..60 {
        cluster.node(leader).write(n.to_string().into()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for id in cluster.ids() {
        let status = cluster.node(id).status().await.unwrap();
        assert!(status.base.index.0 > 40, "{status:?}");
        cluster.restart(id).await;
    }
    let leader = cluster.leader().await;
    cluster.node(leader).read(Consistency::Linearizable).await.unwrap();
    assert_eq!(cluster.machine(leader).commands().len(), 60);
}

/// A machine whose image takes its time: 60 pieces, each of which is a hundredth of a second's work.
#[derive(Clone, Default)]
struct Long(Recorder);

struct Pieces(usize);

#[async_trait]
impl Chunks for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let Some(left) = self.0.checked_sub(1) else { return Ok(None) };
        self.0 = left;
        Ok(Some(vec![0; 100].into()))
    }
}

#[async_trait]
impl StateMachine for Long {
    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        self.0.apply(at, command).await
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Ok(Box::new(Pieces(60)))
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.0.restore(image).await
    }
}

/// Nobody waits for it, so it may take a minute; but what is written meanwhile stays in the log until it is taken.
#[tokio::test(start_paused = true)]
async fn an_image_is_hurried_when_much_is_written_meanwhile() {
    let (log, snapshots) = (MemLog::new(), MemSnapshots::new());
    let config = Config { snapshot_entries: 3, snapshot_bytes: 1000, snapshot_busy_percent: 1, ..small() };
    let raft = start(config, &log, &snapshots, Long::default()).await;
    let mut events = raft.events();
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    raft.write("x".into()).await.unwrap();
    let taken = async { while !matches!(events.next().await.unwrap(), Event::SnapshotTaken { .. }) {} };
    let mut taken = std::pin::pin!(taken);
    assert!(tokio::time::timeout(Duration::from_secs(10), &mut taken).await.is_err(), "there was no hurry");
    raft.write(vec![0; 5000].into()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(3), taken).await.expect("an image that is hurried");
    raft.shutdown().await;
}
