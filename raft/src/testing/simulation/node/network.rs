//! The network of a simulated cluster: messages are late, lost, doubled and out of order; links are cut one way, hang, or swallow
//! everything.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::record::Record;
use crate::error::TransportError;
use crate::message::{AppendReply, Body, Envelope};
use crate::runtime::Inbox;
use crate::testing::simulation::TraceEvent;
use crate::testing::{Link, Random, lock};
use crate::traits::Transport;
use crate::types::{NodeId, Peer};

/// Clones are the same network.
#[derive(Clone, Debug)]
pub(super) struct Network(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The next delivery has changed.
    sooner: Notify,
    /// A link has changed: who hangs on one tries again.
    relinked: Notify,
    record: Record,
}

#[derive(Debug)]
struct State {
    random: Random,
    inboxes: BTreeMap<NodeId, Inbox>,
    /// How a link is unless it is told otherwise.
    usual: Link,
    links: BTreeMap<(NodeId, NodeId), Link>,
    under_way: BTreeMap<(Instant, u64), Parcel>,
    sent: u64,
}

#[derive(Clone, Debug)]
struct Parcel {
    from: Peer,
    to: NodeId,
    batch: Vec<Envelope>,
}

/// A node's side of it.
#[derive(Debug)]
pub(super) struct Endpoint {
    network: Network,
    me: Peer,
}

impl Network {
    pub(super) fn new(random: Random, usual: Link, record: Record) -> Self {
        let state = State {
            random,
            inboxes: BTreeMap::new(),
            usual,
            links: BTreeMap::new(),
            under_way: BTreeMap::new(),
            sent: 0,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), sooner: Notify::new(), relinked: Notify::new(), record }))
    }

    pub(super) fn endpoint(&self, me: Peer) -> Endpoint {
        Endpoint { network: self.clone(), me }
    }

    pub(super) fn connect(&self, inbox: Inbox) {
        lock(&self.0.state).inboxes.insert(inbox.node(), inbox);
    }

    pub(super) fn disconnect(&self, node: NodeId) {
        lock(&self.0.state).inboxes.remove(&node);
    }

    /// Changes a link, one way.
    pub(super) fn set_link(&self, from: NodeId, to: NodeId, link: Link) {
        lock(&self.0.state).links.insert((from, to), link);
        self.0.relinked.notify_waiters();
    }

    /// Makes the links that match as they usually are.
    pub(super) fn heal(&self, which: impl Fn(NodeId, NodeId) -> bool) {
        lock(&self.0.state).links.retain(|(from, to), _| !which(*from, *to));
        self.0.relinked.notify_waiters();
    }

    /// Carries what is under way to where it goes, when its time has come. Runs as long as the simulation.
    pub(super) async fn deliver(self) {
        loop {
            let next = lock(&self.0.state).under_way.first_key_value().map(|((at, _), _)| *at);
            match next {
                Some(at) if at <= Instant::now() => self.deliver_next(),
                Some(at) => drop(tokio::time::timeout_at(at, self.0.sooner.notified()).await),
                None => self.0.sooner.notified().await,
            }
        }
    }

    fn deliver_next(&self) {
        let (parcel, inbox) = {
            let mut state = lock(&self.0.state);
            let Some((_, parcel)) = state.under_way.pop_first() else { return };
            let inbox = state.inboxes.get(&parcel.to).cloned();
            (parcel, inbox)
        };
        let Parcel { from, to, batch } = parcel;
        let seen = Seen(batch);
        // The receiver's queue is bounded; what does not fit is lost, as any message may be.
        let text = self.0.record.is_kept().then(|| describe(&seen.0));
        let hash = seen.digest();
        let taken = inbox.and_then(|inbox| inbox.deliver(&from, seen.0).now_or_never());
        let delivered = matches!(taken, Some(Ok(())));
        let (from, text) = (from.id, text.unwrap_or_default());
        self.0.record.step((from, to, delivered, hash), || match delivered {
            true => TraceEvent::Delivered { from, to, text },
            false => TraceEvent::Dropped { from, to, text },
        });
    }

    /// Takes a batch on its way. False if the link hangs.
    fn post(&self, me: &Peer, to: &Peer, batch: &mut Vec<Envelope>) -> Result<bool, TransportError> {
        let mut state = lock(&self.0.state);
        let link = state.links.get(&(me.id, to.id)).unwrap_or(&state.usual).clone();
        if link.stuck {
            return Ok(false);
        }
        if link.cut || !state.inboxes.contains_key(&to.id) {
            let reason = if link.cut { "the link is cut" } else { "the node is not running" };
            return Err(TransportError::Unreachable { peer: to.clone(), reason: reason.to_owned() });
        }
        let parcel = Parcel { from: me.clone(), to: to.id, batch: std::mem::take(batch) };
        if state.random.per_mille(u64::from(link.lost_per_mille)) {
            drop(state);
            self.0.record.hit("messages lost");
            let (from, to) = (me.id, to.id);
            let text = || describe(&parcel.batch);
            self.0.record.step((from, to), || TraceEvent::Dropped { from, to, text: text() });
            return Ok(true);
        }
        let copies = 1 + usize::from(state.random.per_mille(u64::from(link.doubled_per_mille)));
        if copies > 1 {
            self.0.record.hit("messages doubled");
        }
        let first = state.under_way.first_key_value().map(|((at, _), _)| *at);
        for _ in 0..copies {
            let at = Instant::now() + link.delay + state.random.duration(link.jitter);
            state.sent += 1;
            let number = state.sent;
            state.under_way.insert((at, number), parcel.clone());
        }
        let sooner = state.under_way.first_key_value().map(|((at, _), _)| *at) != first;
        drop(state);
        if sooner {
            self.0.sooner.notify_one();
        }
        Ok(true)
    }
}

