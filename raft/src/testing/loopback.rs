//! What two nodes can say to each other over loopback: the rate one way, and the time of a round trip; and what a cluster of three then
//! does. For benchmarks of transports, several of them by turns.

#![allow(clippy::expect_used, reason = "a benchmark reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};

use super::conformance::connections::Halves;
use super::{Echo, MemLog, MemSnapshots};
use crate::transport_kit::{Local, Options};
use crate::{
    AppendReply, Arrivals, Body, ClusterId, Consistency, Entry, EntryKind, Envelope, GroupId, Inbox, Index, LogId,
    Membership, Message, Peer, Raft, Term, Transport,
};

const CLUSTER: ClusterId = ClusterId(1);
const PAYLOAD: usize = 256;
/// Entries a message.
const SIZES: [u64; 5] = [1, 16, 64, 256, 2048];
/// Clients of the cluster.
const CLIENTS: [usize; 3] = [1, 64, 1024];

/// A transport that is measured, with its name.
pub type Measured = (&'static str, Arc<dyn Halves>);

/// Measures these transports by turns and prints what comes of it: of each line the median of the rounds, and how the others
/// do in proportion to the first.
///
/// `args` are a benchmark's: seconds for each measurement (default 2), threads of the runtime that both nodes share (default 2), rounds
/// (default 1). `runtime` makes one with so many threads.
///
/// # Panics
/// A transport fails.
pub fn run(transports: &[Measured], args: impl Iterator<Item = String>, runtime: fn(usize) -> Runtime) {
    let mut numbers = args.filter_map(|arg| arg.parse::<f64>().ok());
    let time = Duration::from_secs_f64(numbers.next().unwrap_or(2.0));
    let workers = numbers.next().unwrap_or(2.0) as usize;
    let rounds = numbers.next().unwrap_or(1.0).max(1.0) as usize;
    println!("{PAYLOAD}-byte entries, {workers} threads for both nodes, medians of {rounds}");
    let measure = |name: &str, line: &dyn Fn(Arc<dyn Halves>) -> Outcome| {
        let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); transports.len()];
        for _ in 0..rounds {
            for ((_, halves), outcomes) in transports.iter().zip(&mut outcomes) {
                outcomes.push(line(halves.clone()));
            }
        }
        let medians: Vec<Outcome> = outcomes.into_iter().map(median).collect();
        for ((transport, _), outcome) in transports.iter().zip(&medians) {
            let ratio = outcome.rate / medians.first().map_or(outcome.rate, |first| first.rate);
            println!("{name:<36} {transport:<6} {}, {ratio:.2} of the first", outcome.text);
        }
    };
    for count in SIZES {
        measure(&format!("one way, {count} entries a message"), &|halves| {
            on(runtime(workers), one_way(halves, count, time))
        });
    }
    measure("round trip, heartbeats", &|halves| on(runtime(workers), ping_pong(halves, time, heartbeat, answer())));
    measure("round trip, appends of one entry", &|halves| {
        on(runtime(workers), ping_pong(halves, time, |n| append(n, 1, &Bytes::from_static(&[7; PAYLOAD])), accepted()))
    });
    for clients in CLIENTS {
        measure(&format!("cluster of three, {clients} clients"), &|halves| {
            on(runtime(workers), cluster(halves, clients, time))
        });
    }
}

/// What one measurement gives: how many things a second, and the same and more in words.
#[derive(Clone)]
struct Outcome {
    rate: f64,
    text: String,
}

fn median(mut outcomes: Vec<Outcome>) -> Outcome {
    outcomes.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    outcomes.swap_remove(outcomes.len() / 2)
}

