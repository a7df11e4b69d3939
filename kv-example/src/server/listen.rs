//! Listening: for clients and for members.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use raftkv::metrics::RefusedFor;
use raftkv::transport_kit::http2::Http2Refusal;
use raftkv::transport_kit::listener::connections;
use raftkv::transport_kit::{Gate as TlsGate, Guarded, RefusalLog, Tls, Visitor};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Server;
use tracing::warn;

use super::connection::ClientConnection;
use crate::cli::Failure;
use crate::client::connector::ALPN;
use crate::config::HostPort;
use crate::gate::{Gate, GateLayer, Limit};
use crate::metrics::MeterLayer;
use crate::service::direct::DirectLayer;

/// File descriptors that are for everything else.
const OTHER_FILES: usize = 256;
/// How many connections may wait to be accepted, if the system allows as many (Linux: `net.core.somaxconn`). A client that finds no room
/// is not told: its system tries again after a second, and after two more.
const BACKLOG: u32 = 4096;

/// Tells the log of clients that are turned away for what they are. Some come back at once, and for ever.
#[derive(Debug, Default)]
pub(super) struct TurnedAway(RefusalLog);

impl TurnedAway {
    pub(super) fn tell(&self, remote: SocketAddr, reason: &str) {
        if self.0.is_news(Some(remote), reason) {
            warn!(%remote, reason, "refused a client");
        }
    }
}

/// Opens a listening socket, or says what to do.
pub(super) async fn bind(option: &str, address: &HostPort) -> Result<TcpListener, Failure> {
    use std::io::ErrorKind;
    const ADVICE: [(ErrorKind, &str); 3] = [
        (ErrorKind::AddrInUse, "end the process that uses it, or choose another port"),
        (ErrorKind::AddrNotAvailable, "this machine has no such address; 0.0.0.0 listens on all it has"),
        (ErrorKind::PermissionDenied, "this user may not use the port; choose one above 1023"),
    ];
    let advice = |kind: ErrorKind| {
        let known = ADVICE.iter().find(|(of, _)| *of == kind);
        known.map_or("choose an address of this machine", |(_, advice)| advice)
    };
    open(address).await.map_err(|e| Failure::usage(format!("{option} {address}: {e}; {}", advice(e.kind()))))
}

/// The first address of this name that can be listened at.
async fn open(address: &HostPort) -> io::Result<TcpListener> {
    let mut failure = None;
    for address in tokio::net::lookup_host((address.host(), address.port())).await? {
        match listen(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

/// As `TcpListener::bind`, which lets no more than 128 connections wait.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Else the port of a server that ended is taken for a minute. On Windows the option would let two servers have one port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How many client connections there may be: as many as were configured, and as there are file descriptors for, after asking for
/// as many as this process may have. A node that has no file descriptor left could not go on with its log.
pub(super) fn connection_limit(configured: usize) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let files = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: files.maximum, maximum: files.maximum };
    let files = if setrlimit(Resource::Nofile, raised).is_ok() { raised.current } else { files.current };
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    configured.min(files.saturating_sub(OTHER_FILES)).max(1)
}

/// Serves clients until `end`; then no new requests are taken, and it returns when those in progress are answered.
///
/// # Errors
/// The listener can accept no connection any more, or the HTTP server failed.
pub(super) async fn serve_clients(
    listener: TcpListener,
    tls: Option<Tls>,
    (kv, routes): (DirectLayer, Routes),
    meter: MeterLayer,
    gate: Arc<Gate>,
    end: watch::Receiver<bool>,
) -> io::Result<()> {
    let ended = move || {
        let mut end = end.clone();
        async move {
            // Fails when the node is gone: an end as well.
            let _ = end.wait_for(|end| *end).await;
        }
    };
    let end_of_connection = ended.clone();
    let (connections, hearing) = connections(listener);
    let door = gate.clone();
    let connections = connections.filter_map(move |(stream, remote)| {
        let visitor = door.client(remote.ip());
        std::future::ready(visitor.map(|visitor| (stream, remote, visitor)))
    });
    let turned_away = Arc::new(TurnedAway::default());
    let told = Arc::clone(&turned_away);
    let (limit, counting) = (gate.limits().handshake_timeout, gate.clone());
    let arrivals = TlsGate { tls, protocol: ALPN, limit }.all(connections, move |remote, why| {
        if why.kind() == RefusedFor::Silence {
            counting.refuse(Limit::Handshake, "a connection did not make the handshake of TLS in time");
        } else if why.is_news() {
            told.tell(remote, why.reason());
        }
    });
    let guard = gate.clone();
    let connections = arrivals.map(move |(arrival, Visitor { place, eviction })| {
        let (gate, limits) = (guard.clone(), guard.limits());
        let late = move || gate.refuse(Limit::Handshake, "a connection did not begin HTTP/2 in time");
        let link = Guarded::new(arrival.link, place.clone(), limits.handshake_timeout, limits.client_silence, late);
        let turned_away = Arc::clone(&turned_away);
        let (link, gate) = (link.until(eviction), guard.clone());
        let refused = Box::new(move |what| match what {
            Http2Refusal::Header => gate.refuse(Limit::HeaderSize, "the header of a request was too large"),
            Http2Refusal::Stream => {
                gate.refuse(Limit::ConnectionRequests, "a connection has too many requests in progress")
            }
        });
        let connection = ClientConnection::new(link, place, arrival.remote, end_of_connection(), turned_away, refused);
        Ok::<_, io::Error>(connection)
    });
    // Pinned, since the stream is a state machine of its own.
    let connections = Box::pin(connections);
    let limits = gate.limits();
    let server = Server::builder()
        // A client that vanished without a word is noticed after these two together.
        .http2_keepalive_interval(Some(limits.client_silence / 2))
        .http2_keepalive_timeout(Some(limits.client_silence / 2))
        .max_concurrent_streams(Some(limits.connection_requests))
        .http2_max_header_list_size(Some(limits.header_bytes))
        .initial_stream_window_size(Some(limits.connection_window_bytes / 4))
        .initial_connection_window_size(Some(limits.connection_window_bytes))
        .layer(meter)
        .layer(GateLayer(gate))
        .layer(kv)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, ended());
    hearing.serve(server).await
}
