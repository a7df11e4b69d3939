//! What every [`Transport`] must do.
//!
//! Say how nodes of your network come to be ([`Network`]), and name the suite in a test file:
//!
//! ```ignore
//! raftkv::transport_conformance!(MyNetwork::new());
//! ```

#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    AppendReply, Arrivals, Body, ClusterId, Entry, EntryKind, Envelope, ForwardOutcome, GroupId, Inbox, Index, LogId,
    Message, NodeId, Peer, RequestId, Term, Transport, TransportError,
};

/// How the two halves of your transport come to be. All nodes of a test share one network.
#[async_trait]
pub trait Network: Send + Sync {
    /// Starts the receiving half of a node, which delivers to `inbox`: at this address, where an earlier one was
    /// stopped, or at a free one.
    async fn listen(&self, inbox: Inbox, address: Option<&str>) -> Listener;

    /// The sending half of a node, with default limits.
    fn transport(&self, cluster: ClusterId, node: Peer) -> Arc<dyn Transport>;
}

/// A running receiving half.
pub struct Listener {
    /// Where it is.
    pub address: Arc<str>,
    /// Ends it and its connections, and completes when the address is free again.
    pub stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Defines one `#[test]` for each case; the argument is an expression that makes a [`Network`].
#[macro_export]
macro_rules! transport_conformance {
    ($network:expr) => {
        $crate::transport_conformance! { @cases $network;
            every_kind_of_message_arrives_unchanged
            the_receiver_learns_where_to_answer
            messages_of_a_lane_arrive_in_order
            many_senders_share_one_receiver
            an_empty_batch_does_nothing
            a_large_command_arrives
            a_message_beyond_the_limit_is_dropped_alone
            a_receiver_that_takes_nothing_holds_the_sender_back
            control_passes_while_bulk_is_blocked
            delivery_resumes_after_the_receiver_restarts
            a_peer_that_moved_is_found_at_its_new_address
            another_cluster_is_refused_with_a_reason
            another_node_is_refused_with_a_reason
            an_unreachable_peer_fails_and_delays_nobody
            dropping_everything_under_load_does_not_hang
        }
    };
    (@cases $network:expr; $($case:ident)+) => {$(
        #[test]
        fn $case() {
            $crate::testing::conformance::run(async {
                $crate::testing::conformance::transport::$case(&$network).await;
            });
        }
    )+};
}

const CLUSTER: ClusterId = ClusterId(0xfeed_f00d);
const GROUP: GroupId = GroupId(0);
/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nothing moves for this long: it is blocked.
const STILL: Duration = Duration::from_millis(700);

/// A node of a test: both halves, and what arrived.
struct Node {
    peer: Peer,
    transport: Arc<dyn Transport>,
    arrivals: Arrivals,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Node {
    async fn start(network: &dyn Network, id: u64) -> Self {
        Self::start_at(network, CLUSTER, id, None).await
    }

    async fn start_at(network: &dyn Network, cluster: ClusterId, id: u64, address: Option<&str>) -> Self {
        let (inbox, arrivals) = Inbox::channel(cluster, GROUP, NodeId(id));
        let Listener { address, stop } = network.listen(inbox, address).await;
        let peer = Peer::new(id, address);
        Self { transport: network.transport(cluster, peer.clone()), peer, arrivals, stop }
    }

    fn envelope(&self, to: &Peer, body: Body) -> Envelope {
        envelope(CLUSTER, &self.peer, to, body)
    }

    async fn send(&self, to: &Peer, bodies: Vec<Body>) -> Result<(), TransportError> {
        let batch = bodies.into_iter().map(|body| self.envelope(to, body)).collect();
        within("a send", self.transport.send(to, batch)).await
    }

    /// Everything that arrived, up to `count` messages.
    async fn receive(&mut self, count: usize) -> Vec<Envelope> {
        let mut all = Vec::new();
        while all.len() < count {
            let (_, batch) = within("the next arrival", self.arrivals.next()).await.expect("an open inbox");
            all.extend(batch);
        }
        all
    }

    async fn assert_nothing_arrives(&mut self) {
        if let Ok(Some((sender, batch))) = timeout(STILL, self.arrivals.next()).await {
            panic!("{} messages of {sender} arrived where none should", batch.len());
        }
    }
}

fn envelope(cluster: ClusterId, from: &Peer, to: &Peer, body: Body) -> Envelope {
    Envelope { cluster, group: GROUP, from: from.id, to: to.id, message: Message { term: Term(7), body } }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come to an end"),
    }
}

/// A control message with a number.
fn tick(round: u64) -> Body {
    Body::Heartbeat { commit: Index(3), round }
}

fn round(envelope: &Envelope) -> Option<u64> {
    if let Body::Heartbeat { round, .. } = envelope.message.body { Some(round) } else { None }
}

/// A bulk message with a number and `size` bytes.
fn load(number: u64, size: usize) -> Body {
    let entry =
        Entry { id: LogId::new(7, number + 1), kind: EntryKind::Command, data: Bytes::from(vec![number as u8; size]) };
    Body::Append { prev: LogId::new(7, number), entries: vec![entry], commit: Index(number) }
}

fn number(envelope: &Envelope) -> Option<u64> {
    if let Body::Append { prev, .. } = &envelope.message.body { Some(prev.index.0) } else { None }
}

/// Every statement, with empty and full fields.
fn samples() -> Vec<Body> {
    let (id, far) = (LogId::new(6, 41), LogId::new(1 << 40, 1 << 50));
    let request = RequestId(u64::MAX);
    let entry = |index, kind, data: &'static [u8]| Entry { id: LogId::new(6, index), kind, data: Bytes::from(data) };
    let entries = vec![
        entry(42, EntryKind::Noop, b""),
        entry(43, EntryKind::Command, b"\0\xff put"),
        entry(44, EntryKind::Command, b""),
        entry(45, EntryKind::Config, b"members"),
    ];
    vec![
        Body::PreVote { proposed: Term(8), last: far },
        Body::PreVote { proposed: Term(1), last: LogId::ZERO },
        Body::PreVoteReply { proposed: Term(8), granted: true },
        Body::PreVoteReply { proposed: Term(8), granted: false },
        Body::Vote { last: id },
        Body::VoteReply { granted: true },
        Body::VoteReply { granted: false },
        Body::Append { prev: id, entries, commit: Index(43) },
        Body::Append { prev: LogId::ZERO, entries: Vec::new(), commit: Index::ZERO },
        Body::AppendReply(AppendReply::Accepted { stored: Index(1 << 50) }),
        Body::AppendReply(AppendReply::Rejected { prev: far, hint: LogId::ZERO }),
        Body::Heartbeat { commit: Index(9), round: 1 << 50 },
        Body::HeartbeatReply { round: 3, matching: Index(12), stored: Index(11) },
        Body::ReadIndex { request },
        Body::ReadIndexReply { request, index: None },
        Body::ReadIndexReply { request, index: Some(Index::ZERO) },
        Body::ReadIndexReply { request, index: Some(Index(5)) },
        Body::Forward { request, commands: vec![Bytes::from_static(b"a"), Bytes::new(), Bytes::from(vec![7; 5000])] },
        Body::Forward { request, commands: Vec::new() },
        Body::ForwardReply { request, outcome: ForwardOutcome::Appended { first: id } },
        Body::ForwardReply { request, outcome: ForwardOutcome::Overloaded },
        Body::ForwardReply { request, outcome: ForwardOutcome::NotLeader },
        Body::Commit { index: Index(77) },
    ]
}

/// Numbers the kinds of statements from 0, so that the compiler asks for a sample of each new one.
fn kind(body: &Body) -> usize {
    match body {
        Body::PreVote { .. } => 0,
        Body::PreVoteReply { .. } => 1,
        Body::Vote { .. } => 2,
        Body::VoteReply { .. } => 3,
        Body::Append { .. } => 4,
        Body::AppendReply(_) => 5,
        Body::Heartbeat { .. } => 6,
        Body::HeartbeatReply { .. } => 7,
        Body::ReadIndex { .. } => 8,
        Body::ReadIndexReply { .. } => 9,
        Body::Forward { .. } => 10,
        Body::ForwardReply { .. } => 11,
        Body::Commit { .. } => 12,
    }
}
const KINDS: usize = 13;

/// Nothing about a message changes on its way.
pub async fn every_kind_of_message_arrives_unchanged(network: &dyn Network) {
    let sampled: BTreeSet<usize> = samples().iter().map(kind).collect();
    assert_eq!(sampled, (0..KINDS).collect(), "the samples miss a kind of message");
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    for body in samples() {
        let sent = a.envelope(&b.peer, body);
        within("a send", a.transport.send(&b.peer, vec![sent.clone()])).await.expect("a live peer");
        assert_eq!(b.receive(1).await, [sent]);
    }
}

/// A node that is in no configuration known to the receiver can still be answered.
pub async fn the_receiver_learns_where_to_answer(network: &dyn Network) {
    let (mut a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    a.send(&b.peer, vec![tick(1)]).await.expect("a live peer");
    let (sender, _) = within("the arrival", b.arrivals.next()).await.expect("an open inbox");
    assert_eq!(sender, a.peer);
    b.send(&sender, vec![Body::HeartbeatReply { round: 1, matching: Index(1), stored: Index(1) }])
        .await
        .expect("alive");
    assert_eq!(a.receive(1).await[0].from, b.peer.id);
}

/// While nothing fails, nothing is lost, doubled or reordered within a lane, whatever the sizes.
pub async fn messages_of_a_lane_arrive_in_order(network: &dyn Network) {
    const COUNT: u64 = 2000;
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let to = b.peer.clone();
    let sending = async {
        let mut next = 0;
        while next < COUNT {
            let end = COUNT.min(next + 1 + next % 7);
            let batch = (next..end).map(|n| load(n, (n as usize * 37) % 3000)).collect();
            a.send(&to, batch).await.expect("a live peer");
            next = end;
        }
    };
    let ((), arrived) = futures_util::future::join(sending, b.receive(COUNT as usize)).await;
    let numbers: Vec<u64> = arrived.iter().filter_map(number).collect();
    assert_eq!(numbers, (0..COUNT).collect::<Vec<_>>());
}

/// Nodes do not disturb each other, and each one's messages stay in order.
pub async fn many_senders_share_one_receiver(network: &dyn Network) {
    const COUNT: u64 = 100;
    let mut hub = Node::start(network, 1).await;
    let mut senders = Vec::new();
    for id in 2..8 {
        senders.push(Node::start(network, id).await);
    }
    let to = hub.peer.clone();
    let sending = futures_util::future::join_all(senders.iter().map(|node| async {
        for n in 0..COUNT {
            node.send(&to, vec![tick(n)]).await.expect("a live peer");
        }
    }));
    let (_, arrived) = futures_util::future::join(sending, hub.receive(senders.len() * COUNT as usize)).await;
    for node in &senders {
        let rounds: Vec<u64> = arrived.iter().filter(|e| e.from == node.peer.id).filter_map(round).collect();
        assert_eq!(rounds, (0..COUNT).collect::<Vec<_>>(), "from {}", node.peer);
    }
}

/// It is neither an error nor an arrival.
pub async fn an_empty_batch_does_nothing(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    a.send(&b.peer, Vec::new()).await.expect("nothing to fail at");
    a.send(&b.peer, vec![tick(1)]).await.expect("a live peer");
    let (_, batch) = within("the arrival", b.arrivals.next()).await.expect("an open inbox");
    assert_eq!(batch.iter().filter_map(round).collect::<Vec<_>>(), [1]);
}

/// The largest command that `Config` allows by default passes, alone and in a batch with others.
pub async fn a_large_command_arrives(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let size = usize::try_from(crate::Config::default().max_command_bytes).expect("a size of this machine");
    let sent: Vec<Envelope> = (0..4).map(|n| a.envelope(&b.peer, load(n, if n == 0 { 10 } else { size }))).collect();
    let to = b.peer.clone();
    let sending = within("a send", a.transport.send(&to, sent.clone()));
    let (outcome, arrived) = futures_util::future::join(sending, b.receive(sent.len())).await;
    outcome.expect("a live peer");
    assert!(arrived == sent, "a large command changed on its way");
}

/// A transport with a limit says so, and delivers the rest; one without delivers everything.
pub async fn a_message_beyond_the_limit_is_dropped_alone(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let to = b.peer.clone();
    let batch = vec![load(0, 10), load(1, 80 << 20), load(2, 10)];
    let (outcome, first) = futures_util::future::join(a.send(&to, batch), b.receive(1)).await;
    assert_eq!(number(&first[0]), Some(0));
    match outcome {
        Ok(()) => assert_eq!(b.receive(2 - (first.len() - 1)).await.len() + first.len(), 3),
        Err(TransportError::TooLarge { size, limit, .. }) => {
            assert!(size >= 80 << 20 && limit < size, "size {size}, limit {limit}");
            let last = if first.len() > 1 { first } else { b.receive(1).await };
            assert_eq!(last.last().and_then(number), Some(2), "the rest of the batch was dropped as well");
        }
        Err(other) => panic!("a message beyond the limit gave: {other}"),
    }
}

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
