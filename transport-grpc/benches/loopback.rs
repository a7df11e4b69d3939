//! What two nodes can say to each other over loopback: the rate one way, and the time of a round trip.
//!
//! `cargo bench -p raftkv-transport-grpc [-- SECONDS [WORKERS]]`: seconds for each line (default 2), and the runtime's threads
//! (default 2), which both nodes share.

#![allow(clippy::expect_used, missing_docs, reason = "a benchmark reports by panicking")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use raftkv::{
    AppendReply, Arrivals, Body, ClusterId, Entry, EntryKind, Envelope, GroupId, Inbox, Index, LogId, Message, Peer,
    Term, Transport,
};
use raftkv_transport_grpc::{GrpcTransport, Local, Options, ServerOptions, serve};
use tokio::net::TcpListener;

const CLUSTER: ClusterId = ClusterId(1);
const PAYLOAD: usize = 256;

struct Node {
    peer: Peer,
    transport: Arc<GrpcTransport>,
    arrivals: Arrivals,
}

impl Node {
    async fn start(id: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let peer = Peer::new(id, listener.local_addr().expect("its address").to_string());
        let (inbox, arrivals) = Inbox::channel(CLUSTER, GroupId(0), peer.id);
        tokio::spawn(serve(listener, inbox, ServerOptions::default(), std::future::pending()));
        let transport = GrpcTransport::new(Local { cluster: CLUSTER, node: peer.clone() }, Options::default());
        Self { peer, transport: Arc::new(transport), arrivals }
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

fn entries(batch: &[Envelope]) -> u64 {
    let of = |e: &Envelope| if let Body::Append { entries, .. } = &e.message.body { entries.len() as u64 } else { 0 };
    batch.iter().map(of).sum()
}

/// Sends appends of `count` entries as fast as they go; prints what arrives.
async fn one_way(count: u64, time: Duration) {
    let (a, mut b) = (Node::start(1).await, Node::start(2).await);
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
    println!(
        "one way, {count:>4} entries a message: {:>9.0} messages/s {:>10.0} entries/s {:>6.0} MB/s, {:>6.2} µs of CPU a message, {:>5.2} an entry",
        messages as f64 / seconds,
        total as f64 / seconds,
        (total as usize * PAYLOAD) as f64 / seconds / 1e6,
        cpu.as_secs_f64() * 1e6 / messages as f64,
        cpu.as_secs_f64() * 1e6 / total as f64,
    );
}

/// One message there, one back, again and again; prints how long a round takes.
async fn ping_pong(name: &str, time: Duration, ping: impl Fn(u64) -> Body, pong: Body) {
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    let (home, away) = (a.peer.clone(), b.peer.clone());
    let answers = tokio::spawn(async move {
        while let Some((sender, _)) = b.arrivals.next().await {
            let answer = envelope(&b.peer, &sender, pong.clone());
            b.transport.send(&sender, vec![answer]).await.expect("a live peer");
        }
    });
    let mut times = Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).expect("three digits");
    let (mut begin, mut cpu, mut warm) = (Instant::now(), cpu_time(), false);
    for n in 1.. {
        let sent = Instant::now();
        a.transport.send(&away, vec![envelope(&home, &away, ping(n))]).await.expect("a live peer");
        a.arrivals.next().await.expect("an open inbox");
        times.saturating_record(sent.elapsed().as_nanos() as u64);
        if begin.elapsed() >= time {
            break;
        }
        if !warm && n == 100 {
            (begin, cpu, warm) = (Instant::now(), cpu_time(), true);
            times.reset();
        }
    }
    let cpu = cpu_time().saturating_sub(cpu);
    answers.abort();
    let _ = answers.await;
    let micros = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "round trip, {name}: p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs, {:.0} rounds/s, {:.1} µs of CPU a round",
        micros(0.5),
        micros(0.99),
        micros(0.999),
        times.len() as f64 / begin.elapsed().as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / times.len() as f64,
    );
}

/// What this process has used of the processors; zero where the system does not tell in Linux's way.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let own = stat.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let all: u64 = tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()))
        .sum();
    Duration::from_nanos(all.max(own))
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<f64>().ok());
    let time = Duration::from_secs_f64(numbers.next().unwrap_or(2.0));
    let workers = numbers.next().unwrap_or(2.0) as usize;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        println!("{PAYLOAD}-byte entries, {workers} threads for both nodes");
        for count in [1, 16, 64, 256, 2048] {
            // On a worker, as a node would be.
            tokio::spawn(one_way(count, time)).await.expect("no panic");
        }
        let heartbeat = |n| Body::Heartbeat { commit: Index(n), round: n, lease: Duration::ZERO };
        let reply = Body::HeartbeatReply {
            round: 1,
            matching: Index(1),
            stored: Index(1),
            priority: Some(0),
            lease: Duration::ZERO,
        };
        tokio::spawn(ping_pong("heartbeats", time, heartbeat, reply)).await.expect("no panic");
        let payload = Bytes::from(vec![7; PAYLOAD]);
        let accepted = Body::AppendReply(AppendReply::Accepted { stored: Index(1) });
        let one = move |n| append(n, 1, &payload);
        tokio::spawn(ping_pong("appends of one entry", time, one, accepted)).await.expect("no panic");
    });
}
