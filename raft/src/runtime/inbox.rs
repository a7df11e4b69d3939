//! Where a transport delivers what it received.

use tokio::sync::mpsc;

use crate::error::Refusal;
use crate::message::Envelope;
use crate::types::{ClusterId, GroupId, NodeId, Peer};

/// How many batches wait for the driver before [`Inbox::deliver`] does.
const MAX_BATCHES: usize = 1024;

/// A node's letter box. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    cluster: ClusterId,
    group: GroupId,
    node: NodeId,
    queue: mpsc::Sender<(Peer, Vec<Envelope>)>,
}

/// The other end of an [`Inbox`]. The runtime empties it; a transport's tests may as well.
#[derive(Debug)]
pub struct Arrivals {
    queue: mpsc::Receiver<(Peer, Vec<Envelope>)>,
}

impl Inbox {
    /// A letter box for this node, and its other end.
    #[must_use]
    pub fn channel(cluster: ClusterId, group: GroupId, node: NodeId) -> (Self, Arrivals) {
        let (sender, receiver) = mpsc::channel(MAX_BATCHES);
        (Self { cluster, group, node, queue: sender }, Arrivals { queue: receiver })
    }

    /// The cluster that is served here.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The node that is served here.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Checks that a batch is meant for this node, and queues it; waits while the queue is full, so that a transport's flow control
    /// reaches the sender.
    ///
    /// `sender` says where to reach the node that sent it, for answers to nodes that are in no configuration known here yet.
    ///
    /// # Errors
    /// The whole batch is refused at the first envelope that is not for this node. Tell the sender, and log it.
    pub async fn deliver(&self, sender: &Peer, batch: Vec<Envelope>) -> Result<(), Refusal> {
        for envelope in &batch {
            self.check(envelope)?;
        }
        self.queue.send((sender.clone(), batch)).await.map_err(|_| Refusal::Stopped)
    }

    fn check(&self, envelope: &Envelope) -> Result<(), Refusal> {
        if envelope.cluster != self.cluster {
            return Err(Refusal::WrongCluster { ours: self.cluster, theirs: envelope.cluster });
        }
        if envelope.to != self.node {
            return Err(Refusal::WrongNode { ours: self.node, wanted: envelope.to });
        }
        if envelope.group != self.group {
            return Err(Refusal::UnknownGroup(envelope.group));
        }
        Ok(())
    }
}

impl Arrivals {
    /// The next batch, with the sender's address; none when every [`Inbox`] is gone.
    pub async fn next(&mut self) -> Option<(Peer, Vec<Envelope>)> {
        self.queue.recv().await
    }
}
