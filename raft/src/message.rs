//! What nodes say to each other. Each field says what it promises.
//!
//! Messages are complete values, built in one step by the pure core. A transport may lose, delay, duplicate or reorder
//! them at will: no promise here depends on delivery.
//!
//! All of it is `Serialize` and `Deserialize`, as are entries, hard states and what describes an image, so that a transport or a store of your own
//! can use any of serde's formats. Versions of this crate need not understand each other's encodings: the two ends of a connection tell each other
//! which they speak ([`Hello`]). (The transports of this project have wire formats of their own, which stay.)

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::change::{Change, ChangeRefused};
use crate::traits::{Published, SnapshotId};
use crate::types::{ClusterId, Entry, EntryKind, GroupId, Index, LogId, NodeId, Peer, Term};

/// A message with its way: what a [`Transport`](crate::Transport) carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The sender's cluster; a receiver of another cluster refuses it.
    pub cluster: ClusterId,
    /// The Raft group within the process.
    pub group: GroupId,
    /// Who says it.
    pub from: NodeId,
    /// Who is meant; any other node refuses it.
    pub to: NodeId,
    /// What is said.
    pub message: Message,
}

/// How a connection between two nodes may begin, in a transport of your own: who calls whom. The other end answers with what [`Inbox::greet`](crate::Inbox::greet)
/// says. So nodes that have nothing to do with each other find out at once, and [`Inbox::deliver`](crate::Inbox::deliver) knows where to answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hello {
    /// What the sender takes messages to look like: see [`Hello::VERSION`].
    pub version: u32,
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// The sender, and where to reach it.
    pub from: Peer,
    /// Who is meant.
    pub to: NodeId,
}

impl Hello {
    /// Changes whenever the serde encoding of an [`Envelope`] does.
    pub const VERSION: u32 = 1;

    /// What `from` says to `to`.
    #[must_use]
    pub fn new(cluster: ClusterId, from: Peer, to: NodeId) -> Self {
        Self { version: Self::VERSION, cluster, from, to }
    }
}

/// Two ways to each peer, so that heartbeats, votes and replies never wait behind payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// Small messages that keep the cluster alive.
    Control,
    /// Messages that carry payloads.
    Bulk,
}

impl Lane {
    /// Both lanes.
    pub const ALL: [Self; 2] = [Self::Control, Self::Bulk];
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Bulk => "bulk",
        })
    }
}

/// One statement of a node, valid in its term.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// The sender's current term when it was sent. A receiver that is behind moves to it (paper §5.1), unless the
    /// message is a campaign and the receiver hears a live leader (thesis §4.2.3).
    pub term: Term,
    /// The statement.
    pub body: Body,
}

