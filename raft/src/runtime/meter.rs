//! What a node counts, for [`Raft::metrics`](crate::Raft::metrics). Plain numbers in the driver's one task: whoever wants them gets a copy.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::events::Stall;
use super::intake::{Load, Request};
use super::outbox::Outbox;
use super::stall::Watch;
use crate::config::Config;
use crate::consensus::{Note, RoleKind, Time, TransferStep, Write};
use crate::error::Error;
use crate::message::{Body, Message};
use crate::metrics::{Applies, Failed, Leadership, LogWrites, Metrics, Refused, Requests, Snapshots, Status, Traffic};
use crate::types::{Entry, Index, Membership};

#[derive(Debug)]
pub(crate) struct Meter {
    /// The write of the log that is under way.
    pub(crate) disk: Watch,
    /// The state machine's work; since when the present batch is being applied.
    machine: Watch,
    /// The last index that the state machine was given.
    handed: Index,
    applied: Index,
    /// How many signs of life it had given when it was last looked at.
    signs: u64,
    leads: bool,
    leadership: Leadership,
    requests: Requests,
    received: Traffic,
    log_writes: LogWrites,
    applies: Applies,
    snapshots: Snapshots,
    membership_changes: u64,
}

impl Meter {
    pub(crate) fn new(config: &Config, applied: Index) -> Self {
        Self {
            disk: Watch::new(config.stall_timeout),
            machine: Watch::new(config.stall_timeout),
            handed: applied,
            applied,
            signs: 0,
            leads: false,
            leadership: Leadership::default(),
            requests: Requests::default(),
            received: Traffic::default(),
            log_writes: LogWrites::default(),
            applies: Applies::default(),
            snapshots: Snapshots::default(),
            membership_changes: 0,
        }
    }

    /// When [`Meter::stalls`] has something to say.
    pub(crate) fn next_wake(&self) -> Option<Time> {
        [self.disk.next_wake(), self.machine.next_wake()].into_iter().flatten().min()
    }

    /// What is seen to stall from now on.
    pub(crate) fn stalls(&mut self, now: Time) -> impl Iterator<Item = Stall> + use<> {
        let (disk, machine) = (self.disk.check(now), self.machine.check(now));
        self.leadership.disk_stalls += u64::from(disk);
        self.leadership.machine_stalls += u64::from(machine);
        disk.then_some(Stall::Disk).into_iter().chain(machine.then_some(Stall::StateMachine))
    }

    /// The state machine has given `signs` of life so far. Whether there is a new one while it is at work, and what is over if it had stalled.
    pub(crate) fn machine_lives(&mut self, now: Time, signs: u64) -> Option<Option<Duration>> {
        let new = std::mem::replace(&mut self.signs, signs) != signs && self.applied < self.handed;
        new.then(|| self.machine.progress(now, false)).map(|(took, stalled)| stalled.then_some(took))
    }

    pub(crate) fn requests(&mut self, requests: &[Request]) {
        for request in requests {
            match request {
                Request::Write { .. } | Request::WriteMany { .. } => self.requests.writes += 1,
                Request::Read { .. } => self.requests.reads += 1,
                Request::ReadAtLeast { .. } => self.requests.reads_at_least += 1,
            }
        }
    }

    /// A batch came from a peer.
    pub(crate) fn received(&mut self, cost: u32) {
        self.received.bytes += u64::from(cost);
    }

    /// A message of it is taken.
    pub(crate) fn message(&mut self, message: &Message) {
        self.received.count(message);
        if let Body::Forward { .. } = &message.body {
            self.requests.forwarded_here += 1;
        }
        if let Body::Chunk { part: Some(part), .. } = &message.body {
            self.snapshots.received_parts += 1;
            self.snapshots.received_bytes += part.data.len() as u64;
        }
    }

    /// A message is about to be sent.
    pub(crate) fn sending(&mut self, message: &Message) {
        if let Body::Forward { .. } = &message.body {
            self.requests.forwarded += 1;
        }
        if let Body::Chunk { part: Some(part), .. } = &message.body {
            self.snapshots.sent_parts += 1;
            self.snapshots.sent_bytes += part.data.len() as u64;
        }
    }

    pub(crate) fn write_begins(&mut self, now: Time, write: &Write) {
        self.disk.begin(now);
        self.log_writes.entries += write.write.entries.len() as u64;
        self.log_writes.bytes += write.write.entries.iter().map(Entry::cost).sum::<u64>();
    }

    /// The write is durable. Whether this ends a stall, and after how long.
    pub(crate) fn write_ends(&mut self, now: Time) -> Option<Duration> {
        let (took, stalled) = self.disk.progress(now, true);
        self.log_writes.latency.record(took);
        stalled.then_some(took)
    }

