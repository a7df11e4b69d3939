//! The consensus core: a value and a function. No I/O, no clock, no thread, no global randomness, no error.
//!
//! The caller [`step`](Consensus::step)s it with each [`Input`], as many as are there, and then collects the
//! [`Effects`] of all of them at once: that is where batches come from. Time is an argument of both; when to call next
//! without any other input is [`next_wake`](Consensus::next_wake).
//!
//! | what happens | where |
//! |---|---|
//! | a message is let in, the term moves, a role changes | here |
//! | an election | `election.rs` |
//! | the leader's entries reach a follower | `replication.rs`, paced by `progress.rs` |
//! | leadership is made known, and given up without a quorum | `heartbeat.rs` |
//! | an entry is committed, and handed to the state machine | `commit.rs` |
//! | a linearizable read is confirmed | `read.rs`, by the clock: `lease.rs` |
//! | a disk or a state machine stalls | `stall.rs` |
//! | a command enters the log, here or at the leader | `forward.rs`, while those before it do not wait for too long: `backlog.rs` |
//! | leadership is handed over | `transfer.rs` |
//! | … to whoever should lead rather than this node | `preference.rs` |
//! | a promise waits for the disk | `durability.rs` |
//! | an image is taken, and the log cut for it | `snapshot.rs` |
//! | an image reaches a node that lacks what was cut, and is installed | `image.rs` |
//! | a cluster begins, a configuration comes into force | `bootstrap.rs`, `membership.rs` |
//! | the leader changes the configuration | `change.rs` |

mod backlog;
mod bootstrap;
mod change;
mod commit;
mod durability;
mod election;
#[cfg(feature = "testing")]
mod fingerprint;
mod forward;
mod heartbeat;
mod image;
mod invariants;
mod io;
mod lease;
mod log;
mod membership;
#[cfg(feature = "testing")]
mod observation;
mod preference;
mod progress;
mod quorum;
mod random;
mod read;
mod replication;
mod role;
mod snapshot;
mod stall;
#[cfg(test)]
mod tests;
mod transfer;

#[cfg(feature = "testing")]
pub(crate) use fingerprint::LONG_AGO;
pub(crate) use forward::CLOCK_INTERVAL;
pub use io::{
    Boot, Effects, Fetch, FetchPurpose, ImageWork, InitializeRefused, Input, Note, Receipt, RefusedReason, Reply, Time,
    TransferRefused, TransferStep, Write,
};
pub use preference::Preference;
pub(crate) use read::Reflects;
pub use role::RoleKind;

use std::collections::BTreeSet;
use std::time::Duration;

use self::change::PassedOn;
use self::commit::Applying;
use self::durability::Durability;
use self::forward::Forwarded;
use self::invariants::Past;
use self::log::Log;
use self::membership::Configurations;
use self::random::Random;
use self::read::Asked;
use self::role::{Follower, Role};
use self::snapshot::Snapshots;
use self::transfer::{HandedOver, Retired};
use crate::config::Config;
use crate::message::{AppendReply, Body, ChangeOutcome, ForwardOutcome, Message, RequestId};
use crate::metrics::{PeerStatus, SessionsStatus, SnapshotStatus, Status};
use crate::mutant;
use crate::traits::HardState;
use crate::types::{Index, LogId, Membership, NodeId, Term};

/// The greatest term and index that is believed. A thousand elections a second do not get there in a million years, so
/// that arithmetic on what peers say never overflows.
const MAX_TERM: Term = Term(1 << 62);
const MAX_INDEX: Index = Index(1 << 62);

