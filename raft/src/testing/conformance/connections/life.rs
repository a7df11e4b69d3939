//! Connections that end for a reason, and come back.

use std::sync::atomic::Ordering;

use super::*;

/// Peers that left are not kept connected.
pub async fn a_connection_that_nobody_uses_is_closed_and_comes_back_when_needed(halves: &dyn Halves) {
    let mut b = Receiver::start(halves, 2, None).await;
    let proxy = Proxy::start(&b.peer).await;
    let options = Options { idle_timeout: Duration::from_millis(200), ..quick() };
    let (peer, transport) = (proxy.peer(&b.peer), sender(halves, options));
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

/// However short the time after which an idle one is closed.
pub async fn a_connection_in_use_is_kept(halves: &dyn Halves) {
    let mut b = Receiver::start(halves, 2, None).await;
    let proxy = Proxy::start(&b.peer).await;
    let options = Options { idle_timeout: Duration::from_millis(100), ..quick() };
    let (peer, transport) = (proxy.peer(&b.peer), sender(halves, options));
    for n in 0..50 {
        transport.send(&peer, vec![tick(&peer, n)]).await.unwrap();
        b.until(n).await;
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 1);
}

/// Nothing of it lives on.
pub async fn a_dropped_transport_closes_its_connections_though_the_peer_takes_nothing(halves: &dyn Halves) {
    let b = Receiver::start(halves, 2, None).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(halves, Options::default()));
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

/// Nobody can keep a node from ending, and its peers know why it is gone.
pub async fn a_server_that_shuts_down_says_so_and_ends_in_time_though_a_peer_is_silent(halves: &dyn Halves) {
    let mut b = Receiver::start(halves, 2, None).await;
    let proxy = Proxy::start(&b.peer).await;
    let (silent, transport) = (proxy.peer(&b.peer), sender(halves, quick()));
    transport.send(&silent, vec![tick(&silent, 1)]).await.unwrap();
    b.until(1).await;
    let (direct, other) = (b.peer.clone(), sender(halves, quick()));
    other.send(&direct, vec![tick(&direct, 2)]).await.unwrap();
    b.until(2).await;

    proxy.set(Flow::Silent);
    let watch = Stopwatch::start();
    let log = Log::default();
    let _guard = log.start();
    b.stop().await;
    watch.expect_less_than(Duration::from_secs(3));
    until_it_fails(&*other, &direct, |n| tick(&direct, n)).await;
    assert_eq!(log.lines(&["connection lost", "node 2 is shutting down"]).len(), 1, "{:?}", log.lines(&[]));
}

/// It may come back, so that is no refusal.
pub async fn a_stopped_node_is_unreachable_and_says_why(halves: &dyn Halves) {
    let b = Receiver::start(halves, 2, None).await;
    let (peer, transport) = (b.peer.clone(), sender(halves, quick()));
    drop(b.arrivals);
    let error = until_it_fails(&*transport, &peer, |n| tick(&peer, n)).await;
    assert!(unreachable(&error).contains("this node has stopped"), "{error}");
}

/// It is one line, not one for each attempt.
pub async fn an_outage_is_logged_once_however_long_it_lasts(halves: &dyn Halves) {
    let mut b = Receiver::start(halves, 2, None).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(halves, quick()));
    let log = Log::default();
    let _guard = log.start();
    transport.send(&peer, vec![tick(&peer, 1)]).await.unwrap();
    b.until(1).await;
    drop(proxy);
    until_it_fails(&*transport, &peer, |n| tick(&peer, n)).await;
    for n in 0..50 {
        let _ = transport.send(&peer, vec![tick(&peer, n)]).await;
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(log.lines(&["WARN", "lane=control"]).len(), 1, "{:?}", log.lines(&["WARN"]));
    assert_eq!(log.lines(&["WARN", "connection lost"]).len(), 1);
}
