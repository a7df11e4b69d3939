//! Overload, failures and the end: every call is answered, nothing hangs, nothing leaks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use raftkv::testing::{Cluster, Counter, Echo, Link, MemLog, MemNetwork, MemSnapshots};
use raftkv::{
    Chunks, ClusterId, Config, Consistency, Error, Event, Fatal, FatalKind, InitializeError, LogId, Membership, NodeId,
    Peer, Raft, Refusal, StateMachine,
};
use tokio::time::{Instant, sleep, timeout};

/// Fails or panics on command, and holds a token by which its end is seen.
#[derive(Clone, Debug, Default)]
struct Fragile {
    _token: Arc<()>,
}

#[async_trait]
impl StateMachine for Fragile {
    async fn apply(&mut self, _at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        match &command[..] {
            b"panic" => panic!("as told"),
            b"fail" => Err(Fatal::state_machine("as told")),
            b"sleep" => {
                sleep(Duration::from_secs(60)).await;
                Ok(command)
            }
            _ => Ok(command),
        }
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Err(Fatal::state_machine("no snapshots"))
    }

    async fn restore(&mut self, _image: Box<dyn Chunks>) -> Result<(), Fatal> {
        Err(Fatal::state_machine("no snapshots"))
    }
}

/// A single node, its log, and a token that is unique once its state machine is gone.
async fn single(config: Config) -> (Raft, MemLog, Arc<()>) {
    let (log, token) = (MemLog::new(), Arc::new(()));
    let raft = Raft::builder(NodeId(1), ClusterId(1))
        .config(config)
        .seed(1)
        .transport(MemNetwork::new(1).transport(Peer::new(1, "a")))
        .log(log.clone())
        .snapshots(MemSnapshots::new())
        .state_machine(Fragile { _token: token.clone() })
        .start()
        .await
        .unwrap();
    raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
    raft.campaign().await.unwrap();
    raft.read(Consistency::Linearizable).await.unwrap();
    (raft, log, token)
}

fn stopped_why<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Fatal {
    match outcome {
        Err(Error::Stopped(fatal)) => fatal,
        other => panic!("expected to hear that the node has stopped, not {other:?}"),
    }
}

/// Makes every public call, and returns the reasons given.
async fn call_everything(raft: &Raft) -> Vec<Fatal> {
    let initialized = raft.initialize(Membership::new([Peer::new(1, "a")])).await;
    let Err(InitializeError::Stopped(initialized)) = initialized else { panic!("{initialized:?}") };
    let mut events = raft.events();
    let Some(Event::Stopped(event)) = events.next().await else { panic!("the last event is told to late listeners") };
    assert!(events.next().await.is_none());
    let batch = vec![raftkv_envelope()];
    assert_eq!(raft.inbox().deliver(&Peer::new(2, "b"), batch).await, Err(Refusal::Stopped));
    vec![
        stopped_why(raft.write("x".into()).await),
        stopped_why(raft.write_many(vec!["x".into()]).await),
        stopped_why(raft.write_many(Vec::new()).await),
        stopped_why(raft.read(Consistency::Linearizable).await),
        stopped_why(raft.read(Consistency::Stale).await),
        stopped_why(raft.status().await),
        stopped_why(raft.campaign().await),
        initialized,
        event,
        raft.shutdown().await,
        raft.stopped().await,
    ]
}

fn raftkv_envelope() -> raftkv::Envelope {
    let body = raftkv::Body::VoteReply { granted: false };
    let message = raftkv::Message { term: raftkv::Term(1), body };
    let group = raftkv::GroupId(0);
    raftkv::Envelope { cluster: ClusterId(1), group, from: NodeId(2), to: NodeId(1), message }
}

#[tokio::test(start_paused = true)]
async fn every_call_after_shutdown_says_that_the_node_has_stopped() {
    let (raft, _, token) = single(Config::default()).await;
    assert!(raft.shutdown().await.is_shutdown());
    assert_eq!(Arc::strong_count(&token), 1, "the state machine is released when shutdown returns");
    for fatal in call_everything(&raft).await {
        assert!(fatal.is_shutdown(), "{fatal}");
    }
}

