//! How an entry becomes committed (paper §5.3, §5.4.2), and then reaches the state machine.

use std::collections::VecDeque;

use super::Consensus;
use super::io::{Fetch, FetchPurpose, Time};
use super::quorum;
use super::role::Role;
use crate::message::Body;
use crate::mutant;
use crate::types::{Entry, Index, NodeId};

/// What the state machine was given and what it has applied.
#[derive(Clone, Debug)]
pub(crate) struct Applying {
    applied: Index,
    /// The last index handed out.
    pub(crate) handed: Index,
    /// The last index and the cost of each batch handed out and not applied.
    batches: VecDeque<(Index, u64)>,
    bytes: u64,
    /// The first of the entries that are being read from the log store for it.
    fetching: Option<Index>,
    /// Whether it is being replaced by an image.
    pub(crate) restoring: bool,
    /// When it last got on with what it was given; of no meaning while it has nothing to do.
    got_on: Time,
}

impl Applying {
    pub(crate) fn new(applied: Index) -> Self {
        Self {
            applied,
            handed: applied,
            batches: VecDeque::new(),
            bytes: 0,
            fetching: None,
            restoring: false,
            got_on: Time::default(),
        }
    }

    pub(crate) fn applied(&self) -> Index {
        self.applied
    }

    /// No state machine stalls in a search, so that when it last got on has no effect.
    #[cfg(feature = "testing")]
    pub(super) fn fingerprint(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        let Self { applied, handed, batches, bytes, fetching, restoring, got_on: _ } = self;
        (applied, handed, batches, bytes, fetching, restoring).hash(hasher);
    }

    /// What was handed out and is not applied costs this much.
    #[cfg(feature = "testing")]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The state machine is given an image that ends at `last`, in the place of all entries up to there.
    pub(crate) fn skip_to(&mut self, now: Time, last: Index) {
        self.begins(now);
        self.handed = last;
        self.restoring = true;
    }

    /// It is given something.
    fn begins(&mut self, now: Time) {
        if self.at_work_since().is_none() {
            self.got_on = now;
        }
    }

    /// It got on with what it was given.
    pub(crate) fn gets_on(&mut self, now: Time) {
        if !mutant!("slow-machine-counts-as-stalled") {
            self.got_on = now;
        }
    }

    /// While it has something to do: since when, or when it last got on.
    pub(crate) fn at_work_since(&self) -> Option<Time> {
        (self.handed > self.applied).then_some(self.got_on)
    }

    /// Everything up to `index` is applied; returns what it cost.
    pub(crate) fn done(&mut self, now: Time, index: Index) -> u64 {
        self.gets_on(now);
        assert!(index > self.applied && index <= self.handed, "what was handed out is applied in order");
        self.applied = index;
        let before = self.bytes;
        while self.batches.front().is_some_and(|(last, _)| *last <= index) {
            if let Some((_, bytes)) = self.batches.pop_front() {
                self.bytes -= bytes;
            }
        }
        before - self.bytes
    }

    /// What may still be handed out: nothing while the limit is reached, but one oversize entry passes alone.
    fn room(&self, max_bytes: u64) -> Option<u64> {
        (self.bytes == 0 || self.bytes < max_bytes).then(|| max_bytes.saturating_sub(self.bytes))
    }
}

impl Consensus {
    /// Commits what a majority has on disk, if it is of this leader's own term; everything before goes with it (paper
    /// §5.4.2, figure 8). The leader counts itself by what is on its own disk.
    pub(crate) fn advance_commit(&mut self) {
        if !std::mem::take(&mut self.commit_due) {
            return;
        }
        let Role::Leader(leader) = &self.role else { return };
        let Some(membership) = self.membership() else { return };
        let counted = quorum::counted(membership, self.id);
        let stored = if mutant!("leader-counts-itself-early") { self.log.last().index } else { self.log.stored() };
        let own = self.id;
        let matched = |id: NodeId| {
            if id == own { stored } else { leader.peers.get(&id).map_or(Index::ZERO, |progress| progress.matched) }
        };
        let Some(reached) = quorum::reached(&counted, matched) else { return };
        if reached < leader.opened && mutant!("commit-by-counting-an-earlier-term") {
            return self.commit_to(reached);
        }
        if reached < leader.opened || reached <= self.commit {
            return;
        }
        let cost = self.log.cost(self.commit.next().max(leader.opened), reached);
        if let Role::Leader(leader) = &mut self.role {
            leader.uncommitted -= cost;
        }
        self.commit_to(reached);
    }

