//! Client sessions: what is written in one is applied once, whatever happens in between.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::{Cluster, Crash, Durable, MemLog, MemNetwork, MemSnapshots, Recorder};
use raftkv::{
    Chunks, ClusterId, Config, Consistency, Error, Fatal, LogId, Membership, NodeId, Once, Peer, Raft, Record,
    Recorded, SessionId, StateMachine,
};

fn texts(machine: &Recorder) -> Vec<String> {
    machine.commands().iter().map(|(_, command)| String::from_utf8_lossy(command).into_owned()).collect()
}

async fn cluster(config: Config) -> Cluster<Recorder> {
    Cluster::builder(3).config(config).start(|_| Recorder::default()).await
}

#[tokio::test(start_paused = true)]
async fn a_repetition_at_another_node_gets_the_answer_of_the_first() {
    let cluster = cluster(Config::default()).await;
    cluster.leader().await;
    let session = cluster.node(NodeId(1)).open_session().await.unwrap();
    let once = Once { session, sequence: 0, answered: 0 };
    let first = cluster.node(NodeId(2)).write_once(once, "a".into()).await.unwrap();
    for id in [1, 2, 3] {
        assert_eq!(cluster.node(NodeId(id)).write_once(once, "a".into()).await.unwrap(), first);
    }
    let next = Once { sequence: 1, answered: 1, ..once };
    assert_ne!(cluster.node(NodeId(3)).write_once(next, "b".into()).await.unwrap(), first);
    let late = cluster.node(NodeId(1)).write_once(once, "a".into()).await;
    assert!(matches!(late, Err(Error::OutOfSequence)), "{late:?}");
    cluster.converge().await;
    for id in cluster.ids() {
        assert_eq!(texts(cluster.machine(id)), ["a", "b"]);
        assert_eq!(cluster.node(id).status().await.unwrap().sessions.open, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_closed_takes_nothing_more() {
    let cluster = cluster(Config::default()).await;
    let raft = cluster.node(cluster.leader().await);
    let session = raft.open_session().await.unwrap();
    raft.close_session(session).await.unwrap();
    raft.close_session(session).await.unwrap();
    for session in [session, SessionId(12345)] {
        let refused = raft.write_once(Once { session, sequence: 0, answered: 0 }, "a".into()).await;
        assert!(matches!(refused, Err(Error::SessionExpired)), "{refused:?}");
        assert!(!Error::SessionExpired.is_safe_to_retry());
    }
    let session = raft.session();
    assert_eq!(session.id(), None, "it is opened with its first write");
    session.write("b".into()).await.unwrap();
    session.close().await.unwrap();
    assert_eq!(raft.status().await.unwrap().sessions.open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_outlives_leaders_images_and_restarts() {
    let config = Config { snapshot_entries: 8, trailing_entries: 0, ..Config::default() };
    let mut cluster = cluster(config).await;
    let session = cluster.node(cluster.leader().await).open_session().await.unwrap();
    let mut answers = Vec::new();
    for sequence in 0..40 {
        if sequence % 10 == 5 {
            let leader = cluster.leader().await;
            cluster.crash(leader, Crash::Lost).await;
            cluster.leader().await;
            cluster.restart(leader).await;
        }
        let once = Once { session, sequence, answered: 0 };
        let command = Bytes::from(sequence.to_string());
        answers.push(loop {
            let via = NodeId(1 + sequence % 3);
            if let Ok(answer) = cluster.node(via).write_once(once, command.clone()).await {
                break answer;
            }
        });
    }
    for id in cluster.ids() {
        cluster.crash(id, Crash::Lost).await;
    }
    for id in cluster.ids() {
        cluster.restart(id).await;
    }
    cluster.leader().await;
    for (sequence, answer) in (0..).zip(&answers) {
        let once = Once { session, sequence, answered: 0 };
        let again = cluster.node(NodeId(1)).write_once(once, Bytes::from(sequence.to_string())).await;
        assert_eq!(again.unwrap(), *answer, "after images and restarts");
    }
    cluster.converge().await;
    let expected: Vec<_> = (0..40).map(|n| n.to_string()).collect();
    for id in cluster.ids() {
        assert_eq!(texts(cluster.machine(id)), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_repeats_a_write_until_it_knows_the_outcome() {
    let config = Config { write_timeout: Duration::from_millis(400), ..Config::default() };
    let cluster = cluster(config).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let session = Arc::new(cluster.node(follower).session());
    session.write("before".into()).await.unwrap();
    // The leader is cut off together with what was passed on to it.
    let writing = {
        let session = session.clone();
        tokio::spawn(async move { session.write("meanwhile".into()).await })
    };
    tokio::time::sleep(Duration::from_micros(100)).await;
    cluster.network().partition(&[leader]);
    writing.await.unwrap().unwrap();
    cluster.network().heal();
    cluster.converge().await;
    for id in cluster.ids() {
        assert_eq!(texts(cluster.machine(id)), ["before", "meanwhile"]);
    }
}

#[tokio::test(start_paused = true)]
async fn many_writes_of_a_session_are_under_way_at_once() {
    let cluster = cluster(Config::default()).await;
    let session = Arc::new(cluster.node(cluster.follower().await).session());
    let writes: Vec<_> = (0..3000_u64)
        .map(|n| {
            let session = session.clone();
            tokio::spawn(async move { session.write(n.to_string().into()).await })
        })
        .collect();
    // Some are given up.
    for write in writes.iter().step_by(7) {
        write.abort();
    }
    let mut answered = 0;
    for write in writes {
        answered += u64::from(write.await.is_ok_and(|answer| answer.is_ok()));
    }
    assert!(answered >= 2500, "{answered} answers");
    cluster.converge().await;
    let applied = texts(cluster.machine(NodeId(1)));
    let different: std::collections::BTreeSet<_> = applied.iter().collect();
    assert_eq!(different.len(), applied.len(), "none is applied twice");
    assert!(applied.len() as u64 >= answered);
    session.write("last".into()).await.unwrap();
    let kept = cluster.node(cluster.leader().await).status().await.unwrap().sessions;
    assert!(kept.open == 1 && kept.kept_bytes < 200, "what is answered is not kept: {kept:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_expires_and_is_opened_anew() {
    let config = Config { session_idle: Duration::from_secs(10), ..Config::default() };
    let cluster = cluster(config).await;
    let raft = cluster.node(cluster.leader().await);
    let (idle, busy) = (raft.session(), raft.session());
    idle.write("a".into()).await.unwrap();
    let first = idle.id();
    for n in 0..15 {
        busy.write(n.to_string().into()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(raft.status().await.unwrap().sessions.open, 1);
    idle.write("b".into()).await.unwrap();
    assert_ne!(idle.id(), first);
    assert_eq!(texts(cluster.machine(raft.id())).iter().filter(|text| *text == "b").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_nobody_takes_ends_with_the_sessions_patience() {
    let config =
        Config { write_timeout: Duration::from_secs(1), session_patience: Duration::from_secs(4), ..Config::default() };
    let mut cluster = cluster(config).await;
    let survivor = cluster.leader().await;
    let session = cluster.node(survivor).session();
    session.write("a".into()).await.unwrap();
    for id in cluster.ids().into_iter().filter(|id| *id != survivor) {
        cluster.stop(id).await;
    }
    let began = tokio::time::Instant::now();
    let outcome = session.write("b".into()).await;
    assert!(matches!(outcome, Err(Error::OutcomeUnknown)), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    let outcome = session.write("c".repeat(9 << 20).into()).await;
    assert!(matches!(outcome, Err(Error::TooLarge { .. })), "{outcome:?}");
}

/// A state machine that is durable by itself, and keeps nothing for sessions.
#[derive(Clone, Default)]
struct Forgetful(Recorder);

#[async_trait]
impl StateMachine for Forgetful {
    async fn applied(&self) -> Result<LogId, Fatal> {
        Ok(self.0.commands().last().map_or(LogId::ZERO, |(at, _)| *at))
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        self.0.apply(at, command).await
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        self.0.snapshot().await
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.0.restore(image).await
    }
}

async fn alone<M: StateMachine + Clone>(log: &MemLog, snapshots: &MemSnapshots, machine: &M) -> Raft {
    Raft::builder(NodeId(1), ClusterId(1))
        .seed(1)
        .transport(MemNetwork::new(1).transport(Peer::new(1, "a")))
        .log(log.clone())
        .snapshots(snapshots.clone())
        .state_machine(machine.clone())
        .start()
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_durable_machine_is_not_given_a_write_again_after_a_restart_without_replay() {
    let (log, snapshots, machine) = (MemLog::new(), MemSnapshots::new(), Forgetful::default());
    let raft = alone(&log, &snapshots, &machine).await;
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    let session = raft.open_session().await.unwrap();
    let once = |sequence| Once { session, sequence, answered: 0 };
    let before = raft.write_once(once(0), "before".into()).await.unwrap();
    raft.snapshot().await.unwrap();
    raft.write_once(once(1), "after".into()).await.unwrap();
    raft.shutdown().await;
    let raft = alone(&log, &snapshots, &machine).await;
    let again = raft.write_once(once(1), "after".into()).await;
    assert!(matches!(again, Err(Error::AnswerForgotten)), "{again:?}");
    assert_eq!(raft.write_once(once(0), "before".into()).await.unwrap(), before, "the image has this answer");
    raft.write_once(once(2), "new".into()).await.unwrap();
    assert_eq!(texts(&machine.0), ["before", "after", "new"]);
}

#[tokio::test(start_paused = true)]
async fn a_durable_machine_with_records_answers_repetitions_after_a_restart_without_replay() {
    let (log, snapshots, machine) = (MemLog::new(), MemSnapshots::new(), Durable::default());
    let raft = alone(&log, &snapshots, &machine).await;
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    let (session, closed) = (raft.open_session().await.unwrap(), raft.open_session().await.unwrap());
    let once = |sequence, answered| Once { session, sequence, answered };
    let mut answers = Vec::new();
    for sequence in 0..5 {
        answers.push(raft.write_once(once(sequence, 0), sequence.to_string().into()).await.unwrap());
        if sequence == 2 {
            raft.snapshot().await.unwrap();
        }
    }
    raft.close_session(closed).await.unwrap();
    for _ in 0..2 {
        raft.shutdown().await;
        let raft = alone(&log, &snapshots, &machine).await;
        for (sequence, answer) in (0..).zip(&answers) {
            let again = raft.write_once(once(sequence, 0), sequence.to_string().into()).await;
            assert_eq!(again.unwrap(), *answer, "write {sequence} after a restart");
        }
        let late = raft.write_once(Once { session: closed, sequence: 0, answered: 0 }, "late".into()).await;
        assert!(matches!(late, Err(Error::SessionExpired)), "{late:?}");
        raft.shutdown().await;
    }
    assert_eq!(machine.commands().len(), 5);
    // The newest image takes the place of a state that was lost, with its sessions.
    let empty = Durable::default();
    let raft = alone(&log, &snapshots, &empty).await;
    assert_eq!(raft.write_once(once(4, 0), "4".into()).await.unwrap(), answers[4]);
    assert!(matches!(raft.write_once(once(4, 5), "4".into()).await, Err(Error::OutOfSequence)));
    assert_eq!(empty.commands().len(), 5);
    let kept = empty.records().await.unwrap().unwrap();
    assert_eq!(kept.len(), 2, "a clock and one session");
}

/// Else the whole image would be restored at each start, until the next command.
#[tokio::test(start_paused = true)]
async fn a_durable_machine_that_is_as_far_as_its_image_is_known_to_be() {
    let (log, snapshots, machine) = (MemLog::new(), MemSnapshots::new(), Durable::default());
    let raft = alone(&log, &snapshots, &machine).await;
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    let written = raft.write_with_id("one".into()).await.unwrap().0;
    raft.shutdown().await;
    let raft = alone(&log, &snapshots, &machine).await;
    raft.read(Consistency::Linearizable).await.unwrap();
    let last = raft.snapshot().await.unwrap();
    assert!(last > written, "the first entry of the new term is no command");
    assert_eq!(machine.applied().await.unwrap(), last);
    raft.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_received_brings_its_records_to_a_durable_machine() {
    let config = Config { snapshot_entries: 10, trailing_entries: 0, ..Config::default() };
    let mut cluster = Cluster::builder(3).config(config).start(|_| Durable::default()).await;
    let away = cluster.follower().await;
    cluster.stop(away).await;
    let raft = cluster.node(cluster.leader().await).clone();
    let session = raft.open_session().await.unwrap();
    let once = |sequence| Once { session, sequence, answered: 0 };
    let mut answers = Vec::new();
    for sequence in 0..30 {
        answers.push(raft.write_once(once(sequence), sequence.to_string().into()).await.unwrap());
    }
    cluster.restart(away).await;
    cluster.converge().await;
    let records = cluster.machine(away).records().await.unwrap().unwrap();
    assert_eq!(records.len(), 2, "a clock and one session");
    assert_eq!(cluster.node(away).write_once(once(7), "7".into()).await.unwrap(), answers[7]);
}

/// A durable state machine of which a later version keeps records of sessions.
#[derive(Clone)]
struct Version(Durable, u32);

#[async_trait]
impl StateMachine for Version {
    async fn applied(&self) -> Result<LogId, Fatal> {
        self.0.applied().await
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        self.0.apply(at, command).await
    }

    async fn apply_recorded(&mut self, batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        self.0.apply_recorded(batch).await
    }

    async fn records(&self) -> Result<Option<Vec<Record>>, Fatal> {
        if self.1 < 2 { Ok(None) } else { self.0.records().await }
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        self.0.snapshot().await
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.0.restore(image).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_begins_to_keep_records_does_not_forget_the_sessions_before() {
    let (log, snapshots, machine) = (MemLog::new(), MemSnapshots::new(), Durable::default());
    let raft = alone(&log, &snapshots, &Version(machine.clone(), 1)).await;
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    let session = raft.open_session().await.unwrap();
    let once = |sequence| Once { session, sequence, answered: 0 };
    raft.write_once(once(0), "first".into()).await.unwrap();
    raft.shutdown().await;
    for run in 0..3 {
        let raft = alone(&log, &snapshots, &Version(machine.clone(), 2)).await;
        let again = raft.write_once(once(0), "first".into()).await;
        assert!(matches!(again, Err(Error::AnswerForgotten)), "run {run}: {again:?}");
        let second = raft.write_once(once(1), "second".into()).await.unwrap();
        assert_eq!(second, "second", "once applied, its answer is kept");
        raft.shutdown().await;
    }
    assert_eq!(machine.commands().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn sessions_that_drive_each_other_out_end_in_time() {
    let config = Config { max_sessions: 1, session_patience: Duration::from_secs(2), ..Config::default() };
    let cluster = cluster(config).await;
    let raft = cluster.node(cluster.leader().await);
    let began = tokio::time::Instant::now();
    let clients = (0..4).map(|_| {
        let session = raft.session();
        tokio::spawn(async move {
            for n in 0..20 {
                match session.write(n.to_string().into()).await {
                    Ok(_) | Err(Error::SessionExpired) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    for client in clients {
        client.await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    cluster.converge().await;
    assert_eq!(raft.status().await.unwrap().sessions.open, 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_may_be_patient_for_ever() {
    let config = Config { session_patience: Duration::MAX, ..Config::default() };
    let cluster = cluster(config).await;
    let session = cluster.node(cluster.leader().await).session();
    session.write("a".into()).await.unwrap();
}
