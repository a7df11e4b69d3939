//! A connection's byte stream, with or without TLS, and what was found out about the other side in passing.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::entrance::Visitor;
use super::lane::Failure;
use super::tls::{Denied, Tls};
use crate::types::NodeId;

/// The bytes of one connection.
#[derive(Debug)]
pub struct Link {
    bytes: Bytes,
    trouble: Trouble,
    /// Whether anything came.
    heard: bool,
    expires: Option<SystemTime>,
}

#[derive(Debug)]
enum Bytes {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::TlsStream<TcpStream>>),
}

/// Why the other side does not take part in what was to be spoken, once that is known: it refused the handshake of TLS, or speaks TLS where this side does not.
/// It has looked at nothing then that was sent to it. Whoever runs a protocol on a link learns of that, however little is left of errors in the libraries between.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<OnceLock<String>>);

impl Trouble {
    /// The reason, in words.
    #[must_use]
    pub fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// The reason for a failure, if this is it: one that only an operator can mend.
    #[must_use]
    pub fn behind(&self, failure: Failure) -> Failure {
        self.get().map_or(failure, Failure::refused)
    }

    fn note(&self, reason: String) -> io::Error {
        let error = io::Error::new(io::ErrorKind::InvalidData, reason.clone());
        // The first one counts.
        let _ = self.0.set(reason);
        error
    }
}

/// Where one side speaks TLS and the other does not.
const ONE_SIDED: &str = "the other side speaks TLS, and this one does not: give certificates to both, or to neither";

/// Whether a connection on which TLS is spoken begins with this byte: of a handshake, or of an alert. No transport without TLS may use these for its first
/// byte.
fn begins_tls(byte: u8) -> bool {
    matches!(byte, 0x15 | 0x16)
}

impl Link {
    /// A connection without TLS. It fails, with a reason, when the other side speaks TLS.
    #[must_use]
    pub fn plain(stream: TcpStream) -> Self {
        Self { bytes: Bytes::Plain(stream), trouble: Trouble::default(), heard: false, expires: None }
    }

    #[cfg(feature = "tls")]
    pub(super) fn protected(
        stream: impl Into<tokio_rustls::TlsStream<TcpStream>>,
        expires: Option<SystemTime>,
    ) -> Self {
        Self { bytes: Bytes::Tls(Box::new(stream.into())), trouble: Trouble::default(), heard: false, expires }
    }

    /// The last moment at which the certificate is accepted, or at least one of its chain, that whoever connected has shown; none without TLS, and none of a
    /// connection that this side has opened. That it passes does not end the connection: this is for those who want it to.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// The connection below.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match &self.bytes {
            Bytes::Plain(stream) => stream,
            #[cfg(feature = "tls")]
            Bytes::Tls(stream) => stream.get_ref().0,
        }
    }

    /// What will be known of trouble with the other side.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { bytes, trouble, heard, expires: _ } = &mut *self;
        match bytes {
            Bytes::Plain(stream) => {
                let before = buf.filled().len();
                ready!(Pin::new(stream).poll_read(cx, buf))?;
                if !*heard && let Some(first) = buf.filled().get(before) {
                    *heard = true;
                    if begins_tls(*first) {
                        return Poll::Ready(Err(trouble.note(ONE_SIDED.into())));
                    }
                }
                Poll::Ready(Ok(()))
            }
            #[cfg(feature = "tls")]
            Bytes::Tls(stream) => {
                let before = buf.filled().len();
                let outcome = ready!(Pin::new(stream).poll_read(cx, buf));
                *heard |= buf.filled().len() > before;
                Poll::Ready(outcome.map_err(|error| match super::tls::refusal(&error) {
                    // Whoever has spoken had nothing against the handshake.
                    Some(reason) if !*heard => trouble.note(reason),
                    // Above all damage on the way, which says nothing of what the other side has done by then.
                    Some(_) | None => error,
                }))
            }
        }
    }
}

