//! Leadership that is handed over while clients write: nobody is told of it but by a short wait.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use raftkv::testing::{Cluster, Link, Recorder};
use raftkv::{Consistency, NodeId, Raft, TransferError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

async fn three() -> Cluster<Recorder> {
    let cluster = Cluster::builder(3).start(|_| Recorder::default()).await;
    cluster.leader().await;
    cluster
}

/// Clients at every node, writing and reading without a pause until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    longest: Arc<AtomicU64>,
    clients: JoinSet<Vec<Bytes>>,
}

impl Load {
    fn start(nodes: &[Raft]) -> Self {
        let (stop, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        for client in 0..24 {
            let node = nodes[client % nodes.len()].clone();
            let (stop, longest) = (stop.clone(), longest.clone());
            clients.spawn(async move {
                let mut written = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let command = Bytes::from(format!("{client} {}", written.len()));
                    let began = Instant::now();
                    node.write(command.clone()).await.unwrap_or_else(|error| panic!("{command:?}: {error}"));
                    longest.fetch_max(u64::try_from(began.elapsed().as_millis()).unwrap(), Ordering::Relaxed);
                    node.read(Consistency::Linearizable).await.unwrap();
                    written.push(command);
                    // Virtual time goes by while everybody sleeps only.
                    sleep(Duration::from_millis(1)).await;
                }
                written
            });
        }
        Self { stop, longest, clients }
    }

    /// What was written, all of it acknowledged, and how many milliseconds the longest write took.
    async fn finish(self) -> (Vec<Bytes>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.clients.join_all().await.concat();
        (written, self.longest.load(Ordering::Relaxed))
    }
}

fn assert_applied_once(cluster: &Cluster<Recorder>, written: &[Bytes]) {
    let applied: Vec<Bytes> = cluster.machine(NodeId(1)).commands().into_iter().map(|(_, command)| command).collect();
    assert_eq!(applied.len(), applied.iter().collect::<BTreeSet<_>>().len(), "nothing is applied twice");
    assert_eq!(applied.iter().collect::<BTreeSet<_>>(), written.iter().collect::<BTreeSet<_>>());
}

#[tokio::test(start_paused = true)]
async fn clients_do_not_notice_that_leadership_moves() {
    let cluster = three().await;
    slow_down(&cluster);
    let nodes: Vec<Raft> = cluster.ids().into_iter().map(|id| cluster.node(id).clone()).collect();
    let load = Load::start(&nodes);
    for round in 0..30 {
        sleep(Duration::from_millis(100)).await;
        let leader = cluster.leader().await;
        let to = (round % 2 == 0).then(|| cluster.ids().into_iter().find(|id| *id != leader).unwrap());
        let new = cluster.node(leader).transfer_leadership(to).await.unwrap();
        assert!(new != leader && to.is_none_or(|to| to == new));
        assert_eq!(cluster.leader().await, new);
    }
    let (written, longest) = load.finish().await;
    cluster.converge().await;
    assert!(written.len() > 1000, "{}", written.len());
    assert!(longest <= 100, "a write took {longest}ms");
    assert_applied_once(&cluster, &written);
}

