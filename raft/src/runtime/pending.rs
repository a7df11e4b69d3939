//! Clients' requests from their admission to their answer. Every one of them gets exactly one.
//!
//! | a request waits for | where | at its deadline |
//! |---|---|---|
//! | a leader | parked | `Unavailable` (or `NotLeader`): it was not proposed |
//! | the core's answer to its proposal | `writes.submitted` | `OutcomeUnknown` |
//! | the entry at its index to be applied | `writes.appended` | `OutcomeUnknown` |
//! | a confirmed read index | `reads.asked` | `Unavailable` |
//! | that index to be applied | `reads.confirmed` | `Unavailable` |
//! | an entry that a read is to reflect | `at_least` | `Unavailable` |
//! | a change of the configuration to be committed | `changes` | `OutcomeUnknown` |

mod at_least;
mod changes;
mod reads;
mod results;
mod writes;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use self::at_least::AtLeast;
pub(crate) use self::changes::ChangeAnswer;
use self::changes::{Changes, Waiter};
use self::reads::Reads;
#[cfg(test)]
pub(crate) use self::results::Fate;
pub(crate) use self::results::{Answer, Results};
use self::writes::Writes;
use super::intake::{Load, Request};
use crate::change::Change;
use crate::config::Config;
use crate::consensus::{InitializeRefused, Input, Reflects, RefusedReason, Reply, Time, TransferRefused};
use crate::error::{ChangeError, Error, Fatal, InitializeError, TransferError};
use crate::message::RequestId;
use crate::mutant;
use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Peer};

pub(crate) type InitializeAnswer = oneshot::Sender<Result<(), InitializeError>>;
pub(crate) type TransferAnswer = oneshot::Sender<Result<NodeId, TransferError>>;

#[derive(Debug)]
pub(crate) struct Pending {
    config: Config,
    writes: Writes,
    reads: Reads,
    at_least: AtLeast,
    changes: Changes,
    initializing: VecDeque<(RequestId, InitializeAnswer)>,
    transfers: VecDeque<(RequestId, TransferAnswer)>,
    /// Bounded by what the owner may ask for at a time.
    snapshots: VecDeque<(RequestId, oneshot::Sender<LogId>)>,
    next_request: u64,
    /// Answered since the intake was last told.
    pub(crate) answered: Load,
    /// When to look for requests past their deadline; never later than the first deadline.
    check_at: Option<Time>,
}

/// Writes that come together: one proposal has entries of one kind.
struct Groups {
    commands: writes::Group,
    session: writes::Group,
}

impl Groups {
    fn new(deadline: Time, capacity: usize) -> Self {
        let commands = writes::Group::new(EntryKind::Command, deadline, capacity);
        Self { commands, session: writes::Group::new(EntryKind::Session, deadline, 0) }
    }
}

impl Pending {
    /// `first_request` must differ from run to run of the node; see [`RequestId`]. `applied` is where the state machine stands.
    pub(crate) fn new(config: &Config, first_request: u64, applied: Index) -> Self {
        Self {
            config: config.clone(),
            writes: Writes::new(config.max_applying_bytes, applied),
            reads: Reads::new(applied),
            at_least: AtLeast::default(),
            changes: Changes::default(),
            initializing: VecDeque::new(),
            transfers: VecDeque::new(),
            snapshots: VecDeque::new(),
            // Half of the range is left to count up.
            next_request: if mutant!("request-names-repeat") { 0 } else { first_request >> 1 },
            answered: Load::default(),
            check_at: None,
        }
    }

    fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Turns clients' requests into few inputs: reads that came together share one, and so do writes, up to the size of
    /// a message. `leads` tells whether this node leads: then the core needs no second chance at the commands.
    pub(crate) fn submit(&mut self, now: Time, leads: bool, requests: &mut Vec<Request>, mut input: impl FnMut(Input)) {
        let mut groups = Groups::new(now.plus(self.config.write_timeout), requests.len());
        let (mut readers, mut leased) = (Vec::new(), Vec::new());
        let read_by = now.plus(self.config.read_timeout);
        for request in requests.drain(..) {
            let cost = request.cost();
            match request {
                Request::Write { kind, command, answer } => {
                    let group = self.group_for(kind, cost, &mut groups, leads, &mut input);
                    group.add_one(command, answer, cost);
                }
                Request::WriteMany { commands, answer } => {
                    let group = self.group_for(EntryKind::Command, cost, &mut groups, leads, &mut input);
                    group.add_many(commands, answer, cost);
                }
                Request::Read { lease: false, answer } => readers.push(answer),
                Request::Read { lease: true, answer } => leased.push(answer),
                Request::ReadAtLeast { id, answer } => {
                    self.look_at(read_by);
                    self.at_least.submit(id, read_by, answer);
                }
            }
        }
        for group in [groups.commands, groups.session].into_iter().filter(|group| group.cost > 0) {
            self.propose(group, leads, &mut input);
        }
        for (lease, readers) in [(false, readers), (true, leased)] {
            if !readers.is_empty() {
                self.ask(reads::Group { deadline: read_by, lease, readers }, &mut input);
            }
        }
    }

