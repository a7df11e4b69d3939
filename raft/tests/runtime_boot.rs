//! How a node comes up from what its backends hold.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::{Counter, MemLog, MemNetwork, MemSnapshots, image_of};
use raftkv::{
    Chunks, ClusterId, Consistency, Entry, EntryKind, Fatal, HardState, Index, LogId, LogStore, LogWrite, Membership,
    NodeId, Peer, Raft, Snapshot, SnapshotId, SnapshotMeta, StateMachine, Term,
};

fn alone() -> Membership {
    Membership::new([Peer::new(1, "a")])
}

async fn start(log: &MemLog, snapshots: &MemSnapshots, machine: impl StateMachine) -> Result<Raft, Fatal> {
    Raft::builder(NodeId(1), ClusterId(1))
        .seed(1)
        .transport(MemNetwork::new(1).transport(Peer::new(1, "a")))
        .log(log.clone())
        .snapshots(snapshots.clone())
        .state_machine(machine)
        .start()
        .await
}

async fn append(log: &MemLog, index: u64, kind: EntryKind, data: impl Into<Bytes>) {
    let entry = Entry { id: LogId::new(1, index), kind, data: data.into() };
    let hard_state = Some(HardState { term: Term(1), voted_for: Some(NodeId(1)) });
    log.write(LogWrite { hard_state, entries: vec![entry] }).await.unwrap();
}

async fn publish(snapshots: &MemSnapshots, last: LogId, image: &'static str) {
    let id = SnapshotId(last.index.0);
    let meta = SnapshotMeta { id, last, membership: alone(), membership_at: LogId::new(1, 1) };
    let mut writer = snapshots.begin(meta).await.unwrap();
    writer.append(image_of(image).into()).await.unwrap();
    writer.publish().await.unwrap();
}

/// A machine that keeps its state itself.
#[derive(Clone, Default)]
struct Durable {
    counter: Counter,
    applied: LogId,
}

