//! What a node has counted since it started: [`Metrics`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::consensus::RoleKind;
use crate::error::Error;
use crate::message::{Body, Message};
use crate::metrics::{SessionsStatus, SnapshotStatus};
use crate::types::{Index, NodeId, Term};

/// Where a node stands, and what it has counted since it started: plain numbers, for whatever system watches them.
///
/// Counters only grow within a run, and begin at 0 with each. Bytes are counted by [`Entry::cost`](crate::Entry::cost) and
/// [`Message::cost`](crate::Message::cost), unless a field says something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Metrics {
    /// The node.
    pub id: NodeId,
    /// Its role.
    pub role: RoleKind,
    /// Its term.
    pub term: Term,
    /// The leader it follows; itself when it leads.
    pub leader: Option<NodeId>,
    /// Its priority.
    pub priority: u32,
    /// Whether it may lead.
    pub may_lead: bool,
    /// How many voters the configuration in force has; in a joint one, those of both halves.
    pub voters: u64,
    /// How many learners it has.
    pub learners: u64,
    /// The index before its first log entry.
    pub base: Index,
    /// The index of its last log entry.
    pub last: Index,
    /// The last index that is on its disk.
    pub stored: Index,
    /// The last index that it knows to be committed.
    pub commit: Index,
    /// The last index that its state machine has applied.
    pub applied: Index,
    /// The newest image of its state machine.
    pub snapshot: Option<SnapshotStatus>,
    /// Clients' requests that are admitted and not answered.
    pub pending_requests: u64,
    /// What they count against `Config::max_uncommitted_bytes`.
    pub pending_bytes: u64,
    /// Client sessions, in the state that it has applied.
    pub sessions: SessionsStatus,
    /// Whether a write of the log is under way for longer than `Config::stall_timeout`.
    pub disk_stalls: bool,
    /// Whether the state machine did not get on for that long with what it has to do.
    pub machine_stalls: bool,
    /// Elections and leaders.
    pub leadership: Leadership,
    /// Clients' requests.
    pub requests: Requests,
    /// Messages handed to the transport.
    pub sent: Traffic,
    /// Messages that peers delivered.
    pub received: Traffic,
    /// Messages that were never sent.
    pub dropped: Dropped,
    /// Writes of the log.
    pub log_writes: LogWrites,
    /// The state machine's work.
    pub applies: Applies,
    /// Images of the state machine.
    pub snapshots: Snapshots,
    /// Connections that the receiving half of the transport refused.
    pub refused: Refused,
    /// How often a configuration came into force, those that were taken back again included.
    pub membership_changes: u64,
}

/// Elections and leaders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Leadership {
    /// How often the node became a pre-candidate: it asked whether it would be elected.
    pub polls: u64,
    /// How often it stood for election, each time in a term of its own.
    pub elections: u64,
    /// How often it was elected.
    pub won: u64,
    /// How often it ceased to lead.
    pub lost: u64,
    /// How often it knew of another leader than before.
    pub leader_changes: u64,
    /// How often it began to hand leadership over.
    pub transfers: u64,
    /// How often it did so by its own wish: another node has a higher priority, or it is kept from leading.
    pub yields: u64,
    /// How many transfers it gave up: the successor was not elected in time, or would not lead.
    pub transfers_given_up: u64,
    /// How often its disk stalled: a write of the log took longer than `Config::stall_timeout`.
    pub disk_stalls: u64,
    /// How often its state machine did.
    pub machine_stalls: u64,
}

/// Clients' requests at this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Requests {
    /// Writes that were admitted; several commands that are proposed together count once.
    pub writes: u64,
    /// Linearizable reads that were admitted.
    pub reads: u64,
    /// Reads of a state that reflects a certain entry, that were admitted.
    pub reads_at_least: u64,
    /// Linearizable reads that were answered.
    pub reads_served: u64,
    /// Rounds of heartbeats that this leader began to confirm reads. Reads share them.
    pub read_rounds: u64,
    /// Reads that this leader answered by its lease; those that came to a node together count once.
    pub leased_reads: u64,
    /// Batches of commands that were passed on to the leader.
    pub forwarded: u64,
    /// Batches that followers passed on to this node.
    pub forwarded_here: u64,
    /// Requests that failed, by what their client was told.
    pub failed: Failed,
}

/// Failed requests by what their client was told: see [`Error`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failed {
    /// [`Error::NotLeader`].
    pub not_leader: u64,
    /// [`Error::Unavailable`].
    pub unavailable: u64,
    /// [`Error::Overloaded`].
    pub overloaded: u64,
    /// [`Error::TooLarge`].
    pub too_large: u64,
    /// [`Error::Lost`].
    pub lost: u64,
    /// [`Error::OutcomeUnknown`].
    pub outcome_unknown: u64,
    /// [`Error::NeverCommitted`].
    pub never_committed: u64,
    /// [`Error::Compacted`].
    pub compacted: u64,
    /// [`Error::SessionExpired`].
    pub session_expired: u64,
    /// [`Error::AnswerForgotten`].
    pub answer_forgotten: u64,
    /// [`Error::OutOfSequence`].
    pub out_of_sequence: u64,
    /// [`Error::Stopped`].
    pub stopped: u64,
}