#[async_trait]
impl Transport for Endpoint {
    async fn send(&self, to: &Peer, mut batch: Vec<Envelope>) -> Result<(), TransportError> {
        let shared = &self.network.0;
        loop {
            let relinked = shared.relinked.notified();
            tokio::pin!(relinked);
            relinked.as_mut().enable();
            if self.network.post(&self.me, to, &mut batch)? {
                return Ok(());
            }
            shared.record.hit("links that hang");
            relinked.await;
        }
    }
}

/// A batch that is about to be delivered.
struct Seen(Vec<Envelope>);

impl Seen {
    /// What tells it from others.
    fn digest(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        for envelope in &self.0 {
            let message = &envelope.message;
            (message.name(), message.term, message.cost()).hash(&mut hasher);
            match &message.body {
                Body::Append { prev, entries, commit } => {
                    (prev, entries.last().map(|entry| (entry.id, &entry.data)), commit).hash(&mut hasher);
                }
                Body::Vote { last, transfer } => (last, transfer).hash(&mut hasher),
                Body::PreVote { last, .. } => last.hash(&mut hasher),
                Body::TimeoutNow => {}
                Body::AppendReply(AppendReply::Accepted { stored }) => stored.hash(&mut hasher),
                Body::AppendReply(AppendReply::Rejected { prev, hint }) => (prev, hint).hash(&mut hasher),
                Body::VoteReply { granted } | Body::PreVoteReply { granted, .. } => granted.hash(&mut hasher),
                Body::Heartbeat { commit, round, lease } => (commit, round, lease).hash(&mut hasher),
                Body::HeartbeatReply { round, matching, stored, priority, lease } => {
                    (round, matching, stored, priority, lease).hash(&mut hasher);
                }
                Body::ReadIndex { request, lease } => (request, lease).hash(&mut hasher),
                Body::Forward { request, .. }
                | Body::ForwardReply { request, .. }
                | Body::Change { request, .. }
                | Body::ChangeReply { request, .. } => {
                    request.hash(&mut hasher);
                }
                Body::ReadIndexReply { request, index } => (request, index).hash(&mut hasher),
                Body::Commit { index } => index.hash(&mut hasher),
                Body::Offer { image } => image.hash(&mut hasher),
                Body::Fetch { image, offset, max } => (image, offset, max).hash(&mut hasher),
                Body::Chunk { image, offset, part } => (image, offset, part).hash(&mut hasher),
            }
        }
        hasher.finish()
    }
}

/// A batch on one line.
fn describe(batch: &[Envelope]) -> String {
    let one = |envelope: &Envelope| {
        let message = &envelope.message;
        let term = message.term;
        if let Body::Append { prev, entries, commit } = &message.body {
            let last = entries.last().map_or(*prev, |entry| entry.id);
            return format!("{term} Append {prev} .. {last}, commit {commit}");
        }
        if let Body::Forward { request, kind, commands } = &message.body {
            return format!("{term} Forward {:x}, {} of kind {kind:?}", request.0, commands.len());
        }
        if let Body::Chunk { image, offset, part: Some(part) } = &message.body {
            return format!("{term} Chunk of {image} from {offset} on, {} bytes", part.data.len());
        }
        format!("{term} {:?}", message.body)
    };
    batch.iter().map(one).collect::<Vec<_>>().join("; ")
}
