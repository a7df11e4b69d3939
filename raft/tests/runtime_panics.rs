//! A backend that panics stops its node with the reason, and nothing hangs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what tests share")]

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use raftkv::testing::{Counter, MemLog, MemNetwork, MemSnapshots};
use raftkv::{
    ClusterId, Config, Entry, Index, InitializeError, LogId, LogState, LogStore, LogWrite, Membership, NodeId, Peer,
    Raft, StorageError,
};

/// A log whose author forgot a case.
struct Panicking(MemLog);

#[async_trait]
impl LogStore for Panicking {
    async fn load(&self) -> Result<LogState, StorageError> {
        self.0.load().await
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.0.read(range, max_bytes).await
    }

    async fn write(&self, _write: LogWrite) -> Result<(), StorageError> {
        panic!("the author forgot this case")
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.0.compact(upto).await
    }
}

async fn start(log: impl LogStore, config: Config) -> (Raft, Membership) {
    let peer = Peer::new(1, "node-1");
    let network = MemNetwork::new(0);
    let node =
        Raft::builder(NodeId(1), ClusterId(1)).config(config).transport(network.transport(peer.clone())).log(log);
    let raft = node.snapshots(MemSnapshots::new()).state_machine(Counter::default()).start().await.unwrap();
    network.connect(raft.inbox());
    (raft, Membership::new([peer]))
}

#[tokio::test(start_paused = true)]
async fn a_log_store_that_panics_stops_the_node_with_the_reason() {
    let (raft, members) = start(Panicking(MemLog::new()), Config::default()).await;
    let initialized = raft.initialize(members).await;
    assert!(matches!(initialized, Err(InitializeError::Stopped(_))), "{initialized:?}");
    let fatal = tokio::time::timeout(Duration::from_secs(5), raft.shutdown()).await.unwrap();
    assert!(fatal.to_string().contains("the author forgot this case"), "{fatal}");
}

#[tokio::test(start_paused = true)]
async fn a_time_that_means_never_does_not_stop_the_node() {
    let never = Duration::MAX;
    let config = Config { write_timeout: never, read_timeout: never, slow_disk: never, ..Config::default() };
    let (raft, members) = start(MemLog::new(), config).await;
    raft.initialize(members).await.unwrap();
    assert_eq!(raft.write("1".into()).await.unwrap(), "1");
    raft.shutdown().await;
}