#[async_trait]
impl StateMachine for Durable {
    async fn applied(&self) -> Result<LogId, Fatal> {
        Ok(self.applied)
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        assert!(at > self.applied, "{at} is applied a second time");
        self.applied = at;
        self.counter.apply(at, command).await
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        self.counter.snapshot().await
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.counter.restore(image).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_newest_image_is_restored_and_the_log_goes_on_from_there() {
    let (log, snapshots, counter) = (MemLog::new(), MemSnapshots::new(), Counter::default());
    append(&log, 1, EntryKind::Config, alone().encode()).await;
    for index in 2..=8 {
        append(&log, index, EntryKind::Command, "1").await;
    }
    publish(&snapshots, LogId::new(1, 6), "1000").await;
    log.compact(LogId::new(1, 5)).await.unwrap();
    let raft = start(&log, &snapshots, counter.clone()).await.unwrap();
    raft.read(Consistency::Linearizable).await.unwrap();
    assert_eq!(counter.value(), 1002, "the image, and the entries 7 and 8");
    assert_eq!(raft.status().await.unwrap().members, [Peer::new(1, "a")], "known from the image alone");
}

#[tokio::test(start_paused = true)]
async fn a_durable_machine_gets_only_what_it_does_not_reflect() {
    let (log, snapshots) = (MemLog::new(), MemSnapshots::new());
    append(&log, 1, EntryKind::Config, alone().encode()).await;
    for index in 2..=8 {
        append(&log, index, EntryKind::Command, "1").await;
    }
    publish(&snapshots, LogId::new(1, 4), "1000").await;
    let machine = Durable { applied: LogId::new(1, 6), ..Durable::default() };
    let counter = machine.counter.clone();
    let raft = start(&log, &snapshots, machine).await.unwrap();
    raft.read(Consistency::Linearizable).await.unwrap();
    assert_eq!(counter.value(), 2, "not the older image, and not the entries before 7");
}

#[tokio::test(start_paused = true)]
async fn entries_that_are_missing_before_the_log_are_noticed() {
    let (log, snapshots) = (MemLog::new(), MemSnapshots::new());
    for index in 1..=8 {
        append(&log, index, EntryKind::Command, "1").await;
    }
    log.compact(LogId::new(1, 5)).await.unwrap();
    let fatal = start(&log, &snapshots, Counter::default()).await.unwrap_err();
    assert!(fatal.to_string().contains("the log begins after 5@1"), "{fatal}");
}

#[tokio::test(start_paused = true)]
async fn a_state_machine_ahead_of_its_log_is_noticed() {
    let log = MemLog::new();
    append(&log, 1, EntryKind::Config, alone().encode()).await;
    let machine = Durable { applied: LogId::new(1, 6), ..Durable::default() };
    let fatal = start(&log, &MemSnapshots::new(), machine).await.unwrap_err();
    assert!(fatal.to_string().contains("reflects 6@1, but the log ends at 1@1"), "{fatal}");
}

#[tokio::test(start_paused = true)]
async fn the_last_configuration_is_found_wherever_it_is_in_a_long_log() {
    let log = MemLog::new();
    append(&log, 1, EntryKind::Config, Membership::new([Peer::new(1, "old")]).encode()).await;
    for index in 2..=20 {
        let large = vec![b'x'; 1 << 20];
        if index == 11 {
            append(&log, index, EntryKind::Config, alone().encode()).await;
        } else {
            append(&log, index, EntryKind::Command, large).await;
        }
    }
    let raft = start(&log, &MemSnapshots::new(), Counter::default()).await.unwrap();
    raft.read(Consistency::Linearizable).await.unwrap();
    let status = raft.status().await.unwrap();
    assert_eq!(status.members, [Peer::new(1, "a")]);
    assert!(status.last.index > Index(20));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_restore_refuses_to_start() {
    let (log, snapshots) = (MemLog::new(), MemSnapshots::new());
    append(&log, 1, EntryKind::Config, alone().encode()).await;
    publish(&snapshots, LogId::new(1, 4), "nonsense").await;
    let fatal = start(&log, &snapshots, Counter::default()).await.unwrap_err();
    assert!(fatal.to_string().contains("holds no number"), "{fatal}");
}

/// The image was received, and power was lost before the log was cut: it ends before the image, or holds what the image contradicts.
/// Panics over any image.
struct Fragile;

#[async_trait]
impl StateMachine for Fragile {
    async fn apply(&mut self, _at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        Ok(command)
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Err(Fatal::state_machine("no snapshots"))
    }

    async fn restore(&mut self, _image: Box<dyn Chunks>) -> Result<(), Fatal> {
        panic!("as told");
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_panics_over_its_image_refuses_to_start() {
    let (log, snapshots) = (MemLog::new(), MemSnapshots::new());
    append(&log, 1, EntryKind::Config, alone().encode()).await;
    publish(&snapshots, LogId::new(1, 1), "1").await;
    let fatal = start(&log, &snapshots, Fragile).await.expect_err("it was started");
    assert!(fatal.to_string().contains("as told"), "{fatal}");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_an_image_has_overtaken_is_cut() {
    for entries in [1, 3, 8] {
        let (log, snapshots, counter) = (MemLog::new(), MemSnapshots::new(), Counter::default());
        append(&log, 1, EntryKind::Config, Membership::new([Peer::new(1, "old")]).encode()).await;
        for index in 2..=entries {
            append(&log, index, EntryKind::Command, "1").await;
        }
        let hard_state = Some(HardState { term: Term(4), voted_for: Some(NodeId(1)) });
        log.write(LogWrite { hard_state, entries: Vec::new() }).await.unwrap();
        publish(&snapshots, LogId::new(3, 6), "1000").await;
        let raft = start(&log, &snapshots, counter.clone()).await.unwrap();
        assert_eq!(log.load().await.unwrap().base, LogId::new(3, 6));
        raft.read(Consistency::Linearizable).await.unwrap();
        assert_eq!(counter.value(), 1000, "the image alone");
        let status = raft.status().await.unwrap();
        assert_eq!((status.members, status.base), (vec![Peer::new(1, "a")], LogId::new(3, 6)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_lost_its_entries_is_not_taken_for_one_that_an_image_has_overtaken() {
    let (log, snapshots) = (MemLog::new(), MemSnapshots::new());
    publish(&snapshots, LogId::new(3, 6), "1000").await;
    let fatal = start(&log, &snapshots, Counter::default()).await.unwrap_err();
    assert!(fatal.to_string().contains("reflects 6@3, but the log"), "{fatal}");
    assert_eq!(log.load().await.unwrap().base, LogId::ZERO, "it is left alone");
}

/// A machine that keeps its thread busy for 100 us with each command, and counts them.
struct Busy(Arc<AtomicU64>);

#[async_trait]
impl StateMachine for Busy {
    #[allow(clippy::disallowed_methods, reason = "work takes real time")]
    async fn apply(&mut self, _at: LogId, _command: Bytes) -> Result<Bytes, Fatal> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(100) {
            std::hint::spin_loop();
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Bytes::new())
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        panic!("nobody wants an image")
    }

    async fn restore(&mut self, _image: Box<dyn Chunks>) -> Result<(), Fatal> {
        panic!("there is no image")
    }
}

const BACKLOG: u64 = 10_000;

/// A node that is alone, has this many commands to apply, and counts those that it has.
async fn behind() -> (Raft, Arc<AtomicU64>) {
    let (log, applied) = (MemLog::new(), Arc::new(AtomicU64::new(0)));
    append(&log, 1, EntryKind::Config, alone().encode()).await;
    let entry = |index| Entry { id: LogId::new(1, index), kind: EntryKind::Command, data: "x".into() };
    log.write(LogWrite { hard_state: None, entries: (2..BACKLOG + 2).map(entry).collect() }).await.unwrap();
    (start(&log, &MemSnapshots::new(), Busy(Arc::clone(&applied))).await.unwrap(), applied)
}

/// A leader that applied what its log held at its start kept its only thread for a quarter of a second at a time, sent no heartbeat meanwhile, and was
/// the leader no more.
#[tokio::test]
async fn a_backlog_is_applied_in_turns_with_all_else_of_the_thread() {
    let (raft, applied) = behind().await;
    let (mut before, mut most) = (0, 0);
    let watch = async {
        while before < BACKLOG {
            // Comes back before the applier does, which yields as well: it asked first, and is woken first.
            tokio::task::yield_now().await;
            let now = applied.load(Ordering::Relaxed);
            most = most.max(now - before);
            before = now;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), watch).await.expect("the node applies what it has");
    // As many are given at once however long they take, and took too long for more.
    assert!(most <= 64, "{most} commands were applied in one go, for which others waited {} ms", most / 10);
    raft.shutdown().await;
}

#[tokio::test]
async fn a_node_that_is_told_to_end_leaves_its_backlog() {
    let (raft, applied) = behind().await;
    let some = async {
        while applied.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), some).await.expect("the node begins to apply what it has");
    raft.shutdown_now().await;
    let applied = applied.load(Ordering::Relaxed);
    assert!(applied < BACKLOG / 4, "it applied {applied} commands before it ended");
}