/// A call that came while it left waited for its end, and so for the disk.
#[tokio::test(start_paused = true)]
async fn a_node_whose_disk_does_not_answer_says_that_it_stops_and_turns_calls_away() {
    const LIMIT: Duration = Duration::from_secs(10);
    let (raft, log, _) = single(Config::default()).await;
    log.hold();
    let (writer, stopper) = (raft.clone(), raft.clone());
    let write = tokio::spawn(async move { writer.write("x".into()).await });
    sleep(Duration::from_millis(10)).await;
    let stop = tokio::spawn(async move { stopper.shutdown().await });
    sleep(Duration::from_millis(1)).await;
    let late = timeout(LIMIT, raft.write("y".into())).await.expect("a call while it leaves waits for the disk");
    assert!(stopped_why(late).is_shutdown());
    assert!(timeout(LIMIT, raft.stopping()).await.expect("it says that it stops").is_shutdown());
    assert!(timeout(LIMIT, raft.stopped()).await.is_err(), "its last write is not done");
    assert!(stopped_why(write.await.unwrap()).is_shutdown());
    log.release();
    assert!(stop.await.unwrap().is_shutdown());
    assert!(raft.stopping().await.is_shutdown());
}

/// Fails, and does not let go of what it has on its disk.
struct Stuck(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

#[async_trait]
impl StateMachine for Stuck {
    async fn apply(&mut self, _at: LogId, _command: Bytes) -> Result<Bytes, Fatal> {
        Err(Fatal::state_machine("its disk has failed"))
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Err(Fatal::state_machine("no snapshots"))
    }

    async fn restore(&mut self, _image: Box<dyn Chunks>) -> Result<(), Fatal> {
        Err(Fatal::state_machine("no snapshots"))
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = self.0.get_mut().unwrap().recv();
    }
}

/// It is let go of on the thread on which everything else runs as well.
#[test]
#[expect(clippy::disallowed_methods, reason = "the thread that is held is not the test's")]
fn a_node_says_why_it_stops_before_a_state_machine_that_failed_can_hold_its_thread() {
    let (answers, disk) = std::sync::mpsc::channel();
    let (tell, told) = std::sync::mpsc::channel();
    let node = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let raft = Raft::builder(NodeId(1), ClusterId(1))
                .transport(MemNetwork::new(1).transport(Peer::new(1, "a")))
                .log(MemLog::new())
                .snapshots(MemSnapshots::new())
                .state_machine(Stuck(disk.into()))
                .start()
                .await
                .unwrap();
            let watched = raft.clone();
            tokio::spawn(async move {
                let _ = tell.send(watched.stopping().await);
            });
            raft.initialize(Membership::new([Peer::new(1, "a")])).await.unwrap();
            raft.campaign().await.unwrap();
            let _ = raft.write("x".into()).await;
            raft.stopped().await;
        });
    });
    let why = told.recv_timeout(Duration::from_secs(20));
    drop(answers);
    node.join().unwrap();
    assert!(why.unwrap().to_string().contains("its disk has failed"));
}

#[tokio::test(start_paused = true)]
async fn shutdown_may_be_called_by_many_at_once_and_under_load() {
    let (raft, log, token) = single(Config::default()).await;
    log.set_latency(Duration::from_millis(3));
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let raft = raft.clone();
            tokio::spawn(async move {
                loop {
                    if let Err(error) = raft.write("x".into()).await {
                        return error;
                    }
                }
            })
        })
        .collect();
    sleep(Duration::from_millis(50)).await;
    let stops = tokio::join!(raft.shutdown(), raft.shutdown(), raft.stopped());
    assert!(stops.0.is_shutdown() && stops.1.is_shutdown() && stops.2.is_shutdown());
    assert_eq!(Arc::strong_count(&token), 1);
    for client in clients {
        let error = client.await.unwrap();
        assert!(matches!(error, Error::Stopped(_)), "{error:?}");
    }
    assert!(!log.is_holding(), "the last write was not broken off");
}

#[tokio::test(start_paused = true)]
async fn dropping_all_handles_stops_the_node_and_an_inbox_does_not_keep_it() {
    let (raft, _, token) = single(Config::default()).await;
    let (other, inbox, mut events) = (raft.clone(), raft.inbox(), raft.events());
    drop(raft);
    other.write("still there".into()).await.unwrap();
    drop(other);
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Stopped(fatal)) if fatal.is_shutdown()));
    assert_eq!(Arc::strong_count(&token), 1);
    assert_eq!(inbox.deliver(&Peer::new(2, "b"), vec![raftkv_envelope()]).await, Err(Refusal::Stopped));
}

