//! The two halves of this transport, for the suites.

#![allow(dead_code, unreachable_pub, reason = "shared by several tests")]

use std::time::Duration;

use raftkv::testing::conformance::connections::{Halves, Receiver, Serving, Stopped, TlsHalves, local};
use raftkv::{Inbox, Transport};
use raftkv_transport_tarpc::{Local, Options, ServerOptions, TarpcServer, TarpcTransport, Tls, serve};
use tokio::net::TcpListener;

pub struct Tarpc;

impl Halves for Tarpc {
    fn serve(
        &self,
        listener: TcpListener,
        inbox: Inbox,
        max_message_bytes: Option<usize>,
        stopped: Stopped,
    ) -> Serving {
        let mut options = ServerOptions::default();
        options.max_message_bytes = max_message_bytes.unwrap_or(options.max_message_bytes);
        Box::pin(serve(listener, inbox, options, stopped))
    }

    fn transport(&self, local: Local, options: Options) -> Box<dyn Transport> {
        Box::new(TarpcTransport::new(local, options))
    }
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
        (max_message_bytes, handshake_timeout): (Option<usize>, Option<Duration>),
        tls: Tls,
        stopped: Stopped,
    ) -> Serving {
        let mut options = ServerOptions::default();
        options.max_message_bytes = max_message_bytes.unwrap_or(options.max_message_bytes);
        options.handshake_timeout = handshake_timeout.unwrap_or(options.handshake_timeout);
        Box::pin(TarpcServer::with_tls(inbox, options, tls).serve(listener, stopped))
    }

    fn transport_tls(&self, local: Local, options: Options, tls: Tls) -> Box<dyn Transport> {
        Box::new(TarpcTransport::with_tls(local, options, tls))
    }
}