/// On a worker of a runtime, as a node would be.
fn on(runtime: Runtime, measurement: impl Future<Output = Outcome> + Send + 'static) -> Outcome {
    let outcome = runtime.block_on(async { tokio::spawn(measurement).await.expect("no panic") });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

struct Node {
    peer: Peer,
    transport: Arc<dyn Transport>,
    arrivals: Arrivals,
}

impl Node {
    async fn start(halves: &dyn Halves, id: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let peer = Peer::new(id, listener.local_addr().expect("its address").to_string());
        let (inbox, arrivals) = Inbox::channel(CLUSTER, GroupId(0), peer.id);
        tokio::spawn(halves.serve(listener, inbox, None, Box::pin(std::future::pending())));
        let transport = halves.transport(Local { cluster: CLUSTER, node: peer.clone() }, Options::default());
        Self { peer, transport: transport.into(), arrivals }
    }
}

fn envelope(from: &Peer, to: &Peer, body: Body) -> Envelope {
    let message = Message { term: Term(3), body };
    Envelope { cluster: CLUSTER, group: GroupId(0), from: from.id, to: to.id, message }
}

/// An append of `count` entries from `first` on.
fn append(first: u64, count: u64, payload: &Bytes) -> Body {
    let entry = |index| Entry { id: LogId::new(3, index), kind: EntryKind::Command, data: payload.clone() };
    Body::Append {
        prev: LogId::new(3, first - 1),
        entries: (first..first + count).map(entry).collect(),
        commit: Index(first - 1),
    }
}

fn accepted() -> Body {
    Body::AppendReply(AppendReply::Accepted { stored: Index(1) })
}

fn heartbeat(n: u64) -> Body {
    Body::Heartbeat { commit: Index(n), round: n, lease: Duration::ZERO }
}

fn answer() -> Body {
    Body::HeartbeatReply { round: 1, matching: Index(1), stored: Index(1), priority: Some(0), lease: Duration::ZERO }
}

fn entries(batch: &[Envelope]) -> u64 {
    let of = |e: &Envelope| if let Body::Append { entries, .. } = &e.message.body { entries.len() as u64 } else { 0 };
    batch.iter().map(of).sum()
}

/// Sends appends of `count` entries as fast as they go, and counts what arrives.
async fn one_way(halves: Arc<dyn Halves>, count: u64, time: Duration) -> Outcome {
    let (a, mut b) = (Node::start(&*halves, 1).await, Node::start(&*halves, 2).await);
    let (transport, from, to) = (a.transport.clone(), a.peer.clone(), b.peer.clone());
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let sender = tokio::spawn(async move {
        for n in 0.. {
            let body = append(1 + n * count, count, &payload);
            transport.send(&to, vec![envelope(&from, &to, body)]).await.expect("a live peer");
        }
    });
    b.arrivals.next().await.expect("an open inbox");
    let (begin, cpu) = (Instant::now(), cpu_time());
    let (mut messages, mut total) = (0_u64, 0);
    while begin.elapsed() < time {
        let (_, batch) = b.arrivals.next().await.expect("an open inbox");
        messages += batch.len() as u64;
        total += entries(&batch);
    }
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu));
    // It must not see the receiver go.
    sender.abort();
    let _ = sender.await;
    let (messages, total) = (messages as f64, total as f64);
    let text = format!(
        "{:>9.0} messages/s {:>10.0} entries/s {:>6.0} MB/s, {:>6.2} µs of CPU a message, {:>5.2} an entry",
        messages / seconds,
        total / seconds,
        total * PAYLOAD as f64 / seconds / 1e6,
        cpu.as_secs_f64() * 1e6 / messages,
        cpu.as_secs_f64() * 1e6 / total,
    );
    Outcome { rate: total / seconds, text }
}

