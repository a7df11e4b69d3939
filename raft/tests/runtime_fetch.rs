//! Entries that a follower lacks and that memory has let go are read from the log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use raftkv::testing::{MemLog, MemNetwork, MemSnapshots, Recorder};
use raftkv::{
    ClusterId, Config, Entry, Index, LogId, LogState, LogStore, LogWrite, Membership, NodeId, Peer, Raft, StorageError,
};
use tokio::time::{sleep, timeout};

/// A log of which entries are replaced between the moment when the core asks for them and the moment when they are read. Counts
/// the reads to which that still happens. Or one that has lost all entries below this index for ever, and takes its time.
#[derive(Clone, Default)]
struct Replaced {
    log: MemLog,
    reads: Arc<AtomicU64>,
    lost_below: Arc<AtomicU64>,
}

/// How long it takes to find that entries are lost, and to read others.
const LOST_AFTER: Duration = Duration::from_millis(1);
const READ_AFTER: Duration = Duration::from_millis(200);

#[async_trait]
impl LogStore for Replaced {
    async fn load(&self) -> Result<LogState, StorageError> {
        self.log.load().await
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let left = self.reads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_ok() {
            return Err(StorageError::Misuse(format!("{range:?} is not held any more")));
        }
        let lost_below = self.lost_below.load(Ordering::Relaxed);
        if range.start.0 < lost_below {
            sleep(LOST_AFTER).await;
            return Err(StorageError::Misuse(format!("{range:?} is not held any more")));
        }
        sleep(if lost_below > 0 { READ_AFTER } else { Duration::ZERO }).await;
        self.log.read(range, max_bytes).await
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        self.log.write(write).await
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.log.compact(upto).await
    }
}

fn peer(id: u64) -> Peer {
    Peer::new(id, format!("node-{id}"))
}

type Nodes = BTreeMap<u64, (Raft, Replaced, Recorder)>;

/// So many nodes, of which the first leads.
async fn nodes(count: u64, config: Config) -> (MemNetwork, Nodes) {
    let (network, members) = (MemNetwork::new(1), Membership::new((1..=count).map(peer)));
    let mut nodes = Nodes::new();
    for id in 1..=count {
        let (log, machine) = (Replaced::default(), Recorder::default());
        let builder = Raft::builder(NodeId(id), ClusterId(1)).config(config.clone()).seed(id).log(log.clone());
        let builder = builder.transport(network.transport(peer(id))).snapshots(MemSnapshots::new());
        let raft = builder.state_machine(machine.clone()).start().await.unwrap();
        network.connect(raft.inbox());
        nodes.insert(id, (raft, log, machine));
    }
    for (raft, ..) in nodes.values() {
        raft.initialize(members.clone()).await.unwrap();
    }
    nodes[&1].0.campaign().await.unwrap();
    (network, nodes)
}

async fn write(nodes: &Nodes, count: u64) {
    for n in 0..count {
        nodes[&1].0.write(format!("{n}").into()).await.unwrap();
    }
}

/// Three nodes, of which the third lacks 200 entries that the others have let go from memory.
async fn one_behind() -> (MemNetwork, Nodes) {
    let (network, nodes) = nodes(3, Config { max_tail_bytes: 1000, ..Config::default() }).await;
    network.partition(&[NodeId(3)]);
    write(&nodes, 200).await;
    (network, nodes)
}

#[tokio::test(start_paused = true)]
async fn a_read_for_a_follower_that_comes_too_late_does_not_stop_the_leader() {
    let (network, nodes) = one_behind().await;
    // Whichever node leads by now: none keeps the first of these in memory.
    for (_, log, _) in nodes.values() {
        log.reads.store(5, Ordering::Relaxed);
    }
    network.heal();
    let caught_up = async {
        while nodes[&3].2.commands().len() < 200 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), caught_up).await.expect("the follower gets what it missed");
    let left: Vec<u64> = nodes.values().map(|(_, log, _)| log.reads.load(Ordering::Relaxed)).collect();
    assert!(left.contains(&0), "no log was asked five times: {left:?}");
    for (raft, ..) in nodes.values() {
        assert!(raft.status().await.is_ok(), "a node has stopped");
        raft.shutdown().await;
    }
}

/// It was asked for them without a pause, for ever, and the node did nothing else.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_log_has_lost_entries_stops_and_says_so() {
    let (network, nodes) = one_behind().await;
    for (_, log, _) in nodes.values() {
        log.reads.store(u64::MAX, Ordering::Relaxed);
    }
    network.heal();
    let stopped = futures_util::future::select_all(nodes.values().map(|(raft, ..)| Box::pin(raft.stopped())));
    let (fatal, ..) = timeout(Duration::from_secs(30), stopped).await.expect("the leader stops");
    assert!(fatal.to_string().contains("is not held any more"), "{fatal}");
    for (raft, ..) in nodes.values() {
        raft.shutdown().await;
    }
}

/// There was one count for all: as long as another follower got what it lacked, the lost ones were asked for without a pause.
#[tokio::test(start_paused = true)]
async fn a_leader_that_has_lost_what_one_follower_needs_notices_it_while_another_gets_its_entries() {
    let config = Config { max_tail_bytes: 1000, max_append_bytes: 1000, ..Config::default() };
    let (network, nodes) = nodes(5, config).await;
    network.partition(&[NodeId(3)]);
    write(&nodes, 200).await;
    let lost_below = nodes[&1].0.status().await.unwrap().applied.0;
    network.partition(&[NodeId(4)]);
    write(&nodes, 1000).await;
    for (_, log, _) in nodes.values() {
        log.lost_below.store(lost_below, Ordering::Relaxed);
    }
    network.heal();
    let stopped = timeout(Duration::from_secs(3), nodes[&1].0.stopped()).await.expect("the leader stops");
    assert!(stopped.to_string().contains("is not held any more"), "{stopped}");
    let got = nodes[&4].2.commands().len();
    assert!(got > 200 && got < 1200, "the other follower was not in the middle of it: it has {got}");
    for (raft, ..) in nodes.values() {
        raft.shutdown().await;
    }
}

/// Its words were those of a bug in the framework.
#[tokio::test(start_paused = true)]
async fn a_node_whose_log_has_lost_what_it_is_to_apply_stops_and_says_so() {
    let (network, log) = (MemNetwork::new(1), Replaced::default());
    let start = || {
        let config = Config { max_tail_bytes: 1000, ..Config::default() };
        let builder = Raft::builder(NodeId(1), ClusterId(1)).config(config).log(log.clone());
        let builder = builder.transport(network.transport(peer(1))).snapshots(MemSnapshots::new());
        builder.state_machine(Recorder::default()).start()
    };
    let raft = start().await.unwrap();
    raft.initialize(Membership::new([peer(1)])).await.unwrap();
    raft.campaign().await.unwrap();
    for n in 0..100 {
        raft.write(format!("{n}").into()).await.unwrap();
    }
    raft.shutdown().await;
    log.reads.store(u64::MAX, Ordering::Relaxed);
    let stopped = match start().await {
        Ok(raft) => timeout(Duration::from_secs(30), raft.stopped()).await.expect("it stops").to_string(),
        Err(error) => error.to_string(),
    };
    assert!(stopped.contains("is not held any more"), "{stopped}");
}