impl Failed {
    pub(crate) fn count(&mut self, error: &Error) {
        *match error {
            Error::NotLeader { .. } => &mut self.not_leader,
            Error::Unavailable => &mut self.unavailable,
            Error::Overloaded => &mut self.overloaded,
            Error::TooLarge { .. } => &mut self.too_large,
            Error::Lost => &mut self.lost,
            Error::OutcomeUnknown => &mut self.outcome_unknown,
            Error::NeverCommitted { .. } => &mut self.never_committed,
            Error::Compacted { .. } => &mut self.compacted,
            Error::SessionExpired => &mut self.session_expired,
            Error::AnswerForgotten => &mut self.answer_forgotten,
            Error::OutOfSequence => &mut self.out_of_sequence,
            Error::Stopped(_) => &mut self.stopped,
        } += 1;
    }
}

/// Messages in one direction, by what they are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Traffic {
    /// Appends.
    pub appends: u64,
    /// Entries in them.
    pub entries: u64,
    /// Answers to appends.
    pub append_replies: u64,
    /// Heartbeats.
    pub heartbeats: u64,
    /// Answers to heartbeats.
    pub heartbeat_replies: u64,
    /// News of the commit index.
    pub commits: u64,
    /// Polls, requests for votes, answers to both, and the word to campaign.
    pub elections: u64,
    /// Questions for a read index, and their answers.
    pub reads: u64,
    /// Commands and changes that are passed on, and their answers.
    pub forwards: u64,
    /// Images: offers, questions and parts.
    pub snapshots: u64,
    /// What all of these cost.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) fn count(&mut self, message: &Message) {
        *match &message.body {
            Body::Append { entries, .. } => {
                self.entries += entries.len() as u64;
                &mut self.appends
            }
            Body::AppendReply(_) => &mut self.append_replies,
            Body::Heartbeat { .. } => &mut self.heartbeats,
            Body::HeartbeatReply { .. } => &mut self.heartbeat_replies,
            Body::Commit { .. } => &mut self.commits,
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::Vote { .. }
            | Body::VoteReply { .. }
            | Body::TimeoutNow => &mut self.elections,
            Body::ReadIndex { .. } | Body::ReadIndexReply { .. } => &mut self.reads,
            Body::Forward { .. } | Body::ForwardReply { .. } | Body::Change { .. } | Body::ChangeReply { .. } => {
                &mut self.forwards
            }
            Body::Offer { .. } | Body::Fetch { .. } | Body::Chunk { .. } => &mut self.snapshots,
        } += 1;
    }
}

/// Messages that were never sent. Raft repeats what matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Dropped {
    /// The queue for the peer was full, or its address is not known.
    pub not_queued: u64,
    /// The transport did not take them.
    pub not_taken: u64,
}

/// Connections of peers, and of whoever took this node for one, that were refused, as far as the transport tells ([`Inbox::refused`](crate::Inbox::refused)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Refused {
    /// [`RefusedFor::Limit`].
    pub limit: u64,
    /// [`RefusedFor::Silence`].
    pub silence: u64,
    /// [`RefusedFor::Error`].
    pub error: u64,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedFor {
    /// There are as many as there may be, or it takes more than it may.
    Limit,
    /// Nobody said in time who it is.
    Silence,
    /// It is not meant for this node, does not keep to the protocol, or ended in the handshake of TLS.
    Error,
}

/// Writes of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogWrites {
    /// Entries written.
    pub entries: u64,
    /// What they cost.
    pub bytes: u64,
    /// How long the writes took, each one batch and one sync, from handing them to the store until the node heard that they are durable.
    pub latency: Histogram,
}

/// The state machine's work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Applies {
    /// Entries applied.
    pub entries: u64,
    /// How long the batches took that they were applied in.
    pub latency: Histogram,
}

/// Images of the state machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshots {
    /// Images taken of this node's machine.
    pub taken: u64,
    /// Their lengths.
    pub taken_bytes: u64,
    /// Parts of images sent to peers.
    pub sent_parts: u64,
    /// Their lengths.
    pub sent_bytes: u64,
    /// Parts of images that peers delivered, useful or not.
    pub received_parts: u64,
    /// Their lengths.
    pub received_bytes: u64,
    /// Received images that took the place of this node's state.
    pub installed: u64,
    /// Their lengths.
    pub installed_bytes: u64,
    /// How often something received was damaged.
    pub damaged: u64,
}

/// How long things took, in classes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many took at most as long as each of [`Histogram::BOUNDS`], and longer than the one before; the last count is of those that
    /// took longer than all bounds.
    pub counts: [u64; 18],
    /// What all took together.
    pub sum: Duration,
}

impl Histogram {
    /// The upper bounds of the classes.
    pub const BOUNDS: [Duration; 17] = [
        Duration::from_micros(50),
        Duration::from_micros(100),
        Duration::from_micros(250),
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_micros(2500),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(25),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(250),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_millis(2500),
        Duration::from_secs(5),
        Duration::from_secs(10),
    ];

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds one that took so long.
    pub fn record(&mut self, took: Duration) {
        let class = Self::BOUNDS.partition_point(|bound| *bound < took);
        self.counts[class] += 1;
        self.sum = self.sum.saturating_add(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_class_below_it() {
        let mut histogram = Histogram::default();
        for took in
            [Duration::ZERO, Histogram::BOUNDS[0], Histogram::BOUNDS[0] + Duration::from_nanos(1), Duration::MAX]
        {
            histogram.record(took);
        }
        assert_eq!((histogram.counts[0], histogram.counts[1], histogram.counts[17]), (2, 1, 1));
        assert_eq!((histogram.count(), histogram.sum), (4, Duration::MAX));
        assert!(Histogram::BOUNDS.is_sorted());
    }
}
