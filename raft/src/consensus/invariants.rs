//! What must hold after every step. Checked in tests and debug builds; in release builds it costs nothing.

use super::Consensus;
use super::role::Role;
use crate::traits::HardState;
use crate::types::{Index, NodeId, Term};

/// What the node promised not to go back on, as of the last check.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    base: Index,
    hard_state: HardState,
    commit: Index,
    applied: Index,
    pub(super) leader: Option<(Term, NodeId)>,
}

impl Past {
    /// A node that comes up with a log after this.
    pub(super) fn since(base: Index) -> Self {
        Self { base, ..Self::default() }
    }
}

impl Consensus {
    pub(crate) fn check_invariants(&mut self) {
        if cfg!(any(test, debug_assertions)) {
            self.assert_invariants();
        }
    }

    pub(crate) fn assert_invariants(&mut self) {
        self.log.check();
        self.check_positions();
        self.check_role();
        self.check_past();
    }

    fn check_positions(&self) {
        let (base, stored, last) = (self.log.base().index, self.log.stored(), self.log.last().index);
        assert!(base <= self.commit && self.commit <= last, "base <= commit <= last");
        let (applied, handed) = (self.applying.applied(), self.applying.handed);
        let snapshot = self.snapshots.last().index;
        assert!(base <= snapshot.max(self.past.base), "only what an image holds was cut off");
        assert!(applied <= handed && handed <= self.commit, "applied <= handed out <= committed");
        assert!(handed <= stored.max(base), "only what is on disk is applied");
        assert!(self.durability.write_from > stored, "what is stored is not written again");
        assert!(self.durability.write_from <= last.next(), "what is written is in the log");
        assert!(self.log.last().term <= self.hard_state.term, "no entry is of a later term");
    }

    fn check_role(&self) {
        match &self.role {
            Role::Follower(follower) => {
                assert!(follower.matching <= self.log.last().index.max(self.commit), "what matches is in the log");
                assert!(follower.acked <= follower.matching, "only what matches is acknowledged");
            }
            Role::PreCandidate(campaign) => assert!(campaign.granted.contains(&self.id), "it would elect itself"),
            Role::Candidate(_) => assert_eq!(self.hard_state.voted_for, Some(self.id), "it votes for itself"),
            Role::Leader(leader) => {
                assert_eq!(self.hard_state.voted_for, Some(self.id), "it voted for itself");
                assert!(leader.opened <= self.log.last().index.next(), "its term is opened in its log");
                for progress in leader.peers.values() {
                    assert!(progress.matched < progress.next, "matched < next");
                    assert!(progress.next <= self.log.last().index.next(), "next <= last + 1");
                    assert!(progress.round <= leader.round, "no answer to a later round");
                }
                assert!(leader.reads.round_number().is_none_or(|round| round <= leader.round), "rounds have begun");
            }
        }
    }

    /// What may never go back: the term, the vote in it, its leader, what is committed and applied.
    fn check_past(&mut self) {
        let (was, is) = (self.past.hard_state, self.hard_state);
        assert!(was.term <= is.term, "the term goes forward");
        let kept = was.term < is.term || was.voted_for.is_none() || was.voted_for == is.voted_for;
        assert!(kept, "a vote is kept for the term");
        assert!(self.past.commit <= self.commit, "what is committed stays so");
        assert!(self.past.applied <= self.applying.applied(), "what is applied stays so");
        let leader = self.leader().map(|leader| (is.term, leader));
        if let (Some((was_term, was)), Some((term, is))) = (self.past.leader, leader) {
            assert!(was_term < term || was == is, "a term has one leader");
        }
        let applied = self.applying.applied();
        let base = self.log.base().index;
        assert!(self.past.base <= base, "what was cut off stays so");
        self.past = Past { base, hard_state: is, commit: self.commit, applied, leader: leader.or(self.past.leader) };
    }
}
