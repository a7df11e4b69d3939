//! Peers that prove who they are, those that can't, and the suites over TLS.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod common;

raftkv::tls_conformance!(common::Grpc);

mod delivery {
    use raftkv::testing::conformance::connections::{OverTcp, Protected};

    raftkv::transport_conformance!(OverTcp(Protected::new(super::common::Grpc)));
}

mod connections {
    use raftkv::testing::conformance::connections::Protected;

    raftkv::connection_conformance!(@protected Protected::new(super::common::Grpc));
}

/// One address takes all the places that it may have, and begins no handshake on any: whoever comes from elsewhere gets through as ever. There were 256 handshakes
/// at a time, for all.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn silent_connections_of_one_address_keep_nobody_elses_handshake_waiting() {
    use std::time::Duration;

    use raftkv::NodeId;
    use raftkv::testing::certs::Desk;
    use raftkv::testing::conformance::connections::{Receiver, within};
    use raftkv_transport_grpc::{GrpcServer, ServerOptions};
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpSocket, TcpStream};

    const PLACES: usize = 300;
    let desk = Desk::new();
    let (tls, client) = (desk.node(2), desk.node(9));
    let options = ServerOptions {
        max_connections_per_address: PLACES,
        // Longer than the test takes.
        handshake_timeout: Duration::from_secs(600),
        ..ServerOptions::default()
    };
    let server = Receiver::serving(2, |listener, inbox, stopped| {
        Box::pin(GrpcServer::with_tls(inbox, options, tls).serve(listener, stopped))
    });
    let server = server.await;
    let mut silent = Vec::new();
    for _ in 0..PLACES {
        silent.push(TcpStream::connect(&*server.peer.address).await.unwrap());
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(server.peer.address.parse().unwrap()).await.unwrap();
    let link = within("the handshake", client.connect_to_node(stream, NodeId(2), b"h2")).await;
    assert!(link.is_ok(), "{:?}", link.err().map(|failure| failure.reason().to_owned()));
    // All places of the address are taken.
    let mut one_more = TcpStream::connect(&*server.peer.address).await.unwrap();
    within("the hang-up", async { while one_more.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {} }).await;
    drop(silent);
}