    /// Everything up to `index` is committed.
    pub(crate) fn commit_to(&mut self, index: Index) {
        if index > self.commit {
            self.commit = index;
            self.settle_configurations(index);
        }
    }

    /// Brings a new commit index to the followers that no other message tells of it. They apply and answer without waiting
    /// for the next heartbeat.
    pub(crate) fn tell_commit(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        for (id, progress) in &mut leader.peers {
            let index = self.commit.min(progress.matched);
            if index > progress.commit_told {
                progress.commit_told = index;
                let body = Body::Commit { index };
                self.out.send.push((*id, crate::message::Message { term: self.hard_state.term, body }));
            }
        }
    }

    pub(crate) fn on_commit(&mut self, now: Time, from: NodeId, index: Index) {
        if self.hear_leader(now, from, "Commit") {
            self.follow_commit(index);
        }
    }

    /// A follower takes over the leader's commit index as far as its log is known to be the leader's.
    pub(crate) fn follow_commit(&mut self, leader_commit: Index) {
        if let Role::Follower(follower) = &self.role {
            self.commit_to(leader_commit.min(follower.matching));
        }
    }

    /// Hands committed entries to the state machine, as far as they are on this node's disk: a durable state machine must never be
    /// ahead of its own log.
    pub(crate) fn apply(&mut self, now: Time) {
        let stored = if mutant!("applied-before-durable") { self.log.last().index } else { self.log.stored() };
        let upto = self.commit.min(stored);
        while self.applying.handed < upto && self.applying.fetching.is_none() {
            let Some(max_bytes) = self.applying.room(self.config.max_applying_bytes) else { return };
            let from = self.applying.handed.next();
            match self.log.slice(from, upto, max_bytes) {
                Some(entries) => self.hand_out(now, entries),
                None => {
                    let range = from..upto.next().min(self.log.tail_start());
                    self.applying.fetching = Some(from);
                    self.out.fetch.push(Fetch { purpose: FetchPurpose::Apply, range, max_bytes });
                }
            }
        }
    }

    fn hand_out(&mut self, now: Time, entries: Vec<Entry>) {
        let Some(last) = entries.last() else { return };
        self.applying.begins(now);
        let cost = if mutant!("applying-not-counted") { 0 } else { entries.iter().map(Entry::cost).sum() };
        self.applying.handed = last.id.index;
        self.applying.batches.push_back((last.id.index, cost));
        self.applying.bytes += cost;
        if self.out.apply.is_empty() {
            self.out.apply = entries;
        } else {
            self.out.apply.extend(entries);
        }
    }

    /// Whether the entries that are read for the state machine are still to be applied; not if an image has taken their place.
    pub(crate) fn awaits_fetched_to_apply(&self) -> bool {
        self.applying.fetching == Some(self.applying.handed.next())
    }

    /// Entries came back from the log store for the state machine.
    pub(crate) fn on_fetched_to_apply(&mut self, now: Time, entries: Vec<Entry>) {
        let from = self.applying.handed.next();
        // Unless an image has taken their place.
        if self.applying.fetching.take() != Some(from) {
            return;
        }
        let expected =
            (from.0..).map(Index).zip(&entries).all(|(index, entry)| self.log.id_at(index) == Some(entry.id));
        assert!(expected && !entries.is_empty(), "the log store returns the entries that it was given");
        self.hand_out(now, entries);
    }

    /// The state machine has applied everything up to `index`.
    pub(crate) fn on_applied(&mut self, now: Time, index: Index) {
        self.snapshots.bytes += self.applying.done(now, index);
    }
}
