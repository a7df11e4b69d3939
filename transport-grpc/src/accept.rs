//! Connections, with limits on those that never become a peer's, and on peers that take nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use raftkv::metrics::RefusedFor;
use raftkv::transport_kit::{Admission, Guarded, Identity, Link, Place, RefusalLog};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// A connection that ends by itself unless a peer says who it is, in time.
pub(crate) struct Incoming {
    pub(crate) link: Guarded<Link>,
    pub(crate) place: Place,
    pub(crate) remote: SocketAddr,
    /// Whose certificate was presented.
    pub(crate) identity: Option<Identity>,
    pub(crate) refusals: Arc<RefusalLog>,
}

/// Where a stream comes from; each request carries a copy.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) remote: SocketAddr,
    /// Whose certificate was presented.
    pub(crate) identity: Option<Identity>,
    admission: Admission,
    place: Place,
}

impl Origin {
    /// A peer has said on it who it is: the connection may stay.
    pub(crate) fn admit(&self) {
        self.admission.grant();
        self.place.begin();
    }
}

impl Connected for Incoming {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        let (identity, admission) = (self.identity.clone(), self.link.admission());
        Origin { remote: self.remote, identity, admission, place: self.place.clone() }
    }
}

impl AsyncRead for Incoming {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.link).poll_read(cx, buf);
        if let Poll::Ready(Err(_)) = read
            && let Some(reason) = self.link.get_ref().trouble().get()
        {
            self.refusals.refused(RefusedFor::Error, Some(self.remote), reason);
        }
        read
    }
}

impl AsyncWrite for Incoming {
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