    /// The group in which there is room for this; a full one is proposed.
    fn group_for<'a>(
        &mut self,
        kind: EntryKind,
        cost: u64,
        groups: &'a mut Groups,
        leads: bool,
        input: &mut impl FnMut(Input),
    ) -> &'a mut writes::Group {
        let group = if kind == EntryKind::Session { &mut groups.session } else { &mut groups.commands };
        if group.cost > 0 && group.cost + cost > self.config.max_append_bytes {
            let next = writes::Group::new(group.kind, group.deadline, 16);
            self.propose(std::mem::replace(group, next), leads, input);
        }
        group
    }

    fn propose(&mut self, group: writes::Group, leads: bool, input: &mut impl FnMut(Input)) {
        self.look_at(group.deadline);
        let (request, kind) = (self.request(), group.kind);
        let commands = self.writes.submit(request, group, leads);
        input(Input::Propose { request, kind, commands });
    }

    fn ask(&mut self, group: reads::Group, input: &mut impl FnMut(Input)) {
        self.look_at(group.deadline);
        let (request, lease) = (self.request(), group.lease);
        self.reads.submit(request, group);
        input(Input::Read { request, lease });
    }

    pub(crate) fn initialize(&mut self, membership: Membership, answer: InitializeAnswer) -> Input {
        let request = self.request();
        self.initializing.push_back((request, answer));
        Input::Initialize { request, membership }
    }

    pub(crate) fn snapshot(&mut self, answer: oneshot::Sender<LogId>) -> Input {
        let request = self.request();
        self.snapshots.retain(|(_, answer)| !answer.is_closed());
        self.snapshots.push_back((request, answer));
        Input::Snapshot { request }
    }

    /// Somebody wants other members. New ones may take as long as they may to catch up, and the rest as long as a write.
    pub(crate) fn change(&mut self, now: Time, change: Change, answer: ChangeAnswer) -> Input {
        let deadline = now.plus(self.config.catch_up_timeout).plus(self.config.write_timeout);
        self.submit_change(Waiter { change, deadline, answer })
    }

    fn submit_change(&mut self, waiter: Waiter) -> Input {
        self.look_at(waiter.deadline);
        let (request, change) = (self.request(), waiter.change.clone());
        self.changes.submit(request, waiter);
        Input::Change { request, change }
    }

    pub(crate) fn transfer(&mut self, to: Option<NodeId>, answer: TransferAnswer) -> Input {
        let request = self.request();
        self.transfers.push_back((request, answer));
        Input::Transfer { request, to }
    }

    /// How long requests wait that a node refused that does not lead, unless another leader is heard of before.
    fn pause(&self) -> Duration {
        (self.config.heartbeat_interval / 2).max(Duration::from_millis(1))
    }

    /// Takes in an answer of the core. `leader` is the one named by a refusal, with its address.
    pub(crate) fn on_reply(&mut self, now: Time, reply: Reply, leader: Option<Peer>) {
        match reply {
            Reply::Appended { request, first } => self.writes.on_appended(request, first, &mut self.answered),
            Reply::Refused { request, reason } => match reason {
                RefusedReason::Overloaded => {
                    self.writes.fail(request, &Error::Overloaded, &mut self.answered);
                    self.reads.fail(request, &Error::Overloaded, &mut self.answered);
                    self.changes.fail(request, ChangeError::Overloaded);
                }
                // Another leader is there, or will be noted when it is.
                RefusedReason::Moved => {
                    self.look_at(now);
                    self.writes.park(request, None, &mut self.answered);
                    self.reads.park(request, None);
                }
                RefusedReason::NotLeader { .. } => {
                    self.look_at(now.plus(self.pause()));
                    self.writes.park(request, leader.as_ref(), &mut self.answered);
                    self.reads.park(request, leader.as_ref());
                    self.changes.park(request);
                }
            },
            Reply::Returned { request, commands } => {
                self.look_at(now);
                self.writes.take_back(request, commands);
            }
            Reply::Unknown { request } => {
                self.writes.fail(request, &Error::OutcomeUnknown, &mut self.answered);
                self.changes.fail(request, ChangeError::OutcomeUnknown);
            }
            Reply::Changed { request, outcome } => {
                if self.changes.on_changed(request, outcome) {
                    self.look_at(now.plus(self.pause()));
                }
            }
            Reply::Readable { request, index } => self.reads.on_readable(request, index, &mut self.answered),
            Reply::Initialized { request, outcome } => self.on_initialized(request, outcome),
            Reply::Transferred { request, outcome } => self.on_transferred(request, outcome, leader),
            Reply::Snapshotted { request, last } => {
                if let Some(at) = self.snapshots.iter().position(|(id, _)| *id == request)
                    && let Some((_, answer)) = self.snapshots.remove(at)
                {
                    let _ = answer.send(last);
                }
            }
        }
    }

    fn on_initialized(&mut self, request: RequestId, outcome: Result<(), InitializeRefused>) {
        let Some(at) = self.initializing.iter().position(|(id, _)| *id == request) else { return };
        let Some((_, answer)) = self.initializing.remove(at) else { return };
        let outcome = outcome.map_err(|refused| match refused {
            InitializeRefused::NotEmpty { existing } => InitializeError::NotEmpty { existing },
            InitializeRefused::Invalid { reason } => InitializeError::Invalid(reason),
        });
        let _ = answer.send(outcome);
    }

    fn on_transferred(&mut self, request: RequestId, outcome: Result<NodeId, TransferRefused>, leader: Option<Peer>) {
        let Some(at) = self.transfers.iter().position(|(id, _)| *id == request) else { return };
        let Some((_, answer)) = self.transfers.remove(at) else { return };
        let outcome = outcome.map_err(|refused| match refused {
            TransferRefused::NotLeader { .. } => TransferError::NotLeader { leader },
            TransferRefused::UnknownNode { id } => TransferError::UnknownNode { id },
            TransferRefused::NotVoter { id } => TransferError::NotVoter { id },
            TransferRefused::InProgress { to } => TransferError::InProgress { to },
            TransferRefused::Unwilling { id } => TransferError::Unwilling { id },
            TransferRefused::NoSuccessor => TransferError::NoSuccessor,
            TransferRefused::TimedOut => TransferError::TimedOut,
            TransferRefused::OtherLeader { leader } => TransferError::OtherLeader { leader },
        });
        let _ = answer.send(outcome);
    }

    /// Whether the results of the batch that is about to be applied may be asked for.
    pub(crate) fn wants_results(&self) -> bool {
        self.writes.wants_results()
    }

    /// Whether somebody here waits for an entry up to this one to be applied.
    pub(crate) fn is_awaited(&self, upto: Index) -> bool {
        self.writes.is_awaited(upto)
    }

    /// The state machine has applied a batch.
    pub(crate) fn on_applied(&mut self, results: Results) {
        let upto = results.upto();
        self.at_least.on_applied(upto, results.term());
        self.writes.on_applied(results, &mut self.answered);
        self.reads.on_applied(upto, &mut self.answered);
    }

    /// Answers the reads of which the log tells that what they are to reflect is applied, or never will be.
    pub(crate) fn settle_at_least(&mut self, reflects: impl Fn(LogId) -> Reflects) {
        self.at_least.settle(reflects, &mut self.answered);
    }

    /// A leader is known: parked requests get another chance at once.
    pub(crate) fn on_leader(&mut self, now: Time) {
        if self.has_parked() {
            self.look_at(now);
        }
    }

    fn resubmit(&mut self, leads: bool, mut input: impl FnMut(Input)) {
        for group in self.writes.take_parked() {
            self.propose(group, leads, &mut input);
        }
        for group in self.reads.take_parked() {
            self.ask(group, &mut input);
        }
        for waiter in self.changes.take_parked() {
            input(self.submit_change(waiter));
        }
    }

    fn has_parked(&self) -> bool {
        self.writes.has_parked() || self.reads.has_parked() || self.changes.has_parked()
    }

    fn look_at(&mut self, time: Time) {
        self.check_at = Some(self.check_at.map_or(time, |at| at.min(time)));
    }

    /// When [`Pending::check`] has something to do at the latest.
    pub(crate) fn next_wake(&self) -> Option<Time> {
        self.check_at
    }

    /// Answers what is past its deadline, and proposes again what waited for a leader, if one is known.
    pub(crate) fn check(&mut self, now: Time, leader_known: bool, leads: bool, input: impl FnMut(Input)) {
        if self.check_at.is_none_or(|at| now < at) {
            return;
        }
        self.check_at = None;
        self.writes.expire(now, &mut self.answered);
        self.reads.expire(now, &mut self.answered);
        self.at_least.expire(now, &mut self.answered);
        self.changes.expire(now);
        if leader_known {
            self.resubmit(leads, input);
        }
        let retry = self.has_parked().then(|| now.plus(self.pause()));
        let reads = [self.reads.first_deadline(), self.at_least.first_deadline()].into_iter().flatten().min();
        let next = [retry, self.writes.first_deadline(), reads, self.changes.first_deadline()];
        self.check_at = next.into_iter().chain([self.check_at]).flatten().min();
    }

    /// How many reads were answered.
    pub(crate) fn reads_served(&self) -> u64 {
        self.reads.served
    }

    /// Whether a client waits for an answer.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.writes.is_waited_for() || self.reads.is_waited_for() || self.at_least.is_waited_for()
    }

    /// The node stops: everyone is told why.
    pub(crate) fn stop(&mut self, fatal: &Fatal) {
        let error = Error::Stopped(fatal.clone());
        self.writes.fail_all(&error, &mut self.answered);
        self.reads.fail_all(&error, &mut self.answered);
        self.at_least.fail_all(&error, &mut self.answered);
        self.changes.stop(fatal);
        for (_, answer) in self.initializing.drain(..) {
            let _ = answer.send(Err(InitializeError::Stopped(fatal.clone())));
        }
        for (_, answer) in self.transfers.drain(..) {
            let _ = answer.send(Err(TransferError::Stopped(fatal.clone())));
        }
        // Their handles tell the reason.
        self.snapshots.clear();
    }
}

/// What a result counts against the limit on results that are kept.
fn cost_of(result: &Answer) -> u64 {
    let bytes = if let Answer::Given(bytes) = result { bytes.len() as u64 } else { 0 };
    Entry::OVERHEAD + bytes
}

/// Takes out what matches, in order.
fn take_if<T>(queue: &mut VecDeque<T>, matches: impl Fn(&T) -> bool) -> Vec<T> {
    if !queue.iter().any(&matches) {
        return Vec::new();
    }
    let (taken, kept): (Vec<T>, Vec<T>) = queue.drain(..).partition(matches);
    queue.extend(kept);
    taken
}

#[cfg(test)]
mod tests;
