//! Connections, with a time limit on those that never become a peer's.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use raftkv::transport_kit::{Arrival, Identity, Link, RefusalLog};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

/// A connection that ends by itself unless a peer says who it is, in time.
pub(crate) struct Guarded {
    link: Link,
    origin: Origin,
    deadline: Option<Pin<Box<Sleep>>>,
    refusals: Arc<RefusalLog>,
}

/// Where a stream comes from; each request carries a copy.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) remote: SocketAddr,
    /// Whose certificate was presented.
    pub(crate) identity: Option<Identity>,
    admitted: Arc<AtomicBool>,
}

impl Origin {
    /// A peer has said who it is: the connection may stay.
    pub(crate) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }
}

impl Guarded {
    /// A connection that has so long.
    pub(crate) fn new(arrival: Arrival, limit: Duration, refusals: Arc<RefusalLog>) -> Self {
        let Arrival { link, identity, remote } = arrival;
        let origin = Origin { remote, identity, admitted: Arc::default() };
        Self { link, origin, deadline: Some(Box::pin(sleep(limit))), refusals }
    }

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
        let read = Pin::new(&mut self.link).poll_read(cx, buf);
        if let Poll::Ready(Err(_)) = read
            && let Some(reason) = self.link.trouble().get()
        {
            self.refusals.refused(Some(self.origin.remote), reason);
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.link.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_shutdown(cx)
    }
}
