//! Messages on their way out: for each peer and lane a bounded queue, and a task that hands what is queued to the
//! transport in one batch.
//!
//! The driver never waits here: where a queue is full, the newest message is dropped and counted, and Raft repeats what
//! matters. A slow or dead peer so costs the others nothing.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::host::Tasks;
use super::mailbox::Mailbox;
use super::panic_text;
use crate::config::Config;
use crate::message::{Envelope, Lane, Message};
use crate::metrics::{Dropped, Traffic};
use crate::traits::Transport;
use crate::types::{ClusterId, GroupId, NodeId, Peer};

/// How many messages wait for one peer in one lane at most.
const MAX_QUEUED: u64 = 4096;
/// How many bytes of control messages.
const MAX_CONTROL_BYTES: u64 = 4 << 20;
/// How many peers that are in no configuration known here may be answered.
const MAX_STRANGERS: usize = 16;

/// Who sends: the fixed part of each envelope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    pub(crate) cluster: ClusterId,
    pub(crate) group: GroupId,
    pub(crate) node: NodeId,
}

pub(crate) struct Outbox {
    sender: Sender,
    transport: Arc<dyn Transport>,
    tasks: Tasks,
    max_bulk_bytes: u64,
    ways: BTreeMap<NodeId, Way>,
    /// What was queued.
    sent: Traffic,
    not_queued: u64,
    /// What the transport did not take. The tasks add.
    not_taken: Arc<AtomicU64>,
}

/// The way to one peer.
#[derive(Debug)]
struct Way {
    peer: Peer,
    /// Whether the peer is in the configuration, and its address therefore certain.
    member: bool,
    control: Queue,
    bulk: Queue,
}

#[derive(Debug)]
struct Queue {
    shared: Arc<Shared>,
    max_bytes: u64,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    mailbox: Mailbox<Envelope>,
    /// What is queued or being sent. The driver adds, the task subtracts.
    messages: AtomicU64,
    bytes: AtomicU64,
    /// Messages dropped since the queue was last empty.
    dropped: AtomicU64,
    overflowing: AtomicBool,
}

impl Outbox {
    pub(crate) fn new(sender: Sender, transport: Arc<dyn Transport>, config: &Config, tasks: Tasks) -> Self {
        // What the core may have on its way to a follower, and as much again for what is forwarded.
        let max_bulk_bytes = config.max_inflight_bytes.saturating_mul(2);
        let not_taken = Arc::default();
        let ways = BTreeMap::new();
        Self { sender, transport, tasks, max_bulk_bytes, ways, sent: Traffic::default(), not_queued: 0, not_taken }
    }

    /// A configuration came into force: these are reached where it says, and others no more.
    pub(crate) fn set_members(&mut self, members: &[Peer]) {
        let me = self.sender.node;
        self.ways.retain(|_, way| {
            let keep = members.contains(&way.peer);
            if !keep {
                way.stop();
            }
            keep
        });
        for peer in members.iter().filter(|peer| peer.id != me) {
            match self.ways.get_mut(&peer.id) {
                Some(way) => way.member = true,
                None => self.open(peer.clone(), true),
            }
        }
    }

    /// A batch came from this peer: remembers where to answer, unless the configuration says so.
    pub(crate) fn learn(&mut self, peer: &Peer) {
        match self.ways.get(&peer.id) {
            Some(way) if way.member || way.peer == *peer => return,
            Some(way) => {
                way.stop();
                self.ways.remove(&peer.id);
            }
            None if peer.id == self.sender.node => return,
            None => {}
        }
        if self.ways.values().filter(|way| !way.member).count() < MAX_STRANGERS {
            self.open(peer.clone(), false);
        }
    }

    fn open(&mut self, peer: Peer, member: bool) {
        let queue = |lane, max_bytes| {
            Queue::open(&peer, lane, max_bytes, self.transport.clone(), &self.tasks, self.not_taken.clone())
        };
        let control = queue(Lane::Control, MAX_CONTROL_BYTES);
        let bulk = queue(Lane::Bulk, self.max_bulk_bytes);
        self.ways.insert(peer.id, Way { peer, member, control, bulk });
    }

