//! Linearizable reads without touching the log (ReadIndex, thesis §6.4), on any node.
//!
//! A leader notes its commit index, confirms with a round of heartbeats that it still leads, and may then answer from
//! any state that has applied that index. All reads that wait share one round, and one round is under way at a
//! time: what comes meanwhile goes with the next. A follower asks the leader for an index. Reads for which that is enough are answered by
//! the leader's lease, as long as it has one (`lease.rs`), and share a round otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Consensus;
use super::io::{RefusedReason, Reply, Time};
use super::quorum;
use super::role::Role;
use crate::message::{Body, Message, RequestId};
use crate::mutant;
use crate::types::{Index, LogId, NodeId};

/// A leader's reads.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Reads {
    /// Reads that no round confirms yet.
    waiting: Vec<Read>,
    /// The round under way.
    round: Option<Round>,
}

/// Who reads: a local client, or one at a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Read {
    follower: Option<NodeId>,
    request: RequestId,
    /// Whether the leader's lease will do.
    lease: bool,
}

/// What a node's state tells of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reflects {
    /// It is among what was applied.
    Yes,
    /// It may yet be applied.
    NotYet,
    /// It will never be applied: this entry was, in its place or before it.
    Never { found: LogId },
    /// It lies before the log, and terms have changed since.
    Unknown { base: LogId },
}

#[derive(Clone, Debug, Hash)]
struct Round {
    /// The round of heartbeats that confirms the reads.
    number: u64,
    /// The commit index when it began.
    index: Index,
    reads: Vec<Read>,
}

/// A follower's questions to this term's leader, when each was last asked, and whether the lease will do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(pub(super) BTreeMap<RequestId, (Time, bool)>);

#[cfg(feature = "testing")]
impl Asked {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Reads {
    /// Whether reads wait that no round confirms.
    fn wait(&self) -> bool {
        self.round.is_none() && !self.waiting.is_empty()
    }

    /// How many wait.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.round.as_ref().map_or(0, |round| round.reads.len())
    }

    /// For the invariants.
    pub(crate) fn round_number(&self) -> Option<u64> {
        self.round.as_ref().map(|round| round.number)
    }
}

impl Consensus {
    /// A local client's read.
    pub(crate) fn read(&mut self, now: Time, request: RequestId, lease: bool) {
        match &mut self.role {
            Role::Leader(leader) if leader.reads.waiting.len() < self.config.max_pending_requests => {
                leader.reads.waiting.push(Read { follower: None, request, lease });
            }
            Role::Leader(_) => {
                self.out.replies.push(Reply::Refused { request, reason: RefusedReason::Overloaded });
            }
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => match self.leader() {
                Some(leader) if !mutant!("followers-refuse-reads") => {
                    self.asked.0.insert(request, (now, lease));
                    if self.asked.0.len() > self.config.max_pending_requests
                        && let Some((request, _)) = self.asked.0.pop_first()
                    {
                        self.out.replies.push(Reply::Refused { request, reason: RefusedReason::Overloaded });
                    }
                    self.send(leader, Body::ReadIndex { request, lease });
                }
                Some(_) | None => self.refuse_read(request),
            },
        }
    }