/// One node's part in one Raft group.
#[derive(Clone, Debug)]
pub struct Consensus {
    id: NodeId,
    config: Config,
    /// Term and vote. Changed by `set_hard_state` alone.
    hard_state: HardState,
    /// Changed by `transition` alone.
    role: Role,
    log: Log,
    durability: Durability,
    configurations: Configurations,
    /// Everything up to here is committed, for ever.
    commit: Index,
    applying: Applying,
    snapshots: Snapshots,
    /// The followers for whom older entries are being read from the log store; one read each, whoever leads meanwhile.
    fetching: BTreeSet<NodeId>,
    /// When to campaign, unless a leader or a worthy candidate is heard before.
    election_due: Time,
    random: Random,
    /// What the operator wants of this node.
    preference: Preference,
    /// Until when this node has promised to stay out of elections. It outlives roles and terms.
    bound_until: Time,
    /// Batches passed on to this term's leader that it has not answered.
    forwarded: Forwarded,
    /// Read indexes asked of this term's leader.
    asked: Asked,
    /// Changes of the configuration passed on to this term's leader that it has not answered.
    passed_on: PassedOn,
    /// The committed configuration that dropped this node, once it knows of one.
    removed: Option<LogId>,
    /// A request for a transfer that waits for the next leader.
    handed_over: Option<HandedOver>,
    /// The last term that this node led.
    retired: Option<Retired>,
    /// A request to start a cluster that waits for the disk.
    initializing: Vec<RequestId>,
    /// What was last noted, to note changes only.
    noted_leader: Option<NodeId>,
    noted_term: Term,
    /// Whether an acknowledgement or a write came that may commit something.
    commit_due: bool,
    /// How many rounds of heartbeats began for reads: for whoever watches.
    read_rounds: u64,
    /// How many reads, or groups of them, were answered by a lease.
    leased_reads: u64,
    /// Collected until the caller asks.
    out: Effects,
    past: Past,
}

impl Consensus {
    /// A node as it comes up: a follower that has heard nothing.
    ///
    /// # Panics
    /// When the state machine reflects more than the log holds: the log lost entries that were on disk.
    #[must_use]
    pub fn new(now: Time, config: &Config, boot: Boot) -> Self {
        let log = Log::new(&boot.log);
        let commit = log.base().index.max(boot.applied.index);
        assert!(commit <= log.last().index, "a state machine is not ahead of its log");
        let mut core = Self {
            id: boot.id,
            config: config.clone(),
            hard_state: boot.log.hard_state,
            role: Role::Follower(Follower { matching: commit, ..Follower::default() }),
            durability: Durability::new(boot.log.last.index),
            configurations: Configurations::new(boot.configurations),
            commit,
            applying: Applying::new(commit),
            snapshots: Snapshots::new(boot.snapshot),
            fetching: BTreeSet::new(),
            election_due: now,
            random: Random::new(boot.seed),
            preference: Preference { priority: config.priority, may_lead: config.may_lead },
            bound_until: Time::default(),
            forwarded: Forwarded::default(),
            asked: Asked::default(),
            passed_on: PassedOn::default(),
            removed: None,
            handed_over: None,
            retired: None,
            initializing: Vec::new(),
            noted_leader: None,
            noted_term: boot.log.hard_state.term,
            commit_due: false,
            read_rounds: 0,
            leased_reads: 0,
            out: Effects::default(),
            past: Past::since(log.base().index),
            log,
        };
        core.reset_election_timer(now);
        // It may have promised as much before it went down, and does not know.
        if config.lease_drift.is_some() && !mutant!("restarted-voter-votes-at-once") {
            core.bound_until = now.plus(config.election_timeout);
        }
        // Power may have been lost between an image and the cut.
        core.compact();
        core.check_invariants();
        core
    }

