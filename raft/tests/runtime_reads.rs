//! How fresh a read is, by the consistency that was asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::time::Duration;

use raftkv::testing::{Cluster, Counter, Link};
use raftkv::{Change, Config, Consistency, Error, LogId, NodeId};
use tokio::time::{Instant, sleep};

async fn three(config: Config) -> Cluster<Counter> {
    Cluster::builder(3).config(config).start(|_| Counter::default()).await
}

/// Cuts the leader off until the others have another one.
async fn depose(cluster: &Cluster<Counter>) -> NodeId {
    let old = cluster.leader().await;
    cluster.network().partition(&[old]);
    cluster
        .wait_until("the others elect a leader", |all| {
            all.iter().filter(|status| status.id != old).all(|status| status.leader.is_some_and(|id| id != old))
        })
        .await;
    old
}

#[tokio::test(start_paused = true)]
async fn a_client_reads_at_another_node_what_it_wrote() {
    let cluster = three(Config::default()).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    cluster.network().set_link(leader, follower, Link { delay: Duration::from_millis(20), ..Link::default() });
    for n in 1..=20 {
        let (id, sum) = cluster.node(leader).write_with_id("1".into()).await.unwrap();
        assert_eq!(sum, n.to_string());
        // The follower lags behind, and may not even have heard of it.
        assert!(cluster.machine(follower).value() < n);
        cluster.node(follower).read(Consistency::AtLeast(id)).await.unwrap();
        assert!(cluster.machine(follower).value() >= n);
        cluster.node(follower).read(Consistency::AtLeast(id)).await.unwrap();
    }
    // It asks nobody: without the others it knows what it has.
    let (id, _) = cluster.node(follower).write_with_id("1".into()).await.unwrap();
    cluster.network().partition(&[follower]);
    sleep(Duration::from_secs(2)).await;
    cluster.node(follower).read(Consistency::AtLeast(id)).await.unwrap();
    cluster.node(follower).read(Consistency::AtLeast(LogId::ZERO)).await.unwrap();
    let began = Instant::now();
    let outcome = cluster.node(follower).read(Consistency::AtLeast(LogId::new(id.term.0, id.index.0 + 1))).await;
    assert!(matches!(outcome, Err(Error::Unavailable)), "{outcome:?}");
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_was_overwritten_is_not_taken_for_the_one_in_its_place() {
    let cluster = three(Config::default()).await;
    let old = cluster.leader().await;
    let (kept, _) = cluster.node(old).write_with_id("1".into()).await.unwrap();
    cluster.network().partition(&[old]);
    let node = cluster.node(old).clone();
    let lost =
        tokio::spawn(async move { node.write_many(vec!["10".into(), "10".into(), "10".into(), "10".into()]).await });
    sleep(Duration::from_millis(1)).await;
    let last = cluster.node(old).status().await.unwrap().last;
    let first = LogId::new(last.term.0, last.index.0 - 3);
    assert_eq!(first.index, kept.index.next());
    depose(&cluster).await;
    let new = cluster.leader().await;
    cluster.node(new).write("1".into()).await.unwrap();
    cluster.network().heal();
    assert!(lost.await.unwrap().is_err());
    cluster.converge().await;
    for id in cluster.ids() {
        cluster.node(id).read(Consistency::AtLeast(kept)).await.unwrap();
        // One has another entry in its place, the other would lie beyond the end: both are ruled out at once.
        for wanted in [first, last] {
            let outcome = cluster.node(id).read(Consistency::AtLeast(wanted)).await;
            assert!(
                matches!(outcome, Err(Error::NeverCommitted { wanted: named, found }) if named == wanted && found.term > wanted.term),
                "{outcome:?}"
            );
            assert!(!outcome.unwrap_err().is_safe_to_retry());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_says_when_it_can_not_tell_of_an_entry_in_front_of_an_image() {
    let config = Config { snapshot_entries: 20, trailing_entries: 3, ..Config::default() };
    let mut cluster = three(config).await;
    let leader = cluster.leader().await;
    let (early, _) = cluster.node(leader).write_with_id("1".into()).await.unwrap();
    depose(&cluster).await;
    cluster.network().heal();
    cluster.converge().await;
    let leader = cluster.leader().await;
    let (late, _) = cluster.node(leader).write_with_id("1".into()).await.unwrap();
    for _ in 0..100 {
        cluster.node(leader).write("1".into()).await.unwrap();
    }
    cluster.converge().await;
    assert!(early.term < late.term);
    for status in cluster.statuses().await {
        assert!(status.base.index > late.index, "{status:?}");
        // Who has seen the terms change remembers it.
        for id in [early, late] {
            cluster.node(status.id).read(Consistency::AtLeast(id)).await.unwrap();
        }
        let overwritten = LogId::new(early.term.0, late.index.0);
        let outcome = cluster.node(status.id).read(Consistency::AtLeast(overwritten)).await;
        assert!(matches!(outcome, Err(Error::NeverCommitted { found, .. }) if found == late), "{outcome:?}");
    }
    let follower = cluster.follower().await;
    cluster.restart(follower).await;
    cluster.converge().await;
    // The leader of its term had it in front of what the image ends with.
    cluster.node(follower).read(Consistency::AtLeast(late)).await.unwrap();
    let outcome = cluster.node(follower).read(Consistency::AtLeast(early)).await;
    assert!(
        matches!(outcome, Err(Error::Compacted { wanted, base }) if wanted == early && base.term == late.term),
        "{outcome:?}"
    );
    let outcome = cluster.node(follower).read(Consistency::AtLeast(LogId::new(late.term.0 + 1, early.index.0))).await;
    assert!(matches!(outcome, Err(Error::NeverCommitted { .. })), "{outcome:?}");
}

fn leased() -> Config {
    Config { lease_drift: Some(Duration::from_millis(10)), ..Config::default() }
}

#[tokio::test(start_paused = true)]
async fn reads_are_answered_by_a_lease_on_every_node_and_cost_no_rounds() {
    let mut cluster = three(leased()).await;
    let learner = cluster.add_node().await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let change = Change::new().add_learner(cluster.peer(learner));
    cluster.node(leader).change_membership(change).await.unwrap();
    cluster.node(leader).write("1".into()).await.unwrap();
    cluster.wait_until("the leader has its lease", |all| all.iter().any(|status| status.lease_left.is_some())).await;
    let before = cluster.node(leader).metrics().await.unwrap().requests;
    for n in 1..=10 {
        let sum = cluster.node(follower).write("1".into()).await.unwrap();
        for id in [leader, follower, learner] {
            cluster.node(id).read(Consistency::Lease).await.unwrap();
            assert!(cluster.machine(id).value() > n, "{id} reflects {}, not {sum:?}", cluster.machine(id).value());
        }
    }
    let after = cluster.node(leader).metrics().await.unwrap().requests;
    assert_eq!((after.leased_reads - before.leased_reads, after.read_rounds - before.read_rounds), (30, 0));
    // Whoever asks for a quorum gets one.
    cluster.node(leader).read(Consistency::Linearizable).await.unwrap();
    assert_eq!(cluster.node(leader).metrics().await.unwrap().requests.read_rounds, after.read_rounds + 1);
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn where_there_are_no_leases_a_quorum_answers() {
    let cluster = three(Config::default()).await;
    for id in cluster.ids() {
        cluster.node(id).read(Consistency::Lease).await.unwrap();
    }
    let requests = cluster.node(cluster.leader().await).metrics().await.unwrap().requests;
    assert_eq!((requests.leased_reads, requests.read_rounds), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_serves_no_reads_when_its_lease_is_over() {
    let cluster = three(leased()).await;
    cluster.wait_until("the leader has its lease", |all| all.iter().any(|status| status.lease_left.is_some())).await;
    let old = cluster.leader().await;
    let node = cluster.node(old).clone();
    cluster.network().partition(&[old]);
    // Nobody else can be elected yet.
    node.read(Consistency::Lease).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    node.read(Consistency::Lease).await.unwrap();
    let left = node.status().await.unwrap().lease_left.unwrap();
    assert!(left < Duration::from_millis(200), "{left:?}");
    sleep(left).await;
    let late = tokio::spawn(async move { node.read(Consistency::Lease).await });
    depose(&cluster).await;
    let new = cluster.leader().await;
    cluster.node(new).write("7".into()).await.unwrap();
    cluster.network().heal();
    late.await.unwrap().unwrap();
    assert_eq!(cluster.machine(old).value(), 7, "it waited for the new leader, and reflects what that has written");
}

#[tokio::test(start_paused = true)]
async fn leadership_is_handed_over_at_once_although_voters_promised_to_wait() {
    let cluster = three(leased()).await;
    cluster.wait_until("the leader has its lease", |all| all.iter().any(|status| status.lease_left.is_some())).await;
    let (old, to) = (cluster.leader().await, cluster.follower().await);
    let began = Instant::now();
    assert_eq!(cluster.node(old).transfer_leadership(Some(to)).await.unwrap(), to);
    assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
    cluster.node(old).read(Consistency::Lease).await.unwrap();
}