#[test]
fn a_handle_outlives_the_runtime_of_its_node() {
    let threads = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let runtime = threads();
    let (raft, _, token) = runtime.block_on(single(Config::default()));
    let waiting = {
        let raft = raft.clone();
        runtime.spawn(async move { raft.write("sleep".into()).await })
    };
    runtime.block_on(tokio::task::yield_now());
    drop(runtime);
    drop(waiting);
    assert_eq!(Arc::strong_count(&token), 1);
    for fatal in threads().block_on(call_everything(&raft)) {
        assert!(fatal.is_shutdown(), "{fatal}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_disk_write_stops_the_node_for_good_and_tells_all_waiters() {
    let (raft, log, token) = single(Config::default()).await;
    log.hold();
    let writes: Vec<_> = (0..10)
        .map(|_| {
            let raft = raft.clone();
            tokio::spawn(async move { raft.write("x".into()).await })
        })
        .collect();
    sleep(Duration::from_millis(1)).await;
    log.fail_after(0);
    log.release();
    for write in writes {
        let fatal = stopped_why(write.await.unwrap());
        assert!(matches!(fatal.kind(), FatalKind::Storage(_)), "{fatal}");
    }
    assert!(matches!(raft.stopped().await.kind(), FatalKind::Storage(_)));
    assert_eq!(Arc::strong_count(&token), 1);
    for fatal in call_everything(&raft).await {
        assert!(matches!(fatal.kind(), FatalKind::Storage(_)), "the first reason stays: {fatal}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_goes_on_when_its_leaders_disk_fails() {
    let cluster = Cluster::builder(3).start(|_| Counter::default()).await;
    let leader = cluster.leader().await;
    cluster.log(leader).fail_after(0);
    let outcome = cluster.node(leader).write("1".into()).await;
    assert!(matches!(stopped_why(outcome).kind(), FatalKind::Storage(_)));
    let other = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    // What was passed on to the old leader may be lost with it; not what comes after.
    let began = Instant::now();
    while let Err(error) = cluster.node(other).write("1".into()).await {
        assert!(matches!(error, Error::OutcomeUnknown), "{error}");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_failing_or_panicking_state_machine_stops_the_node_and_tells_all_waiters() {
    for command in ["fail", "panic"] {
        let (raft, log, token) = single(Config::default()).await;
        log.hold();
        let write = |command: &'static str| {
            let raft = raft.clone();
            tokio::spawn(async move { raft.write(command.into()).await })
        };
        let writes = [write("before"), write(command), write("after")];
        let read = tokio::spawn({
            let raft = raft.clone();
            async move { raft.read(Consistency::Linearizable).await }
        });
        sleep(Duration::from_millis(1)).await;
        log.release();
        for write in writes {
            let fatal = stopped_why(write.await.unwrap());
            assert!(matches!(fatal.kind(), FatalKind::StateMachine(reason) if reason.contains("as told")), "{fatal}");
        }
        // It may have been answered before.
        let _ = read.await.unwrap();
        raft.stopped().await;
        assert_eq!(Arc::strong_count(&token), 1);
        for fatal in call_everything(&raft).await {
            assert!(matches!(fatal.kind(), FatalKind::StateMachine(_)), "{fatal}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_machine_that_hangs_keeps_no_client_past_the_deadline() {
    let (raft, _, _) = single(Config::default()).await;
    let began = Instant::now();
    let (write, read) = tokio::join!(raft.write("sleep".into()), async {
        sleep(Duration::from_millis(1)).await;
        raft.read(Consistency::Linearizable).await
    });
    assert!(matches!(write, Err(Error::OutcomeUnknown)), "{write:?}");
    assert!(matches!(read, Err(Error::Unavailable)), "{read:?}");
    assert!(began.elapsed() < Duration::from_millis(5100));
}

#[tokio::test(start_paused = true)]
async fn overload_is_answered_at_once_and_passes_by_itself() {
    let (raft, log, _) = single(Config { max_pending_requests: 8, ..Config::default() }).await;
    for round in 0..3 {
        log.hold();
        let writes: Vec<_> = (0..8)
            .map(|_| {
                let raft = raft.clone();
                tokio::spawn(async move { raft.write("x".into()).await })
            })
            .collect();
        sleep(Duration::from_millis(1)).await;
        let refused = raft.write("x".into()).now_or_never().expect("answered at once");
        assert!(matches!(refused, Err(Error::Overloaded)), "round {round}: {refused:?}");
        let refused = raft.read(Consistency::Linearizable).now_or_never().expect("answered at once");
        assert!(matches!(refused, Err(Error::Overloaded)), "round {round}: {refused:?}");
        assert!(raft.status().await.is_ok(), "the owner is heard under overload");
        log.release();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        raft.write("x".into()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn large_commands_are_bounded_in_bytes() {
    let config = Config { max_uncommitted_bytes: 10_000, ..Config::default() };
    let (raft, log, _) = single(config).await;
    log.hold();
    let write = |bytes: usize| {
        let raft = raft.clone();
        tokio::spawn(async move { raft.write(vec![0; bytes].into()).await })
    };
    let (large, small) = (write(9000), write(1000));
    sleep(Duration::from_millis(1)).await;
    assert!(matches!(small.await.unwrap(), Err(Error::Overloaded)));
    log.release();
    large.await.unwrap().unwrap();
    // A command beyond the bound passes when nothing else is there.
    write(20_000).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn clients_that_give_up_leave_nothing_behind() {
    let (raft, log, _) = single(Config { max_pending_requests: 8, ..Config::default() }).await;
    for _ in 0..20 {
        log.hold();
        for n in 0..8 {
            let given_up = timeout(Duration::from_millis(1), async {
                if n % 2 == 0 {
                    raft.write("x".into()).await.map(drop)
                } else {
                    raft.read(Consistency::Linearizable).await
                }
            });
            let _ = given_up.await;
        }
        log.release();
        sleep(Duration::from_millis(1)).await;
    }
    let writes: Vec<_> = (0..8).map(|_| raft.write("x".into())).collect();
    for outcome in futures_util::future::join_all(writes).await {
        outcome.unwrap();
    }
}

/// A follower that takes nothing, one that is gone, and one whose link hangs cost the others nothing.
#[tokio::test(start_paused = true)]
async fn a_dead_or_stuck_peer_does_not_slow_the_others() {
    let stuck = Link { stuck: true, ..Link::default() };
    let slow = Link { delay: Duration::from_secs(10), ..Link::default() };
    let cut = Link { cut: true, ..Link::default() };
    for link in [stuck, slow, cut] {
        let cluster = Cluster::builder(3).start(|_| Echo).await;
        let (leader, follower) = (cluster.leader().await, cluster.follower().await);
        cluster.network().set_link(leader, follower, link.clone());
        let began = Instant::now();
        for _ in 0..2000 {
            cluster.node(leader).write(vec![0; 1000].into()).await.unwrap();
        }
        // Time stands still while anything can be done: only waiting for the peer would make it pass.
        assert!(began.elapsed() < Duration::from_millis(100), "{link:?}: {:?}", began.elapsed());
        cluster.network().heal();
        if link.stuck {
            // What hangs in the transport hangs; the node is shut down nevertheless.
            assert!(timeout(Duration::from_secs(1), cluster.shutdown()).await.is_ok());
        } else {
            cluster.converge().await;
        }
    }
}

/// A command that never left its node is refused at once, and not after the time that an unknown outcome takes.
#[tokio::test(start_paused = true)]
async fn what_a_follower_has_no_room_to_forward_is_refused_at_once() {
    let config = Config { max_inflight_bytes: 1100, ..Config::default() };
    let cluster = Cluster::builder(3).config(config).start(|_| Echo).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.network().set_link(follower, leader, Link { stuck: true, ..Link::default() });
    let (mut refused, mut waiting) = (0, 0);
    for _ in 0..5 {
        let node = cluster.node(follower).clone();
        let write = tokio::spawn(async move { node.write(vec![0; 900].into()).await });
        // A second is less than a write may take: what is not answered by now is on its way.
        sleep(Duration::from_secs(1)).await;
        match write.now_or_never() {
            Some(outcome) => {
                assert!(matches!(outcome.unwrap(), Err(Error::Overloaded)), "nothing can be answered otherwise");
                refused += 1;
            }
            None => waiting += 1,
        }
    }
    assert_eq!((refused, waiting), (3, 2), "two fit into the queue");
    cluster.shutdown().await;
}
