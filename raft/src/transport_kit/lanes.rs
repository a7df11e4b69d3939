//! The sending half: a lane for each peer and kind of message, opened with the first message to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::lane::{Dial, Lane, Rejected};
use super::options::Options;
use super::queue::Parcel;
use crate::error::TransportError;
use crate::message::{Envelope, Lane as Kind};
use crate::runtime::Inbox;
use crate::traits::Transport;
use crate::types::{ClusterId, NodeId, Peer};

/// In whose name a transport speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node, and the address at which others reach its server. Peers are told this address.
    pub node: Peer,
}

/// Sends to peers over long-lived connections: one for each peer and lane.
///
/// Connections open with the first message, and come back by themselves. While a peer is connected, `send` waits for room
/// in its queue; while it is not, messages to it are dropped at once with `Unreachable` or `Refused`. Dropping this
/// closes all connections and drops what is queued.
///
/// Must be used within a tokio runtime.
pub struct Lanes<D> {
    sending: Arc<Sending<D>>,
    lanes: RwLock<BTreeMap<(NodeId, Kind), Arc<Lane>>>,
}

/// What all lanes share.
pub(super) struct Sending<D> {
    local: Local,
    pub(super) options: Options,
    pub(super) dialer: D,
    /// Who is told that a peer was lost.
    pub(super) losses: OnceLock<Inbox>,
    pub(super) reached: Reached,
}

/// Wakes the lanes to a peer that wait before their next attempt, when another lane to it is connected: it is there.
#[derive(Default)]
pub(super) struct Reached(Mutex<BTreeMap<NodeId, Arc<Notify>>>);

impl Reached {
    pub(super) fn of(&self, peer: NodeId) -> Arc<Notify> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those without a lane are forgotten.
        peers.retain(|_, notify| Arc::strong_count(notify) > 1);
        peers.entry(peer).or_default().clone()
    }
}

impl<D: Dial> Lanes<D> {
    /// The sending half of this node. Opens nothing yet.
    #[must_use]
    pub fn new(local: Local, options: Options, dialer: D) -> Self {
        let sending = Sending { local, options, dialer, losses: OnceLock::new(), reached: Reached::default() };
        Self { sending: Arc::new(sending), lanes: RwLock::default() }
    }

    /// Tells this node of connections that are lost or refused ([`Inbox::peer_lost`]), so that it notices at once when its leader's
    /// process dies. Without it the node learns of that from the leader's own connections alone. Only the first call counts.
    pub fn report_losses_to(&self, inbox: Inbox) {
        let _ = self.sending.losses.set(inbox);
    }

    /// The open lane to this peer, or a new one. A lane to an earlier address of the same node is closed.
    fn lane(&self, to: &Peer, kind: Kind) -> Arc<Lane> {
        let key = (to.id, kind);
        if let Some(lane) = self.lanes.read().unwrap_or_else(PoisonError::into_inner).get(&key)
            && lane.leads_to(to)
            && !lane.is_closed()
        {
            return lane.clone();
        }
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        // Rare enough to sweep: peers that left are forgotten here.
        lanes.retain(|_, lane| !lane.is_closed());
        match lanes.get(&key) {
            Some(lane) if lane.leads_to(to) => lane.clone(),
            Some(_) | None => {
                let lane = Arc::new(Lane::start(to.clone(), kind, self.sending.clone()));
                lanes.insert(key, lane.clone());
                lane
            }
        }
    }

    async fn send_parcel(&self, to: &Peer, kind: Kind, mut parcel: Parcel) -> Result<(), TransportError> {
        loop {
            match self.lane(to, kind).send(parcel).await {
                Ok(()) => return Ok(()),
                Err(Rejected::Failed(error)) => return Err(error),
                // It ended for idleness just now.
                Err(Rejected::Closed(back)) => parcel = back,
            }
        }
    }

    /// The connection says once for all who speaks to whom, so no envelope may say otherwise.
    fn check(&self, to: &Peer, batch: &[Envelope]) -> Result<(), TransportError> {
        let local = &self.sending.local;
        let stray = batch.iter().find(|e| e.cluster != local.cluster || e.from != local.node.id || e.to != to.id);
        stray.map_or(Ok(()), |e| {
            Err(TransportError::Refused {
                peer: to.clone(),
                reason: format!(
                    "the batch holds a message of cluster {} from {} to {}, but this transport speaks for {} of cluster {}",
                    e.cluster, e.from, e.to, local.node.id, local.cluster
                ),
            })
        })
    }
}

#[async_trait]
impl<D: Dial> Transport for Lanes<D> {
    async fn send(&self, to: &Peer, batch: Vec<Envelope>) -> Result<(), TransportError> {
        let Some(first) = batch.first() else { return Ok(()) };
        let kind = first.message.lane();
        self.check(to, &batch)?;
        let (dialer, limit) = (&self.sending.dialer, self.sending.options.max_message_bytes);
        let bytes: u64 = batch.iter().map(|envelope| dialer.max_encoded_len(envelope)).sum();
        if bytes <= limit as u64 {
            return self.send_parcel(to, kind, Parcel { batch, bytes: bytes as usize }).await;
        }
        let (parcels, largest) = split(batch, limit, |envelope| dialer.max_encoded_len(envelope));
        for parcel in parcels {
            self.send_parcel(to, kind, parcel).await?;
        }
        match largest {
            Some(size) => Err(TransportError::TooLarge { peer: to.clone(), size, limit: limit as u64 }),
            None => Ok(()),
        }
    }
}

/// Cuts a batch into parcels within the limit, in order; drops messages that exceed it alone, and tells the size of the
/// largest of them.
fn split(batch: Vec<Envelope>, limit: usize, size_of: impl Fn(&Envelope) -> u64) -> (Vec<Parcel>, Option<u64>) {
    let mut parcels: Vec<Parcel> = Vec::new();
    let mut largest = None;
    for envelope in batch {
        let size = size_of(&envelope);
        let Some(bytes) = usize::try_from(size).ok().filter(|size| *size <= limit) else {
            largest = largest.max(Some(size));
            continue;
        };
        match parcels.last_mut() {
            Some(parcel) if parcel.bytes + bytes <= limit => {
                parcel.batch.push(envelope);
                parcel.bytes += bytes;
            }
            Some(_) | None => parcels.push(Parcel { batch: vec![envelope], bytes }),
        }
    }
    (parcels, largest)
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