    /// Queues a message, or drops it. Whether it was queued, which does not mean that it arrives.
    pub(crate) fn send(&mut self, to: NodeId, message: Message) -> bool {
        let Some(way) = self.ways.get(&to) else {
            tracing::debug!(%to, message = message.name(), "dropped a message to a node without a known address");
            self.not_queued += 1;
            return false;
        };
        let queue = match message.lane() {
            Lane::Control => &way.control,
            Lane::Bulk => &way.bulk,
        };
        let Sender { cluster, group, node } = self.sender;
        let cost = message.cost();
        if !queue.has_room(&way.peer, cost) {
            self.not_queued += 1;
            return false;
        }
        self.sent.count(&message);
        self.sent.bytes += cost;
        queue.push(cost, Envelope { cluster, group, from: node, to, message });
        true
    }

    /// What was queued so far.
    pub(crate) fn sent(&self) -> Traffic {
        self.sent
    }

    /// What was not sent so far.
    pub(crate) fn dropped(&self) -> Dropped {
        Dropped { not_queued: self.not_queued, not_taken: self.not_taken.load(Ordering::Relaxed) }
    }

    /// Breaks off what is being sent (a transport may lose messages anyway, and an unreachable peer must not hold up the end),
    /// and waits until the tasks have let go of the transport.
    pub(crate) async fn finish(self) {
        for way in self.ways.values() {
            way.stop();
        }
        for (_, way) in self.ways {
            let _ = way.control.task.await;
            let _ = way.bulk.task.await;
        }
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("ways", &self.ways).finish_non_exhaustive()
    }
}

impl Way {
    /// Ends the tasks.
    fn stop(&self) {
        self.control.task.abort();
        self.bulk.task.abort();
    }
}

impl Queue {
    fn open(
        peer: &Peer,
        lane: Lane,
        max_bytes: u64,
        transport: Arc<dyn Transport>,
        tasks: &Tasks,
        not_taken: Arc<AtomicU64>,
    ) -> Self {
        let shared = Arc::new(Shared {
            mailbox: Mailbox::new(),
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            overflowing: AtomicBool::new(false),
        });
        let span = tracing::info_span!("way", %peer, %lane);
        let task = tasks.spawn(carry(shared.clone(), peer.clone(), transport, not_taken).instrument(span));
        Self { shared, max_bytes, task }
    }

    /// Whether there is room for a message of this cost; counts it as dropped if not.
    fn has_room(&self, peer: &Peer, cost: u64) -> bool {
        let shared = &self.shared;
        let messages = shared.messages.load(Ordering::Relaxed);
        // A message larger than the limit passes alone.
        let full = messages > 0 && shared.bytes.load(Ordering::Relaxed) + cost > self.max_bytes;
        if full || messages >= MAX_QUEUED {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            if !shared.overflowing.swap(true, Ordering::Relaxed) {
                tracing::warn!(%peer, messages, "the queue for a peer is full: it is slow or away; dropping messages");
            }
            return false;
        }
        true
    }

    fn push(&self, cost: u64, envelope: Envelope) {
        let shared = &self.shared;
        shared.messages.fetch_add(1, Ordering::Relaxed);
        shared.bytes.fetch_add(cost, Ordering::Relaxed);
        let _ = shared.mailbox.push(envelope);
    }
}