/// One message there, one back, again and again; how long a round takes.
async fn ping_pong(halves: Arc<dyn Halves>, time: Duration, ping: fn(u64) -> Body, pong: Body) -> Outcome {
    const WARM: u64 = 100;
    let (mut a, mut b) = (Node::start(&*halves, 1).await, Node::start(&*halves, 2).await);
    let (home, away) = (a.peer.clone(), b.peer.clone());
    let answers = tokio::spawn(async move {
        while let Some((sender, _)) = b.arrivals.next().await {
            let answer = envelope(&b.peer, &sender, pong.clone());
            b.transport.send(&sender, vec![answer]).await.expect("a live peer");
        }
    });
    let (mut times, mut begin, mut cpu) = (Vec::new(), Instant::now(), cpu_time());
    for n in 1.. {
        if n == WARM {
            times.clear();
            (begin, cpu) = (Instant::now(), cpu_time());
        }
        let sent = Instant::now();
        a.transport.send(&away, vec![envelope(&home, &away, ping(n))]).await.expect("a live peer");
        a.arrivals.next().await.expect("an open inbox");
        times.push(sent.elapsed());
        if n > WARM && begin.elapsed() >= time {
            break;
        }
    }
    let (rate, cpu) = (times.len() as f64 / begin.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu));
    answers.abort();
    let _ = answers.await;
    times.sort_unstable();
    let micros = |quantile: f64| {
        let at = (times.len() as f64 * quantile) as usize;
        times.get(at.min(times.len() - 1)).map_or(0.0, |time| time.as_nanos() as f64 / 1e3)
    };
    let text = format!(
        "p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs, {rate:.0} rounds/s, {:.1} µs of CPU a round",
        micros(0.5),
        micros(0.99),
        micros(0.999),
        cpu.as_secs_f64() * 1e6 / times.len() as f64,
    );
    Outcome { rate, text }
}

/// Three nodes with logs in memory, and clients of the leader who each write, wait for the answer, and write again.
async fn cluster(halves: Arc<dyn Halves>, clients: usize, time: Duration) -> Outcome {
    let mut nodes = Vec::new();
    let mut peers = Vec::new();
    for id in 1..4 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let peer = Peer::new(id, listener.local_addr().expect("its address").to_string());
        let transport: Arc<dyn Transport> =
            halves.transport(Local { cluster: CLUSTER, node: peer.clone() }, Options::default()).into();
        let node = Raft::builder(peer.id, CLUSTER).transport(transport).log(MemLog::new());
        let node = node.snapshots(MemSnapshots::new()).state_machine(Echo).start().await.expect("a node starts");
        tokio::spawn(halves.serve(listener, node.inbox(), None, Box::pin(std::future::pending())));
        nodes.push(node);
        peers.push(peer);
    }
    let first = nodes.first().expect("one of three").clone();
    first.initialize(Membership::new(peers)).await.expect("a cluster");
    first.read(Consistency::Linearizable).await.expect("a leader");
    let leader = first.status().await.expect("it runs").leader;
    let leader = nodes.iter().find(|node| Some(node.id()) == leader).expect("one of them");
    let (done, mut writers) = (Arc::new(AtomicU64::new(0)), tokio::task::JoinSet::new());
    for _ in 0..clients {
        let (leader, done) = (leader.clone(), done.clone());
        writers.spawn(async move {
            loop {
                leader.write(Bytes::from_static(&[7; PAYLOAD])).await.expect("a write succeeds");
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    sleep(time / 4).await;
    let (begin, cpu, before) = (Instant::now(), cpu_time(), done.load(Ordering::Relaxed));
    sleep(time).await;
    let (written, seconds) = ((done.load(Ordering::Relaxed) - before) as f64, begin.elapsed().as_secs_f64());
    let cpu = cpu_time().saturating_sub(cpu).as_secs_f64() * 1e6 / written;
    writers.shutdown().await;
    for node in nodes {
        node.shutdown().await;
    }
    let (rate, latency) = (written / seconds, seconds * 1e6 * clients as f64 / written);
    Outcome { rate, text: format!("{rate:>9.0} writes/s, mean latency {latency:.0} µs, {cpu:.1} µs of CPU a write") }
}

/// What this process has used of the processors; zero where the system does not tell in Linux's way.
fn cpu_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let all: u64 = tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()))
        .sum();
    Duration::from_nanos(all)
}
