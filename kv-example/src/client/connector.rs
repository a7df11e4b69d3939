//! How an endpoint's connections are opened, and whether there are any: what had no connection was never sent.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
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
}

impl Connections {
    /// What to ask later whether a connection was open at any moment from now on.
    pub(super) fn watch(&self) -> Watch<'_> {
        // In this order, and counted in the other one: a connection that is made meanwhile is seen either here or later.
        let made = self.made.load(Ordering::SeqCst);
        let open = self.open.load(Ordering::SeqCst) > 0;
        Watch { connections: self, made, open }
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

/// Opens connections to one address.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    address: HostPort,
    timeout: Duration,
    connections: Arc<Connections>,
}

impl Connector {
    pub(super) fn new(address: HostPort, timeout: Duration, connections: Arc<Connections>) -> Self {
        Self { address, timeout, connections }
    }

    async fn connect(self) -> io::Result<TokioIo<Connection>> {
        let connecting = TcpStream::connect((self.address.host(), self.address.port()));
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {:?}", self.timeout));
        let stream = tokio::time::timeout(self.timeout, connecting).await.map_err(late)??;
        stream.set_nodelay(true)?;
        self.connections.open.fetch_add(1, Ordering::SeqCst);
        self.connections.made.fetch_add(1, Ordering::SeqCst);
        Ok(TokioIo::new(Connection { stream, connections: self.connections }))
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

/// A connection that is counted as long as it is there.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    connections: Arc<Connections>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
        let connector = Connector::new(address, Duration::from_secs(10), Arc::clone(&connections));
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
