//! Under a paused clock on one thread, a run is a function of its seed: the ground that simulations stand on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::time::Duration;

use raftkv::NodeId;
use raftkv::testing::{Cluster, Crash, Link, Recorder};
use tokio::time::{Instant, sleep};

/// Clients, a bad network, a partition and a crash: all that came of it, and when.
fn run(seed: u64) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let began = Instant::now();
        let mut cluster = Cluster::builder(3).seed(seed).start(|_| Recorder::default()).await;
        cluster.leader().await;
        let link =
            Link { lost_per_mille: 30, doubled_per_mille: 50, jitter: Duration::from_millis(10), ..Link::default() };
        for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)] {
            cluster.network().set_link(NodeId(from), NodeId(to), link.clone());
        }
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let node = cluster.node(NodeId(1 + client % 3)).clone();
                tokio::spawn(async move {
                    let mut answers = Vec::new();
                    for n in 0..30 {
                        let answer = node.write(format!("{client}/{n}").into()).await;
                        answers.push(format!("{:?} {:?}", answer.is_ok(), began.elapsed()));
                    }
                    answers
                })
            })
            .collect();
        sleep(Duration::from_millis(100)).await;
        cluster.network().partition(&[NodeId(1)]);
        sleep(Duration::from_secs(1)).await;
        cluster.network().heal();
        cluster.crash(NodeId(2), Crash::Lost).await;
        sleep(Duration::from_secs(1)).await;
        cluster.restart(NodeId(2)).await;
        let mut trace = String::new();
        for client in clients {
            trace += &format!("{:?}\n", client.await.unwrap());
        }
        cluster.converge().await;
        let applied = cluster.machine(NodeId(1)).commands();
        trace + &format!("{applied:?} {:?} {}", began.elapsed(), cluster.network().batches())
    })
}

#[test]
fn the_same_seed_runs_the_same_way() {
    let [first, second, other] = [run(7), run(7), run(8)];
    assert!(first == second, "two runs of one seed differ:\n{first}\n{second}");
    assert!(first != other, "the seed decides nothing");
}
