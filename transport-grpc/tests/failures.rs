//! Peers that vanish, stall, refuse, restart or move: what the sender sees, how soon, and what the log says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{CLUSTER, Flow, Log, Proxy, Receiver, load, number, sender, tick, until_it_fails, until_it_works, within};
use raftkv::{ClusterId, Peer, Transport, TransportError};
use raftkv_transport_grpc::{Options, ServerOptions};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

/// Times small enough for a test, and large enough for a busy machine.
fn quick() -> Options {
    Options {
        keep_alive_interval: Duration::from_millis(200),
        control_keep_alive_timeout: Duration::from_millis(500),
        bulk_keep_alive_timeout: Duration::from_millis(1000),
        connect_timeout: Duration::from_millis(500),
        max_backoff: Duration::from_millis(200),
        refused_backoff: Duration::from_millis(50),
        ..Options::default()
    }
}

fn unreachable(error: &TransportError) -> &str {
    if let TransportError::Unreachable { reason, .. } = error { reason } else { panic!("not unreachable: {error}") }
}

fn refused(error: &TransportError) -> &str {
    if let TransportError::Refused { reason, .. } = error { reason } else { panic!("not refused: {error}") }
}

#[tokio::test]
async fn a_peer_that_accepts_and_never_answers_is_unreachable_after_the_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::new(2, listener.local_addr().unwrap().to_string());
    let transport = sender(quick());
    let begin = Instant::now();
    let error = until_it_fails(&transport, &peer, |n| tick(&peer, n)).await;
    assert!(unreachable(&error).contains("no answer within 500ms"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    // From then on it costs nothing.
    let begin = Instant::now();
    for n in 0..1000 {
        transport.send(&peer, vec![tick(&peer, n)]).await.unwrap_err();
    }
    assert!(begin.elapsed() < Duration::from_millis(400), "{:?}", begin.elapsed());
}

/// A peer that is too busy to answer within the connect timeout. Attempts that are all given up after the same time would never come to an
/// end there, and keep both sides busy: so each silent one makes the next one more patient.
#[tokio::test]
async fn a_peer_that_answers_late_is_reached_all_the_same() {
    let b = Receiver::start(2, ServerOptions::default()).await;
    let options = quick();
    let proxy = Proxy::hesitant(&b.peer, options.connect_timeout * 5 / 2).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(options));
    let error = until_it_fails(&transport, &peer, |n| tick(&peer, n)).await;
    assert!(unreachable(&error).contains("no answer within"), "{error}");
    until_it_works(&transport, &peer, tick(&peer, 9)).await;
    let attempts = proxy.connections.load(Ordering::SeqCst);
    assert!((3..6).contains(&attempts), "{attempts} attempts");
}

/// A cable is pulled: no FIN, no RST, the kernel at the near end still takes bytes.
async fn a_silent_way_is_noticed(flow: Flow, bulk: bool, bound: Duration) {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(quick()));
    let message = |n| if bulk { load(&peer, n, 100) } else { tick(&peer, n) };
    transport.send(&peer, vec![message(1)]).await.unwrap();
    b.until(1).await;
    // The welcome is still on its way back.
    sleep(Duration::from_millis(100)).await;

    proxy.set(flow);
    let begin = Instant::now();
    let error = until_it_fails(&transport, &peer, message).await;
    assert!(unreachable(&error).contains("keep-alive"), "{error}");
    assert!(begin.elapsed() < bound, "noticed after {:?} only: {error}", begin.elapsed());

    proxy.set(Flow::Forward);
    until_it_works(&transport, &peer, message(2)).await;
    b.until(2).await;
}

#[tokio::test]
async fn a_way_that_goes_silent_is_noticed_by_the_control_lane() {
    a_silent_way_is_noticed(Flow::Silent, false, Duration::from_millis(2500)).await;
}

#[tokio::test]
async fn a_way_that_goes_silent_is_noticed_by_the_bulk_lane() {
    a_silent_way_is_noticed(Flow::Silent, true, Duration::from_millis(3500)).await;
}

#[tokio::test]
async fn a_way_that_carries_no_answers_is_noticed() {
    a_silent_way_is_noticed(Flow::NoAnswers, false, Duration::from_millis(2500)).await;
}

