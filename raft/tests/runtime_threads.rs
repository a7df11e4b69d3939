//! The same on many threads and with a real clock, where wake-ups could be lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::time::Duration;

use raftkv::testing::{Cluster, Counter};
use raftkv::{Config, Consistency, Error, NodeId};

/// A leader stays one on a busy machine.
fn patient() -> Config {
    Config {
        election_timeout: Duration::from_secs(5),
        heartbeat_interval: Duration::from_millis(200),
        write_timeout: Duration::from_secs(30),
        read_timeout: Duration::from_secs(30),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_and_reads_from_many_threads_are_all_answered() {
    let cluster = Cluster::builder(3).config(patient()).start(|_| Counter::default()).await;
    cluster.node(NodeId(1)).campaign().await.unwrap();
    cluster.leader().await;
    let clients: Vec<_> = (0..48)
        .map(|client| {
            let id = NodeId(1 + client % 3);
            let (node, counter) = (cluster.node(id).clone(), cluster.machine(id).clone());
            tokio::spawn(async move {
                for n in 0..100 {
                    let sum: u64 = match n % 3 {
                        0 => node.write_many(vec!["1".into(), "2".into()]).await.map(|sums| sums[1].clone()),
                        _ => node.write("3".into()).await,
                    }
                    .map(|sum| std::str::from_utf8(&sum).unwrap().parse().unwrap())
                    .unwrap();
                    assert!(counter.value() >= sum, "what was answered here was applied here");
                    if n % 5 == 0 {
                        node.read(Consistency::Linearizable).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    for id in cluster.ids() {
        cluster.node(id).read(Consistency::Linearizable).await.unwrap();
        assert_eq!(cluster.machine(id).value(), 48 * 100 * 3);
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn shutdown_under_load_answers_everyone() {
    for _ in 0..20 {
        let cluster = Cluster::builder(1).config(patient()).start(|_| Counter::default()).await;
        let node = cluster.node(NodeId(1)).clone();
        node.campaign().await.unwrap();
        let clients: Vec<_> = (0..32)
            .map(|client| {
                let node = node.clone();
                tokio::spawn(async move {
                    loop {
                        let outcome = match client % 3 {
                            0 => node.read(Consistency::Linearizable).await,
                            1 => node.write("1".into()).await.map(drop),
                            _ => node.status().await.map(drop),
                        };
                        if let Err(error) = outcome {
                            return error;
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let (first, second) = tokio::join!(node.shutdown(), node.shutdown());
        assert!(first.is_shutdown() && second.is_shutdown());
        for client in clients {
            let error = tokio::time::timeout(Duration::from_secs(20), client).await.expect("answered").unwrap();
            assert!(matches!(error, Error::Stopped(_)), "{error:?}");
        }
    }
}
