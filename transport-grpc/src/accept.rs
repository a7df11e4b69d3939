//! The listener's connections, with a time limit on those that never become a peer's.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;
use tracing::warn;

/// How long to wait when the system has no more file descriptors, or the like.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection that ends by itself unless a peer says who it is, in time.
pub(crate) struct Guarded {
    stream: TcpStream,
    origin: Origin,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Where a stream comes from; each request carries a copy.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) remote: SocketAddr,
    admitted: Arc<AtomicBool>,
}

impl Origin {
    /// A peer has said who it is: the connection may stay.
    pub(crate) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }
}

/// Accepts as long as the listener lives; what passes is logged. An error that will not pass is told to `failed`, and nothing
/// follows it.
pub(crate) fn accept(
    listener: TcpListener,
    limit: Duration,
    failed: oneshot::Sender<io::Error>,
) -> impl Stream<Item = io::Result<Guarded>> {
    stream::unfold((listener, failed), move |(listener, failed)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, remote)) => match guard(stream, remote, limit) {
                    Ok(guarded) => return Some((Ok(guarded), (listener, failed))),
                    // The peer may be gone already: that says nothing of the listener.
                    Err(error) => warn!(%error, %remote, "a peer's connection is of no use"),
                },
                Err(error) if is_final(&error) => {
                    // Nobody listens when the server has ended already.
                    let _ = failed.send(error);
                    return std::future::pending().await;
                }
                Err(error) => {
                    warn!(%error, "a peer's connection could not be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    })
}

/// Whether the listener itself is broken: anything else concerns one connection, or passes.
fn is_final(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK))
}

fn guard(stream: TcpStream, remote: SocketAddr, limit: Duration) -> io::Result<Guarded> {
    stream.set_nodelay(true)?;
    let origin = Origin { remote, admitted: Arc::default() };
    Ok(Guarded { stream, origin, deadline: Some(Box::pin(sleep(limit))) })
}

impl Guarded {
    /// Costs a look at the clock's task only until the deadline has passed or the peer was admitted.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(deadline) = &mut self.deadline else { return Ok(()) };
        if self.origin.admitted.load(Ordering::Relaxed) {
            self.deadline = None;
        } else if deadline.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no peer said who it is in time"));
        }
        Ok(())
    }
}

impl Connected for Guarded {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
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
