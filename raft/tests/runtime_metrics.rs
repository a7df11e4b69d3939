//! What a node counts, and what it tells of a stall.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::time::Duration;

use raftkv::consensus::{RoleKind, TransferStep};
use raftkv::testing::{Cluster, Recorder};
use raftkv::{Config, Consistency, Error, Event, Events, Metrics, Raft, Stall};
use tokio::time::sleep;

async fn metrics(raft: &Raft) -> Metrics {
    raft.metrics().await.unwrap()
}

/// The first event that `wanted` makes something of.
async fn event<T>(events: &mut Events, wanted: impl Fn(Event) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(events.next().await.unwrap()) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_where_they_come_and_where_they_go() {
    let cluster = Cluster::builder(3).start(|_| Recorder::default()).await;
    let leader = cluster.node(cluster.leader().await).clone();
    let follower = cluster.node(cluster.follower().await).clone();
    for n in 0..10 {
        leader.write(n.to_string().into()).await.unwrap();
        follower.write(n.to_string().into()).await.unwrap();
        follower.read(Consistency::Linearizable).await.unwrap();
    }
    leader.write_many(vec!["a".into(), "b".into()]).await.unwrap();
    let too_large = leader.write(vec![0; 9 << 20].into()).await;
    assert!(matches!(too_large, Err(Error::TooLarge { .. })), "{too_large:?}");
    cluster.converge().await;

    let (led, followed) = (metrics(&leader).await, metrics(&follower).await);
    assert_eq!((led.role, followed.role), (RoleKind::Leader, RoleKind::Follower));
    assert_eq!((led.leader, followed.leader), (Some(leader.id()), Some(leader.id())));
    assert_eq!((led.voters, led.learners), (3, 0));
    assert_eq!((led.requests.writes, led.requests.forwarded, led.requests.forwarded_here), (11, 0, 10));
    assert_eq!((followed.requests.writes, followed.requests.forwarded), (10, 10));
    assert_eq!((followed.requests.reads, followed.requests.reads_served, led.requests.reads), (10, 10, 0));
    assert!(led.requests.read_rounds >= 1 && led.requests.read_rounds <= 10, "{}", led.requests.read_rounds);
    assert_eq!((led.requests.failed.too_large, followed.requests.failed.too_large), (1, 0));
    assert_eq!((led.pending_requests, led.pending_bytes), (0, 0));
    assert_eq!((led.leadership.won, led.leadership.elections, followed.leadership.won), (1, 1, 0));
    assert_eq!(followed.leadership.leader_changes, 1);
    // The first configuration, the leader's first entry, and 22 commands.
    assert_eq!((led.last.0, led.commit.0, led.applied.0, led.stored.0), (24, 24, 24, 24));
    for one in [&led, &followed] {
        assert_eq!((one.log_writes.entries, one.applies.entries, one.membership_changes), (24, 24, 1));
        assert!(one.log_writes.latency.count() >= 20 && one.log_writes.bytes >= 24 * raftkv::Entry::OVERHEAD);
        assert!(one.applies.latency.count() >= 20);
        assert_eq!((one.dropped.not_taken, one.leadership.disk_stalls), (0, 0));
    }
    assert!(led.sent.appends >= 40 && led.sent.entries >= 46 && led.sent.heartbeats >= 2, "{:?}", led.sent);
    assert!(followed.received.appends >= 20 && followed.sent.append_replies >= 20, "{followed:?}");
    assert!(followed.received.bytes > 0 && led.sent.bytes > followed.sent.bytes);
    assert_eq!(followed.sent.forwards, 10);
    let json = serde_json::to_string(&led).unwrap();
    assert_eq!(serde_json::from_str::<Metrics>(&json).unwrap(), led);
}

#[tokio::test(start_paused = true)]
async fn a_transfer_is_counted_and_told() {
    let cluster = Cluster::builder(3).start(|_| Recorder::default()).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let mut events = cluster.node(leader).events();
    cluster.node(leader).transfer_leadership(Some(follower)).await.unwrap();
    let told = |event| if let Event::Transfer { to, step } = event { Some((to, step)) } else { None };
    assert_eq!(event(&mut events, told).await, (follower, TransferStep::Begins));
    let (was, is) = (metrics(cluster.node(leader)).await, metrics(cluster.node(follower)).await);
    assert_eq!((was.leadership.transfers, was.leadership.transfers_given_up, was.leadership.lost), (1, 0, 1));
    assert_eq!((is.leadership.won, is.leadership.lost), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_stalls_is_told_of_and_so_is_its_recovery() {
    let config = Config { stall_timeout: Duration::from_millis(500), ..Config::default() };
    let cluster = Cluster::builder(3).config(config).start(|_| Recorder::default()).await;
    let leader = cluster.leader().await;
    let mut events = cluster.node(leader).events();
    cluster.log(leader).hold();
    let write = tokio::spawn({
        let node = cluster.node(leader).clone();
        async move { node.write("x".into()).await }
    });
    let stalled = |event| if let Event::Stalled { what, since } = event { Some((what, since)) } else { None };
    assert_eq!(event(&mut events, stalled).await, (Stall::Disk, Duration::from_millis(500)));
    let during = metrics(cluster.node(leader)).await;
    assert!(during.disk_stalls && during.leadership.disk_stalls == 1, "{during:?}");
    sleep(Duration::from_millis(700)).await;
    cluster.log(leader).release();
    let recovered = |event| if let Event::Recovered { what, took } = event { Some((what, took)) } else { None };
    let (what, took) = event(&mut events, recovered).await;
    assert!(what == Stall::Disk && took >= Duration::from_millis(1200), "{what:?} {took:?}");
    write.await.unwrap().unwrap();
    let after = metrics(cluster.node(leader)).await;
    assert!(!after.disk_stalls && after.leadership.disk_stalls == 1 && after.leadership.lost == 1, "{after:?}");
    let slowest = after.log_writes.latency.counts.iter().rposition(|count| *count > 0).unwrap();
    assert_eq!(raftkv::metrics::Histogram::BOUNDS[slowest], Duration::from_millis(2500));
}

#[tokio::test(start_paused = true)]
async fn a_peer_without_a_transport_is_seen_in_what_is_dropped() {
    let cluster = Cluster::builder(3).start(|_| Recorder::default()).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let before = metrics(cluster.node(leader)).await.dropped.not_taken;
    cluster.network().disconnect(follower);
    sleep(Duration::from_secs(2)).await;
    let after = metrics(cluster.node(leader)).await.dropped.not_taken;
    assert!(after >= before + 10, "{before}, {after}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_stopped_has_no_metrics() {
    let cluster = Cluster::builder(1).start(|_| Recorder::default()).await;
    let raft = cluster.node(raftkv::NodeId(1)).clone();
    raft.shutdown().await;
    assert!(matches!(raft.metrics().await, Err(Error::Stopped(_))));
}
