//! A survivor of a lost quorum goes on alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use raftkv::testing::{Cluster, Counter, MemLog, MemSnapshots};
use raftkv::{Consistency, LogId, LogStore, Membership, NodeId, Peer, Snapshot, SnapshotId, SnapshotMeta, Survivor};

#[tokio::test(start_paused = true)]
async fn a_survivor_goes_on_alone_with_all_that_it_held() {
    let mut cluster = Cluster::builder(3).start(|_| Counter::default()).await;
    let leader = cluster.leader().await;
    for _ in 0..10 {
        cluster.node(leader).write("1".into()).await.unwrap();
    }
    cluster.converge().await;
    let survivor = cluster.follower().await;
    for id in cluster.ids() {
        cluster.stop(id).await;
    }
    let log = cluster.log(survivor).reopen();
    let found = Survivor::inspect(survivor, &log, &MemSnapshots::new()).await.unwrap();
    assert_eq!(found.given_up().count(), 2);
    let entry = found.become_only_voter(&log, vec!["5".into(), "7".into()]).await.unwrap();
    assert!(entry > found.log.last, "{entry} is of a term of its own");

    cluster.restart(survivor).await;
    let node = cluster.node(survivor);
    node.write("1".into()).await.unwrap();
    node.read(Consistency::Linearizable).await.unwrap();
    assert_eq!(cluster.machine(survivor).value(), 10 + 5 + 7 + 1);
    let members = node.status().await.unwrap().members;
    assert_eq!(members.iter().map(|peer| peer.id).collect::<Vec<_>>(), [survivor]);
}

#[tokio::test]
async fn a_node_that_never_belonged_to_a_cluster_is_refused() {
    let refused = Survivor::inspect(NodeId(1), &MemLog::new(), &MemSnapshots::new()).await.unwrap_err();
    assert!(refused.to_string().contains("never belonged"), "{refused}");
}

#[tokio::test]
async fn a_node_that_was_stopped_while_it_took_over_an_image_is_to_finish_that_first() {
    let snapshots = MemSnapshots::new();
    let membership = Membership::new([Peer::new(1, "a"), Peer::new(2, "b")]);
    let meta = SnapshotMeta { id: SnapshotId(1), last: LogId::new(3, 90), membership, membership_at: LogId::new(1, 1) };
    snapshots.begin(meta).await.unwrap().publish().await.unwrap();
    let refused = Survivor::inspect(NodeId(1), &MemLog::new(), &snapshots).await.unwrap_err();
    assert!(refused.to_string().contains("start it once"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_changed_since_it_was_looked_at_is_left_alone() {
    let mut cluster = Cluster::builder(1).start(|_| Counter::default()).await;
    let id = cluster.leader().await;
    let found = Survivor::inspect(id, cluster.log(id), &MemSnapshots::new()).await.unwrap();
    cluster.node(id).write("1".into()).await.unwrap();
    cluster.stop(id).await;
    let log = cluster.log(id).reopen();
    let before = log.load().await.unwrap();
    let refused = found.become_only_voter(&log, Vec::new()).await.unwrap_err();
    assert!(refused.to_string().contains("has changed"), "{refused}");
    assert_eq!(log.load().await.unwrap(), before);
}
