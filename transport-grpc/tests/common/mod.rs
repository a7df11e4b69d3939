//! The two halves of this transport, for the suites.

#![allow(dead_code, unreachable_pub, reason = "shared by several tests")]

use raftkv::testing::conformance::connections::{Halves, Limits, Receiver, Serving, Stopped, TlsHalves, local};
use raftkv::{Inbox, Transport};
use raftkv_transport_grpc::{GrpcServer, GrpcTransport, Local, Options, ServerOptions, Tls, serve};
use tokio::net::TcpListener;

pub struct Grpc;

impl Halves for Grpc {
    fn serve(&self, listener: TcpListener, inbox: Inbox, limits: Option<Limits>, stopped: Stopped) -> Serving {
        Box::pin(serve(listener, inbox, options(limits), stopped))
    }

    fn transport(&self, local: Local, options: Options) -> Box<dyn Transport> {
        Box::new(GrpcTransport::new(local, options))
    }
}

fn options(limits: Option<Limits>) -> ServerOptions {
    limits.map_or_else(ServerOptions::default, |limits| ServerOptions {
        max_message_bytes: limits.message_bytes,
        max_connections: limits.connections.0,
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
pub fn sender(options: Options) -> GrpcTransport {
    GrpcTransport::new(local(), options)
}

impl TlsHalves for Grpc {
    fn serve_tls(
        &self,
        listener: TcpListener,
        inbox: Inbox,
        limits: Option<Limits>,
        tls: Tls,
        stopped: Stopped,
    ) -> Serving {
        Box::pin(GrpcServer::with_tls(inbox, options(limits), tls).serve(listener, stopped))
    }

    fn transport_tls(&self, local: Local, options: Options, tls: Tls) -> Box<dyn Transport> {
        Box::new(GrpcTransport::with_tls(local, options, tls))
    }
}
