//! Connections, with limits on those that never become a peer's, and on peers that take nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use raftkv::metrics::RefusedFor;
use raftkv::transport_kit::http2::{Http2Refusal, Http2Refusals};
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
    pub(crate) http2: Http2Refusals,
}

/// What HTTP/2 refuses by itself is counted with what this crate does.
fn tell(refusals: &RefusalLog, remote: SocketAddr, what: Http2Refusal) {
    let reason = match what {
        Http2Refusal::Header => "the header of a request was too large (`max_header_bytes`)",
        Http2Refusal::Stream => "a connection has too many streams open (`max_streams_per_connection`)",
    };
    refusals.refused(RefusedFor::Limit, Some(remote), reason);
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
        let written = ready!(Pin::new(&mut self.link).poll_write(cx, buf))?;
        let Self { http2, remote, refusals, .. } = &mut *self;
        http2.written(buf.get(..written).unwrap_or(buf), |what| tell(refusals, *remote, what));
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.link).poll_write_vectored(cx, bufs))?;
        let Self { http2, remote, refusals, .. } = &mut *self;
        http2.written_of(bufs, written, |what| tell(refusals, *remote, what));
        Poll::Ready(Ok(written))
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
