//! Where a transport delivers what it received.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::Semaphore;

use super::mailbox::Mailbox;
use crate::error::Refusal;
use crate::message::{Envelope, Hello};
use crate::metrics::{Refused, RefusedFor};
use crate::types::{ClusterId, GroupId, NodeId, Peer};

/// How many bytes ([`Message::cost`](crate::Message::cost)) wait for the driver before [`Inbox::deliver`] does. The fixed part of each
/// message's cost bounds their number as well.
const MAX_BYTES: u32 = 32 << 20;

/// How many hints of lost peers wait for the driver at most. Further ones are dropped: they are hints.
const MAX_HINTS: usize = 64;

/// A node's letter box. Cheap to clone. It does not keep the node running: once that has stopped, everything is refused.
#[derive(Clone, Debug)]
pub struct Inbox {
    cluster: ClusterId,
    group: GroupId,
    node: NodeId,
    senders: Arc<Senders>,
}

/// The other end of an [`Inbox`]. The runtime empties it; a transport's tests may as well.
#[derive(Debug)]
pub struct Arrivals {
    queue: Arc<Queue>,
    /// Taken from the queue, and not yet given out by [`Arrivals::next`].
    taken: VecDeque<Arrival>,
    /// Peers that were lost, and not yet given out by [`Arrivals::lost`].
    lost: VecDeque<NodeId>,
}

/// What comes through an inbox, in order.
#[derive(Debug)]
pub(crate) enum Arrival {
    Batch(Batch),
    /// The transport lost its connection with a peer.
    Lost(NodeId),
}

/// A batch with its sender.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) sender: Peer,
    pub(crate) batch: Vec<Envelope>,
    /// What it occupies of the queue's bytes.
    pub(crate) cost: u32,
}

#[derive(Debug)]
struct Queue {
    mailbox: Mailbox<Arrival>,
    room: Semaphore,
    hints: AtomicUsize,
    refused: RefusedCounts,
}

/// Counted where connections are refused, which may be often.
#[derive(Debug, Default)]
struct RefusedCounts {
    limit: AtomicU64,
    silence: AtomicU64,
    error: AtomicU64,
}

/// Shared by all clones of an inbox; the last one ends the stream.
#[derive(Debug)]
struct Senders(Arc<Queue>);

impl Drop for Senders {
    fn drop(&mut self) {
        self.0.mailbox.close();
    }
}

impl Inbox {
    /// A letter box for this node, and its other end.
    #[must_use]
    pub fn channel(cluster: ClusterId, group: GroupId, node: NodeId) -> (Self, Arrivals) {
        let queue = Arc::new(Queue {
            mailbox: Mailbox::new(),
            room: Semaphore::new(MAX_BYTES as usize),
            hints: AtomicUsize::new(0),
            refused: RefusedCounts::default(),
        });
        let senders = Arc::new(Senders(queue.clone()));
        (Self { cluster, group, node, senders }, Arrivals { queue, taken: VecDeque::new(), lost: VecDeque::new() })
    }

    /// The cluster that is served here.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The group that is served here.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The node that is served here.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Checks that a connection is meant for this node, before anything else comes over it.
    ///
    /// # Errors
    /// It is not: tell the other end why, log it, and close the connection.
    pub fn greet(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.version != Hello::VERSION {
            return Err(Refusal::WrongVersion { ours: Hello::VERSION, theirs: hello.version });
        }
        self.check_way(hello.cluster, hello.to)
    }

    /// Checks that a batch is meant for this node, and queues it; waits while the queue is full, so that a transport's flow control
    /// reaches the sender.
    ///
    /// `sender` says where to reach the node that sent it, for answers to nodes that are in no configuration known here yet.
    ///
    /// # Errors
    /// The whole batch is refused at the first envelope that is not for this node. Tell the sender, and log it.
    pub async fn deliver(&self, sender: &Peer, batch: Vec<Envelope>) -> Result<(), Refusal> {
        let mut cost = 0;
        for envelope in &batch {
            self.check(envelope)?;
            cost += envelope.message.cost();
        }
        if batch.is_empty() {
            return Ok(());
        }
        // A batch larger than the whole queue passes alone.
        let cost = u32::try_from(cost).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        let queue = &self.senders.0;
        queue.room.acquire_many(cost).await.map_err(|_| Refusal::Stopped)?.forget();
        let arrival = Arrival::Batch(Batch { sender: sender.clone(), batch, cost });
        queue.mailbox.push(arrival).map_err(|_| Refusal::Stopped)
    }

