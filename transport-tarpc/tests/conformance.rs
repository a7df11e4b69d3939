//! The suite that every transport must pass.

#![allow(clippy::expect_used, reason = "a test reports by panicking")]

use std::sync::Arc;

use async_trait::async_trait;
use raftkv::testing::conformance::transport::{Listener, Network};
use raftkv::{ClusterId, Inbox, Peer, Transport};
use raftkv_transport_tarpc::{Local, Options, ServerOptions, TarpcTransport, serve};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

struct Loopback;

#[async_trait]
impl Network for Loopback {
    async fn listen(&self, inbox: Inbox, address: Option<&str>) -> Listener {
        let listener = TcpListener::bind(address.unwrap_or("127.0.0.1:0")).await.expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, inbox, ServerOptions::default(), async {
            let _ = stopped.await;
        }));
        let stop = Box::pin(async move {
            let _ = stop.send(());
            server.await.expect("no panic").expect("a good end");
        });
        Listener { address: address.into(), stop }
    }

    fn transport(&self, cluster: ClusterId, node: Peer) -> Arc<dyn Transport> {
        Arc::new(TarpcTransport::new(Local { cluster, node }, Options::default()))
    }
}

raftkv::transport_conformance!(Loopback);
