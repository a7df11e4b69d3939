//! No promise of durability leaves before the durability: which write is next, and what waits for it.
//!
//! A promise depends on the hard state as of some change, and on the log up to some index. It stays here until both are
//! on disk, and is dropped when the term moves on: nobody waits for it then.

use super::Consensus;
use super::io::{Time, Write};
use super::role::Role;
use crate::message::{Body, Message};
use crate::mutant;
use crate::traits::{HardState, LogWrite};
use crate::types::{Index, LogId, NodeId};

/// The state of the one writer of the log.
#[derive(Clone, Debug)]
pub(crate) struct Durability {
    /// Counts changes of the hard state.
    pub(super) changes: u64,
    /// The changes handed to the writer so far.
    pub(super) handed: u64,
    /// The changes that are on disk.
    pub(super) stored: u64,
    /// The first index not yet handed to the writer in its present form.
    pub(crate) write_from: Index,
    /// What the store is to forget with the next write.
    pub(super) compact: Option<LogId>,
    /// The number of the last write.
    pub(super) seq: u64,
    /// The write under way.
    pub(super) writing: Option<Writing>,
    /// Votes and requests for votes that wait.
    pub(super) held: Vec<Held>,
}

#[derive(Clone, Debug)]
pub(super) struct Writing {
    pub(super) since: Time,
    pub(super) changes: u64,
    /// What it stores of the present log: less than it contains, once some of that was truncated.
    pub(super) upto: Index,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) changes: u64,
    pub(super) index: Index,
    pub(super) to: NodeId,
    pub(super) message: Message,
}

impl Durability {
    pub(crate) fn new(last: Index) -> Self {
        Self {
            changes: 0,
            handed: 0,
            stored: 0,
            write_from: last.next(),
            compact: None,
            seq: 0,
            writing: None,
            held: Vec::new(),
        }
    }

    /// How many promises wait.
    #[cfg(feature = "testing")]
    pub(crate) fn promises(&self) -> usize {
        self.held.len()
    }

    /// Whether the present hard state is on disk.
    pub(crate) fn hard_state_is_stored(&self) -> bool {
        self.stored == self.changes
    }

    /// The log was replaced by an image that ends at `base`.
    pub(crate) fn reset(&mut self, base: LogId) {
        self.truncated(base.index.next());
        self.write_from = base.index.next();
        self.compact = Some(base);
    }

    /// Entries from `from` on were removed: the write under way does not store them, and what replaces them is to be written.
    pub(crate) fn truncated(&mut self, from: Index) {
        self.write_from = self.write_from.min(from);
        if let Some(writing) = &mut self.writing {
            if mutant!("stale-completion-after-a-truncation") {
                return;
            }
            writing.upto = writing.upto.min(from.prev());
        }
    }
}

impl Consensus {
    /// Changes what must never be forgotten. Promises of an earlier term are void.
    pub(crate) fn set_hard_state(&mut self, hard_state: HardState) {
        assert!(hard_state.term >= self.hard_state.term, "terms never go back");
        if hard_state.term > self.hard_state.term {
            if !mutant!("promises-outlive-their-term") {
                self.durability.held.clear();
            }
        } else {
            assert!(self.hard_state.voted_for.is_none(), "a vote is given once a term");
        }
        self.hard_state = hard_state;
        if mutant!("term-not-stored") && hard_state.voted_for.is_none() {
            return;
        }
        self.durability.changes += 1;
    }

    /// This node is no candidate any more: nobody need hear requests for votes that still wait, and its log may change.
    pub(crate) fn withdraw_campaign(&mut self) {
        self.durability.held.retain(|held| !matches!(held.message.body, Body::Vote { .. }));
    }

    /// Sends a message as soon as the present hard state and the log up to `index` are on disk.
    pub(crate) fn send_when_stored(&mut self, to: NodeId, index: Index, message: Message) {
        let held = Held { changes: self.durability.changes, index, to, message };
        // A request that came twice is answered once.
        if !self.durability.held.contains(&held) {
            self.durability.held.push(held);
        }
        self.release_held();
    }

    /// The writer is done with the write `seq`.
    pub(crate) fn on_stored(&mut self, now: Time, seq: u64) {
        let writing = self.durability.writing.take();
        assert!(writing.is_some() && seq == self.durability.seq, "writes complete in order, each once");
        let Some(writing) = writing else { return };
        self.durability.stored = writing.changes;
        if writing.upto > self.log.stored() {
            self.log.mark_stored(writing.upto);
        }
        self.release_held();
        self.on_own_vote_stored(now);
        self.on_initialized_stored();
        self.commit_due = true;
    }

    fn release_held(&mut self) {
        let (hard, stored) = (self.durability.stored, self.log.stored());
        let ready = |held: &Held| held.changes <= hard && held.index <= stored;
        let mut held = std::mem::take(&mut self.durability.held);
        for promise in held.extract_if(.., |held| ready(held)) {
            self.out.send.push((promise.to, promise.message));
        }
        self.durability.held = held;
    }

    /// Hands out all that is not on disk as one write, unless one is under way.
    pub(crate) fn write(&mut self, now: Time) {
        let durability = &mut self.durability;
        let changed = durability.handed < durability.changes;
        let last = self.log.last().index;
        if durability.writing.is_some() || (!changed && durability.write_from > last && durability.compact.is_none()) {
            return;
        }
        let entries = self.log.slice(durability.write_from, last, self.config.max_write_bytes).unwrap_or_default();
        assert!(durability.write_from > last || !entries.is_empty(), "what is not on disk is in memory");
        let upto = entries.last().map_or(self.log.stored(), |entry| entry.id.index);
        durability.seq += 1;
        durability.handed = durability.changes;
        durability.write_from = durability.write_from.max(upto.next());
        durability.writing = Some(Writing { since: now, changes: durability.changes, upto });
        let hard_state = changed.then_some(self.hard_state);
        let compact = durability.compact.take();
        self.out.write = Some(Write { seq: durability.seq, compact, write: LogWrite { hard_state, entries } });
    }

    /// Tells the leader how much of its log is on this disk, if it waits for that or it is news.
    pub(crate) fn acknowledge(&mut self) {
        let term = self.hard_state.term;
        let Role::Follower(follower) = &mut self.role else { return };
        let Some(leader) = follower.leader else { return };
        if !self.durability.hard_state_is_stored() && !mutant!("acknowledged-before-the-term-is-durable") {
            return;
        }
        let stored = follower.matching.min(self.log.stored());
        let stored = if mutant!("acknowledged-before-durable") { follower.matching } else { stored };
        let answers_all = follower.ack_due && stored == follower.matching;
        if answers_all || stored > follower.acked {
            follower.acked = stored;
            follower.ack_due &= !answers_all;
            let told = if mutant!("acknowledged-by-length") { self.log.stored() } else { stored };
            self.out.send.push((leader, Message::accepted(term, told)));
        }
    }
}
