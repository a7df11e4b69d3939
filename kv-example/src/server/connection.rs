//! A client's connection, which does not hold up a shutdown before it has said anything.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A TCP connection. HTTP/2 ends one in good order when its client takes part; one that has sent nothing yet (a port
/// scanner, a load balancer's probe) reads as ended instead, as soon as the server ends.
pub(super) struct ClientConnection {
    stream: TcpStream,
    /// Completes when the server ends; gone once the client has spoken.
    silent_until: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Its place among the connections that there may be.
    _permit: OwnedSemaphorePermit,
}

impl ClientConnection {
    pub(super) fn new(
        stream: TcpStream,
        end: impl Future<Output = ()> + Send + 'static,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { stream, silent_until: Some(Box::pin(end)), _permit: permit }
    }
}

impl Connected for ClientConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for ClientConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.silent_until = None;
        } else if let Some(end) = &mut self.silent_until
            && end.as_mut().poll(cx).is_ready()
        {
            self.silent_until = None;
            return Poll::Ready(Ok(()));
        }
        read
    }
}

impl AsyncWrite for ClientConnection {
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
