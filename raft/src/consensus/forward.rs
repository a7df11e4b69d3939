//! How a command gets into the log: here if this node leads, else at the leader, which tells where it put it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::Consensus;
use super::io::{RefusedReason, Reply, Time};
use super::role::Role;
use super::transfer::Proposal;
use crate::message::{Body, ForwardOutcome, RequestId};
use crate::mutant;
use crate::types::{Entry, EntryKind, LogId, NodeId};

/// Batches passed on to a leader that wait for its answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forwarded {
    /// To this term's leader.
    pub(super) asked: BTreeSet<RequestId>,
    /// To a leader of an earlier term that has stepped down and lives: its answer still stands. With the time at which they are
    /// given up.
    pub(super) former: BTreeMap<RequestId, Time>,
}

impl Forwarded {
    pub(crate) fn len(&self) -> usize {
        self.asked.len() + self.former.len()
    }
}

/// How many forwarded batches of each follower are remembered at least. More than can be under way: a copy may also come long
/// after its batch was answered.
const MIN_REMEMBERED: usize = 4096;

/// How often a leader that sessions use writes for how long it leads. The ages of sessions are known with this precision.
pub(crate) const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// Batches that followers forwarded in this term, whatever their answer was. A network may deliver a message twice; a command must not
/// enter the log twice for that.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct SeenForwards(BTreeMap<NodeId, Seen>);

#[derive(Clone, Debug, Default, Hash)]
struct Seen {
    known: BTreeSet<RequestId>,
    order: VecDeque<RequestId>,
    /// The greatest name that is not remembered any more.
    forgotten: RequestId,
}

impl SeenForwards {
    /// Whether the batch came, or may have come long ago.
    pub(crate) fn contains(&self, from: NodeId, request: RequestId) -> bool {
        self.0.get(&from).is_some_and(|seen| request <= seen.forgotten || seen.known.contains(&request))
    }

    /// Remembers a batch, and of each follower as many as it can have under way. Tells whether it is new.
    fn insert(&mut self, from: NodeId, request: RequestId, remembered: usize) -> bool {
        let seen = self.0.entry(from).or_default();
        if !seen.known.insert(request) {
            return false;
        }
        seen.order.push_back(request);
        if seen.order.len() > remembered
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.known.remove(&oldest);
            seen.forgotten = seen.forgotten.max(oldest);
        }
        true
    }
}

impl SeenForwards {
    /// The same for a change of the configuration.
    pub(crate) fn insert_change(&mut self, from: NodeId, request: RequestId, remembered: usize) -> bool {
        self.insert(from, request, remembered.max(MIN_REMEMBERED))
    }

    /// Remembers what is refused to a node that is no member: a copy may come once it is one. One that came while it was a member is not new
    /// either. Tells whether it may be refused; not if the refusal can't be remembered, as more nodes ask than `most`.
    pub(crate) fn insert_refused(&mut self, from: NodeId, request: RequestId, most: usize) -> bool {
        if mutant!("refused-batch-taken-later") {
            return true;
        }
        let room = self.0.len() < most || self.0.contains_key(&from);
        room && self.insert(from, request, MIN_REMEMBERED)
    }
}

impl Consensus {
    /// A local client's batch.
    pub(crate) fn propose(&mut self, now: Time, request: RequestId, kind: EntryKind, commands: Vec<Bytes>) {
        match &self.role {
            Role::Leader(_) => {
                let proposal = Proposal { follower: None, request, kind, commands };
                let Some(Proposal { commands, .. }) = self.hold(proposal) else { return };
                let reply = match self.append_commands(now, kind, commands) {
                    Some(first) => Reply::Appended { request, first },
                    None => Reply::Refused { request, reason: RefusedReason::Overloaded },
                };
                self.out.replies.push(reply);
            }
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => match self.reachable_leader() {
                Some(leader) => {
                    self.forwarded.asked.insert(request);
                    self.forget_oldest_forwarded();
                    self.send(leader, Body::Forward { request, kind, commands });
                }
                None => {
                    let reason = RefusedReason::NotLeader { leader: None };
                    self.out.replies.push(Reply::Refused { request, reason });
                }
            },
        }
    }

