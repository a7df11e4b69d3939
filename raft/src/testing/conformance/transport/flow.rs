//! A receiver that takes nothing holds the sender back, and nothing else.

use super::*;

/// A sender of 64 KiB messages that never stops by itself.
struct Flood {
    sent: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Flood {
    const SIZE: usize = 64 << 10;

    fn start(from: &Node, to: &Peer) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let (transport, from, to, count) = (from.transport.clone(), from.peer.clone(), to.clone(), sent.clone());
        let task = tokio::spawn(async move {
            for n in 0.. {
                let batch = vec![envelope(CLUSTER, &from, &to, load(n, Self::SIZE))];
                if transport.send(&to, batch).await.is_err() {
                    sleep(Duration::from_millis(10)).await;
                } else {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { sent, task }
    }

    fn count(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until nothing more is accepted, and tells how much was.
    async fn stalled(&self) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.count();
            sleep(STILL).await;
            if self.count() == before && before > 0 {
                return before;
            }
            assert!(Instant::now() < deadline, "{before} messages were accepted, and none was taken: no backpressure");
        }
    }
}

/// How many batches an inbox holds that nobody empties.
async fn inbox_capacity() -> u64 {
    let (inbox, _arrivals) = Inbox::channel(CLUSTER, GROUP, NodeId(2));
    let (from, to) = (Peer::new(1, "a"), Peer::new(2, "b"));
    let mut held = 0;
    while let Ok(outcome) = timeout(
        Duration::from_millis(50),
        inbox.deliver(&from, vec![envelope(CLUSTER, &from, &to, load(0, Flood::SIZE))]),
    )
    .await
    {
        outcome.expect("an open inbox");
        held += 1;
    }
    held
}

/// What a transport may hold between a sender and a receiver that takes nothing.
const MAX_HELD_BYTES: u64 = 64 << 20;

/// Memory stays bounded, and everything goes on once the receiver does, in order.
pub async fn a_receiver_that_takes_nothing_holds_the_sender_back(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let flood = Flood::start(&a, &b.peer);
    let accepted = flood.stalled().await;
    let held = accepted.saturating_sub(inbox_capacity().await) * Flood::SIZE as u64;
    assert!(held <= MAX_HELD_BYTES, "{accepted} messages were accepted: {held} bytes are held on the way");

    let arrived = b.receive(usize::try_from(accepted).expect("a count of this machine") + 100).await;
    let numbers: Vec<u64> = arrived.iter().filter_map(number).collect();
    assert!(numbers.is_sorted_by(|x, y| x < y), "out of order after a pause: {numbers:?}");
    flood.task.abort();
}

/// Control messages overtake the payloads that wait in the transport.
pub async fn control_passes_while_bulk_is_blocked(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let flood = Flood::start(&a, &b.peer);
    flood.stalled().await;
    let (transport, batch, to) = (a.transport.clone(), vec![a.envelope(&b.peer, tick(1))], b.peer.clone());
    let control = tokio::spawn(async move { transport.send(&to, batch).await });
    sleep(STILL).await;

    // What is in the inbox is ahead of it, and a batch or two at the inbox's door.
    let ahead = inbox_capacity().await + 8;
    let mut overtaken = 0;
    while round(&b.receive(1).await[0]).is_none() {
        // Each place that becomes free goes to whoever waited longest for it.
        tokio::task::yield_now().await;
        overtaken += 1;
        assert!(overtaken <= ahead, "a control message waits behind more than {ahead} bulk messages");
    }
    within("the control send", control).await.expect("no panic").expect("a live peer");
    flood.task.abort();
}

/// A transport, its peers and a blocked send can all go away at any time.
pub async fn dropping_everything_under_load_does_not_hang(network: &dyn Network) {
    let (a, b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let flood = Flood::start(&a, &b.peer);
    flood.stalled().await;
    let Flood { task, .. } = flood;
    task.abort();
    let Node { transport, stop, .. } = a;
    drop(transport);
    within("the sender's stop", stop).await;
    let Node { stop, arrivals, transport, .. } = b;
    drop(transport);
    within("the receiver's stop", stop).await;
    drop(arrivals);
}
