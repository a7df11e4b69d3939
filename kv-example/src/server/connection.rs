//! A client's connection, which does not hold up a shutdown before it has said anything, and does not lose the last answers at its end.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use raftkv::transport_kit::http2::{Http2Refusal, Http2Refusals};
use raftkv::transport_kit::{Gathering, Guarded, Link, Place};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::authority::Authorities;
use super::expiry::{EXPIRED, Expiry};
use super::listen::TurnedAway;

/// How much is read at a time.
const READ_BYTES: usize = 16 << 10;
/// How long a client may take to end its side after this server has ended its own.
const LINGER: Duration = Duration::from_secs(1);

/// Who is told what HTTP/2 refuses on a connection.
pub(super) type Refused = Box<dyn FnMut(Http2Refusal) + Send>;

/// A TCP connection, with or without TLS, which is to begin HTTP/2 in time. HTTP/2 ends one in good order when its client takes part; one that has sent nothing yet (a port
/// scanner, a load balancer's probe) reads as ended instead, as soon as the server ends.
///
/// A socket that is closed while bytes of the client are unread, or on their way, resets the connection. The client's next request may meet that
/// before the client has read what the server sent last: the answers to writes, and which requests were not looked at. They would be lost, and
/// the outcome of those writes unknown. So this side is ended first, and what still comes is read until the client ends its side.
pub(super) struct ClientConnection {
    stream: Gathering<Guarded<Link>>,
    remote: SocketAddr,
    /// Is told when the client speaks TLS where this server does not.
    turned_away: Arc<TurnedAway>,
    authorities: Authorities,
    refusals: Http2Refusals,
    /// Is told what HTTP/2 refuses.
    refused: Refused,
    /// With TLS: when the certificate expires that the client has shown.
    expiry: Option<Expiry>,
    /// What was read and is not asked for yet.
    incoming: BytesMut,
    /// Its place, which others may take until it has asked for something.
    place: Place,
    has_asked: bool,
    /// Completes when the server ends; gone once the client has spoken.
    silent_until: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Whether the client has sent anything.
    has_spoken: bool,
    /// Completes when the client has had the time to end its side; there once this side has ended.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl ClientConnection {
    pub(super) fn new(
        stream: Guarded<Link>,
        place: Place,
        remote: SocketAddr,
        end: impl Future<Output = ()> + Send + 'static,
        turned_away: Arc<TurnedAway>,
        refused: Refused,
    ) -> Self {
        let expiry = stream.get_ref().expires().map(Expiry::new);
        Self {
            expiry,
            stream: Gathering::new(stream),
            remote,
            turned_away,
            authorities: Authorities::default(),
            refusals: Http2Refusals::default(),
            refused,
            incoming: BytesMut::new(),
            place,
            has_asked: false,
            silent_until: Some(Box::pin(end)),
            has_spoken: false,
            lingering: None,
        }
    }

    /// Reads what the client still sends, to its end or until it took too long.
    fn poll_linger(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if limit.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut scratch = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            // Nothing more can be done about a connection that is broken.
            let ended = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf)).is_err() || buf.filled().is_empty();
            if ended {
                return Poll::Ready(());
            }
        }
    }
}

impl Connected for ClientConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.get_ref().get_ref().tcp().connect_info()
    }
}

