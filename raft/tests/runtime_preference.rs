//! Which node should lead when it can.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::time::Duration;

use raftkv::consensus::RoleKind;
use raftkv::testing::{Cluster, Recorder};
use raftkv::{Config, NodeId, TransferError};
use tokio::time::{Instant, sleep};

const SETTLE: Duration = Duration::from_secs(1);

async fn three() -> Cluster<Recorder> {
    let config = Config { priority_settle: SETTLE, ..Config::default() };
    let cluster = Cluster::builder(3).config(config).start(|_| Recorder::default()).await;
    cluster.leader().await;
    cluster
}

async fn wait_for_leader(cluster: &Cluster<Recorder>, id: NodeId) {
    cluster.wait_until("the right leader", |all| all.iter().all(|status| status.leader == Some(id))).await;
}

#[tokio::test(start_paused = true)]
async fn leadership_goes_to_the_highest_priority_and_comes_back_to_it() {
    let mut cluster = three().await;
    let (old, preferred) = (cluster.leader().await, cluster.follower().await);
    let began = Instant::now();
    cluster.node(preferred).set_priority(3).await.unwrap();
    for n in 0..50 {
        cluster.node(old).write(n.to_string().into()).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    wait_for_leader(&cluster, preferred).await;
    assert!(began.elapsed() >= SETTLE, "{:?}", began.elapsed());
    let metrics = cluster.node(old).metrics().await.unwrap();
    assert_eq!((metrics.leadership.yields, metrics.leadership.lost), (1, 1));
    let metrics = cluster.node(preferred).metrics().await.unwrap();
    assert_eq!((metrics.priority, metrics.may_lead, metrics.leadership.yields), (3, true, 0));
    cluster.stop(preferred).await;
    let interim = cluster.leader().await;
    assert_ne!(interim, preferred);
    cluster.restart(preferred).await;
    sleep(SETTLE * 3).await;
    wait_for_leader(&cluster, interim).await;
    // What was said at run time is forgotten.
    cluster.node(preferred).set_priority(3).await.unwrap();
    wait_for_leader(&cluster, preferred).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_kept_from_leading_hands_over_and_stays_away() {
    let cluster = three().await;
    let old = cluster.leader().await;
    let began = Instant::now();
    cluster.node(old).set_may_lead(false).await.unwrap();
    cluster.wait_until("another leader", |all| all.iter().all(|s| s.leader.is_some_and(|id| id != old))).await;
    assert!(began.elapsed() < SETTLE, "{:?}", began.elapsed());
    let new = cluster.leader().await;
    sleep(Duration::from_millis(200)).await;
    let refused = cluster.node(new).transfer_leadership(Some(old)).await;
    assert!(matches!(refused, Err(TransferError::Unwilling { id }) if id == old), "{refused:?}");
    cluster.node(old).campaign().await.unwrap();
    let status = cluster.node(old).status().await.unwrap();
    assert_eq!((status.role, status.may_lead), (RoleKind::Follower, false));
    let seen = cluster.node(new).status().await.unwrap();
    let priority = |id| seen.peers.iter().find(|peer| peer.id == id).unwrap().priority;
    let other = cluster.ids().into_iter().find(|id| *id != old && *id != new).unwrap();
    assert_eq!((priority(old), priority(other)), (None, Some(0)));
    cluster.node(old).set_may_lead(true).await.unwrap();
    sleep(Duration::from_millis(200)).await;
    assert_eq!(cluster.node(new).transfer_leadership(Some(old)).await.unwrap(), old);
}

#[tokio::test(start_paused = true)]
async fn where_only_nodes_are_left_that_are_kept_from_leading_nobody_leads_until_one_may() {
    let config = Config { may_lead: false, ..Config::default() };
    let cluster = Cluster::builder(3).config(config).start(|_| Recorder::default()).await;
    sleep(Duration::from_secs(5)).await;
    for id in cluster.ids() {
        let status = cluster.node(id).status().await.unwrap();
        assert_eq!((status.role, status.leader, status.term.0), (RoleKind::Follower, None, 0));
    }
    cluster.node(NodeId(2)).set_may_lead(true).await.unwrap();
    cluster.node(NodeId(1)).write("x".into()).await.unwrap();
    assert_eq!(cluster.leader().await, NodeId(2));
}
