//! What simulations look at beyond the status of a node (feature `testing`).

use super::Consensus;
use super::role::Role;
use crate::types::{Index, NodeId};

impl Consensus {
    /// The candidate that has its vote in the current term.
    #[must_use]
    pub fn voted_for(&self) -> Option<NodeId> {
        self.hard_state.voted_for
    }

    /// What this node keeps beyond the limits of its [`Config`](crate::Config), if anything, after its effects were collected.
    ///
    /// `largest` is what the largest batch of commands costs: one may always pass alone.
    #[must_use]
    pub fn beyond_limits(&self, largest: u64) -> Option<String> {
        let config = &self.config;
        let evictable = self.log.tail_start() <= self.log.stored().min(self.commit);
        let tail = if evictable { self.log.tail_bytes() } else { 0 };
        let members = config.max_members;
        let limits = [
            ("bytes in memory that are on disk and committed", tail, config.max_tail_bytes),
            ("bytes with the state machine", self.applying.bytes(), config.max_applying_bytes.saturating_add(largest)),
            ("forwarded batches", self.forwarded.len() as u64, config.max_pending_requests as u64),
            ("read indexes asked for", self.asked.len() as u64, config.max_pending_requests as u64),
            ("promises that wait for the disk", self.durability.promises() as u64, 2 * members as u64 + 2),
            ("fetches for followers", self.fetching.len() as u64, members as u64),
        ];
        let beyond = limits.iter().find(|(_, is, limit)| is > limit);
        let own = beyond.map(|(what, is, limit)| format!("{is} {what}, and the limit is {limit}"));
        own.or_else(|| self.leader_beyond_limits(largest))
    }

    fn leader_beyond_limits(&self, largest: u64) -> Option<String> {
        let Role::Leader(leader) = &self.role else { return None };
        let config = &self.config;
        // The entry that opens the term needs no room.
        let uncommitted = config.max_uncommitted_bytes.saturating_add(2 * largest);
        if leader.uncommitted > uncommitted {
            return Some(format!("{} bytes uncommitted, and the limit is {uncommitted}", leader.uncommitted));
        }
        if leader.reads.len() > 2 * config.max_pending_requests {
            return Some(format!("{} reads that wait", leader.reads.len()));
        }
        let (held, bytes) = leader.transfer.as_ref().map(super::transfer::Transfer::held).unwrap_or_default();
        if held > config.max_pending_requests || bytes > uncommitted {
            return Some(format!("{held} batches of {bytes} bytes held back"));
        }
        let window =
            config.max_inflight_bytes.saturating_add(config.max_append_bytes.max(largest)).saturating_add(largest);
        leader.peers.iter().find_map(|(id, progress)| {
            let (messages, bytes) = (progress.inflight(), progress.inflight_bytes());
            let full = messages > config.max_inflight_appends.max(1) || bytes > window;
            full.then(|| format!("{messages} appends of {bytes} bytes under way to {id}"))
        })
    }

    /// The first index of the term that this node leads.
    #[must_use]
    pub fn opened(&self) -> Option<Index> {
        match &self.role {
            Role::Leader(leader) => Some(leader.opened),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }
}
