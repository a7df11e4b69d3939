//! Receivers that do not keep to the protocol, or are something else: the sender says what is wrong, and is bounded all the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

use std::time::Duration;

use common::sender;
use raftkv::testing::conformance::connections::{
    CLUSTER, Receiver, Serving, Stopped, load, local, tick, until_it_fails, within,
};
use raftkv::{Inbox, Peer, Transport, TransportError};
use raftkv_transport_grpc::GrpcTransport;
use raftkv_transport_tarpc::{Options, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// A welcome with a window of 1 MiB, and messages of up to 16.
fn welcome() -> Vec<u8> {
    frame(&[b"raftkv-t".as_slice(), &[1, 0, 0], &[0x80, 0x80, 0x40], &[0x80, 0x80, 0x80, 0x08]].concat())
}

/// A listener that does this with each connection, after it has read a frame.
async fn impostor<F>(behave: impl Fn(TcpStream) -> F + Send + 'static) -> (Peer, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::new(2, listener.local_addr().unwrap().to_string());
    let mut running = JoinSet::new();
    running.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            next_frame(&mut stream).await;
            connections.spawn(behave(stream));
        }
    });
    (peer, running)
}

async fn next_frame(stream: &mut TcpStream) -> Vec<u8> {
    let Ok(len) = stream.read_u32().await else { return Vec::new() };
    let mut body = vec![0; len as usize];
    let _ = stream.read_exact(&mut body).await;
    body
}

/// Says this, and nothing more.
async fn after(says: Vec<u8>) -> (Peer, JoinSet<()>) {
    impostor(move |mut stream| {
        let says = says.clone();
        async move {
            let _ = stream.write_all(&says).await;
            std::future::pending().await
        }
    })
    .await
}

/// What becomes of messages to whoever says this.
async fn outcome(says: Vec<u8>) -> TransportError {
    let (peer, _running) = after(says).await;
    let transport = sender(Options { refused_backoff: Duration::from_millis(50), ..Options::default() });
    until_it_fails(&transport, &peer, |n| tick(&peer, n)).await
}

#[tokio::test]
async fn a_receiver_of_another_version_is_refused() {
    let error = outcome(frame(&[b"raftkv-t".as_slice(), &[9], b"whatever it has to say"].concat())).await;
    let TransportError::Refused { reason, .. } = error else { panic!("not refused: {error}") };
    assert!(reason.contains("speaks version 9 of the protocol, and this node version 1"), "{reason}");
}

#[tokio::test]
async fn answers_that_make_no_sense_end_the_connection_with_a_reason() {
    let cases = [
        (frame(b"hello?"), "what answers is no raftkv node"),
        (frame(&[b"raftkv-t".as_slice(), &[1, 0, 77]].concat()), "an answer that can't be decoded"),
        ([welcome(), frame(&[0xff; 20])].concat(), "an answer that can't be decoded"),
        (
            [welcome(), frame(&[0; 20 << 10])].concat(),
            "no frame of raftkv's tarpc transport, or is larger than the limit",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "check the address, and which transport is used there"),
    ];
    for (says, expected) in cases {
        let error = outcome(says).await;
        let TransportError::Unreachable { reason, .. } = error else { panic!("not unreachable: {error}") };
        assert!(reason.contains(expected), "{reason} instead of {expected}");
    }
}

/// Answers to questions that nobody asked, and a farewell.
#[tokio::test]
async fn answers_that_nobody_waits_for_do_no_harm() {
    let (peer, _running) = impostor(|mut stream| async move {
        let _ = stream.write_all(&[welcome(), frame(&[99, 2])].concat()).await;
        // The request that this is the answer to is the first after the hello.
        next_frame(&mut stream).await;
        let farewell = frame(&[[1, 5, 0, 8].as_slice(), b"so long!"].concat());
        let _ = stream.write_all(&farewell).await;
        std::future::pending().await
    })
    .await;
    let transport = sender(Options::default());
    let error = until_it_fails(&transport, &peer, |n| tick(&peer, n)).await;
    let TransportError::Unreachable { reason, .. } = error else { panic!("not unreachable: {error}") };
    assert_eq!(reason, "so long!");
}