    /// Takes one input in. Cheap; what follows from it is collected by [`Consensus::effects`].
    pub fn step(&mut self, now: Time, input: Input) {
        match input {
            Input::Tick => self.tick(now),
            Input::Receive { from, message } => self.receive(now, from, message),
            Input::Propose { request, kind, commands } => self.propose(now, request, kind, commands),
            Input::Read { request, lease } => self.read(now, request, lease),
            Input::Stored { seq } => self.on_stored(now, seq),
            Input::Applied { index } => self.on_applied(now, index),
            Input::Applying => self.on_applying(now),
            Input::Fetched { purpose, entries } => self.on_fetched(now, purpose, entries),
            Input::Initialize { request, membership } => self.initialize(now, request, membership),
            Input::Change { request, change } => self.change(now, request, change),
            Input::Snapshot { request } => self.on_snapshot_asked(request),
            Input::Snapshotted { id, image } => self.on_snapshotted(now, id, image),
            Input::ImageRead { to, image, offset, data } => self.on_image_read(to, image, offset, data),
            Input::Receipt { attempt, receipt } => self.on_receipt(now, attempt, receipt),
            Input::Restored { last } => self.on_restored(now, last),
            Input::Campaign => self.on_campaign_asked(now),
            Input::Prefer { preference } => self.prefer(now, preference),
            Input::PeerLost { peer } => self.on_peer_lost(now, peer),
            Input::Transfer { request, to } => self.on_transfer_asked(now, request, to),
        }
        self.check_invariants();
    }

    /// Collects what is to be done after the steps so far. `out` is overwritten; pass the same one each time, and its buffers are reused.
    pub fn effects(&mut self, now: Time, out: &mut Effects) {
        self.install(now);
        self.advance_commit();
        self.advance_change(now);
        self.confirm_reads(now);
        self.hand_over();
        self.replicate();
        self.tell_commit();
        self.retire_if_removed(now);
        self.acknowledge();
        self.take_snapshot(now);
        self.receive_image(now);
        self.write(now);
        self.apply(now);
        self.log.evict(self.config.max_tail_bytes, self.commit);
        self.check_invariants();

        out.send.clear();
        out.write = None;
        out.apply.clear();
        out.fetch.clear();
        out.snapshot = None;
        out.images.clear();
        out.restore = None;
        out.replies.clear();
        out.notes.clear();
        std::mem::swap(&mut self.out, out);
    }

    /// When to step with [`Input::Tick`] at the latest. None while there is nothing to wait for.
    #[must_use]
    pub fn next_wake(&self) -> Option<Time> {
        let role = match &self.role {
            Role::Leader(leader) if leader.peers.is_empty() => None,
            Role::Leader(leader) => leader.hurry_due.into_iter().chain([leader.heartbeat_due]).min(),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                self.may_campaign().then_some(self.election_due)
            }
        };
        [role, self.snapshot_wake(), self.receiving_wake(), self.transfer_due(), self.former_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// What this node knows of itself and its group.
    #[must_use]
    pub fn status(&self, now: Time) -> Status {
        let peers = match &self.role {
            Role::Leader(leader) => leader
                .peers
                .iter()
                .map(|(id, progress)| PeerStatus {
                    id: *id,
                    state: progress.state(),
                    matched: progress.matched,
                    next: progress.next,
                    inflight: progress.inflight(),
                    fetched: progress.fetched(),
                    silent_for: progress.heard.map(|heard| now.since(heard)),
                    priority: progress.heard.filter(|_| !progress.refuses).map(|_| progress.priority),
                })
                .collect(),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => Vec::new(),
        };
        Status {
            id: self.id,
            role: self.role.kind(),
            term: self.hard_state.term,
            leader: self.leader(),
            members: self.membership().map(|m| m.members().cloned().collect()).unwrap_or_default(),
            configuration: self.configuration_status(),
            change: self.change_status(now),
            removed: self.removed,
            base: self.log.base(),
            last: self.log.last(),
            stored: self.log.stored(),
            commit: self.commit,
            applied: self.applying.applied(),
            snapshot: self
                .snapshots
                .latest
                .as_ref()
                .map(|image| SnapshotStatus { last: image.meta.last, len: image.len }),
            // The runtime knows of them.
            sessions: SessionsStatus::default(),
            receiving: self.receiving_status(now),
            peers,
            transferring_to: self.transferring_to(),
            priority: self.preference.priority,
            may_lead: self.preference.may_lead,
            lease_left: self.lease_left(now),
            disk_stalls: self.disk_stalls(now),
            machine_stalls: self.machine_stalls(now),
        }
    }

    /// The configuration in force, once there is one.
    #[must_use]
    pub fn membership(&self) -> Option<&Membership> {
        self.configurations.current()
    }

    /// How many reads, or groups of them, this node answered by its lease in this run.
    pub(crate) fn leased_reads(&self) -> u64 {
        self.leased_reads
    }

    /// How many rounds of heartbeats this node began in this run to confirm reads.
    pub(crate) fn read_rounds(&self) -> u64 {
        self.read_rounds
    }

    /// The node that leadership is being handed over to.
    fn transferring_to(&self) -> Option<NodeId> {
        match &self.role {
            Role::Leader(leader) => leader.transfer.as_ref().map(|transfer| transfer.to),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// The leader of this term, as far as this node knows; itself when it leads.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower(follower) => follower.leader,
            Role::Leader(_) => Some(self.id),
            Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    /// To whom requests are passed on: the leader, unless the connection with it was lost since it was heard. What is sent to a dead one
    /// has an outcome that nobody can tell, while a client can be held until the leader is heard again, or another one.
    pub(crate) fn reachable_leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower(Follower { suspect: true, .. }) => None,
            Role::Follower(_) | Role::Leader(_) | Role::PreCandidate(_) | Role::Candidate(_) => self.leader(),
        }
    }

    fn tick(&mut self, now: Time) {
        self.expire_former(now);
        self.expire_transfer(now);
        match &self.role {
            Role::Leader(leader) => {
                let hurries = leader.hurry_due.is_some_and(|due| now >= due);
                if now >= leader.heartbeat_due {
                    self.heartbeat(now);
                } else if hurries {
                    self.hurry(now);
                }
            }
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                if now >= self.election_due {
                    self.on_election_timeout(now);
                }
            }
        }
    }