    /// Answers may be lost, so the oldest batches are given up when there are more than clients can wait for.
    fn forget_oldest_forwarded(&mut self) {
        while self.forwarded.len() > self.config.max_pending_requests {
            let oldest = match self.forwarded.former.pop_first() {
                Some((oldest, _)) => Some(oldest),
                None => self.forwarded.asked.pop_first(),
            };
            self.out.replies.extend(oldest.map(|request| Reply::Unknown { request }));
        }
    }

    /// A follower's batch. One that came before is not answered: its first answer stands, or is lost.
    pub(crate) fn on_forward(
        &mut self,
        now: Time,
        from: NodeId,
        request: RequestId,
        kind: EntryKind,
        commands: Vec<Bytes>,
    ) {
        if self.leaves_unanswered(from, request) {
            return self.ignored(from, "Forward", "it came before, or too many that are no members ask");
        }
        let leader = match &mut self.role {
            Role::Leader(leader) if leader.peers.contains_key(&from) => leader,
            // Whoever voted for itself may have led this term, and have taken this very batch before it came again.
            Role::Follower(_) | Role::PreCandidate(_) if self.hard_state.voted_for == Some(self.id) => {
                return self.ignored(from, "Forward", "this node may have led the term, and leads no more");
            }
            Role::Leader(_) | Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                return self.send(from, Body::ForwardReply { request, outcome: ForwardOutcome::NotLeader });
            }
        };
        let new = leader.seen.insert(from, request, self.config.max_pending_requests.max(MIN_REMEMBERED));
        if !new && !mutant!("repeated-forward-appended-twice") {
            return self.ignored(from, "Forward", "it came before");
        }
        if commands.is_empty() {
            return self.violation(from, "Forward", "it holds no command".into());
        }
        if !kind.is_proposed() {
            return self.violation(from, "Forward", format!("entries of kind {kind:?} are the leader's own"));
        }
        let proposal = Proposal { follower: Some(from), request, kind, commands };
        let Some(Proposal { commands, .. }) = self.hold(proposal) else { return };
        let outcome = match self.append_commands(now, kind, commands) {
            Some(first) => ForwardOutcome::Appended { first },
            None => ForwardOutcome::Overloaded,
        };
        self.send(from, Body::ForwardReply { request, outcome });
    }

    /// Whether this node leads, and must not refuse what one that is no member passes on.
    pub(crate) fn leaves_unanswered(&mut self, from: NodeId, request: RequestId) -> bool {
        let most = 2 * self.config.max_members;
        match &mut self.role {
            Role::Leader(leader) => {
                !leader.peers.contains_key(&from) && !leader.seen.insert_refused(from, request, most)
            }
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => false,
        }
    }

    pub(crate) fn on_forward_reply(&mut self, from: NodeId, request: RequestId, outcome: ForwardOutcome) {
        let former = self.forwarded.former.contains_key(&request);
        let decided = match outcome {
            ForwardOutcome::Appended { .. } | ForwardOutcome::Overloaded | ForwardOutcome::Moved => true,
            // Whoever says so of an earlier term may have forgotten that it led it.
            ForwardOutcome::NotLeader => !former,
        };
        if !decided || (self.forwarded.former.remove(&request).is_none() && !self.forwarded.asked.remove(&request)) {
            return self.ignored(from, "ForwardReply", "nothing waits for it");
        }
        let reply = match outcome {
            ForwardOutcome::Appended { first } => Reply::Appended { request, first },
            ForwardOutcome::Overloaded => Reply::Refused { request, reason: RefusedReason::Overloaded },
            ForwardOutcome::NotLeader => Reply::Refused { request, reason: RefusedReason::NotLeader { leader: None } },
            ForwardOutcome::Moved => Reply::Refused { request, reason: RefusedReason::Moved },
        };
        self.out.replies.push(reply);
    }

    /// The term moved on: whether its leader took the batches is not to be known any more.
    pub(crate) fn give_up_forwarded(&mut self) {
        let forwarded = std::mem::take(&mut self.forwarded.asked);
        if mutant!("unknown-told-as-refused") {
            let reason = RefusedReason::NotLeader { leader: None };
            let refused = forwarded.into_iter().map(|request| Reply::Refused { request, reason });
            return self.out.replies.extend(refused);
        }
        self.out.replies.extend(forwarded.into_iter().map(|request| Reply::Unknown { request }));
    }

    /// The leader of this term has stepped down, and lives: what became of the batches that it has not answered is for it to say.
    pub(crate) fn await_former_leader(&mut self, now: Time) {
        let until = now.plus(self.config.election_timeout);
        let asked = std::mem::take(&mut self.forwarded.asked);
        self.forwarded.former.extend(asked.into_iter().map(|request| (request, until)));
    }

    /// When the wait for a former leader's answers ends.
    pub(crate) fn former_due(&self) -> Option<Time> {
        self.forwarded.former.values().min().copied()
    }

    /// A former leader has not answered for long.
    pub(crate) fn expire_former(&mut self, now: Time) {
        let out = &mut self.out.replies;
        self.forwarded.former.retain(|request, until| {
            if now >= *until {
                out.push(Reply::Unknown { request: *request });
            }
            now < *until
        });
    }

    /// Appends a batch to the leader's log, all or nothing, and tells the id of its first entry.
    fn append_commands(&mut self, now: Time, kind: EntryKind, commands: Vec<Bytes>) -> Option<LogId> {
        let Role::Leader(leader) = &mut self.role else { return None };
        let patience = self.config.write_timeout / 2;
        if leader.backlog.is_older_than(patience, now, self.applying.applied())
            && !mutant!("backlog-outlives-its-clients")
        {
            return None;
        }
        let cost: u64 = commands.iter().map(|command| Entry::OVERHEAD + command.len() as u64).sum();
        // What the followers commit without this node's disk stays in memory as well. One batch may always be under
        // way, however large.
        let waiting = leader.uncommitted.max(self.log.unstored_bytes());
        if waiting > 0 && waiting + cost > self.config.max_uncommitted_bytes && !mutant!("uncommitted-without-a-bound")
        {
            return None;
        }
        Some(self.append_all(now, kind, commands))
    }

    /// Appends commands, and tells the id of the first one's entry.
    pub(crate) fn append_all(&mut self, now: Time, kind: EntryKind, commands: Vec<Bytes>) -> LogId {
        if kind == EntryKind::Session {
            self.append_clock(now);
        }
        let first = LogId { term: self.hard_state.term, index: self.log.last().index.next() };
        for command in commands {
            self.append_own(kind, command);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.backlog.appended(now, self.log.last().index, self.config.write_timeout / 2);
        }
        first
    }

    /// Sessions expire by the time that leaders have led, so it is written into the log in front of what sessions ask for, now and then.
    fn append_clock(&mut self, now: Time) {
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.clocked.is_some_and(|clocked| now.since(clocked) < CLOCK_INTERVAL) {
            return;
        }
        leader.clocked = Some(now);
        let led = u64::try_from(now.since(leader.since).as_millis()).unwrap_or(u64::MAX);
        self.append_own(EntryKind::Clock, Bytes::copy_from_slice(&led.to_le_bytes()));
    }

    /// Appends one entry of this leader's term.
    pub(crate) fn append_own(&mut self, kind: EntryKind, data: Bytes) {
        let id = LogId { term: self.hard_state.term, index: self.log.last().index.next() };
        let entry = Entry { id, kind, data };
        if let Role::Leader(leader) = &mut self.role {
            leader.uncommitted += entry.cost();
        }
        self.log.append(entry);
    }
}
