//! How much the framework itself costs: a cluster in one process, with logs in memory, a state machine that does
//! nothing, function calls for a network, and empty commands. N clients each write, wait for the answer, and write again.
//!
//! ```text
//! cargo bench -p raftkv --bench cluster -- --clients 1,64,256,1024,4096 --batch 1,4 --workers 1 --client-workers 1
//! ```

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(clippy::expect_used, reason = "a benchmark that can't run says why by panicking")]

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
    /// For how long threads look for what comes next before they sleep, in microseconds; what is the default elsewhere where it is not given.
    #[arg(long)]
    busy_poll_us: Option<u64>,
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
    println!("| clients | batch | writes/s | mean latency | CPU time per write |");
    println!("|--------:|------:|---------:|-------------:|-------------------:|");
    for batch in &options.batch {
        for clients in &options.clients {
            let Measured { rate, cpu } = measure(&options, *clients, *batch);
            let latency = Duration::from_secs_f64(*clients as f64 * *batch as f64 / rate);
            println!("| {clients} | {batch} | {} | {latency:.1?} | {cpu:.2?} |", thousands(rate));
        }
    }
}

struct Measured {
    /// Writes a second.
    rate: f64,
    /// The time that all threads together spent on each. On a machine with other work, this tells more than the rate.
    cpu: Duration,
}

/// The CPU time that the process has used, in user and kernel mode. Zero where the system does not tell.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // Fields 14 and 15, of which the first two are cut off; in hundredths of a second on every common Linux.
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn threads(name: &str, workers: usize) -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(workers).thread_name(name).enable_all().build();
    runtime.expect("a runtime starts")
}

/// One workload, on a cluster of its own.
fn measure(options: &Options, clients: u64, batch: usize) -> Measured {
    let server = threads("server", options.workers);
    let client = threads("client", options.client_workers);
    let (cluster, leader) = server
        .block_on(server.spawn({
            let nodes = options.nodes;
            let defaults = Config::default();
            let busy_poll = options.busy_poll_us.map_or(defaults.busy_poll, Duration::from_micros);
            let config = Config { busy_poll, ..defaults };
            async move {
                let cluster = Cluster::builder(nodes).config(config).start(|_| Echo).await;
                let leader = cluster.leader().await;
                let leader = cluster.node(leader).clone();
                (cluster, leader)
            }
        }))
        .expect("the cluster starts");
    let measured = client.block_on(load(leader, clients, batch, Duration::from_secs_f64(options.seconds)));
    server.block_on(cluster.shutdown());
    measured
}

/// Runs the clients, and counts what they write after the warm-up.
async fn load(leader: Raft, clients: u64, batch: usize, time: Duration) -> Measured {
    let stop = Arc::new(AtomicBool::new(false));
    let counters: Vec<Arc<AtomicU64>> = (0..clients).map(|_| Arc::default()).collect();
    let running: Vec<_> = counters
        .iter()
        .map(|counter| tokio::spawn(run_client(leader.clone(), batch, counter.clone(), stop.clone())))
        .collect();
    let written = || counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum::<u64>();
    tokio::time::sleep(time / 10).await;
    let (began, cpu_before, before) = (Instant::now(), cpu_time(), written());
    tokio::time::sleep(time).await;
    let (took, cpu_after, after) = (began.elapsed(), cpu_time(), written());
    stop.store(true, Ordering::Relaxed);
    for client in running {
        client.await.expect("clients do not fail");
    }
    let writes = (after - before) as f64;
    let cpu = (cpu_after - cpu_before).as_secs_f64() / writes;
    Measured { rate: writes / took.as_secs_f64(), cpu: Duration::from_secs_f64(cpu) }
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
