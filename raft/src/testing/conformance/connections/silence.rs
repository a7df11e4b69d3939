//! Peers that vanish, stall, or are slow.

use std::sync::atomic::Ordering;

use tokio::net::TcpListener;

use super::*;

/// Whoever listens and says nothing costs the first messages some time, and the later ones none.
pub async fn a_peer_that_accepts_and_never_answers_is_unreachable_after_the_connect_timeout(halves: &dyn Halves) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::new(2, listener.local_addr().unwrap().to_string());
    let transport = sender(halves, quick());
    let watch = Stopwatch::start();
    let error = until_it_fails(&*transport, &peer, |n| tick(&peer, n)).await;
    assert!(unreachable(&error).contains("no answer within 500ms"), "{error}");
    // To connect, and to be welcomed, may take so long each.
    watch.expect_less_than(Duration::from_millis(1200));
    // From then on it costs nothing.
    let watch = Stopwatch::start();
    for n in 0..1000 {
        transport.send(&peer, vec![tick(&peer, n)]).await.unwrap_err();
    }
    watch.expect_less_than(Duration::from_millis(400));
}

/// A peer that is too busy to answer within the connect timeout. Attempts that are all given up after the same time would never come to an
/// end there, and keep both sides busy: so each silent one makes the next one more patient.
pub async fn a_peer_that_answers_late_is_reached_all_the_same(halves: &dyn Halves) {
    let b = Receiver::start(halves, 2, None).await;
    let options = quick();
    let proxy = Proxy::hesitant(&b.peer, options.connect_timeout * 5 / 2).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(halves, options));
    let error = until_it_fails(&*transport, &peer, |n| tick(&peer, n)).await;
    assert!(unreachable(&error).contains("no answer within"), "{error}");
    until_it_works(&*transport, &peer, tick(&peer, 9)).await;
    let attempts = proxy.connections.load(Ordering::SeqCst);
    assert!((3..6).contains(&attempts), "{attempts} attempts");
}

/// A cable is pulled: no FIN, no RST, the kernel at the near end still takes bytes.
async fn a_silent_way_is_noticed(halves: &dyn Halves, flow: Flow, bulk: bool, bound: Duration) {
    let mut b = Receiver::start(halves, 2, None).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(halves, quick()));
    let message = |n| if bulk { load(&peer, n, 100) } else { tick(&peer, n) };
    transport.send(&peer, vec![message(1)]).await.unwrap();
    b.until(1).await;
    // The welcome is still on its way back.
    sleep(Duration::from_millis(100)).await;

    proxy.set(flow);
    let watch = Stopwatch::start();
    let error = until_it_fails(&*transport, &peer, message).await;
    assert!(unreachable(&error).contains("keep-alive"), "{error}");
    watch.expect_less_than(bound);

    proxy.set(Flow::Forward);
    until_it_works(&*transport, &peer, message(2)).await;
    b.until(2).await;
}

/// Nothing comes through any more, in both directions.
pub async fn a_way_that_goes_silent_is_noticed_by_the_control_lane(halves: &dyn Halves) {
    a_silent_way_is_noticed(halves, Flow::Silent, false, Duration::from_millis(2500)).await;
}

/// The same for payloads, which have more patience.
pub async fn a_way_that_goes_silent_is_noticed_by_the_bulk_lane(halves: &dyn Halves) {
    a_silent_way_is_noticed(halves, Flow::Silent, true, Duration::from_millis(3500)).await;
}

/// What is sent arrives, and nothing comes back.
pub async fn a_way_that_carries_no_answers_is_noticed(halves: &dyn Halves) {
    a_silent_way_is_noticed(halves, Flow::NoAnswers, false, Duration::from_millis(2500)).await;
}

/// Nobody has to set anything for it.
pub async fn the_default_times_notice_a_vanished_peer_within_a_few_seconds(halves: &dyn Halves) {
    let mut b = Receiver::start(halves, 2, None).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(halves, Options::default()));
    transport.send(&peer, vec![tick(&peer, 1)]).await.unwrap();
    b.until(1).await;
    sleep(Duration::from_millis(100)).await;
    proxy.set(Flow::Silent);
    let watch = Stopwatch::start();
    until_it_fails(&*transport, &peer, |n| tick(&peer, n)).await;
    watch.expect_less_than(Duration::from_secs(5));
}

/// It does not wait for ever, and not much is taken for a peer that takes nothing.
pub async fn a_send_that_waits_for_room_fails_when_the_connection_is_given_up(halves: &dyn Halves) {
    let mut b = Receiver::start(halves, 2, None).await;
    let proxy = Proxy::start(&b.peer).await;
    let (peer, transport) = (proxy.peer(&b.peer), sender(halves, Options { max_queued_bytes: 1 << 20, ..quick() }));
    transport.send(&peer, vec![load(&peer, 1, 10)]).await.unwrap();
    b.until(1).await;
    sleep(Duration::from_millis(100)).await;
    proxy.set(Flow::Silent);
    let watch = Stopwatch::start();
    let mut taken = 0;
    let error = loop {
        match within("a send", transport.send(&peer, vec![load(&peer, taken, 256 << 10)])).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    unreachable(&error);
    watch.expect_less_than(Duration::from_millis(3500));
    // The queue, what HTTP/2 and the kernel hold.
    assert!(taken < 128, "{taken} batches of 256 KiB were taken for a silent peer");
}

/// A known bug: a node that comes back leads at once, as its control lane is there, and what is passed on to it is dropped for as long as the bulk
/// lane waits for its next attempt.
pub async fn a_lane_that_waits_is_tried_at_once_when_the_other_is_connected(halves: &dyn Halves) {
    let mut b = Receiver::start(halves, 2, None).await;
    let proxy = Proxy::start(&b.peer).await;
    proxy.set(Flow::Silent);
    let pause = Duration::from_secs(3600);
    let options = Options { min_backoff: pause, max_backoff: pause, ..quick() };
    let (peer, transport) = (proxy.peer(&b.peer), sender(halves, options));
    until_it_fails(&*transport, &peer, |n| load(&peer, n, 10)).await;
    proxy.set(Flow::Forward);
    transport.send(&peer, vec![tick(&peer, 7)]).await.unwrap();
    b.until(7).await;
    until_it_works(&*transport, &peer, load(&peer, 8, 10)).await;
    b.until(8).await;
}
