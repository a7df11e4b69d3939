//! A node that lags behind what others keep of their logs gets an image, while writes go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::{Cluster, Crash, Recorder};
use raftkv::{Chunks, Config, Consistency, Error, Event, Fatal, LogId, NodeId, ReplicationState, StateMachine};

fn small() -> Config {
    Config { snapshot_entries: 20, trailing_entries: 3, snapshot_chunk_bytes: 100, ..Config::default() }
}

/// Writes numbers from `from` on.
async fn write<M: StateMachine + Clone>(cluster: &Cluster<M>, range: std::ops::Range<u64>) {
    for n in range {
        let leader = cluster.leader().await;
        cluster.node(leader).write(n.to_string().into()).await.unwrap();
    }
}

fn numbers(machine: &Recorder) -> Vec<u64> {
    machine.commands().iter().map(|(_, command)| std::str::from_utf8(command).unwrap().parse().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_away_for_long_comes_back_through_an_image() {
    let mut cluster = Cluster::builder(3).config(small()).start(|_| Recorder::default()).await;
    let away = cluster.follower().await;
    write(&cluster, 0..10).await;
    cluster.crash(away, Crash::Lost).await;
    write(&cluster, 10..300).await;
    cluster.restart(away).await;
    let mut events = cluster.node(away).events();
    // Writes go on meanwhile.
    write(&cluster, 300..350).await;
    cluster.converge().await;
    assert_eq!(numbers(cluster.machine(away)), (0..350).collect::<Vec<_>>());
    let installed = loop {
        if let Event::SnapshotInstalled { last, len } = events.next().await.unwrap() {
            break (last, len);
        }
    };
    assert!(installed.0.index.0 > 200 && installed.1 > 1000, "{installed:?}");
    // What it received is its own now: it starts from it, and serves it.
    cluster.restart(away).await;
    cluster.converge().await;
    cluster.node(away).read(Consistency::Linearizable).await.unwrap();
    assert_eq!(numbers(cluster.machine(away)), (0..350).collect::<Vec<_>>());
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_comes_on_through_crashes_of_both_sides_and_changes_of_the_leader() {
    // Slow enough that it is always in the middle.
    let config = Config { snapshot_bytes_per_second: 2000, snapshot_window_bytes: 200, ..small() };
    let mut cluster = Cluster::builder(3).config(config).start(|_| Recorder::default()).await;
    let away = cluster.follower().await;
    cluster.crash(away, Crash::Lost).await;
    write(&cluster, 0..300).await;
    for round in 0..6 {
        cluster.restart(away).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let status = cluster.node(away).status().await.unwrap();
        assert!(status.applied.0 < 300, "round {round}: it is too fast for this test: {status:?}");
        cluster.crash(away, Crash::Lost).await;
        if round % 2 == 0 {
            let leader = cluster.leader().await;
            cluster.crash(leader, Crash::Lost).await;
            cluster.restart(leader).await;
        }
    }
    cluster.restart(away).await;
    write(&cluster, 300..310).await;
    cluster.converge().await;
    assert_eq!(numbers(cluster.machine(away)), (0..310).collect::<Vec<_>>());
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_transfer_is_visible_on_both_sides() {
    let config = Config { snapshot_bytes_per_second: 1000, snapshot_window_bytes: 200, ..small() };
    let mut cluster = Cluster::builder(3).config(config).start(|_| Recorder::default()).await;
    let away = cluster.follower().await;
    cluster.crash(away, Crash::Lost).await;
    write(&cluster, 0..300).await;
    cluster.restart(away).await;
    let half_way = |status: &raftkv::Status| status.receiving.is_some_and(|image| image.stored > 2000);
    cluster.wait_until("the image is on its way", |all| all.iter().any(half_way)).await;
    let receiving = cluster.node(away).status().await.unwrap().receiving.unwrap();
    let leader = cluster.leader().await;
    assert!(receiving.from == leader && receiving.len > receiving.stored, "{receiving:?}");
    assert!((500..2000).contains(&receiving.rate), "about a thousand bytes a second: {receiving:?}");
    let status = cluster.node(leader).status().await.unwrap();
    let peer = status.peers.iter().find(|peer| peer.id == away).unwrap();
    assert_eq!(peer.state, ReplicationState::Snapshot);
    assert!(peer.fetched.is_some_and(|fetched| fetched + 100 >= receiving.stored), "{peer:?}, {receiving:?}");
    cluster.converge().await;
    assert_eq!(cluster.node(away).status().await.unwrap().receiving, None);
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_outcome_an_image_covers_is_unknown_and_applied_once() {
    let cluster = Cluster::builder(3).config(small()).start(|_| Recorder::default()).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    // The follower passes a command on, and does not hear of it any more.
    let asked = tokio::spawn({
        let raft = cluster.node(follower).clone();
        async move { raft.write("1000".into()).await }
    });
    cluster.wait_until("the command is there", |all| all.iter().any(|status| status.last.index.0 > 2)).await;
    cluster.network().partition(&[follower]);
    for n in 0..100_u64 {
        cluster.node(leader).write(n.to_string().into()).await.unwrap();
    }
    cluster.network().heal();
    match asked.await.unwrap() {
        Ok(_) | Err(Error::OutcomeUnknown) => {}
        other => panic!("{other:?}"),
    }
    cluster.converge().await;
    let applied = numbers(cluster.machine(follower));
    assert_eq!(applied.iter().filter(|n| **n == 1000).count(), 1);
    cluster.shutdown().await;
}

/// A machine that keeps its state itself: clones share it, also from run to run.
#[derive(Clone, Default)]
struct Durable {
    machine: Recorder,
    applied: Arc<Mutex<LogId>>,
    restored: Arc<Mutex<u64>>,
}

#[async_trait]
impl StateMachine for Durable {
    async fn applied(&self) -> Result<LogId, Fatal> {
        Ok(*self.applied.lock().unwrap())
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        let answer = self.machine.apply(at, command).await?;
        *self.applied.lock().unwrap() = at;
        Ok(answer)
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        self.machine.snapshot().await
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.machine.restore(image).await?;
        *self.restored.lock().unwrap() += 1;
        let last = self.machine.commands().last().map(|(at, _)| *at).unwrap_or_default();
        *self.applied.lock().unwrap() = last;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_durable_machine_is_restored_from_a_received_image_and_from_none_of_its_own() {
    let machines: Vec<_> = (0..3).map(|_| Durable::default()).collect();
    let kept = machines.clone();
    let make = move |id: NodeId| kept[usize::try_from(id.0).unwrap() - 1].clone();
    let mut cluster = Cluster::builder(3).config(small()).start(make).await;
    let away = cluster.follower().await;
    write(&cluster, 0..50).await;
    for id in cluster.ids() {
        cluster.restart(id).await;
    }
    cluster.converge().await;
    assert!(
        machines.iter().all(|machine| *machine.restored.lock().unwrap() == 0),
        "they are further than their images"
    );
    cluster.crash(away, Crash::Lost).await;
    write(&cluster, 50..200).await;
    cluster.restart(away).await;
    cluster.converge().await;
    for (machine, id) in machines.iter().zip(1..) {
        assert_eq!(*machine.restored.lock().unwrap(), u64::from(NodeId(id) == away));
        assert_eq!(numbers(&machine.machine), (0..200).collect::<Vec<_>>());
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_member_is_brought_up_by_an_image() {
    let mut cluster = Cluster::builder(3).config(small()).start(|_| Recorder::default()).await;
    write(&cluster, 0..100).await;
    let leader = cluster.leader().await;
    let newcomer = cluster.add_node().await;
    let change = raftkv::Change::new().add_voter(cluster.peer(newcomer));
    cluster.node(leader).change_membership(change).await.unwrap();
    write(&cluster, 100..110).await;
    cluster.converge().await;
    assert_eq!(numbers(cluster.machine(newcomer)), (0..110).collect::<Vec<_>>());
    assert_eq!(cluster.node(newcomer).status().await.unwrap().members.len(), 4);
    cluster.shutdown().await;
}