/// The statements.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Body {
    /// "Would you vote for me?" asked before any term is raised (thesis §9.6). Promises nothing.
    PreVote {
        /// The term that the sender would campaign in: one beyond its own.
        proposed: Term,
        /// The id of its last entry.
        last: LogId,
    },
    /// The answer. A grant promises nothing either.
    PreVoteReply {
        /// Echoes the question.
        proposed: Term,
        /// Whether the sender would vote for that candidate now.
        granted: bool,
    },
    /// "Vote for me in this term." The candidate's vote for itself, and all of its log, are on its disk.
    Vote {
        /// The id of the candidate's last entry.
        last: LogId,
        /// Whether the leader of the term before told the candidate to campaign ([`Body::TimeoutNow`]): then it is no disturbance,
        /// whoever hears that leader.
        transfer: bool,
    },
    /// The answer to a vote request of this term. A grant is on the sender's disk: it will vote for nobody else in the term.
    VoteReply {
        /// Whether the vote is given.
        granted: bool,
    },
    /// The leader's entries. They need not be on the leader's own disk yet.
    Append {
        /// The id of the entry before the first of `entries`; the receiver must hold it.
        prev: LogId,
        /// Entries with contiguous indexes from `prev.index + 1`.
        entries: Vec<Entry>,
        /// Everything up to here is committed, as the leader knows; may exceed what this message covers.
        commit: Index,
    },
    /// The answer to an append of this term.
    AppendReply(AppendReply),
    /// "I lead this term." Also carries the commit index, and confirms leadership for reads.
    Heartbeat {
        /// Committed, and known to match the receiver's log.
        commit: Index,
        /// Number of this round of heartbeats, counted up within the term.
        round: u64,
        /// For how long, from when this comes, the leader asks the receiver to stay out of elections (thesis §6.4.1); zero: not at all.
        lease: Duration,
    },
    /// The answer to a heartbeat: "you led this term when it came."
    HeartbeatReply {
        /// Echoes the round; 0, which is none, in the answer to a leader of an earlier term.
        round: u64,
        /// The sender's log equals the leader's up to here, though perhaps not on disk yet. Tells of lost appends.
        matching: Index,
        /// The part of it that is on the sender's disk. Counts as an acknowledgement, so that lost ones do no harm.
        stored: Index,
        /// The priority with which the sender would lead; none while it would not. A preference: it promises nothing.
        priority: Option<u32>,
        /// For so long, by its own clock and from when the heartbeat came, the sender stays out of elections: it gives no vote, except to whom
        /// the leader itself tells to campaign, and does not campaign. At most what was asked for; zero: it promises nothing.
        lease: Duration,
    },
    /// A follower asks the leader for an index at which a read is linearizable (thesis §6.4).
    ReadIndex {
        /// The follower's name for the question.
        request: RequestId,
        /// Whether the leader may answer by its lease.
        lease: bool,
    },
    /// The answer.
    ReadIndexReply {
        /// Echoes the question.
        request: RequestId,
        /// A commit index that covers every write acknowledged before the question came, confirmed by a quorum after
        /// it came, or by the lease if that was allowed; none when this node could not confirm that it leads.
        index: Option<Index>,
    },
    /// A follower passes on commands to the leader of this very term.
    Forward {
        /// The follower's name for this batch, never used twice, not even across its restarts.
        request: RequestId,
        /// What kind of entries they are to be: one that clients may ask for.
        kind: EntryKind,
        /// The commands, in order.
        commands: Vec<Bytes>,
    },
    /// The answer of the leader to a batch it saw for the first time.
    ForwardReply {
        /// Echoes the batch.
        request: RequestId,
        /// What became of it.
        outcome: ForwardOutcome,
    },
    /// A follower passes on a change of the configuration to the leader of this very term.
    Change {
        /// The follower's name for it, never used twice, not even across its restarts.
        request: RequestId,
        /// What shall change.
        change: Change,
    },
    /// The answer, once there is nothing more to do.
    ChangeReply {
        /// Echoes the change.
        request: RequestId,
        /// What became of it.
        outcome: ChangeOutcome,
    },
    /// The leader tells how far is committed, between heartbeats and when there is nothing to append. Wants no answer.
    Commit {
        /// Committed, and known to match the receiver's log.
        index: Index,
    },
    /// "Entries that you lack are not in my log any more, and I have this image of the state machine." Repeated with each heartbeat while
    /// that is so.
    Offer {
        /// The image. What it reflects is committed.
        image: Published,
    },
    /// "Send me this part of an image." Asked of whoever is thought to have it, leader or not. Promises nothing.
    Fetch {
        /// The image.
        image: SnapshotId,
        /// Where the part begins, in bytes.
        offset: u64,
        /// How long it may be, in bytes.
        max: u64,
    },
    /// The answer.
    Chunk {
        /// Echoes the image.
        image: SnapshotId,
        /// Echoes where the part begins.
        offset: u64,
        /// The part; none when the sender does not have this image, or not any more.
        part: Option<Part>,
    },
    /// "Lead in my place": the leader tells a voter whose log equals its own to campaign at once (thesis §3.10). From then on the
    /// leader trusts in nobody's patience, for the receiver may follow at any time.
    TimeoutNow,
}

/// A part of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    /// Its bytes, as the sender's disk had them when they were verified there.
    pub data: Bytes,
    /// Their CRC-32C.
    pub checksum: u32,
}

/// What became of a forwarded batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ForwardOutcome {
    /// It is in the leader's log.
    Appended {
        /// The id of the first command's entry; the others follow it.
        first: LogId,
    },
    /// Nothing of it was or will be proposed: a limit is reached.
    Overloaded,
    /// Nothing of it was or will be proposed: this node does not lead the term.
    NotLeader,
    /// Nothing of it was or will be proposed: this node led the term of the batch, and gave leadership away before it took the batch.
    /// Other than `NotLeader` this is said by that very leader, and stays true in later terms.
    Moved,
}

