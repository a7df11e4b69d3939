//! Nodes, a proxy that can go silent, and what the log said.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "shared by several tests, which report by panicking"
)]

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use raftkv::{
    Arrivals, Body, ClusterId, Entry, EntryKind, Envelope, GroupId, Inbox, Index, LogId, Message, NodeId, Peer, Term,
    Transport, TransportError,
};
use raftkv_transport_grpc::{GrpcTransport, Local, Options, ServerOptions, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

pub const CLUSTER: ClusterId = ClusterId(0xc1);
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A receiving half.
pub struct Receiver {
    pub peer: Peer,
    pub arrivals: Arrivals,
    stop: oneshot::Sender<()>,
    server: JoinHandle<io::Result<()>>,
}

impl Receiver {
    pub async fn start(id: u64, options: ServerOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let peer = Peer::new(id, listener.local_addr().expect("its address").to_string());
        let (inbox, arrivals) = Inbox::channel(CLUSTER, GroupId(0), NodeId(id));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, inbox, options, async {
            let _ = stopped.await;
        }));
        Self { peer, arrivals, stop, server }
    }

    pub async fn next(&mut self) -> Vec<Envelope> {
        let (_, batch) = within("the next arrival", self.arrivals.next()).await.expect("an open inbox");
        batch
    }

    /// Takes what is there until this number comes.
    pub async fn until(&mut self, wanted: u64) {
        while !self.next().await.iter().any(|e| number(e) == Some(wanted)) {}
    }

    pub async fn stop(self) {
        let _ = self.stop.send(());
        within("the server's end", self.server).await.expect("no panic").expect("a good end");
    }
}

/// Node 1's sending half.
pub fn sender(options: Options) -> GrpcTransport {
    GrpcTransport::new(Local { cluster: CLUSTER, node: Peer::new(1, "127.0.0.1:1") }, options)
}

/// A control message with a number.
pub fn tick(to: &Peer, number: u64) -> Envelope {
    envelope(to, Body::Heartbeat { commit: Index(0), round: number, lease: Duration::ZERO })
}

/// A bulk message with a number.
pub fn load(to: &Peer, number: u64, size: usize) -> Envelope {
    let data = Bytes::from(vec![7; size]);
    let entries = vec![Entry { id: LogId::new(1, number + 1), kind: EntryKind::Command, data }];
    envelope(to, Body::Append { prev: LogId::new(1, number), entries, commit: Index(0) })
}

fn envelope(to: &Peer, body: Body) -> Envelope {
    let message = Message { term: Term(1), body };
    Envelope { cluster: CLUSTER, group: GroupId(0), from: NodeId(1), to: to.id, message }
}

pub fn number(envelope: &Envelope) -> Option<u64> {
    if let Body::Heartbeat { round, .. } = envelope.message.body {
        return Some(round);
    }
    if let Body::Append { prev, .. } = envelope.message.body { Some(prev.index.0) } else { None }
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come to an end"),
    }
}

/// Sends numbered messages, one every 5 ms, until one fails; tells the error.
pub async fn until_it_fails(transport: &GrpcTransport, to: &Peer, message: impl Fn(u64) -> Envelope) -> TransportError {
    let deadline = Instant::now() + PATIENCE;
    for n in 1_000_000.. {
        if let Err(error) = within("a send", transport.send(to, vec![message(n)])).await {
            return error;
        }
        assert!(Instant::now() < deadline, "every send to {to} succeeds");
        sleep(Duration::from_millis(5)).await;
    }
    panic!("the numbers have no end")
}

/// Sends one message again and again until it does not fail.
pub async fn until_it_works(transport: &GrpcTransport, to: &Peer, message: Envelope) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = within("a send", transport.send(to, vec![message.clone()])).await {
        assert!(Instant::now() < deadline, "{to} never comes back: {error}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// What a proxy does with what it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    Forward,
    /// Reads nothing and writes nothing, in both directions; connections stay open.
    Silent,
    /// Passes on what clients send, and none of the answers.
    NoAnswers,
}

/// Stands between nodes on loopback.
pub struct Proxy {
    pub address: String,
    flow: watch::Sender<Flow>,
    /// How many connections came so far.
    pub connections: Arc<AtomicUsize>,
    /// How many of them are open.
    pub open: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    pub async fn start(target: &Peer) -> Self {
        Self::hesitant(target, Duration::ZERO).await
    }

    /// One that passes nothing on for the first part of each connection's life.
    pub async fn hesitant(target: &Peer, hesitation: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let (flow, flows) = watch::channel(Flow::Forward);
        let (connections, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, live, target) = (connections.clone(), open.clone(), target.address.to_string());
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut pipes = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                count.fetch_add(1, Ordering::SeqCst);
                let (flows, live, target) = (flows.clone(), live.clone(), target.clone());
                pipes.spawn(async move {
                    live.fetch_add(1, Ordering::SeqCst);
                    sleep(hesitation).await;
                    let _ = forward(client, target, flows).await;
                    live.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, flow, connections, open, _accepting: accepting }
    }

    pub fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }

    /// The node behind it, as reached through it.
    pub fn peer(&self, behind: &Peer) -> Peer {
        Peer { id: behind.id, address: self.address.as_str().into() }
    }
}

async fn forward(client: TcpStream, target: String, flows: watch::Receiver<Flow>) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        end = pump(from_client, to_server, flows.clone(), |flow| flow != Flow::Silent) => end,
        end = pump(from_server, to_client, flows, |flow| flow == Flow::Forward) => end,
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut flows: watch::Receiver<Flow>,
    passes: impl Fn(Flow) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let gone = |_| io::Error::other("the proxy is gone");
        flows.wait_for(|flow| passes(*flow)).await.map_err(gone)?;
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        flows.wait_for(|flow| passes(*flow)).await.map_err(gone)?;
        to.write_all(&buffer[..n]).await?;
    }
}

/// Catches what this thread logs, as long as the guard lives.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn start(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// The lines that hold all of these words.
    pub fn lines(&self, words: &[&str]) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned();
        text.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(Into::into).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