#[tokio::test]
async fn the_default_times_notice_a_vanished_peer_within_a_few_seconds() {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(Options::default()));
    transport.send(&peer, vec![tick(&peer, 1)]).await.unwrap();
    b.until(1).await;
    sleep(Duration::from_millis(100)).await;
    proxy.set(Flow::Silent);
    let begin = Instant::now();
    until_it_fails(&transport, &peer, |n| tick(&peer, n)).await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_send_that_waits_for_room_fails_when_the_connection_is_given_up() {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(Options { max_queued_bytes: 1 << 20, ..quick() }));
    transport.send(&peer, vec![load(&peer, 1, 10)]).await.unwrap();
    b.until(1).await;
    sleep(Duration::from_millis(100)).await;
    proxy.set(Flow::Silent);
    let begin = Instant::now();
    let mut taken = 0;
    let error = loop {
        match within("a send", transport.send(&peer, vec![load(&peer, taken, 256 << 10)])).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    unreachable(&error);
    assert!(begin.elapsed() < Duration::from_millis(3500), "{:?}", begin.elapsed());
    // The queue, what HTTP/2 and the kernel hold.
    assert!(taken < 128, "{taken} batches of 256 KiB were taken for a silent peer");
}

/// A known bug: a node that comes back leads at once, as its control lane is there, and what is passed on to it is dropped for as long as the bulk
/// lane waits for its next attempt.
#[tokio::test]
async fn a_lane_that_waits_is_tried_at_once_when_the_other_is_connected() {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let proxy = Proxy::start(&b.peer).await;
    proxy.set(Flow::Silent);
    let pause = Duration::from_secs(3600);
    let options = Options { min_backoff: pause, max_backoff: pause, ..quick() };
    let (peer, transport) = (proxy.peer(&b.peer), sender(options));
    until_it_fails(&transport, &peer, |n| load(&peer, n, 10)).await;
    proxy.set(Flow::Forward);
    transport.send(&peer, vec![tick(&peer, 7)]).await.unwrap();
    b.until(7).await;
    until_it_works(&transport, &peer, load(&peer, 8, 10)).await;
    b.until(8).await;
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_closed_and_comes_back_when_needed() {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let proxy = Proxy::start(&b.peer).await;
    let options = Options { idle_timeout: Duration::from_millis(200), ..quick() };
    let (peer, transport) = (proxy.peer(&b.peer), sender(options));
    for n in 1..4 {
        transport.send(&peer, vec![tick(&peer, n)]).await.unwrap();
        b.until(n).await;
        assert_eq!(proxy.connections.load(Ordering::SeqCst), n as usize);
        within("the idle connection", async {
            while proxy.open.load(Ordering::SeqCst) > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_connection_in_use_is_kept() {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let proxy = Proxy::start(&b.peer).await;
    let options = Options { idle_timeout: Duration::from_millis(100), ..quick() };
    let (peer, transport) = (proxy.peer(&b.peer), sender(options));
    for n in 0..50 {
        transport.send(&peer, vec![tick(&peer, n)]).await.unwrap();
        b.until(n).await;
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_dropped_transport_closes_its_connections_though_the_peer_takes_nothing() {
    let b = Receiver::start(2, ServerOptions::default()).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(Options::default()));
    // Until a send blocks: the inbox, the windows and the queue are full.
    let flood = async {
        for n in 0.. {
            transport.send(&peer, vec![load(&peer, n, 256 << 10)]).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(2), flood).await.unwrap_err();
    assert_eq!(proxy.open.load(Ordering::SeqCst), 1);
    drop(transport);
    within("the connection", async {
        while proxy.open.load(Ordering::SeqCst) > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    b.stop().await;
}

#[tokio::test]
async fn a_server_that_shuts_down_says_so_and_ends_in_time_though_a_peer_is_silent() {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let proxy = Proxy::start(&b.peer).await;
    let (silent, transport) = (proxy.peer(&b.peer), sender(quick()));
    transport.send(&silent, vec![tick(&silent, 1)]).await.unwrap();
    b.until(1).await;
    let (direct, other) = (b.peer.clone(), sender(quick()));
    other.send(&direct, vec![tick(&direct, 2)]).await.unwrap();
    b.until(2).await;

    proxy.set(Flow::Silent);
    let begin = Instant::now();
    let log = Log::default();
    let _guard = log.start();
    b.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    until_it_fails(&other, &direct, |n| tick(&direct, n)).await;
    assert_eq!(log.lines(&["connection lost", "node 2 is shutting down"]).len(), 1, "{:?}", log.lines(&[]));
}

#[tokio::test]
async fn a_stopped_node_is_unreachable_and_says_why() {
    let b = Receiver::start(2, ServerOptions::default()).await;
    let (peer, transport) = (b.peer.clone(), sender(quick()));
    drop(b.arrivals);
    let error = until_it_fails(&transport, &peer, |n| tick(&peer, n)).await;
    assert!(unreachable(&error).contains("this node has stopped"), "{error}");
}

#[tokio::test]
async fn a_refusal_is_logged_once_on_each_side_and_retried() {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let wrong = Peer { id: raftkv::NodeId(3), address: b.peer.address.clone() };
    let log = Log::default();
    let _guard = log.start();
    let transport = sender(quick());
    let error = until_it_fails(&transport, &wrong, |n| tick(&wrong, n)).await;
    assert!(refused(&error).contains("this is node n2, not n3"), "{error}");
    // Several more attempts.
    sleep(Duration::from_millis(500)).await;
    transport.send(&wrong, vec![tick(&wrong, 1)]).await.unwrap_err();
    assert_eq!(log.lines(&["WARN", "refused by the peer", "this is node n2, not n3", "lane=control"]).len(), 1);
    assert_eq!(log.lines(&["WARN", "refused a peer", "this is node n2, not n3", "remote=127.0.0.1"]).len(), 1);

    // The right node at the same address is another lane.
    let peer = b.peer.clone();
    until_it_works(&transport, &peer, tick(&peer, 9)).await;
    b.until(9).await;
    within("the line", async {
        while log.lines(&["INFO", " connected peer=2="]).is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_outage_is_logged_once_however_long_it_lasts() {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(quick()));
    let log = Log::default();
    let _guard = log.start();
    transport.send(&peer, vec![tick(&peer, 1)]).await.unwrap();
    b.until(1).await;
    drop(proxy);
    until_it_fails(&transport, &peer, |n| tick(&peer, n)).await;
    for n in 0..50 {
        let _ = transport.send(&peer, vec![tick(&peer, n)]).await;
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(log.lines(&["WARN", "lane=control"]).len(), 1, "{:?}", log.lines(&["WARN"]));
    assert_eq!(log.lines(&["WARN", "connection lost"]).len(), 1);
}

#[tokio::test]
async fn an_address_that_is_none_is_unreachable_and_named() {
    let transport = sender(quick());
    for address in ["", "no port here", "127.0.0.1:99999", "http://[::1"] {
        let peer = Peer::new(2, address);
        let error = until_it_fails(&transport, &peer, |n| tick(&peer, n)).await;
        assert!(!unreachable(&error).is_empty(), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_no_raftkv_node_is_told_from_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::new(2, listener.local_addr().unwrap().to_string());
    // Answers every connection like a web server.
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let transport = sender(quick());
    let error = until_it_fails(&transport, &peer, |n| tick(&peer, n)).await;
    unreachable(&error);
}

#[tokio::test]
async fn a_batch_that_claims_to_be_from_elsewhere_is_not_sent() {
    let mut b = Receiver::start(2, ServerOptions::default()).await;
    let (peer, transport) = (b.peer.clone(), sender(quick()));
    let mut stray = tick(&peer, 1);
    stray.cluster = ClusterId(9);
    let error = transport.send(&peer, vec![tick(&peer, 0), stray]).await.unwrap_err();
    assert!(refused(&error).contains(&CLUSTER.to_string()), "{error}");
    transport.send(&peer, vec![tick(&peer, 2)]).await.unwrap();
    assert_eq!(number(&b.next().await[0]), Some(2));
}

#[tokio::test]
async fn a_batch_beyond_the_wire_limit_is_split_and_stays_in_order() {
    let mut b = Receiver::start(2, ServerOptions { max_message_bytes: 10_000, ..ServerOptions::default() }).await;
    let (peer, transport) = (b.peer.clone(), sender(Options { max_message_bytes: 10_000, ..quick() }));
    let batch = (0..100).map(|n| load(&peer, n, 1500)).collect();
    transport.send(&peer, batch).await.unwrap();
    let mut arrived = Vec::new();
    while arrived.len() < 100 {
        arrived.extend(b.next().await.iter().filter_map(number));
    }
    assert_eq!(arrived, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_beyond_the_receivers_limit_is_refused_with_a_reason() {
    let b = Receiver::start(2, ServerOptions { max_message_bytes: 10_000, ..ServerOptions::default() }).await;
    let (peer, transport) = (b.peer.clone(), sender(quick()));
    let error = until_it_fails(&transport, &peer, |n| load(&peer, n, 20_000)).await;
    assert!(refused(&error).contains("10000"), "{error}");
}

/// A listener that breaks under a running server: the server ends with an error, instead of living on and hearing nobody.
#[tokio::test]
async fn a_broken_listener_ends_the_server_with_an_error() {
    use std::net::{Shutdown, TcpStream};
    use std::os::fd::OwnedFd;

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let same = TcpStream::from(OwnedFd::from(listener.try_clone().unwrap()));
    let (inbox, _arrivals) = raftkv::Inbox::channel(CLUSTER, raftkv::GroupId(0), raftkv::NodeId(2));
    let listener = TcpListener::from_std(listener).unwrap();
    let serving = raftkv_transport_grpc::serve(listener, inbox, ServerOptions::default(), std::future::pending());
    let serving = tokio::spawn(serving);
    sleep(Duration::from_millis(50)).await;
    assert!(!serving.is_finished());
    same.shutdown(Shutdown::Both).unwrap();
    let error = within("the end of the server", serving).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("no connection can be accepted any more"), "{error}");
}
