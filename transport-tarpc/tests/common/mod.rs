//! The two halves of this transport, for the suites.

#![allow(dead_code, unreachable_pub, reason = "shared by several tests")]

use raftkv::testing::conformance::connections::{Halves, Limits, Receiver, Serving, Stopped, TlsHalves, local};
use raftkv::{Inbox, Transport};
use raftkv_transport_tarpc::{Local, Options, ServerOptions, TarpcServer, TarpcTransport, Tls, serve};
use tokio::net::TcpListener;

pub struct Tarpc;

impl Halves for Tarpc {
    fn serve(&self, listener: TcpListener, inbox: Inbox, limits: Option<Limits>, stopped: Stopped) -> Serving {
        Box::pin(serve(listener, inbox, options(limits), stopped))
    }

    fn transport(&self, local: Local, options: Options) -> Box<dyn Transport> {
        Box::new(TarpcTransport::new(local, options))
    }
}

fn options(limits: Option<Limits>) -> ServerOptions {
    limits.map_or_else(ServerOptions::default, |limits| ServerOptions {
        max_message_bytes: limits.message_bytes,
        // As many again may be in their handshakes.
        max_connections: limits.connections.0 / 2,
        max_connections_per_address: limits.connections.1,
        handshake_timeout: limits.handshake,
        ..ServerOptions::default()
    })
}

/// A receiving half with these settings.
pub async fn receiver(id: u64, options: ServerOptions) -> Receiver {
    Receiver::serving(id, |listener, inbox, stopped| Box::pin(serve(listener, inbox, options, stopped))).await
}

/// Node 1's sending half.
pub fn sender(options: Options) -> TarpcTransport {
    TarpcTransport::new(local(), options)
}

impl TlsHalves for Tarpc {
    fn serve_tls(
        &self,
        listener: TcpListener,
        inbox: Inbox,
        limits: Option<Limits>,
        tls: Tls,
        stopped: Stopped,
    ) -> Serving {
        Box::pin(TarpcServer::with_tls(inbox, options(limits), tls).serve(listener, stopped))
    }

    fn transport_tls(&self, local: Local, options: Options, tls: Tls) -> Box<dyn Transport> {
        Box::new(TarpcTransport::with_tls(local, options, tls))
    }
}