    /// A follower's question. Repeated ones are harmless.
    pub(crate) fn on_read_index(&mut self, from: NodeId, request: RequestId, lease: bool) {
        match &mut self.role {
            Role::Leader(leader) if leader.reads.waiting.len() < self.config.max_pending_requests => {
                leader.reads.waiting.push(Read { follower: Some(from), request, lease });
            }
            // The follower asks again.
            Role::Leader(_) => self.ignored(from, "ReadIndex", "too many reads wait"),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                self.send(from, Body::ReadIndexReply { request, index: None });
            }
        }
    }

    pub(crate) fn on_read_index_reply(&mut self, from: NodeId, request: RequestId, index: Option<Index>) {
        if self.asked.0.remove(&request).is_none() {
            return self.ignored(from, "ReadIndexReply", "nothing waits for it");
        }
        match index {
            Some(index) => self.out.replies.push(Reply::Readable { request, index }),
            None => self.refuse_read(request),
        }
    }

    /// Asks again for what the leader has not answered for long: a message may have been lost.
    pub(crate) fn ask_again(&mut self, now: Time) {
        let Some(leader) = self.leader() else { return };
        let term = self.hard_state.term;
        for (request, (asked, lease)) in &mut self.asked.0 {
            if now.since(*asked) >= self.config.election_timeout && !mutant!("lost-question-never-repeated") {
                *asked = now;
                self.out
                    .send
                    .push((leader, Message { term, body: Body::ReadIndex { request: *request, lease: *lease } }));
            }
        }
    }

    /// Answers the reads whose round a quorum has confirmed, and begins the next round.
    ///
    /// Before the leader has committed an entry of its own term it does not know what is committed, and reads wait
    /// (thesis §6.4, step 1).
    pub(crate) fn confirm_reads(&mut self, now: Time) {
        self.answer_confirmed();
        let Role::Leader(leader) = &self.role else { return };
        let open = self.commit >= leader.opened || mutant!("read-before-the-term-is-open");
        if !open {
            return;
        }
        self.answer_by_lease(now);
        if !matches!(&self.role, Role::Leader(leader) if leader.reads.wait()) {
            return;
        }
        self.heartbeat_round(now, Duration::ZERO);
        self.read_rounds += 1;
        if let Role::Leader(leader) = &mut self.role {
            let reads = std::mem::take(&mut leader.reads.waiting);
            leader.reads.round = Some(Round { number: leader.round, index: self.commit, reads });
        }
        // A leader that is a quorum by itself is confirmed at once.
        self.answer_confirmed();
    }

    /// Answers the reads for which the lease will do, while there is one.
    fn answer_by_lease(&mut self, now: Time) {
        let lease = self.lease_left(now).is_some();
        let Role::Leader(leader) = &mut self.role else { return };
        if !lease || !leader.reads.waiting.iter().any(|read| read.lease) {
            return;
        }
        let waiting = std::mem::take(&mut leader.reads.waiting);
        let (answered, waiting) = waiting.into_iter().partition(|read| read.lease);
        leader.reads.waiting = waiting;
        let answered: Vec<Read> = answered;
        self.leased_reads += answered.len() as u64;
        for read in answered {
            self.answer_read(read, Some(self.commit));
        }
    }

    fn answer_confirmed(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let Some(membership) = self.membership() else { return };
        let Some(number) = leader.reads.round_number() else { return };
        let own = self.id;
        let answered = |id: NodeId| {
            if id == own { u64::MAX } else { leader.peers.get(&id).map_or(0, |progress| progress.round) }
        };
        let confirmed = quorum::reached(membership, answered).is_some_and(|round| round >= number);
        if !confirmed && !mutant!("read-without-a-quorum") {
            return;
        }
        if let Role::Leader(leader) = &mut self.role
            && let Some(round) = leader.reads.round.take()
        {
            for read in round.reads {
                self.answer_read(read, Some(round.index));
            }
        }
    }

    fn answer_read(&mut self, read: Read, index: Option<Index>) {
        let request = read.request;
        match (read.follower, index) {
            (Some(follower), index) => self.send(follower, Body::ReadIndexReply { request, index }),
            (None, Some(index)) => self.out.replies.push(Reply::Readable { request, index }),
            (None, None) => self.refuse_read(request),
        }
    }

    /// Leadership is lost: its reads are refused at once, so that they can go elsewhere.
    pub(crate) fn refuse_reads_of(&mut self, reads: Reads) {
        if mutant!("reads-forgotten-with-leadership") {
            return;
        }
        let begun = reads.round.into_iter().flat_map(|round| round.reads);
        for read in begun.chain(reads.waiting) {
            self.answer_read(read, None);
        }
    }

    /// The leader that was asked is none any more, or not heard any more.
    pub(crate) fn refuse_asked(&mut self) {
        for request in std::mem::take(&mut self.asked.0).into_keys() {
            self.refuse_read(request);
        }
    }

    /// Whether what was applied here reflects this entry: the very one, not just another at its index.
    pub(crate) fn reflects(&self, id: LogId) -> Reflects {
        // While an image is put in the place of the state there is none.
        let Some(applied) = self.log.id_at(self.applying.applied()) else { return Reflects::NotYet };
        let base = self.log.base();
        if id == LogId::ZERO {
            return Reflects::Yes;
        }
        if id.index > applied.index {
            // Terms never go back along a log.
            let never = id.term < applied.term;
            return if never { Reflects::Never { found: applied } } else { Reflects::NotYet };
        }
        match self.log.term_remembered_at(id.index) {
            Some(term) if term == id.term => Reflects::Yes,
            Some(term) => Reflects::Never { found: LogId { term, index: id.index } },
            // The leader of that term had appended it when it appended the base: it has one leader, who only appends (paper §5.3).
            None if id.term == base.term => Reflects::Yes,
            None if id.term > base.term => Reflects::Never { found: base },
            None => Reflects::Unknown { base },
        }
    }

    fn refuse_read(&mut self, request: RequestId) {
        let reason = RefusedReason::NotLeader { leader: self.leader() };
        self.out.replies.push(Reply::Refused { request, reason });
    }
}
