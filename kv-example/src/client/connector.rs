//! How an endpoint's connections are opened, and whether there are any: what had no connection was never sent.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use raftkv::transport_kit::{Gathering, Link, Tls, Trouble};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::codegen::Service;

use crate::config::HostPort;

/// The connections of an endpoint.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: AtomicU64,
    /// How many there have been so far.
    made: AtomicU64,
    /// Why the newest one was refused, or will be.
    trouble: Mutex<Trouble>,
}

impl Connections {
    /// What to ask later whether a connection was open at any moment from now on.
    pub(super) fn watch(&self) -> Watch<'_> {
        // In this order, and counted in the other one: a connection that is made meanwhile is seen either here or later.
        let made = self.made.load(Ordering::SeqCst);
        let open = self.open.load(Ordering::SeqCst) > 0;
        Watch { connections: self, made, open }
    }

    /// Why the server did not let the newest one in, if it did not. With TLS 1.3 that is known only after the handshake. It says nothing of what was sent on others.
    pub(super) fn refused(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get().map(str::to_owned)
    }
}

pub(super) struct Watch<'a> {
    connections: &'a Connections,
    made: u64,
    open: bool,
}

impl Watch<'_> {
    /// Whether none was open since.
    pub(super) fn saw_none(&self) -> bool {
        !self.open && self.connections.made.load(Ordering::SeqCst) == self.made
    }
}

/// What is spoken on TLS.
pub(crate) const ALPN: &[u8] = b"h2";

/// Opens a connection, over TLS where there are certificates. The caller limits the time.
pub(crate) async fn open(address: &HostPort, tls: Option<&Tls>) -> io::Result<Link> {
    let stream = TcpStream::connect((address.host(), address.port())).await?;
    stream.set_nodelay(true)?;
    match tls {
        Some(tls) => {
            let connected = tls.connect_to_host(stream, address.host(), ALPN).await;
            connected.map_err(|failure| io::Error::other(failure.reason().to_owned()))
        }
        None => Ok(Link::plain(stream)),
    }
}

/// Opens connections to one address.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    address: HostPort,
    timeout: Duration,
    tls: Option<Tls>,
    connections: Arc<Connections>,
}

impl Connector {
    pub(super) fn new(address: HostPort, timeout: Duration, tls: Option<Tls>, connections: Arc<Connections>) -> Self {
        Self { address, timeout, tls, connections }
    }

    async fn connect(self) -> io::Result<TokioIo<Connection>> {
        let connecting = open(&self.address, self.tls.as_ref());
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {:?}", self.timeout));
        let stream = tokio::time::timeout(self.timeout, connecting).await.map_err(late)??;
        *self.connections.trouble.lock().unwrap_or_else(PoisonError::into_inner) = stream.trouble();
        self.connections.open.fetch_add(1, Ordering::SeqCst);
        self.connections.made.fetch_add(1, Ordering::SeqCst);
        Ok(TokioIo::new(Connection { stream: Gathering::new(stream), connections: self.connections }))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// What whoever has sent something on a connection learns when the server did not let that very one in. HTTP/2 leaves of an error its kind and its words.
fn refusal(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, reason)
}

/// Whether an error is that. The system has such errors as well, for connections that never came to be, and no words for them.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused && error.get_ref().is_some()
}

/// A connection that is counted as long as it is there.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Gathering<Link>,
    connections: Arc<Connections>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match (read, self.stream.get_ref().trouble().get()) {
            (Poll::Ready(Err(_)), Some(reason)) => Poll::Ready(Err(refusal(reason))),
            (read, _) => read,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_seen_by_whoever_watched_before_and_while_it_was_open() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let connections = Arc::new(Connections::default());
        let connector = Connector::new(address, Duration::from_secs(10), None, Arc::clone(&connections));
        let before = connections.watch();
        assert!(before.saw_none());
        let connection = connector.connect().await.unwrap();
        let meanwhile = connections.watch();
        assert!(!before.saw_none() && !meanwhile.saw_none());
        drop(connection);
        assert!(!before.saw_none() && !meanwhile.saw_none(), "it was there");
        assert!(connections.watch().saw_none());
    }
}