/// Hands batch after batch to the transport. Logs when the peer is lost and when it is back, not each failure between.
async fn carry(queue: Arc<Shared>, peer: Peer, transport: Arc<dyn Transport>, not_taken: Arc<AtomicU64>) {
    let mut failures: u64 = 0;
    loop {
        let mut batch = Vec::new();
        if !queue.mailbox.take(&mut batch).await {
            return;
        }
        let (messages, bytes) = (batch.len() as u64, batch.iter().map(|envelope| envelope.message.cost()).sum());
        let sent = AssertUnwindSafe(async { transport.send(&peer, batch).await }).catch_unwind().await;
        let outcome = match sent {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(panic) => Err(format!("the transport panicked: {}", panic_text(&*panic))),
        };
        match outcome {
            Ok(()) if failures == 0 => {}
            Ok(()) => {
                tracing::info!(failures, "messages are taken for the peer again");
                failures = 0;
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(error, "messages to the peer are dropped");
                }
                failures += 1;
                not_taken.fetch_add(messages, Ordering::Relaxed);
            }
        }
        let left = queue.messages.fetch_sub(messages, Ordering::Relaxed) - messages;
        queue.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if left == 0 && queue.overflowing.swap(false, Ordering::Relaxed) {
            let dropped = queue.dropped.swap(0, Ordering::Relaxed);
            tracing::info!(dropped, "the queue for the peer is empty again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::error::TransportError;
    use crate::message::{Body, RequestId};
    use crate::types::{EntryKind, Term};

    const ME: Sender = Sender { cluster: ClusterId(1), group: GroupId(0), node: NodeId(1) };

    /// Takes nothing for node 2, panics for node 3, and writes down what goes to others.
    #[derive(Debug, Default)]
    struct Post(Mutex<Vec<(Peer, usize)>>);

    #[async_trait]
    impl Transport for Post {
        async fn send(&self, to: &Peer, batch: Vec<Envelope>) -> Result<(), TransportError> {
            match to.id.0 {
                2 => std::future::pending().await,
                3 => panic!("as told"),
                _ => self.0.lock().unwrap().push((to.clone(), batch.len())),
            }
            Ok(())
        }
    }

    fn outbox() -> (Outbox, Arc<Post>) {
        let post = Arc::new(Post::default());
        let mut outbox = Outbox::new(ME, Arc::new(post.clone()), &Config::default(), Tasks::default());
        outbox.set_members(&(1..=4).map(|id| Peer::new(id, format!("{id}"))).collect::<Vec<_>>());
        (outbox, post)
    }

    fn forward(bytes: usize) -> Message {
        let body = Body::Forward {
            request: RequestId(1),
            kind: EntryKind::Command,
            commands: vec![Bytes::from(vec![0; bytes])],
        };
        Message { term: Term(1), body }
    }

    async fn settle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_queued_leaves_in_one_batch() {
        let (mut outbox, post) = outbox();
        for _ in 0..5 {
            outbox.send(NodeId(4), forward(10));
        }
        settle().await;
        assert_eq!(*post.0.lock().unwrap(), [(Peer::new(4, "4"), 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_costs_a_bounded_queue_and_the_others_nothing() {
        let (mut outbox, post) = outbox();
        for _ in 0..10_000 {
            outbox.send(NodeId(2), forward(10));
            outbox.send(NodeId(2), forward(1 << 20));
        }
        let queue = &outbox.ways[&NodeId(2)].bulk.shared;
        let (messages, bytes) = (queue.messages.load(Ordering::Relaxed), queue.bytes.load(Ordering::Relaxed));
        assert!(messages <= MAX_QUEUED && bytes <= outbox.max_bulk_bytes, "{messages} messages, {bytes} bytes");
        assert_eq!(messages + queue.dropped.load(Ordering::Relaxed), 20_000);
        assert_eq!((outbox.sent().forwards, outbox.dropped().not_queued), (messages, 20_000 - messages));
        outbox.send(NodeId(4), forward(10));
        settle().await;
        assert_eq!(post.0.lock().unwrap().len(), 1);
        // It is not waited for at the end either.
        tokio::time::timeout(Duration::from_secs(1), outbox.finish()).await.unwrap();
        assert_eq!(Arc::strong_count(&post), 1, "the transport is released");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_transport_is_a_failed_one() {
        let (mut outbox, _post) = outbox();
        for _ in 0..3 {
            outbox.send(NodeId(3), forward(10));
            settle().await;
        }
        assert_eq!(outbox.ways[&NodeId(3)].bulk.shared.messages.load(Ordering::Relaxed), 0, "all three were tried");
        assert_eq!((outbox.sent().forwards, outbox.dropped().not_taken), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn members_are_reached_where_the_configuration_says_and_strangers_where_they_came_from() {
        let (mut outbox, post) = outbox();
        outbox.learn(&Peer::new(4, "liar"));
        outbox.learn(&Peer::new(5, "five"));
        outbox.learn(&Peer::new(1, "myself"));
        for id in [1, 4, 5, 6] {
            outbox.send(NodeId(id), forward(1));
        }
        settle().await;
        assert_eq!(*post.0.lock().unwrap(), [(Peer::new(4, "4"), 1), (Peer::new(5, "five"), 1)]);
        for id in 10..100 {
            outbox.learn(&Peer::new(id, "x"));
        }
        assert!(outbox.ways.len() <= 3 + MAX_STRANGERS);
        outbox.set_members(&[Peer::new(1, "1"), Peer::new(5, "moved")]);
        outbox.send(NodeId(4), forward(1));
        outbox.send(NodeId(5), forward(1));
        settle().await;
        assert_eq!(post.0.lock().unwrap()[2..], [(Peer::new(5, "moved"), 1)]);
    }
}
