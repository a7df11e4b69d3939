//! Restarts, moves, strangers and the dead.

use super::*;

/// Sends numbered control messages until one arrives; tells its number.
async fn until_one_arrives(from: &Node, to: &mut Node, numbers: std::ops::RangeFrom<u64>) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    for n in numbers {
        // Any of them may be dropped while the connection is down.
        let outcome = from.send(&to.peer, vec![tick(n)]).await;
        if let Ok(Some((_, batch))) = timeout(Duration::from_millis(20), to.arrivals.next()).await {
            return batch.first().and_then(round).expect("a heartbeat");
        }
        assert!(Instant::now() < deadline, "nothing arrives at {}; the last send gave {outcome:?}", to.peer);
    }
    unreachable!("the numbers have no end")
}

/// A restart at the same address is survived without help, in both directions of failure: at once or by `Unreachable`.
pub async fn delivery_resumes_after_the_receiver_restarts(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    until_one_arrives(&a, &mut b, 0..).await;
    for restart in 1..4_u64 {
        let Node { peer, stop, arrivals, .. } = b;
        drop(arrivals);
        within("the stop", stop).await;
        for n in 0..restart * 5 {
            let _lost = a.send(&peer, vec![tick(n)]).await;
            sleep(Duration::from_millis(10)).await;
        }
        b = Node::start_at(network, CLUSTER, 2, Some(&peer.address)).await;
        let first = restart * 1_000_000;
        let arrived = until_one_arrives(&a, &mut b, first..).await;
        assert!(arrived >= first, "message {arrived} was sent before the restart and kept");
    }
}

/// The address in `Peer` counts, and it may change.
pub async fn a_peer_that_moved_is_found_at_its_new_address(network: &dyn Network) {
    let (a, mut old) = (Node::start(network, 1).await, Node::start(network, 2).await);
    until_one_arrives(&a, &mut old, 0..).await;
    let mut new = Node::start(network, 2).await;
    assert_ne!(old.peer, new.peer);
    let first = until_one_arrives(&a, &mut new, 1000..).await;
    assert!(first >= 1000);
    // What was sent before the move may still come.
    while let Ok(Some((_, batch))) = timeout(STILL, old.arrivals.next()).await {
        assert!(batch.iter().filter_map(round).all(|n| n < 1000), "a message went to the old address: {batch:?}");
    }
}

/// Sends until the peer refuses; tells its words.
async fn refusal(transport: &dyn Transport, to: &Peer, message: Envelope) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match within("a send", transport.send(to, vec![message.clone()])).await {
            Err(TransportError::Refused { reason, peer }) => {
                assert_eq!(&peer, to);
                return reason;
            }
            outcome => assert!(Instant::now() < deadline, "never refused; the last send gave {outcome:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Two clusters that meet by mistake refuse each other, and name both.
pub async fn another_cluster_is_refused_with_a_reason(network: &dyn Network) {
    let other = ClusterId(0xbad);
    let a = Node::start_at(network, other, 1, None).await;
    let mut b = Node::start(network, 2).await;
    let reason = refusal(&*a.transport, &b.peer, envelope(other, &a.peer, &b.peer, tick(1))).await;
    for id in [CLUSTER, other] {
        assert!(reason.contains(&id.to_string()), "the reason does not name cluster {id}: {reason}");
    }
    b.assert_nothing_arrives().await;
}

/// A wrong address in a configuration reaches nobody's state.
pub async fn another_node_is_refused_with_a_reason(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let wrong = Peer::new(3, b.peer.address.clone());
    let reason = refusal(&*a.transport, &wrong, envelope(CLUSTER, &a.peer, &wrong, tick(1))).await;
    for id in [NodeId(2), NodeId(3)] {
        assert!(reason.contains(&id.to_string()), "the reason does not name node {id}: {reason}");
    }
    b.assert_nothing_arrives().await;
    // The right node at that address is still served.
    until_one_arrives(&a, &mut b, 0..).await;
}

/// A dead peer costs the live ones nothing, and its own sends fail rather than wait.
pub async fn an_unreachable_peer_fails_and_delays_nobody(network: &dyn Network) {
    let (a, mut live) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let dead = {
        let Node { peer, stop, .. } = Node::start(network, 3).await;
        within("the stop", stop).await;
        peer
    };
    until_one_arrives(&a, &mut live, 0..).await;
    let begin = Instant::now();
    let mut failed = 0;
    for n in 0..200 {
        let body = if n % 2 == 0 { tick(n) } else { load(n, 1000) };
        failed += u32::from(a.send(&dead, vec![body]).await.is_err());
        a.send(&live.peer, vec![tick(1000 + n)]).await.expect("a live peer");
        while round(&live.receive(1).await[0]) != Some(1000 + n) {}
    }
    assert!(failed >= 100, "only {failed} of 200 messages to a dead peer failed");
    assert!(begin.elapsed() < PATIENCE / 4, "200 round trips took {:?} beside a dead peer", begin.elapsed());
}
