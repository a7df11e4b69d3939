//! Listening: for clients and for members.

use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::error;

use super::connection::ClientConnection;
use crate::cli::Failure;
use crate::config::HostPort;

/// A client that vanished without a word is noticed after these two together.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What one client connection may have under way: requests, and bytes before they are read.
const MAX_STREAMS: u32 = 4096;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

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
    TcpListener::bind((address.host(), address.port()))
        .await
        .map_err(|e| Failure::usage(format!("{option} {address}: {e}; {}", advice(e.kind()))))
}

/// Serves clients until `end`; then no new requests are taken, and it returns when those in progress are answered.
pub(super) async fn serve_clients(listener: TcpListener, routes: Routes, end: watch::Receiver<bool>) {
    let ended = move || {
        let mut end = end.clone();
        async move {
            // Fails when the node is gone: an end as well.
            let _ = end.wait_for(|end| *end).await;
        }
    };
    let end_of_connection = ended.clone();
    let connections = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .map_ok(move |stream| ClientConnection::new(stream, end_of_connection()));
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .initial_stream_window_size(Some(STREAM_WINDOW))
        .initial_connection_window_size(Some(CONNECTION_WINDOW))
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, ended())
        .await;
    if let Err(error) = served {
        error!(%error, "the server for clients has failed; this node serves none any more");
    }
}
