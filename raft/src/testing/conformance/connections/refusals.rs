//! What is not sent, or not taken, and who is told why.

use tokio::net::TcpListener;

use super::*;

/// Both operators can find out.
pub async fn a_refusal_is_logged_once_on_each_side_and_retried(halves: &dyn Halves) {
    let mut b = Receiver::start(halves, 2, None).await;
    let wrong = Peer { id: NodeId(3), address: b.peer.address.clone() };
    let log = Log::default();
    let _guard = log.start();
    let transport = sender(halves, quick());
    let error = until_it_fails(&*transport, &wrong, |n| tick(&wrong, n)).await;
    assert!(refused(&error).contains("this is node n2, not n3"), "{error}");
    // Several more attempts.
    sleep(Duration::from_millis(500)).await;
    transport.send(&wrong, vec![tick(&wrong, 1)]).await.unwrap_err();
    assert_eq!(log.lines(&["WARN", "refused by the peer", "this is node n2, not n3", "lane=control"]).len(), 1);
    assert_eq!(log.lines(&["WARN", "refused a peer", "this is node n2, not n3", "remote=127.0.0.1"]).len(), 1);

    // The right node at the same address is another lane.
    let peer = b.peer.clone();
    until_it_works(&*transport, &peer, tick(&peer, 9)).await;
    b.until(9).await;
    within("the line", async {
        while log.lines(&["INFO", " connected peer=2="]).is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Addresses come from configurations, which people write.
pub async fn an_address_that_is_none_is_unreachable_and_named(halves: &dyn Halves) {
    let transport = sender(halves, quick());
    for address in ["", "no port here", "127.0.0.1:99999", "http://[::1"] {
        let peer = Peer::new(2, address);
        let error = until_it_fails(&*transport, &peer, |n| tick(&peer, n)).await;
        assert!(!unreachable(&error).is_empty(), "{error}");
    }
}

/// Something else listens there.
pub async fn a_server_that_is_no_raftkv_node_is_told_from_one(halves: &dyn Halves) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::new(2, listener.local_addr().unwrap().to_string());
    // Answers every connection like a web server.
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let transport = sender(halves, quick());
    let error = until_it_fails(&*transport, &peer, |n| tick(&peer, n)).await;
    unreachable(&error);
}

/// A connection belongs to one sender and one receiver.
pub async fn a_batch_that_claims_to_be_from_elsewhere_is_not_sent(halves: &dyn Halves) {
    let mut b = Receiver::start(halves, 2, None).await;
    let (peer, transport) = (b.peer.clone(), sender(halves, quick()));
    let mut stray = tick(&peer, 1);
    stray.cluster = ClusterId(9);
    let error = transport.send(&peer, vec![tick(&peer, 0), stray]).await.unwrap_err();
    assert!(refused(&error).contains(&CLUSTER.to_string()), "{error}");
    transport.send(&peer, vec![tick(&peer, 2)]).await.unwrap();
    assert_eq!(number(&b.next().await[0]), Some(2));
}

/// Limits on the wire are none of the sender's business.
pub async fn a_batch_beyond_the_wire_limit_is_split_and_stays_in_order(halves: &dyn Halves) {
    let small = Limits { message_bytes: 10_000, ..Limits::default() };
    let mut b = Receiver::start(halves, 2, Some(small)).await;
    let (peer, transport) = (b.peer.clone(), sender(halves, Options { max_message_bytes: 10_000, ..quick() }));
    let batch = (0..100).map(|n| load(&peer, n, 1500)).collect();
    transport.send(&peer, batch).await.unwrap();
    let mut arrived = Vec::new();
    while arrived.len() < 100 {
        arrived.extend(b.next().await.iter().filter_map(number));
    }
    assert_eq!(arrived, (0..100).collect::<Vec<_>>());
}

/// Two nodes with different limits.
pub async fn a_message_beyond_the_receivers_limit_is_refused_with_a_reason(halves: &dyn Halves) {
    let small = Limits { message_bytes: 10_000, ..Limits::default() };
    let b = Receiver::start(halves, 2, Some(small)).await;
    let (peer, transport) = (b.peer.clone(), sender(halves, quick()));
    let error = until_it_fails(&*transport, &peer, |n| load(&peer, n, 20_000)).await;
    assert!(refused(&error).contains("10000"), "{error}");
}

/// A listener that breaks under a running server: the server ends with an error, instead of living on and hearing nobody.
pub async fn a_broken_listener_ends_the_server_with_an_error(halves: &dyn Halves) {
    use std::net::{Shutdown, TcpStream};
    use std::os::fd::OwnedFd;

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let same = TcpStream::from(OwnedFd::from(listener.try_clone().unwrap()));
    let (inbox, _arrivals) = Inbox::channel(CLUSTER, GroupId(0), NodeId(2));
    let listener = TcpListener::from_std(listener).unwrap();
    let serving = halves.serve(listener, inbox, None, Box::pin(std::future::pending()));
    let serving = tokio::spawn(serving);
    sleep(Duration::from_millis(50)).await;
    assert!(!serving.is_finished());
    same.shutdown(Shutdown::Both).unwrap();
    let error = within("the end of the server", serving).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("no connection can be accepted any more"), "{error}");
}