/// tarpc's generated client panics over these.
#[tokio::test]
async fn answers_to_other_questions_end_the_connection() {
    let reason = |error| {
        let TransportError::Unreachable { reason, .. } = error else { panic!("not unreachable: {error}") };
        reason
    };
    // Alive, in place of a welcome.
    let error = outcome(frame(&[b"raftkv-t".as_slice(), &[1, 0, 4]].concat())).await;
    assert_eq!(reason(error), "it answered something else than it was asked");
    // And in place of a farewell.
    let (peer, _running) = impostor(|mut stream| async move {
        let _ = stream.write_all(&welcome()).await;
        next_frame(&mut stream).await;
        let _ = stream.write_all(&frame(&[1, 4])).await;
        std::future::pending().await
    })
    .await;
    let transport = sender(Options::default());
    let error = until_it_fails(&transport, &peer, |n| tick(&peer, n)).await;
    assert_eq!(reason(error), "it answered something else than it was asked");
}

/// One that takes all bytes, answers probes, and never says that it took a batch.
#[tokio::test]
async fn a_receiver_that_acknowledges_nothing_gets_one_window_and_no_more() {
    let (peer, _running) = impostor(|mut stream| async move {
        let _ = stream.write_all(&welcome()).await;
        loop {
            let ask = next_frame(&mut stream).await;
            let Ok(((id, _, call), _)) = postcard::take_from_bytes::<(u64, u32, u8)>(&ask) else { return };
            if call == 1 {
                let mut buffer = [0; 16];
                let answer = postcard::to_slice(&(id, 4_u8), &mut buffer).unwrap();
                let _ = stream.write_all(&frame(answer)).await;
            }
        }
    })
    .await;
    let quick = Duration::from_millis(100);
    let options = Options {
        max_queued_bytes: 1 << 20,
        keep_alive_interval: quick,
        control_keep_alive_timeout: quick * 3,
        bulk_keep_alive_timeout: quick * 3,
        ..Options::default()
    };
    let transport = sender(options);
    let mut taken = 0;
    while let Ok(sent) = timeout(quick * 10, transport.send(&peer, vec![load(&peer, taken, 64 << 10)])).await {
        sent.unwrap();
        taken += 1;
    }
    // The window, the queue, and what waits between them.
    assert!((16..40).contains(&taken), "{taken} batches of 64 KiB were taken");
    // It lives, so it is waited for.
    let still = timeout(quick * 10, transport.send(&peer, vec![load(&peer, taken, 64 << 10)])).await;
    assert!(still.is_err(), "{still:?}");
}

/// The other transport's nodes and this one's tell each other apart.
#[tokio::test]
async fn a_grpc_node_is_told_from_one_of_this_transport() {
    fn grpc(listener: TcpListener, inbox: Inbox, stopped: Stopped) -> Serving {
        Box::pin(raftkv_transport_grpc::serve(
            listener,
            inbox,
            raftkv_transport_grpc::ServerOptions::default(),
            stopped,
        ))
    }
    let b = Receiver::serving(2, grpc).await;
    let transport = sender(Options::default());
    let error = until_it_fails(&transport, &b.peer, |n| tick(&b.peer, n)).await;
    let TransportError::Unreachable { reason, .. } = error else { panic!("not unreachable: {error}") };
    assert!(!reason.is_empty());
    assert_eq!(local().cluster, CLUSTER);

    let c = common::receiver(2, ServerOptions::default()).await;
    let transport = GrpcTransport::new(local(), Options::default());
    let error = until_it_fails(&transport, &c.peer, |n| tick(&c.peer, n)).await;
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    within("the end", c.stop()).await;
}
