//! How much the framework itself costs: a cluster in one process, with logs in memory, a state machine that does
//! nothing, function calls for a network, and empty commands. N clients each write, wait for the answer, and write again.
//!
//! ```text
//! cargo bench -p raftkv --bench cluster -- --clients 1,64,256,1024,4096 --batch 1,4 --workers 1 --client-workers 1
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use raftkv::testing::{Cluster, Echo};
use raftkv::{Config, Raft};
use tokio::runtime::{Builder, Runtime};

#[derive(Parser, Debug)]
struct Options {
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256,1024,4096")]
    clients: Vec<u64>,
    /// Commands in each request: 1 is `write`, more is `write_many`.
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    batch: Vec<usize>,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Threads that run the nodes.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Threads that run the clients.
    #[arg(long, default_value_t = 1)]
    client_workers: usize,
    /// How long each measurement takes, in seconds, after a warm-up of a tenth of it.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    println!(
        "{} nodes, {} threads for them, {} for the clients, empty commands",
        options.nodes, options.workers, options.client_workers
    );
    println!("| clients | batch | writes/s | mean latency |");
    println!("|--------:|------:|---------:|-------------:|");
    for batch in &options.batch {
        for clients in &options.clients {
            let rate = measure(&options, *clients, *batch);
            let latency = Duration::from_secs_f64(*clients as f64 * *batch as f64 / rate);
            println!("| {clients} | {batch} | {} | {latency:.1?} |", thousands(rate));
        }
    }
}

fn threads(name: &str, workers: usize) -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(workers).thread_name(name).enable_all().build();
    runtime.expect("a runtime starts")
}

/// The rate of one workload, on a cluster of its own.
fn measure(options: &Options, clients: u64, batch: usize) -> f64 {
    let server = threads("server", options.workers);
    let client = threads("client", options.client_workers);
    let (cluster, leader) = server
        .block_on(server.spawn({
            let nodes = options.nodes;
            async move {
                let cluster = Cluster::builder(nodes).config(Config::default()).start(|_| Echo).await;
                let leader = cluster.leader().await;
                let leader = cluster.node(leader).clone();
                (cluster, leader)
            }
        }))
        .expect("the cluster starts");
    let rate = client.block_on(load(leader, clients, batch, Duration::from_secs_f64(options.seconds)));
    server.block_on(cluster.shutdown());
    rate
}

/// Runs the clients, and counts what they write after the warm-up.
async fn load(leader: Raft, clients: u64, batch: usize, time: Duration) -> f64 {
    let stop = Arc::new(AtomicBool::new(false));
    let counters: Vec<Arc<AtomicU64>> = (0..clients).map(|_| Arc::default()).collect();
    let running: Vec<_> = counters
        .iter()
        .map(|counter| tokio::spawn(run_client(leader.clone(), batch, counter.clone(), stop.clone())))
        .collect();
    let written = || counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum::<u64>();
    tokio::time::sleep(time / 10).await;
    let (began, before) = (Instant::now(), written());
    tokio::time::sleep(time).await;
    let (took, after) = (began.elapsed(), written());
    stop.store(true, Ordering::Relaxed);
    for client in running {
        client.await.expect("clients do not fail");
    }
    (after - before) as f64 / took.as_secs_f64()
}

async fn run_client(leader: Raft, batch: usize, counter: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        if batch == 1 {
            leader.write(Bytes::new()).await.expect("a write succeeds");
        } else {
            let answers = leader.write_many(vec![Bytes::new(); batch]).await.expect("a batch succeeds");
            assert_eq!(answers.len(), batch);
        }
        done += batch as u64;
        counter.store(done, Ordering::Relaxed);
    }
}

/// `1234567.8` as `1 234 567`.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