impl AsyncRead for ClientConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.incoming.is_empty() {
            let mut space = [MaybeUninit::uninit(); READ_BYTES];
            let mut read = ReadBuf::uninit(&mut space);
            let outcome = Pin::new(&mut this.stream).poll_read(cx, &mut read);
            if !read.filled().is_empty() {
                this.silent_until = None;
                this.has_spoken = true;
                let (as_it_is, rest) = read.filled().split_at(this.authorities.pass(read.filled()));
                let (now, later) = as_it_is.split_at(as_it_is.len().min(buf.remaining()));
                buf.put_slice(now);
                this.incoming.extend_from_slice(later);
                this.authorities.push(rest, &mut this.incoming);
                if this.authorities.has_begun() {
                    this.stream.get_mut().admit();
                }
                if this.authorities.has_asked() && !this.has_asked {
                    this.has_asked = true;
                    this.place.begin();
                }
                if now.is_empty() {
                    // A frame that is not whole yet is held back: then there is more to read.
                    continue;
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(end) = &mut this.silent_until
                && end.as_mut().poll(cx).is_ready()
            {
                this.silent_until = None;
                return Poll::Ready(Ok(()));
            }
            if outcome.is_pending() && this.expiry.as_mut().is_some_and(|expiry| expiry.poll(cx).is_ready()) {
                this.turned_away.tell(this.remote, EXPIRED);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, EXPIRED)));
            }
            if let (Poll::Ready(Err(_)), Some(reason)) = (&outcome, this.stream.get_ref().get_ref().trouble().get()) {
                this.turned_away.tell(this.remote, reason);
            }
            return outcome;
        }
        let now = this.incoming.len().min(buf.remaining());
        buf.put_slice(&this.incoming[..now]);
        this.incoming.advance(now);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        let Self { refusals, refused, .. } = &mut *self;
        refusals.written(buf.get(..written).unwrap_or(buf), refused);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        let Self { refusals, refused, .. } = &mut *self;
        refusals.written_of(bufs, written, refused);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if !self.has_spoken {
            // It has asked nothing, so nothing of it can be lost.
            return Poll::Ready(Ok(()));
        }
        self.poll_linger(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use raftkv::transport_kit::Entrance;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;

    /// A client, and the server's side of its connection.
    async fn connected() -> (TcpStream, ClientConnection) {
        connected_through(&Entrance::new(1, 1, 1)).await
    }

    async fn connected_through(entrance: &Entrance) -> (TcpStream, ClientConnection) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, remote) = listener.accept().await.unwrap();
        let place = entrance.enter(None).unwrap().0.place;
        let limit = Duration::from_secs(3600);
        let link = Guarded::new(Link::plain(stream), place.clone(), limit, limit, || ());
        let refused = Box::new(|_| ());
        (client, ClientConnection::new(link, place, remote, std::future::pending(), Arc::default(), refused))
    }

    /// Until it has asked for something it makes room for the next one.
    #[tokio::test]
    async fn a_connection_keeps_its_place_from_its_first_request_on() {
        let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        // Settings that were taken note of, a ping, and a request for what has no name: `:method POST`.
        let request = b"\0\0\0\x04\x01\0\0\0\0\0\0\x08\x06\0\0\0\0\0deadbeef\0\0\x01\x01\x05\0\0\0\x01\x83";
        for sent in 0..=opening.len() + request.len() {
            let entrance = Entrance::new(1, 1, 1);
            let (mut client, mut server) = connected_through(&entrance).await;
            let bytes = [&opening[..], request].concat();
            client.write_all(&bytes[..sent]).await.unwrap();
            client.shutdown().await.unwrap();
            server.read_to_end(&mut Vec::new()).await.unwrap();
            let has_asked = sent == bytes.len();
            assert_eq!(entrance.enter(None).is_err(), has_asked, "after {sent} of {} bytes", bytes.len());
        }
    }

    #[tokio::test]
    async fn what_comes_is_the_same_whatever_room_there_is_for_it() {
        let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let request = b"\0\0\x0d\x01\x04\0\0\0\x01\x83\x41\x0ahttp://h:1";
        let data = [&b"\0\x40\0\0\0\0\0\0\x01"[..], &[7; 16_384]].concat();
        let bytes = [&opening[..], request, &data, request, &data, &data].concat();
        let wanted = super::super::authority::passed_on([&bytes]);
        assert!(wanted.len() < bytes.len(), "an authority is replaced");
        for room in [1, 100, READ_BYTES - 1, READ_BYTES, 1 << 20] {
            let (mut client, mut server) = connected().await;
            let bytes = bytes.clone();
            let sending = tokio::spawn(async move {
                for part in bytes.chunks(5000) {
                    client.write_all(part).await.unwrap();
                }
            });
            let (mut got, mut buf) = (Vec::new(), vec![0; room]);
            loop {
                let n = server.read(&mut buf).await.unwrap();
                if n == 0 {
                    break;
                }
                got.extend_from_slice(&buf[..n]);
            }
            sending.await.unwrap();
            assert!(got == wanted, "with room for {room}: {} bytes of {}", got.len(), wanted.len());
        }
    }

    /// What a client does that has not read the end of the connection yet: it sends requests. That must not fail.
    #[tokio::test]
    async fn a_client_that_goes_on_sending_gets_what_was_sent_to_it_last() {
        let (mut client, mut server) = connected().await;
        client.write_all(b"requests").await.unwrap();
        // Some of them are read, and one is answered.
        server.read_exact(&mut [0; 4]).await.unwrap();
        let ending = tokio::spawn(async move {
            server.write_all(b"the last answer").await.unwrap();
            server.shutdown().await.unwrap();
        });
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            client.write_all(b"one more request").await.unwrap();
        }
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers, "the last answer");
        assert!(!ending.is_finished(), "it waits for the client's end");
        drop(client);
        ending.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_side_is_left_after_a_while() {
        let (mut client, mut server) = connected().await;
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
        let begun = Instant::now();
        server.shutdown().await.unwrap();
        assert!((LINGER..LINGER * 10).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        client.write_all(b"still here").await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_never_said_anything_is_not_waited_for() {
        let (_client, mut server) = connected().await;
        let begun = Instant::now();
        server.shutdown().await.unwrap();
        assert!(begun.elapsed() < LINGER, "{:?}", begun.elapsed());
    }
}
