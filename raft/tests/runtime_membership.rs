//! Members come and go while clients write.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use raftkv::consensus::RoleKind;
use raftkv::testing::{Cluster, Counter, Recorder};
use raftkv::{
    Change, ChangeError, ChangeRefused, Config, Consistency, Event, Membership, NodeId, Peer, Raft, StateMachine,
    Status,
};

fn peer(id: u64) -> Peer {
    Peer::new(id, format!("memory:{id}"))
}

/// Nodes 1 to `nodes`, of which the first `voters` are the cluster.
async fn started<M: StateMachine + Clone>(
    nodes: u64,
    voters: u64,
    config: Config,
    make: impl Fn(NodeId) -> M + Send + Sync + 'static,
) -> Cluster<M> {
    let cluster = Cluster::builder(nodes).config(config).start_empty(make).await;
    cluster.node(NodeId(1)).initialize(Membership::new((1..=voters).map(peer))).await.unwrap();
    leader(&cluster).await;
    cluster
}

async fn leader<M: StateMachine + Clone>(cluster: &Cluster<M>) -> NodeId {
    let leads = |status: &&Status| {
        status.role == RoleKind::Leader && status.configuration.as_ref().is_some_and(|found| found.committed)
    };
    cluster.wait_until("there is a leader", |all| all.iter().any(|status| leads(&status))).await;
    let statuses = cluster.statuses().await;
    let newest = statuses.iter().filter(leads).max_by_key(|status| status.term);
    newest.expect("a leader").id
}

fn voters(status: &Status) -> Vec<u64> {
    let found = status.configuration.iter().filter(|found| found.committed);
    found.flat_map(|found| found.membership.all_voters()).map(|id| id.0).collect()
}

