//! A network within the process, whose links can drop, delay, duplicate, and be cut.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::lock;
use crate::error::TransportError;
use crate::message::Envelope;
use crate::runtime::Inbox;
use crate::traits::Transport;
use crate::types::{NodeId, Peer};

/// How a link from one node to another behaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link {
    /// Nothing passes, and the sender is told.
    pub cut: bool,
    /// Nothing passes, and the sender waits for ever.
    pub stuck: bool,
    /// How many of a thousand batches are lost silently.
    pub lost_per_mille: u32,
    /// How many of a thousand batches come twice.
    pub doubled_per_mille: u32,
    /// How long a batch is on its way.
    pub delay: Duration,
    /// Up to this much is added to the delay of each batch, so that they overtake each other.
    pub jitter: Duration,
}

/// A network within the process. Clones share it.
#[derive(Clone, Debug)]
pub struct MemNetwork(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Whether every link has always been perfect: the fast way then.
    perfect: AtomicBool,
    batches: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    inboxes: BTreeMap<NodeId, Inbox>,
    /// Nodes that are reached at one address alone.
    addresses: BTreeMap<Arc<str>, Inbox>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    /// One side of each partition.
    partitions: Vec<Vec<NodeId>>,
    random: u64,
}

/// A node's side of a [`MemNetwork`].
#[derive(Clone, Debug)]
pub struct MemTransport {
    network: MemNetwork,
    me: Peer,
}

/// What happens to one batch.
struct Way {
    inbox: Inbox,
    copies: u32,
    delays: [Duration; 2],
}

impl MemNetwork {
    /// A network of perfect links; the seed decides over what is lost and late once they are not.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = Mutex::new(State { random: seed, ..State::default() });
        Self(Arc::new(Shared { state, perfect: AtomicBool::new(true), batches: AtomicU64::new(0) }))
    }

    /// The transport for a node, which is known to others by this name.
    #[must_use]
    pub fn transport(&self, me: Peer) -> MemTransport {
        MemTransport { network: self.clone(), me }
    }

    /// Connects a node, or reconnects it after a restart. It is reached at whatever address.
    pub fn connect(&self, inbox: Inbox) {
        lock(&self.0.state).inboxes.insert(inbox.node(), inbox);
    }

    /// Takes a node off the network.
    pub fn disconnect(&self, node: NodeId) {
        lock(&self.0.state).inboxes.remove(&node);
    }

    /// Tells all other nodes that their connections with this one were reset, as the machine of a process that died does. Where it
    /// lives, that is a false hint.
    pub fn reset(&self, node: NodeId) {
        let others: Vec<Inbox> =
            lock(&self.0.state).inboxes.iter().filter(|(id, _)| **id != node).map(|(_, inbox)| inbox.clone()).collect();
        others.into_iter().for_each(|inbox| inbox.peer_lost(node));
    }

    /// Connects a node that is reached at this address alone. Whatever is sent there comes to it, also what is meant for others,
    /// as on a real network.
    pub fn connect_at(&self, address: &str, inbox: Inbox) {
        lock(&self.0.state).addresses.insert(address.into(), inbox);
    }

    /// Takes the node at this address off the network.
    pub fn disconnect_at(&self, address: &str) {
        lock(&self.0.state).addresses.remove(address);
    }

    /// Changes the link from one node to another, in this direction.
    pub fn set_link(&self, from: NodeId, to: NodeId, link: Link) {
        self.0.perfect.store(false, Ordering::Relaxed);
        lock(&self.0.state).links.insert((from, to), link);
    }

    /// Cuts all links between these nodes and all others, both ways, until [`MemNetwork::heal`]. Partitions add up.
    pub fn partition(&self, side: &[NodeId]) {
        self.0.perfect.store(false, Ordering::Relaxed);
        lock(&self.0.state).partitions.push(side.to_vec());
    }

    /// Ends all partitions, and makes all links perfect again.
    pub fn heal(&self) {
        let mut state = lock(&self.0.state);
        state.links.clear();
        state.partitions.clear();
        self.0.perfect.store(true, Ordering::Relaxed);
    }

    /// How many batches were handed to the network.
    #[must_use]
    pub fn batches(&self) -> u64 {
        self.0.batches.load(Ordering::Relaxed)
    }

    fn link(&self, from: NodeId, to: NodeId) -> Link {
        if self.0.perfect.load(Ordering::Relaxed) {
            return Link::default();
        }
        let state = lock(&self.0.state);
        let mut link = state.links.get(&(from, to)).cloned().unwrap_or_default();
        link.cut |= state.partitions.iter().any(|side| side.contains(&from) != side.contains(&to));
        link
    }

    /// Decides what happens to a batch. None if the node is not there.
    fn way(&self, link: &Link, to: &Peer) -> Option<Way> {
        let mut state = lock(&self.0.state);
        let inbox = state.addresses.get(&to.address).or_else(|| state.inboxes.get(&to.id))?.clone();
        let mut random = |below: u64| if below == 0 { 0 } else { next_random(&mut state.random) % below };
        let mut chance = |per_mille: u32| per_mille > 0 && random(1000) < u64::from(per_mille);
        let copies = if chance(link.lost_per_mille) { 0 } else { 1 + u32::from(chance(link.doubled_per_mille)) };
        let jitter = u64::try_from(link.jitter.as_micros()).unwrap_or(u64::MAX);
        let mut delay = || link.delay + Duration::from_micros(random(jitter));
        Some(Way { inbox, copies, delays: [delay(), delay()] })
    }

    async fn carry(&self, from: &Peer, to: &Peer, batch: Vec<Envelope>) -> Result<(), TransportError> {
        self.0.batches.fetch_add(1, Ordering::Relaxed);
        let link = self.link(from.id, to.id);
        let unreachable =
            |reason: &str| Err(TransportError::Unreachable { peer: to.clone(), reason: reason.to_owned() });
        if link.stuck {
            std::future::pending::<()>().await;
        }
        if link.cut {
            return unreachable("the link is cut");
        }
        let Some(way) = self.way(&link, to) else { return unreachable("the node is not running") };
        for delay in way.delays.into_iter().take(way.copies.saturating_sub(1) as usize) {
            late(delay, way.inbox.clone(), from.clone(), batch.clone());
        }
        match way.copies {
            0 => Ok(()),
            _ if way.delays[1].is_zero() => way
                .inbox
                .deliver(from, batch)
                .await
                .map_err(|refusal| TransportError::Refused { peer: to.clone(), reason: refusal.to_string() }),
            _ => {
                late(way.delays[1], way.inbox, from.clone(), batch);
                Ok(())
            }
        }
    }
}

/// Delivers later. What a node refuses then is lost.
fn late(delay: Duration, inbox: Inbox, from: Peer, batch: Vec<Envelope>) {
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        let _ = inbox.deliver(&from, batch).await;
    });
}

/// splitmix64.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[async_trait]
impl Transport for MemTransport {
    async fn send(&self, to: &Peer, batch: Vec<Envelope>) -> Result<(), TransportError> {
        self.network.carry(&self.me, to, batch).await
    }
}