    /// Tells the node that a connection with this peer has ended, or that an attempt at one was refused: if it is the leader, the node
    /// asks early whether another should lead. A leader speaks more often for a moment, so that it is heard on the next connection before that. Only a hint: a wrong one does no harm as long as the leader is heard, and one that
    /// never comes costs an election timeout. Never waits.
    pub fn peer_lost(&self, peer: NodeId) {
        let queue = &self.senders.0;
        if peer == self.node {
            return;
        }
        if queue.hints.fetch_add(1, Ordering::Relaxed) >= MAX_HINTS {
            queue.hints.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        // Where nobody takes it, the node has stopped.
        let _ = queue.mailbox.push(Arrival::Lost(peer));
    }

    /// Counts a connection that was refused, for [`Metrics::refused`](crate::Metrics::refused).
    pub fn refused(&self, why: RefusedFor) {
        let counts = &self.senders.0.refused;
        let count = match why {
            RefusedFor::Limit => &counts.limit,
            RefusedFor::Silence => &counts.silence,
            RefusedFor::Error => &counts.error,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn check(&self, envelope: &Envelope) -> Result<(), Refusal> {
        self.check_way(envelope.cluster, envelope.to)?;
        if envelope.group != self.group {
            return Err(Refusal::UnknownGroup(envelope.group));
        }
        Ok(())
    }
}

impl Inbox {
    fn check_way(&self, cluster: ClusterId, to: NodeId) -> Result<(), Refusal> {
        if cluster != self.cluster {
            return Err(Refusal::WrongCluster { ours: self.cluster, theirs: cluster });
        }
        if to != self.node {
            return Err(Refusal::WrongNode { ours: self.node, wanted: to });
        }
        Ok(())
    }
}

impl Arrivals {
    /// The next batch, with the sender's address; none when every [`Inbox`] is gone.
    pub async fn next(&mut self) -> Option<(Peer, Vec<Envelope>)> {
        loop {
            match self.next_arrival().await? {
                Arrival::Batch(Batch { sender, batch, cost }) => {
                    self.make_room(cost);
                    return Some((sender, batch));
                }
                Arrival::Lost(peer) => self.lost.push_back(peer),
            }
        }
    }

    /// The next peer that the transport lost, for tests of transports; drops the batches before it. None when every [`Inbox`] is gone.
    pub async fn lost(&mut self) -> Option<NodeId> {
        loop {
            if let Some(peer) = self.lost.pop_front() {
                return Some(peer);
            }
            match self.next_arrival().await? {
                Arrival::Batch(Batch { cost, .. }) => self.make_room(cost),
                Arrival::Lost(peer) => self.lost.push_back(peer),
            }
        }
    }

    async fn next_arrival(&mut self) -> Option<Arrival> {
        if self.taken.is_empty() {
            let mut arrivals = Vec::new();
            self.queue.mailbox.take(&mut arrivals).await;
            self.taken.extend(arrivals);
        }
        let arrival = self.taken.pop_front()?;
        if matches!(arrival, Arrival::Lost(_)) {
            self.hint_taken();
        }
        Some(arrival)
    }

    /// A hint was dealt with: another may come in its place.
    pub(crate) fn hint_taken(&self) {
        self.queue.hints.fetch_sub(1, Ordering::Relaxed);
    }

    /// What [`Inbox::refused`] has counted.
    #[must_use]
    pub fn refused(&self) -> Refused {
        let RefusedCounts { limit, silence, error } = &self.queue.refused;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Refused { limit: read(limit), silence: read(silence), error: read(error) }
    }

    /// Takes all batches that are there; waits while there are none, and for ever when every [`Inbox`] is gone.
    /// The caller owes a [`Arrivals::make_room`] for each.
    pub(crate) fn poll_take(&mut self, cx: &mut Context<'_>, into: &mut Vec<Arrival>) -> Poll<()> {
        match self.queue.mailbox.poll_take(cx, into) {
            Poll::Ready(true) => Poll::Ready(()),
            Poll::Ready(false) | Poll::Pending => Poll::Pending,
        }
    }

    /// A batch was dealt with: another may come in its place.
    pub(crate) fn make_room(&self, cost: u32) {
        self.queue.room.add_permits(cost as usize);
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.queue.room.close();
        drop(self.queue.mailbox.close_and_drain());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::message::{Body, Message, RequestId};
    use crate::types::{EntryKind, Term};

    const CLUSTER: ClusterId = ClusterId(7);

    fn envelope(to: u64, bytes: usize) -> Envelope {
        let body = Body::Forward {
            request: RequestId(1),
            kind: EntryKind::Command,
            commands: vec![Bytes::from(vec![0; bytes])],
        };
        let message = Message { term: Term(1), body };
        Envelope { cluster: CLUSTER, group: GroupId(0), from: NodeId(2), to: NodeId(to), message }
    }

    #[tokio::test]
    async fn a_batch_for_another_node_is_refused_as_a_whole() {
        let (inbox, mut arrivals) = Inbox::channel(CLUSTER, GroupId(0), NodeId(1));
        let refused = inbox.deliver(&Peer::new(2, "b"), vec![envelope(1, 0), envelope(3, 0)]).await;
        assert_eq!(refused, Err(Refusal::WrongNode { ours: NodeId(1), wanted: NodeId(3) }));
        drop(inbox);
        assert!(arrivals.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_inbox_makes_the_sender_wait_and_goes_on_when_it_is_read() {
        let (inbox, mut arrivals) = Inbox::channel(CLUSTER, GroupId(0), NodeId(1));
        let sender = Peer::new(2, "b");
        // Larger than everything: passes alone.
        inbox.deliver(&sender, vec![envelope(1, MAX_BYTES as usize + 1)]).await.unwrap();
        let second = inbox.deliver(&sender, vec![envelope(1, 10)]);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut second).await.is_err());
        assert!(arrivals.next().await.is_some());
        second.await.unwrap();
        assert!(arrivals.next().await.is_some());
    }

    #[tokio::test]
    async fn nothing_is_taken_once_the_node_has_stopped() {
        let (inbox, arrivals) = Inbox::channel(CLUSTER, GroupId(0), NodeId(1));
        drop(arrivals);
        assert_eq!(inbox.deliver(&Peer::new(2, "b"), vec![envelope(1, 0)]).await, Err(Refusal::Stopped));
    }
}