    /// The state machine is given entries or an image up to here.
    pub(crate) fn apply_begins(&mut self, now: Time, upto: Index) {
        self.handed = self.handed.max(upto);
        self.machine.begin(now);
    }

    /// Entries are applied. Whether this ends a stall, and after how long.
    pub(crate) fn apply_ends(&mut self, now: Time, upto: Index) -> Option<Duration> {
        self.applies.entries += upto.0.saturating_sub(self.applied.0);
        let (took, stalled) = self.machine_gets_on(now, upto);
        self.applies.latency.record(took);
        stalled.then_some(took)
    }

    /// The same for an image that is restored.
    pub(crate) fn restore_ends(&mut self, now: Time, upto: Index) -> Option<Duration> {
        let (took, stalled) = self.machine_gets_on(now, upto);
        stalled.then_some(took)
    }

    fn machine_gets_on(&mut self, now: Time, upto: Index) -> (Duration, bool) {
        self.applied = self.applied.max(upto);
        self.machine.progress(now, self.applied >= self.handed)
    }

    pub(crate) fn note(&mut self, note: &Note) {
        let leadership = &mut self.leadership;
        match note {
            Note::Role { role, .. } => {
                leadership.lost += u64::from(std::mem::replace(&mut self.leads, *role == RoleKind::Leader));
                match role {
                    RoleKind::Follower => {}
                    RoleKind::PreCandidate => leadership.polls += 1,
                    RoleKind::Candidate => leadership.elections += 1,
                    RoleKind::Leader => leadership.won += 1,
                }
            }
            Note::Leader { leader, .. } => leadership.leader_changes += u64::from(leader.is_some()),
            Note::Transfer { step: TransferStep::Begins, .. } => leadership.transfers += 1,
            Note::Yield { .. } => leadership.yields += 1,
            Note::Transfer { step: TransferStep::GivenUp | TransferStep::Refused, .. } => {
                leadership.transfers_given_up += 1
            }
            Note::Membership { .. } => self.membership_changes += 1,
            Note::SnapshotTaken { len, .. } => {
                self.snapshots.taken += 1;
                self.snapshots.taken_bytes += len;
            }
            Note::SnapshotInstalled { len, .. } => {
                self.snapshots.installed += 1;
                self.snapshots.installed_bytes += len;
            }
            Note::SnapshotDamaged { .. } => self.snapshots.damaged += 1,
            Note::Suspect { .. }
            | Note::Truncated { .. }
            | Note::ReceivingSnapshot { .. }
            | Note::Removed { .. }
            | Note::Ignored { .. }
            | Note::Violation { .. } => {}
        }
    }

    /// A copy of everything.
    pub(crate) fn read(
        &self,
        status: &Status,
        outbox: &Outbox,
        reads: Reads,
        load: Load,
        failed: Failed,
        refused: Refused,
    ) -> Metrics {
        let members = status.configuration.as_ref().map(|configuration| &configuration.membership);
        let learners = |members: &Membership| members.members().filter(|member| members.is_learner(member.id)).count();
        let Reads { served: reads_served, rounds: read_rounds, leased: leased_reads } = reads;
        Metrics {
            id: status.id,
            role: status.role,
            term: status.term,
            leader: status.leader,
            priority: status.priority,
            may_lead: status.may_lead,
            voters: members.map_or(0, |members| members.all_voters().count() as u64),
            learners: members.map_or(0, |members| learners(members) as u64),
            base: status.base.index,
            last: status.last.index,
            stored: status.stored,
            commit: status.commit,
            applied: status.applied,
            snapshot: status.snapshot,
            pending_requests: load.requests as u64,
            pending_bytes: load.bytes,
            sessions: status.sessions,
            disk_stalls: self.disk.stalls(),
            machine_stalls: self.machine.stalls(),
            leadership: self.leadership.clone(),
            requests: Requests { reads_served, read_rounds, leased_reads, failed, ..self.requests.clone() },
            sent: outbox.sent(),
            received: self.received,
            dropped: outbox.dropped(),
            log_writes: self.log_writes.clone(),
            applies: self.applies.clone(),
            snapshots: self.snapshots.clone(),
            refused,
            membership_changes: self.membership_changes,
        }
    }
}

/// What is counted where reads are handled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reads {
    pub(crate) served: u64,
    pub(crate) rounds: u64,
    pub(crate) leased: u64,
}

/// Failed requests, counted where their clients are told: only they pay for it.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Failed>);

impl Failures {
    pub(crate) fn count(&self, error: &Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count(error);
    }

    pub(crate) fn read(&self) -> Failed {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
