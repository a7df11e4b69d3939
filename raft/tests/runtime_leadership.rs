//! What clients are told when leaders come and go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::time::Duration;

use bytes::Bytes;
use raftkv::testing::{Cluster, Counter, Link, Recorder};
use raftkv::{Consistency, Error, NodeId};
use tokio::time::{Instant, sleep};

/// Cuts the leader off from both others, and names it with the leader that they elect.
async fn depose(cluster: &Cluster<Recorder>) -> (NodeId, NodeId) {
    let old = cluster.leader().await;
    cluster.network().partition(&[old]);
    let followed = |id: Option<NodeId>| id.is_some_and(|id| id != old);
    cluster
        .wait_until("the others elect a leader", |all| {
            all.iter().filter(|status| status.id != old).all(|status| followed(status.leader))
        })
        .await;
    (old, cluster.leader().await)
}

async fn three() -> Cluster<Recorder> {
    Cluster::builder(3).start(|_| Recorder::default()).await
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_overwritten_is_lost_and_safe_to_retry() {
    let cluster = three().await;
    let old = cluster.leader().await;
    cluster.network().partition(&[old]);
    let node = cluster.node(old).clone();
    let one = tokio::spawn({
        let node = node.clone();
        async move { node.write("one".into()).await }
    });
    let many = tokio::spawn(async move { node.write_many(vec!["two".into(), "three".into()]).await });
    sleep(Duration::from_millis(1)).await;
    let (_, new) = depose(&cluster).await;
    for n in 0..5 {
        cluster.node(new).write(format!("new {n}").into()).await.unwrap();
    }
    cluster.network().heal();
    for error in [one.await.unwrap().unwrap_err(), many.await.unwrap().unwrap_err()] {
        assert!(matches!(error, Error::Lost), "{error:?}");
        assert!(error.is_safe_to_retry());
    }
    cluster.converge().await;
    let commands = cluster.machine(old).commands();
    assert_eq!(commands.len(), 5, "{commands:?}");
}

#[tokio::test(start_paused = true)]
async fn a_proposed_write_that_is_not_decided_in_time_has_an_unknown_outcome() {
    let cluster = three().await;
    let old = cluster.leader().await;
    cluster.network().partition(&[old]);
    let began = Instant::now();
    let outcome = cluster.node(old).write("maybe".into()).await;
    assert!(matches!(outcome, Err(Error::OutcomeUnknown)), "{outcome:?}");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(5) && took < Duration::from_millis(5100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_write_whose_answer_is_lost_has_an_unknown_outcome_and_may_be_applied() {
    let cluster = three().await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    // What the leader answers is lost; its appends as well.
    cluster.network().set_link(leader, follower, Link { lost_per_mille: 1000, ..Link::default() });
    let outcome = cluster.node(follower).write("maybe".into()).await;
    assert!(matches!(outcome, Err(Error::OutcomeUnknown)), "{outcome:?}");
    cluster.network().heal();
    cluster.converge().await;
    assert!(cluster.machine(follower).commands().iter().any(|(_, command)| command == "maybe"), "it was applied");
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_write_is_answered_even_if_its_entry_is_applied_before_its_place_is_known() {
    let cluster = three().await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    // Batches overtake each other by far.
    let link = Link { delay: Duration::from_millis(1), jitter: Duration::from_millis(40), ..Link::default() };
    cluster.network().set_link(leader, follower, link);
    for n in 0..200 {
        let command = Bytes::from(format!("{n}"));
        let outcome = cluster.node(follower).write(command.clone()).await;
        match outcome {
            Ok(answer) => assert_eq!(answer, command),
            Err(error) => panic!("write {n}: {error}"),
        }
    }
    assert_eq!(cluster.machine(follower).commands().len(), 200);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_a_leader_and_are_then_served() {
    let mut cluster = three().await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.stop(leader).await;
    cluster.stop(follower).await;
    cluster.wait_until("the third misses its leader", |all| all[0].leader.is_none()).await;
    let (_, third) = cluster.running().next().unwrap();
    let third = third.clone();
    let write = tokio::spawn({
        let third = third.clone();
        async move { third.write("x".into()).await }
    });
    let read = tokio::spawn(async move { third.read(Consistency::Linearizable).await });
    sleep(Duration::from_secs(1)).await;
    assert!(!write.is_finished() && !read.is_finished());
    cluster.restart(follower).await;
    assert_eq!(write.await.unwrap().unwrap(), "x");
    read.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_read_in_flight_when_leadership_is_lost_moves_to_the_new_leader() {
    let cluster = three().await;
    let old = cluster.leader().await;
    cluster.network().partition(&[old]);
    let read = tokio::spawn({
        let node = cluster.node(old).clone();
        async move { node.read(Consistency::Linearizable).await }
    });
    let (_, new) = depose(&cluster).await;
    cluster.node(new).write("unseen".into()).await.unwrap();
    assert!(!read.is_finished(), "a deposed leader must not answer");
    cluster.network().heal();
    read.await.unwrap().unwrap();
    assert_eq!(cluster.machine(old).commands().len(), 1, "the read saw what was written meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_read_without_a_quorum_ends_at_its_deadline() {
    let cluster = three().await;
    let leader = cluster.leader().await;
    cluster.network().partition(&[leader]);
    let began = Instant::now();
    let outcome = cluster.node(leader).read(Consistency::Linearizable).await;
    assert!(matches!(outcome, Err(Error::Unavailable)), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_millis(5100));
    cluster.node(leader).read(Consistency::Stale).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_rejoins_and_converges() {
    let cluster = three().await;
    cluster.node(cluster.leader().await).write("before".into()).await.unwrap();
    let (old, new) = depose(&cluster).await;
    cluster.node(new).write("during".into()).await.unwrap();
    cluster.network().heal();
    cluster.converge().await;
    assert_eq!(cluster.node(old).write("after".into()).await.unwrap(), "after");
    cluster.converge().await;
    for id in cluster.ids() {
        let commands: Vec<_> = cluster.machine(id).commands().into_iter().map(|(_, command)| command).collect();
        assert_eq!(commands, ["before", "during", "after"].map(Bytes::from));
    }
}

/// The sum of acknowledged writes is there, whatever the network does; what is unknown may be there as well.
#[tokio::test(start_paused = true)]
async fn writes_over_a_bad_network_are_applied_once_if_acknowledged() {
    for seed in 0..10 {
        let cluster = Cluster::builder(3).seed(seed).start(|_| Counter::default()).await;
        cluster.leader().await;
        let link = Link {
            lost_per_mille: 50,
            doubled_per_mille: 100,
            delay: Duration::from_millis(1),
            jitter: Duration::from_millis(20),
            ..Link::default()
        };
        for from in cluster.ids() {
            for to in cluster.ids() {
                cluster.network().set_link(from, to, link.clone());
            }
        }
        let clients: Vec<_> = (0..12)
            .map(|client| {
                let node = cluster.node(NodeId(1 + client % 3)).clone();
                tokio::spawn(async move {
                    let (mut acknowledged, mut unknown) = (0, 0);
                    for _ in 0..20 {
                        match node.write("1".into()).await {
                            Ok(_) => acknowledged += 1,
                            Err(Error::OutcomeUnknown) => unknown += 1,
                            Err(error) => assert!(error.is_safe_to_retry(), "{error}"),
                        }
                    }
                    (acknowledged, unknown)
                })
            })
            .collect();
        let (mut acknowledged, mut unknown) = (0, 0);
        for client in clients {
            let (a, u) = client.await.unwrap();
            acknowledged += a;
            unknown += u;
        }
        cluster.network().heal();
        cluster.converge().await;
        assert!(acknowledged > 100, "seed {seed}: {acknowledged} of 240 were acknowledged");
        for id in cluster.ids() {
            let sum = cluster.machine(id).value();
            assert!(
                (acknowledged..=acknowledged + unknown).contains(&sum),
                "seed {seed}: {acknowledged}+{unknown} {sum}"
            );
        }
    }
}

/// It read "leader term=2" when there was none.
#[cfg(feature = "transport-kit")]
#[tokio::test(start_paused = true)]
async fn the_log_tells_a_leader_from_none() {
    let log = raftkv::testing::conformance::connections::Log::default();
    let _on = log.start();
    let cluster = three().await;
    let (old, new) = depose(&cluster).await;
    let none = log.lines(&["no leader", "term="]);
    assert!(!none.is_empty() && none.iter().all(|line| !line.contains("leader=")), "{none:?}");
    for leader in [old, new] {
        assert!(
            !log.lines(&["INFO leader", &format!("leader={}", leader.0)]).is_empty(),
            "{:?}",
            log.lines(&["leader"])
        );
    }
    let nobody = log.lines(&["INFO leader"]).into_iter().find(|line| !line.contains("leader="));
    assert_eq!(nobody, None);
}