    /// The one gate for messages: the rules on terms (paper §5.1), then one arm for each statement.
    fn receive(&mut self, now: Time, from: NodeId, message: Message) {
        let name = message.name();
        if from == self.id {
            return self.violation(from, name, "it carries this node's own id".into());
        }
        if message.term > MAX_TERM {
            return self.violation(from, name, format!("no cluster ever reaches {}", message.term));
        }
        if message.term > self.hard_state.term {
            if self.disturbs(now, &message.body) {
                let why = if self.hears_leader(now) {
                    "a live leader is heard"
                } else {
                    "this node promised to stay out of elections"
                };
                return self.ignored(from, name, why);
            }
            if self.leader_lives_on(from, &message.body) {
                self.await_former_leader(now);
            }
            self.enter_term(now, message.term, "a message of a later term came");
        } else if message.term < self.hard_state.term {
            return self.on_earlier_term(from, message);
        }
        match message.body {
            Body::PreVote { proposed, last } => self.on_pre_vote(now, from, proposed, last),
            Body::PreVoteReply { proposed, granted } => self.on_pre_vote_reply(now, from, proposed, granted),
            Body::Vote { last, transfer } => self.on_vote(now, from, last, transfer),
            Body::VoteReply { granted } => self.on_vote_reply(now, from, granted),
            Body::Append { prev, entries, commit } => self.on_append(now, from, prev, entries, commit),
            Body::AppendReply(reply) => self.on_append_reply(now, from, reply),
            Body::Heartbeat { commit, round, lease } => self.on_heartbeat(now, from, commit, round, lease),
            Body::HeartbeatReply { round, matching, stored, priority, lease } => {
                self.on_promise(now, from, round, lease);
                self.on_heartbeat_reply(now, from, round, matching, stored, priority);
            }
            Body::Commit { index } => self.on_commit(now, from, index),
            Body::TimeoutNow => self.on_timeout_now(now, from),
            Body::ReadIndex { request, lease } => self.on_read_index(from, request, lease),
            Body::ReadIndexReply { request, index } => self.on_read_index_reply(from, request, index),
            Body::Forward { request, kind, commands } => self.on_forward(now, from, request, kind, commands),
            Body::ForwardReply { request, outcome } => self.on_forward_reply(from, request, outcome),
            Body::Change { request, change } => self.on_change(now, from, request, &change),
            Body::ChangeReply { request, outcome } => self.on_change_reply(from, request, outcome),
            Body::Offer { image } => self.on_offer(now, from, image),
            Body::Fetch { image, offset, max } => self.on_fetch(now, from, image, offset, max),
            Body::Chunk { image, offset, part } => self.on_chunk(now, from, image, offset, part),
        }
    }