/// Passes a call on to the stream below.
macro_rules! below {
    ($self:ident, $call:ident $(, $argument:expr)*) => {
        match &mut $self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).$call($($argument),*),
            #[cfg(feature = "tls")]
            Bytes::Tls(stream) => Pin::new(stream).$call($($argument),*),
        }
    };
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        below!(self, poll_write, cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        below!(self, poll_write_vectored, cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.bytes {
            Bytes::Plain(stream) => stream.is_write_vectored(),
            #[cfg(feature = "tls")]
            Bytes::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        below!(self, poll_flush, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        below!(self, poll_shutdown, cx)
    }
}

/// Opens a TCP connection to `HOST:PORT`, with `TCP_NODELAY` set. The caller limits the time.
///
/// # Errors
/// Nobody listens there, or it is no address.
pub async fn connect(address: &str) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).await.map_err(|error| {
        if error.kind() == io::ErrorKind::InvalidInput {
            Failure::unreachable(format!("{address:?} is no host:port: {error}"))
        } else {
            Failure::unreachable(error.to_string())
        }
    })?;
    // Without it answers are slower, and right all the same.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// The nodes that a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(Arc<[NodeId]>);

impl Identity {
    #[cfg(feature = "tls")]
    pub(super) fn of(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self(nodes.into_iter().collect())
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.0
    }

    /// Whether it is this node's.
    ///
    /// # Errors
    /// It is not; the reason says whose it is.
    pub fn check(&self, node: NodeId) -> Result<(), String> {
        if self.0.contains(&node) {
            return Ok(());
        }
        let named = match &*self.0 {
            [] => "names no node".to_owned(),
            nodes => format!("is for {}", nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        Err(format!("the certificate {named}, and is to be for node {node}: it needs the DNS name {}", node_name(node)))
    }
}

/// What a certificate of this node has among its DNS names: `node-7.raftkv`.
#[must_use]
pub fn node_name(node: NodeId) -> String {
    format!("node-{}.raftkv", node.0)
}

/// The node whose name this is.
#[cfg(feature = "tls")]
pub(super) fn named_node(name: &str) -> Option<NodeId> {
    let digits = name.strip_prefix("node-")?.strip_suffix(".raftkv")?;
    let id = digits.parse().ok()?;
    // No second spelling.
    (node_name(NodeId(id)) == name).then_some(NodeId(id))
}

/// What a receiving half asks of connections before anything is said on them.
#[derive(Clone, Debug)]
pub struct Gate {
    /// With TLS: whom to trust, and how to prove who this is. Without it every connection passes.
    pub tls: Option<Tls>,
    /// What is spoken on TLS (ALPN): whoever speaks something else is told so.
    pub protocol: &'static [u8],
    /// How long the handshake of TLS may take.
    pub limit: Duration,
}

/// A connection that has passed a [`Gate`].
#[derive(Debug)]
pub struct Arrival {
    /// Its bytes.
    pub link: Link,
    /// Whose certificate was presented; none without TLS.
    pub identity: Option<Identity>,
    /// Where it comes from.
    pub remote: SocketAddr,
}

impl Gate {
    /// Lets a connection pass, or tells why not. It is closed then, and the other side was told as far as TLS has words for it.
    ///
    /// # Errors
    /// The other side does not speak TLS, has no certificate that is valid here, or took too long.
    pub async fn pass(&self, stream: TcpStream, remote: SocketAddr) -> Result<Arrival, Denied> {
        let Some(tls) = &self.tls else { return Ok(Arrival { link: Link::plain(stream), identity: None, remote }) };
        let (link, identity) = tls.accept(stream, self.protocol, self.limit).await?;
        Ok(Arrival { link, identity: Some(identity), remote })
    }

    /// Lets connections pass, beside each other; the others are reported to `denied`, save those that must go for others meanwhile. There are as many handshakes at a
    /// time as there may be connections that have not begun: were there fewer, those of one address could keep all others waiting.
    pub fn all<S>(
        self,
        connections: S,
        denied: impl Fn(SocketAddr, Denied) + Send + 'static,
    ) -> impl Stream<Item = (Arrival, Visitor)> + Send + 'static
    where
        S: Stream<Item = (TcpStream, SocketAddr, Visitor)> + Send + 'static,
    {
        if self.tls.is_none() {
            let plain = |(stream, remote, with)| (Arrival { link: Link::plain(stream), identity: None, remote }, with);
            return connections.map(plain).left_stream();
        }
        let mut connections = Box::pin(connections);
        let mut handshakes = JoinSet::new();
        let passing = stream::poll_fn(move |cx| {
            loop {
                while let Poll::Ready(Some((stream, remote, mut visitor))) = connections.poll_next_unpin(cx) {
                    let gate = self.clone();
                    handshakes.spawn(async move {
                        let passed = match select(&mut visitor.eviction, pin!(gate.pass(stream, remote))).await {
                            Either::Left(_) => None,
                            Either::Right((passed, _)) => Some(passed),
                        };
                        (remote, passed, visitor)
                    });
                }
                match handshakes.poll_join_next(cx) {
                    Poll::Ready(Some(Ok((_, Some(Ok(arrival)), visitor)))) => {
                        return Poll::Ready(Some((arrival, visitor)));
                    }
                    Poll::Ready(Some(Ok((remote, Some(Err(why)), _)))) => denied(remote, why),
                    // Whoever needed the room has told of it.
                    Poll::Ready(Some(Ok((_, None, _)))) => {}
                    Poll::Ready(Some(Err(error))) => tracing::warn!(%error, "a TLS handshake ended in a panic"),
                    // The stream of connections has no end, and wakes this one.
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                }
            }
        });
        passing.right_stream()
    }

    /// Whether whoever presented this certificate may speak for this node.
    ///
    /// # Errors
    /// Why not: both sides should log it.
    pub fn vouches(&self, identity: Option<&Identity>, from: NodeId) -> Result<(), String> {
        match (&self.tls, identity) {
            (None, _) => Ok(()),
            (Some(_), Some(identity)) => identity.check(from),
            (Some(_), None) => Err("this connection does not come over TLS, which this node demands".into()),
        }
    }
}

/// Puts TLS around a connection that was opened to a node, if that is wanted.
///
/// # Errors
/// Whoever answers does not speak TLS, or has no certificate that is valid here, and for this node.
pub async fn connect_link(
    tls: Option<&Tls>,
    stream: TcpStream,
    node: NodeId,
    protocol: &'static [u8],
) -> Result<Link, Failure> {
    match tls {
        Some(tls) => tls.connect_to_node(stream, node, protocol).await,
        None => Ok(Link::plain(stream)),
    }
}

/// How long a side that was denied may take to fetch the reason.
#[cfg(feature = "tls")]
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Ends this side of a connection, and reads what still comes: if it was closed over unread bytes, the other side could lose what it was told last.
#[cfg(feature = "tls")]
pub(super) async fn see_off(mut stream: TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let _ = tokio::time::timeout(LAST_WORDS, async {
        let _ = stream.shutdown().await;
        let mut scratch = [0; 4096];
        while matches!(stream.read(&mut scratch).await, Ok(1..)) {}
    })
    .await;
}
