use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use async_trait::async_trait;
use raftkv::{ClusterId, Envelope, Inbox, Lane as Kind, NodeId, Peer, Transport, TransportError};

use crate::connection::{Dialer, Reached};
use crate::lane::{Lane, Rejected};
use crate::options::Options;
use crate::queue::Parcel;
use crate::wire;

/// In whose name a transport speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node, and the address at which others reach its server. Peers are told this address.
    pub node: Peer,
}

/// Sends to peers over long-lived gRPC streams: one connection and one stream for each peer and lane.
///
/// Connections open with the first message, and come back by themselves. While a peer is connected, `send` waits for room
/// in its queue; while it is not, messages to it are dropped at once with `Unreachable` or `Refused`. Dropping the
/// transport closes all connections and drops what is queued.
///
/// Must be used within a tokio runtime.
pub struct GrpcTransport {
    dialer: Dialer,
    lanes: RwLock<HashMap<(NodeId, Kind), Arc<Lane>>>,
}

impl GrpcTransport {
    /// A transport for this node. Opens nothing yet.
    #[must_use]
    pub fn new(local: Local, options: Options) -> Self {
        let dialer = Dialer {
            local: Arc::new(local),
            options: Arc::new(options),
            losses: Arc::default(),
            reached: Reached::default(),
        };
        Self { dialer, lanes: RwLock::default() }
    }

    /// Tells this node of connections that are lost or refused ([`Inbox::peer_lost`]), so that it notices at once when its leader's
    /// process dies. Without it the node learns of that from the leader's own streams alone ([`serve`](crate::serve)). Only the first call
    /// counts.
    pub fn report_losses_to(&self, inbox: Inbox) {
        let losses: &OnceLock<Inbox> = &self.dialer.losses;
        let _ = losses.set(inbox);
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
                let lane = Arc::new(Lane::start(to.clone(), kind, self.dialer.clone()));
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

    /// The stream says once for all who speaks to whom, so no envelope may say otherwise.
    fn check(&self, to: &Peer, batch: &[Envelope]) -> Result<(), TransportError> {
        let local = &self.dialer.local;
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
impl Transport for GrpcTransport {
    async fn send(&self, to: &Peer, batch: Vec<Envelope>) -> Result<(), TransportError> {
        let Some(first) = batch.first() else { return Ok(()) };
        let kind = first.message.lane();
        self.check(to, &batch)?;
        let limit = self.dialer.options.max_message_bytes;
        let bytes = total_bytes(&batch);
        if bytes <= limit as u64 {
            return self.send_parcel(to, kind, Parcel { batch, bytes: bytes as usize }).await;
        }
        let (parcels, largest) = split(batch, limit);
        for parcel in parcels {
            self.send_parcel(to, kind, parcel).await?;
        }
        match largest {
            Some(size) => Err(TransportError::TooLarge { peer: to.clone(), size, limit: limit as u64 }),
            None => Ok(()),
        }
    }
}

fn total_bytes(batch: &[Envelope]) -> u64 {
    batch.iter().map(wire::max_encoded_len).sum()
}

/// Cuts a batch into parcels within the limit, in order; drops messages that exceed it alone, and tells the size of the
/// largest of them.
fn split(batch: Vec<Envelope>, limit: usize) -> (Vec<Parcel>, Option<u64>) {
    let mut parcels: Vec<Parcel> = Vec::new();
    let mut largest = None;
    for envelope in batch {
        let size = wire::max_encoded_len(&envelope);
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