#[tokio::test(start_paused = true)]
async fn a_transfer_in_vain_costs_clients_an_election_timeout_and_no_errors() {
    let cluster = three().await;
    let leader = cluster.leader().await;
    let to = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.network().set_link(leader, to, Link { lost_per_mille: 1000, ..Link::default() });
    let others: Vec<Raft> =
        cluster.ids().into_iter().filter(|id| *id != to).map(|id| cluster.node(id).clone()).collect();
    let load = Load::start(&others);
    let outcome = cluster.node(leader).transfer_leadership(Some(to)).await;
    assert!(matches!(outcome, Err(TransferError::TimedOut)), "{outcome:?}");
    sleep(Duration::from_millis(100)).await;
    let (written, longest) = load.finish().await;
    assert!((300..400).contains(&longest), "a write took {longest}ms");
    cluster.network().heal();
    cluster.converge().await;
    assert_applied_once(&cluster, &written);
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_makes_no_sense_is_refused_with_a_reason() {
    let cluster = three().await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    match cluster.node(follower).transfer_leadership(None).await {
        Err(TransferError::NotLeader { leader: Some(named) }) => assert_eq!(named.id, leader),
        other => panic!("{other:?}"),
    }
    let outcome = cluster.node(leader).transfer_leadership(Some(NodeId(9))).await;
    assert!(matches!(outcome, Err(TransferError::UnknownNode { id: NodeId(9) })), "{outcome:?}");
    assert_eq!(cluster.node(leader).transfer_leadership(Some(leader)).await.unwrap(), leader);
    let node = cluster.node(leader).clone();
    cluster.shutdown().await;
    let outcome = node.transfer_leadership(None).await;
    assert!(matches!(outcome, Err(TransferError::Stopped(_))), "{outcome:?}");
}

/// All links take their time.
fn slow_down(cluster: &Cluster<Recorder>) {
    for (from, to) in [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)] {
        let link = Link { delay: Duration::from_millis(1), jitter: Duration::from_millis(1), ..Link::default() };
        cluster.network().set_link(NodeId(from), NodeId(to), link);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_ends_in_good_order_costs_the_clients_of_others_nothing() {
    for leads in [true, false] {
        let mut cluster = three().await;
        slow_down(&cluster);
        let ending = if leads { cluster.leader().await } else { cluster.follower().await };
        let others: Vec<Raft> =
            cluster.ids().into_iter().filter(|id| *id != ending).map(|id| cluster.node(id).clone()).collect();
        let load = Load::start(&others);
        sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        assert!(cluster.node(ending).shutdown().await.is_shutdown());
        assert!(began.elapsed() < Duration::from_millis(150), "it took {:?}", began.elapsed());
        cluster.network().disconnect(ending);
        sleep(Duration::from_millis(300)).await;
        let (written, longest) = load.finish().await;
        assert!(longest <= 100, "a write took {longest}ms");
        cluster.restart(ending).await;
        cluster.converge().await;
        assert_applied_once(&cluster, &written);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_in_progress_at_a_node_that_ends_get_their_answers() {
    for leads in [true, false] {
        for after in [0, 500, 1000, 1500, 2500, 5000] {
            let cluster = three().await;
            slow_down(&cluster);
            let ending = if leads { cluster.leader().await } else { cluster.follower().await };
            let node = cluster.node(ending).clone();
            let mut requests = JoinSet::new();
            for n in 0..50 {
                let node = node.clone();
                requests.spawn(async move { node.write(format!("{n}").into()).await });
            }
            sleep(Duration::from_micros(after)).await;
            // Those that come later are turned away.
            let (ended, late) = tokio::join!(node.shutdown(), async {
                tokio::task::yield_now().await;
                sleep(Duration::from_micros(1)).await;
                node.write("late".into()).await
            });
            assert!(ended.is_shutdown() && matches!(late, Err(raftkv::Error::Stopped(_))), "{late:?}");
            for outcome in requests.join_all().await {
                outcome.unwrap_or_else(|error| panic!("after {after}us, leads: {leads}: {error}"));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_successor_ends_within_its_bound() {
    let cluster = three().await;
    let leader = cluster.leader().await;
    cluster.network().partition(&[leader]);
    let node = cluster.node(leader).clone();
    let hopeless = tokio::spawn({
        let node = node.clone();
        async move { node.write("never".into()).await }
    });
    sleep(Duration::from_millis(1)).await;
    let began = Instant::now();
    assert!(node.shutdown().await.is_shutdown());
    assert!(began.elapsed() <= Duration::from_millis(601), "it took {:?}", began.elapsed());
    assert!(hopeless.await.unwrap().is_err());
}