/// What became of a change of the configuration that was passed on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChangeOutcome {
    /// It is done.
    Done {
        /// The id of the configuration, which is committed.
        id: LogId,
    },
    /// It was not made.
    Refused(ChangeRefused),
    /// Nothing of it was or will be made: this node does not lead the term.
    NotLeader,
    /// Leadership was lost in the middle of it. Another leader may yet complete it, or take it back.
    Unknown,
}

/// The two answers to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AppendReply {
    /// The sender's log equals the leader's up to `stored`, and that much is on its disk.
    Accepted {
        /// The last index of which both are true.
        stored: Index,
    },
    /// The sender does not hold `prev`.
    Rejected {
        /// Echoes the append's `prev`, so that a delayed answer is known as such.
        prev: LogId,
        /// The sender's last entry at or before `prev.index` whose term is at most `prev.term`: the latest place where the
        /// two logs can agree. Skips a whole term at a time (paper §5.3).
        hint: LogId,
    },
}

/// A local name for a client request or a batch of them.
///
/// A node must not use one twice, not even across its restarts: the runtime starts each run at a random number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

impl Message {
    /// The lane for this message.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match &self.body {
            Body::Append { .. } | Body::Forward { .. } | Body::Chunk { .. } => Lane::Bulk,
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::Vote { .. }
            | Body::VoteReply { .. }
            | Body::AppendReply(_)
            | Body::Heartbeat { .. }
            | Body::HeartbeatReply { .. }
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::ForwardReply { .. }
            | Body::Change { .. }
            | Body::ChangeReply { .. }
            | Body::Offer { .. }
            | Body::Fetch { .. }
            | Body::Commit { .. }
            | Body::TimeoutNow => Lane::Control,
        }
    }

    /// What the message counts against byte limits.
    #[must_use]
    pub fn cost(&self) -> u64 {
        Entry::OVERHEAD
            + match &self.body {
                Body::Append { entries, .. } => entries.iter().map(Entry::cost).sum(),
                Body::Forward { commands, .. } => commands.iter().map(|c| Entry::OVERHEAD + c.len() as u64).sum(),
                Body::Change { change, .. } => change.cost(),
                Body::Offer { image } => image.meta.membership.cost(),
                Body::Chunk { part, .. } => part.as_ref().map_or(0, |part| part.data.len() as u64),
                Body::ChangeReply { outcome: ChangeOutcome::Refused(refused), .. } => refused.cost(),
                Body::ChangeReply { .. }
                | Body::PreVote { .. }
                | Body::PreVoteReply { .. }
                | Body::Vote { .. }
                | Body::VoteReply { .. }
                | Body::AppendReply(_)
                | Body::Heartbeat { .. }
                | Body::HeartbeatReply { .. }
                | Body::ReadIndex { .. }
                | Body::ReadIndexReply { .. }
                | Body::ForwardReply { .. }
                | Body::Fetch { .. }
                | Body::Commit { .. }
                | Body::TimeoutNow => 0,
            }
    }

    /// The statement's name, for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match &self.body {
            Body::PreVote { .. } => "PreVote",
            Body::PreVoteReply { .. } => "PreVoteReply",
            Body::Vote { .. } => "Vote",
            Body::VoteReply { .. } => "VoteReply",
            Body::Append { .. } => "Append",
            Body::AppendReply(_) => "AppendReply",
            Body::Heartbeat { .. } => "Heartbeat",
            Body::HeartbeatReply { .. } => "HeartbeatReply",
            Body::ReadIndex { .. } => "ReadIndex",
            Body::ReadIndexReply { .. } => "ReadIndexReply",
            Body::Forward { .. } => "Forward",
            Body::ForwardReply { .. } => "ForwardReply",
            Body::Change { .. } => "Change",
            Body::ChangeReply { .. } => "ChangeReply",
            Body::Offer { .. } => "Offer",
            Body::Fetch { .. } => "Fetch",
            Body::Chunk { .. } => "Chunk",
            Body::Commit { .. } => "Commit",
            Body::TimeoutNow => "TimeoutNow",
        }
    }
}
