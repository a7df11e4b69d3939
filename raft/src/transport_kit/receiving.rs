//! What the log, and the node, learn of those who connect.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::tls::Denied;
use crate::message::Lane;
use crate::metrics::RefusedFor;
use crate::runtime::Inbox;
use crate::types::Peer;

const MAX_KNOWN_REFUSALS: usize = 256;
const REPEAT_REFUSAL_AFTER: Duration = Duration::from_secs(60);

/// Tells the log of peers that are refused: they come back every few seconds, and the log is told once in a while. Counts all of them.
#[derive(Debug, Default)]
pub struct RefusalLog {
    inbox: Option<Inbox>,
    known: Mutex<BTreeMap<(Option<IpAddr>, String), Instant>>,
}

impl RefusalLog {
    /// The refusals of this receiver: its node counts them.
    #[must_use]
    pub fn new(inbox: Inbox) -> Self {
        Self { inbox: Some(inbox), known: Mutex::default() }
    }

    /// A peer was refused, for this reason.
    pub fn refused(&self, why: RefusedFor, remote: Option<SocketAddr>, reason: &str) {
        self.count(why);
        if self.is_news(remote, reason) {
            warn!(remote = remote.map(tracing::field::display), reason, "refused a peer");
        } else {
            debug!(remote = remote.map(tracing::field::display), reason, "refused a peer again");
        }
    }

    /// A connection did not pass the gate. The log is told if that is news; that somebody opens one and closes it again is not.
    pub fn denied(&self, remote: SocketAddr, why: &Denied) {
        if why.is_news() {
            self.refused(why.kind(), Some(remote), why.reason());
        } else {
            self.count(why.kind());
            debug!(%remote, reason = why.reason(), "a connection ended before anybody said who it is");
        }
    }

    fn count(&self, why: RefusedFor) {
        if let Some(inbox) = &self.inbox {
            inbox.refused(why);
        }
    }

    /// Whether the log is to be told that somebody was refused for this reason: for those who serve others than peers.
    pub fn is_news(&self, remote: Option<SocketAddr>, reason: &str) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN_REFUSALS {
            known.retain(|_, at| at.elapsed() < REPEAT_REFUSAL_AFTER);
        }
        let key = (remote.map(|addr| addr.ip()), reason.to_owned());
        let fresh = known.get(&key).is_none_or(|at| at.elapsed() >= REPEAT_REFUSAL_AFTER);
        let room = known.len() < MAX_KNOWN_REFUSALS;
        if fresh && room {
            known.insert(key, Instant::now());
        }
        fresh && room
    }
}

/// A peer's connection, for as long as it lasts: the log is told of its beginning and its end, and the node of the latter.
#[derive(Debug)]
pub struct Presence {
    inbox: Inbox,
    sender: Peer,
    lane: Lane,
    reason: Option<String>,
    hints: bool,
}

impl Presence {
    /// This peer was welcomed.
    #[must_use]
    pub fn begin(inbox: Inbox, sender: Peer, lane: Lane, remote: Option<SocketAddr>) -> Self {
        info!(peer = %sender, %lane, remote = remote.map(tracing::field::display), "peer connected");
        Self { inbox, sender, lane, reason: None, hints: true }
    }

    /// Who it is.
    #[must_use]
    pub fn sender(&self) -> &Peer {
        &self.sender
    }

    /// Why it ends; without a reason it is the peer that closed it.
    pub fn ends(&mut self, reason: impl Into<String>) {
        self.reason = Some(reason.into());
    }

    /// It ends because this node does, which tells nothing of the peer.
    pub fn ends_here(&mut self) {
        self.hints = false;
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let reason = self.reason.as_deref().unwrap_or("closed by the peer");
        info!(peer = %self.sender, lane = %self.lane, reason, "peer disconnected");
        // A connection that ends is a hint that its sender did, unless this node ended it. A leader never leaves the control lane
        // idle; the other may be for long, and ends then.
        if self.hints && self.lane == Lane::Control {
            self.inbox.peer_lost(self.sender.id);
        }
    }
}