/// Writes one after the other through a node until it is told to stop; what is safe to retry is retried. Returns how many there were.
fn client(raft: Raft, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    tokio::spawn(async move {
        let mut written = 0;
        while !stop.load(Ordering::SeqCst) {
            match raft.write("1".into()).await {
                Ok(_) => written += 1,
                Err(error) if error.is_safe_to_retry() => {}
                Err(error) => panic!("a write failed: {error}"),
            }
            // Time stands still while everybody is busy.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        written
    })
}

#[tokio::test(start_paused = true)]
async fn a_cluster_grows_to_five_and_shrinks_to_one_under_load() {
    let cluster = started(5, 1, Config::default(), |_| Counter::default()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4).map(|_| client(cluster.node(NodeId(1)).clone(), stop.clone())).collect();
    for step in [
        Change::new().add_voter(peer(2)).add_voter(peer(3)),
        Change::new().add_voter(peer(4)).add_voter(peer(5)),
        Change::new().remove(2).remove(4),
        Change::new().remove(3),
        Change::new().remove(5),
    ] {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.node(NodeId(1)).change_membership(step).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.store(true, Ordering::SeqCst);
    let mut written = 0;
    for client in clients {
        written += client.await.unwrap();
    }
    assert_eq!(cluster.machine(NodeId(1)).value(), written, "each write was applied once");
    assert_eq!(voters(&cluster.node(NodeId(1)).status().await.unwrap()), [1]);
    for id in [2, 3, 4, 5].map(NodeId) {
        let status = cluster.node(id).status().await.unwrap();
        assert!(status.removed.is_some(), "{status:?}");
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_leader_may_be_removed_again_and_again() {
    let cluster = started(5, 5, Config::default(), |_| Counter::default()).await;
    let written = AtomicU64::new(0);
    for left in [4, 3, 2, 1] {
        let gone = leader(&cluster).await;
        let mut events = cluster.node(gone).events();
        cluster.node(gone).change_membership(Change::new().remove(gone)).await.unwrap();
        while !matches!(events.next().await, Some(Event::Removed { .. })) {}
        let next = leader(&cluster).await;
        assert_ne!(next, gone);
        let node = cluster.node(next);
        node.write("1".into()).await.unwrap();
        written.fetch_add(1, Ordering::SeqCst);
        node.read(Consistency::Linearizable).await.unwrap();
        assert_eq!(cluster.machine(next).value(), written.load(Ordering::SeqCst));
        assert_eq!(voters(&node.status().await.unwrap()).len(), left);
    }
}

#[tokio::test(start_paused = true)]
async fn any_node_makes_changes_and_gets_the_leaders_reasons() {
    let cluster = started(4, 3, Config::default(), |_| Recorder::default()).await;
    cluster.wait_until("all three follow", |all| all.iter().filter(|s| s.leader.is_some()).count() == 3).await;
    for id in [1, 2, 3].map(NodeId) {
        let node = cluster.node(id);
        let before = node.membership().await.unwrap().unwrap();
        let refused = node.change_membership(Change::new().remove(9)).await;
        let unknown = ChangeRefused::UnknownNode { id: NodeId(9) };
        assert!(matches!(&refused, Err(ChangeError::Refused(why)) if *why == unknown), "{refused:?}");
        let refused = node.change_membership(Change::new().add_voter(peer(1)).only_if(before.id)).await;
        assert!(matches!(refused, Err(ChangeError::Refused(ChangeRefused::NoDifference))), "{refused:?}");
        let done = node.change_membership(Change::new().add_learner(peer(4)).only_if(before.id)).await.unwrap();
        let late = node.change_membership(Change::new().remove(4).only_if(before.id)).await;
        let mismatch = ChangeRefused::Mismatch { actual: done };
        assert!(matches!(&late, Err(ChangeError::Refused(why)) if *why == mismatch), "{late:?}");
        // The learner serves reads and takes writes.
        cluster.node(NodeId(4)).write(id.to_string().into()).await.unwrap();
        cluster.node(NodeId(4)).read(Consistency::Linearizable).await.unwrap();
        node.change_membership(Change::new().remove(4).only_if(done)).await.unwrap();
        cluster.wait_until("all know", |all| all[..3].iter().all(|s| s.members.len() == 3)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_come_is_given_up_in_time_and_progress_is_visible() {
    let config = Config { catch_up_timeout: Duration::from_secs(2), ..Config::default() };
    let cluster = started(3, 3, config, |_| Recorder::default()).await;
    let node = cluster.node(leader(&cluster).await).clone();
    let change = {
        let node = node.clone();
        tokio::spawn(async move { node.change_membership(Change::new().add_voter(peer(9))).await })
    };
    cluster
        .wait_until("it is catching up", |all| {
            all.iter().any(|s| s.change.as_ref().is_some_and(|c| c.catching_up == [NodeId(9)]))
        })
        .await;
    let second = node.change_membership(Change::new().remove(1)).await;
    assert!(matches!(second, Err(ChangeError::Refused(ChangeRefused::InProgress { .. }))), "{second:?}");
    let outcome = change.await.unwrap();
    let Err(ChangeError::Refused(ChangeRefused::NotCaughtUp { id, .. })) = &outcome else { panic!("{outcome:?}") };
    assert_eq!(*id, NodeId(9));
    node.write("still there".into()).await.unwrap();
    node.change_membership(Change::new().remove(9)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_lost_its_data_comes_back_under_a_new_id() {
    let mut cluster = started(4, 3, Config::default(), |_| Counter::default()).await;
    let node = cluster.node(NodeId(1)).clone();
    for _ in 0..100 {
        node.write("1".into()).await.unwrap();
    }
    cluster.stop(NodeId(3)).await;
    node.change_membership(Change::new().replace(3, peer(4))).await.unwrap();
    assert_eq!(node.write("1".into()).await.unwrap(), "101");
    cluster.node(NodeId(4)).read(Consistency::Linearizable).await.unwrap();
    assert_eq!(cluster.machine(NodeId(4)).value(), 101);
    // The new node counts: the cluster goes on with it and one of the others.
    cluster.stop(NodeId(2)).await;
    assert_eq!(cluster.node(NodeId(4)).write("1".into()).await.unwrap(), "102");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_waits_is_answered_when_the_node_stops() {
    let cluster = started(3, 3, Config::default(), |_| Recorder::default()).await;
    let node = cluster.node(leader(&cluster).await).clone();
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move { node.change_membership(Change::new().add_voter(peer(9))).await })
        })
        .collect();
    cluster.wait_until("one waits", |all| all.iter().any(|status| status.change.is_some())).await;
    node.shutdown().await;
    let mut stopped = 0;
    for change in waiting {
        match change.await.unwrap() {
            // It is in the log as far as the learner goes; the node may have handed leadership over meanwhile.
            Err(ChangeError::Stopped(_) | ChangeError::OutcomeUnknown) => stopped += 1,
            Err(ChangeError::Refused(ChangeRefused::InProgress { .. }) | ChangeError::Overloaded) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(stopped, 1);
    assert!(matches!(node.change_membership(Change::new()).await, Err(ChangeError::Stopped(_))));
}
