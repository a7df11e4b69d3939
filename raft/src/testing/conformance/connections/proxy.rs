//! A way between nodes that can be cut without anybody being told.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::select;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::types::Peer;

/// What a proxy does with what it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Passes everything on.
    Forward,
    /// Reads nothing and writes nothing, in both directions; connections stay open.
    Silent,
    /// Passes on what clients send, and none of the answers.
    NoAnswers,
}

/// Stands between nodes on loopback.
pub struct Proxy {
    /// Where it listens.
    pub address: String,
    flow: watch::Sender<Flow>,
    /// How many connections came so far.
    pub connections: Arc<AtomicUsize>,
    /// How many of them are open.
    pub open: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// One in front of this node.
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

    /// From now on, for connections that are open as well.
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
    let there = pump(from_client, to_server, flows.clone(), |flow| flow != Flow::Silent);
    let back = pump(from_server, to_client, flows, |flow| flow == Flow::Forward);
    select(pin!(there), pin!(back)).await.factor_first().0
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
