//! Plain TCP: one connection to each peer and lane, on which batches follow each other. TCP's own flow control holds a sender back.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use raftkv::{ClusterId, Envelope, Hello, Inbox, Lane, NodeId, Peer, Transport, TransportError};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::lock;

const MAX_MESSAGE: u64 = 64 << 20;
const MAX_FRAME: usize = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(2);

type Connection = Framed<TcpStream, LengthDelimitedCodec>;
/// A connection, and the address that it leads to.
type Link = Arc<tokio::sync::Mutex<Option<(Arc<str>, Connection)>>>;

/// The sending half.
pub struct Tcp {
    cluster: ClusterId,
    me: Peer,
    links: Mutex<HashMap<(NodeId, Lane), Link>>,
}

impl Tcp {
    /// For this node of this cluster.
    pub fn new(cluster: ClusterId, me: Peer) -> Self {
        Self { cluster, me, links: Mutex::default() }
    }

    async fn connect(&self, to: &Peer) -> io::Result<Result<Connection, String>> {
        let mut connection = framed(TcpStream::connect(&*to.address).await?)?;
        write(&mut connection, &Hello::new(self.cluster, self.me.clone(), to.id)).await?;
        let answer: Result<(), String> = read(&mut connection).await?;
        Ok(answer.map(|()| connection))
    }
}

#[async_trait]
impl Transport for Tcp {
    async fn send(&self, to: &Peer, mut batch: Vec<Envelope>) -> Result<(), TransportError> {
        let Some(lane) = batch.first().map(|envelope| envelope.message.lane()) else { return Ok(()) };
        let unreachable = |e: io::Error| TransportError::Unreachable { peer: to.clone(), reason: e.to_string() };
        let link = lock(&self.links).entry((to.id, lane)).or_default().clone();
        let mut link = link.lock().await;
        // Taken out: if this is given up half-way, nobody goes on behind half a batch.
        let mut connection = match link.take().filter(|(address, _)| *address == to.address) {
            Some((_, connection)) => connection,
            None => {
                let connected = timeout(PATIENCE, self.connect(to)).await.map_err(io::Error::from).flatten();
                let refused = |reason| TransportError::Refused { peer: to.clone(), reason };
                connected.map_err(unreachable)?.map_err(refused)?
            }
        };
        let largest = batch.iter().map(|envelope| envelope.message.cost()).max().unwrap_or(0);
        batch.retain(|envelope| envelope.message.cost() <= MAX_MESSAGE);
        write(&mut connection, &batch).await.map_err(unreachable)?;
        *link = Some((to.address.clone(), connection));
        let too_large = TransportError::TooLarge { peer: to.clone(), size: largest, limit: MAX_MESSAGE };
        if largest > MAX_MESSAGE { Err(too_large) } else { Ok(()) }
    }
}

/// The receiving half. Ends, with all of its connections, when it is dropped.
pub async fn serve(listener: TcpListener, inbox: Inbox) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(receive(stream, inbox.clone()))),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn receive(stream: TcpStream, inbox: Inbox) -> io::Result<()> {
    let mut connection = framed(stream)?;
    let hello: Hello = timeout(PATIENCE, read(&mut connection)).await??;
    let answer = inbox.greet(&hello).map_err(|refusal| refusal.to_string());
    write(&mut connection, &answer).await?;
    while answer.is_ok()
        && let Ok(batch) = read::<Vec<Envelope>>(&mut connection).await
        && inbox.deliver(&hello.from, batch).await.is_ok()
    {}
    inbox.peer_lost(hello.from.id);
    Ok(())
}

fn framed(stream: TcpStream) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    Ok(LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_framed(stream))
}

async fn write(connection: &mut Connection, value: &impl Serialize) -> io::Result<()> {
    connection.send(Bytes::from(postcard::to_stdvec(value).map_err(io::Error::other)?)).await
}

async fn read<T: DeserializeOwned>(connection: &mut Connection) -> io::Result<T> {
    let frame = connection.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
    postcard::from_bytes(&frame).map_err(io::Error::other)
}
