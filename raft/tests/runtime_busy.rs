//! When the thread that runs nodes sleeps.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]
#![allow(clippy::disallowed_methods, reason = "threads that sleep do so in real time")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raftkv::Config;
use raftkv::testing::{Cluster, Echo};
use tokio::runtime::{Builder, Runtime};

/// A thread that runs tasks, and counts how often it goes to sleep.
fn thread() -> (Runtime, Arc<AtomicU64>) {
    let slept = Arc::new(AtomicU64::new(0));
    let count = slept.clone();
    let sleeps = move || {
        count.fetch_add(1, Ordering::Relaxed);
    };
    (Builder::new_multi_thread().worker_threads(1).on_thread_park(sleeps).enable_all().build().unwrap(), slept)
}

/// How often threads slept.
struct Slept {
    nodes: u64,
    client: u64,
    /// The nodes' when nobody asked any more.
    idle: u64,
}

/// How often the thread of three nodes slept, and that of a client, while he wrote 500 times, each time a little after he had the answer; and in the
/// second after it.
fn sleeps(busy_poll: Duration) -> Slept {
    let ((nodes, slept), (client, client_slept)) = (thread(), thread());
    let (cluster, leader) = nodes
        .block_on(nodes.spawn(async move {
            let cluster = Cluster::builder(3).config(Config { busy_poll, ..Config::default() }).start(|_| Echo).await;
            let leader = cluster.leader().await;
            let leader = cluster.node(leader).clone();
            (cluster, leader)
        }))
        .unwrap();
    let count = || (slept.load(Ordering::Relaxed), client_slept.load(Ordering::Relaxed));
    let before = count();
    let writes = async move {
        for _ in 0..500 {
            leader.write("x".into()).await.unwrap();
            // Until the nodes have done what comes after an answer. Not asleep, which may take any time.
            let answered = Instant::now();
            while answered.elapsed() < Duration::from_micros(500) {
                std::hint::spin_loop();
            }
        }
    };
    client.block_on(client.spawn(writes)).unwrap();
    let after = count();
    client.block_on(async { tokio::time::sleep(Duration::from_secs(1)).await });
    let idle = count().0 - after.0;
    nodes.block_on(cluster.shutdown());
    Slept { nodes: after.0 - before.0, client: after.1 - before.1, idle }
}

/// A client alone wrote 15 000 times a second, as both threads slept and woke up at each write.
#[test]
fn a_node_that_is_asked_again_at_once_does_not_sleep_meanwhile() {
    if std::thread::available_parallelism().unwrap().get() == 1 {
        return;
    }
    let (never, often) = (sleeps(Duration::ZERO), sleeps(Duration::from_millis(10)));
    assert!(often.nodes * 3 < never.nodes * 2, "it slept {} times, and {} times without", often.nodes, never.nodes);
    assert!(often.client + 50 < never.client, "the client {} times, and {} without", often.client, never.client);
    assert!(often.idle > 5, "and only {} times when nobody asked any more", often.idle);
}