    /// Whether a message of a later term must not move this node there: a campaign against a live leader.
    fn disturbs(&self, now: Time, body: &Body) -> bool {
        if mutant!("campaigns-disturb-a-live-leader") {
            return false;
        }
        match body {
            Body::PreVote { .. } => self.hears_leader(now) || self.is_bound(now),
            // The leader itself wants it.
            Body::Vote { transfer: true, .. } => false,
            Body::Vote { .. } => self.is_bound(now) || (self.config.check_quorum && self.hears_leader(now)),
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::Append { .. }
            | Body::AppendReply(_)
            | Body::Heartbeat { .. }
            | Body::HeartbeatReply { .. }
            | Body::Commit { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Forward { .. }
            | Body::ForwardReply { .. }
            | Body::Change { .. }
            | Body::ChangeReply { .. }
            | Body::Offer { .. }
            | Body::Fetch { .. }
            | Body::Chunk { .. } => false,
        }
    }

    /// Whether a message of a later term shows that the leader of the present one has stepped down and lives. Learners are not asked
    /// for votes, and so never told why a term ends.
    fn leader_lives_on(&self, from: NodeId, body: &Body) -> bool {
        self.leader() == Some(from) || matches!(body, Body::Vote { transfer: true, .. }) || !self.may_campaign()
    }

    /// A message of an earlier term.
    fn on_earlier_term(&mut self, from: NodeId, message: Message) {
        if let Body::ForwardReply { request, outcome } = message.body
            && self.forwarded.former.contains_key(&request)
        {
            // What a former leader says of a batch stays true.
            return self.on_forward_reply(from, request, outcome);
        }
        if let Body::Forward { request, .. } = message.body
            && self.never_took(from, message.term, request)
        {
            return self.send(from, Body::ForwardReply { request, outcome: ForwardOutcome::Moved });
        }
        self.answer_earlier_term(from, message);
    }

    /// Requests of an earlier term are refused in a message of this term, so that the sender learns of it. This also
    /// frees a candidate that is ahead of a live leader: the leader hears of its term and makes way.
    fn answer_earlier_term(&mut self, from: NodeId, message: Message) {
        let name = message.name();
        let answer = match message.body {
            Body::PreVote { proposed, .. } => Body::PreVoteReply { proposed, granted: false },
            Body::Vote { .. } => Body::VoteReply { granted: false },
            Body::Append { prev, .. } => {
                Body::AppendReply(AppendReply::Rejected { prev, hint: self.log.last_at_most(prev) })
            }
            // What the former leader offers is committed; but let it learn first that it leads no more.
            Body::Offer { .. } => self.heartbeat_answer(0),
            // The answer is of this term, in which the rounds are counted anew: it must confirm none of them.
            Body::Heartbeat { round, .. } => {
                let round = if mutant!("round-of-an-earlier-term-confirms") { round } else { 0 };
                self.heartbeat_answer(round)
            }
            Body::ReadIndex { request, .. } => Body::ReadIndexReply { request, index: None },
            Body::Forward { request, .. } => Body::ForwardReply { request, outcome: ForwardOutcome::NotLeader },
            // The change may have been taken when this term was the present one.
            Body::Change { request, .. } => Body::ChangeReply { request, outcome: ChangeOutcome::Unknown },
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::AppendReply(_)
            | Body::HeartbeatReply { .. }
            | Body::Commit { .. }
            | Body::TimeoutNow
            | Body::ReadIndexReply { .. }
            | Body::ForwardReply { .. }
            | Body::ChangeReply { .. }
            | Body::Fetch { .. }
            | Body::Chunk { .. } => return self.ignored(from, name, "it is of an earlier term"),
        };
        self.ignored(from, name, "it is of an earlier term");
        self.send(from, answer);
    }

    /// An answer to whoever leads no more, which says nothing but that.
    fn heartbeat_answer(&self, round: u64) -> Body {
        let Preference { priority, may_lead } = self.preference;
        let priority = Some(priority).filter(|_| may_lead);
        let (matching, stored, lease) = (Index::ZERO, Index::ZERO, Duration::ZERO);
        Body::HeartbeatReply { round, matching, stored, priority, lease }
    }

    /// Moves to a later term, as a follower that knows no leader.
    fn enter_term(&mut self, now: Time, term: Term, why: &'static str) {
        assert!(term > self.hard_state.term, "terms go forward");
        if mutant!("promise-forgotten-with-the-term") {
            self.bound_until = Time::default();
        }
        self.set_hard_state(HardState { term, voted_for: None });
        self.transition(now, Role::Follower(self.fresh_follower()), why);
    }

    /// A follower of this term's leader, if it is known. All that is sure of its log is that it holds what is committed
    /// (Leader Completeness, paper §5.4.3).
    fn fresh_follower(&self) -> Follower {
        Follower { matching: self.commit, ..Follower::default() }
    }

    /// Every change of role goes through here.
    fn transition(&mut self, now: Time, role: Role, why: &'static str) {
        let (old, new) = (self.role.kind(), role.kind());
        let allowed = match new {
            RoleKind::Follower => true,
            RoleKind::PreCandidate => old != RoleKind::Leader,
            RoleKind::Candidate => old != RoleKind::Leader && self.hard_state.voted_for == Some(self.id),
            RoleKind::Leader => old == RoleKind::Candidate,
        };
        assert!(allowed, "{old} does not become {new}");
        let former = std::mem::replace(&mut self.role, role);
        match former {
            Role::Leader(mut leader) => {
                self.abandon_change(leader.change.take());
                self.retire(*leader);
            }
            Role::Candidate(_) if new != RoleKind::Candidate => self.withdraw_campaign(),
            Role::Candidate(_) | Role::PreCandidate(_) | Role::Follower(_) => {}
        }
        self.refuse_asked();
        let term = self.hard_state.term;
        if old != new || self.noted_term != term {
            self.out.notes.push(Note::Role { role: new, term, why });
        }
        if self.noted_term != term {
            self.noted_term = term;
            self.give_up_forwarded();
            self.give_up_passed_on();
        }
        // A follower goes on waiting: what moved its term need not be a leader, or a worthy candidate (paper §5.2).
        if old == RoleKind::Leader || new != RoleKind::Follower {
            self.reset_election_timer(now);
        }
        self.note_leader();
        self.check_invariants();
    }

    /// Notes a change of the leader.
    fn note_leader(&mut self) {
        self.tell_transferred();
        let leader = self.leader();
        if leader != self.noted_leader {
            self.noted_leader = leader;
            self.out.notes.push(Note::Leader { leader, term: self.hard_state.term });
        }
    }

    fn send(&mut self, to: NodeId, body: Body) {
        self.out.send.push((to, Message { term: self.hard_state.term, body }));
    }

    /// Sends to every other voter.
    fn broadcast(&mut self, body: &Body) {
        let Some(membership) = self.configurations.current() else { return };
        for id in membership.all_voters().filter(|id| *id != self.id) {
            self.out.send.push((id, Message { term: self.hard_state.term, body: body.clone() }));
        }
    }

    fn ignored(&mut self, from: NodeId, message: &'static str, why: &'static str) {
        self.out.notes.push(Note::Ignored { from, message, why });
    }

    fn violation(&mut self, from: NodeId, message: &'static str, why: String) {
        self.out.notes.push(Note::Violation { from, message, why });
    }
}
