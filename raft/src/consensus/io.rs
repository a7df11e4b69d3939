//! What goes into the consensus core and what comes out: the whole of its contact with the world.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::preference::Preference;
use super::role::RoleKind;
use crate::change::{Change, ChangeRefused};
use crate::message::{Message, RequestId};
use crate::traits::{LogState, LogWrite, Published, SnapshotId, SnapshotMeta};
use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Term};

/// A moment on the node's monotonic clock: the time since an origin of its own, such as the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

impl Time {
    /// The moment `duration` later; the end of time for a duration that means never.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

/// What a core starts from: what was durable, and nothing else.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The node.
    pub id: NodeId,
    /// What the log store holds.
    pub log: LogState,
    /// The configurations that may yet be in force, in the order of their ids: the last one at or before `applied`, and all that the
    /// log holds after it. Those that are not committed may be taken back. Empty before the node learned of one.
    pub configurations: Vec<(LogId, Membership)>,
    /// The newest image of the state machine. The log holds its last entry, or begins after it.
    pub snapshot: Option<Published>,
    /// The last entry that the state machine reflects already.
    pub applied: LogId,
    /// Seeds the election timeouts. Give each node and each run its own.
    pub seed: u64,
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time went on, perhaps past `Consensus::next_wake`.
    Tick,
    /// A message came. It may be anything: what peers say is validated, not trusted.
    Receive {
        /// Who sent it.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// A local client wants these commands in the log, all or none, in this order. Answered by
    /// [`Reply::Appended`], [`Reply::Refused`] or [`Reply::Unknown`].
    Propose {
        /// A name for the batch.
        request: RequestId,
        /// What kind of entries they are to be: one that clients may ask for.
        kind: EntryKind,
        /// The commands; at least one.
        commands: Vec<Bytes>,
    },
    /// A local client wants a linearizable read. Answered by [`Reply::Readable`] or [`Reply::Refused`].
    Read {
        /// A name for the read, or for a group of reads that came together.
        request: RequestId,
        /// Whether the leader may answer by its lease.
        lease: bool,
    },
    /// The write with this number is durable. Writes complete in order.
    Stored {
        /// From [`Write::seq`].
        seq: u64,
    },
    /// The state machine has applied everything up to here.
    Applied {
        /// The last index applied.
        index: Index,
    },
    /// The state machine got on with what it was given, such as with an image that takes long to restore, though nothing more of it is done.
    /// Only what gets on for `Config::stall_timeout` in no way counts as stalled.
    Applying,
    /// Entries that [`Effects::fetch`] asked for were read from the log store.
    Fetched {
        /// Whom they are for.
        purpose: FetchPurpose,
        /// From the start of the range asked for; perhaps fewer than asked.
        entries: Vec<Entry>,
    },
    /// Start a cluster of these members. Answered by [`Reply::Initialized`].
    Initialize {
        /// A name for the request.
        request: RequestId,
        /// The first configuration.
        membership: Membership,
    },
    /// The owner wants an image of the state machine that reflects all that is applied by now. Answered by [`Reply::Snapshotted`].
    Snapshot {
        /// A name for the request.
        request: RequestId,
    },
    /// The image that [`Effects::snapshot`] asked for is published.
    Snapshotted {
        /// Its name.
        id: SnapshotId,
        /// The image; none when it came to nothing, because another took its place or the store refused it.
        image: Option<Published>,
    },
    /// A part of an image that [`ImageWork::Read`] asked for.
    ImageRead {
        /// For whom.
        to: NodeId,
        /// Of which image.
        image: SnapshotId,
        /// From where.
        offset: u64,
        /// The bytes, as many as were asked for, or all up to the end; none when the image is not there any more.
        data: Option<Bytes>,
    },
    /// How far the receipt of an image is.
    Receipt {
        /// Which attempt at one ([`ImageWork::Begin`]).
        attempt: u64,
        /// How far.
        receipt: Receipt,
    },
    /// The state machine reflects the image that [`Effects::restore`] named.
    Restored {
        /// The last entry that the image reflects.
        last: LogId,
    },
    /// An operator wants other members. Works on any node that knows a leader. Answered, when the last configuration of the change is
    /// committed, by [`Reply::Changed`]; else by [`Reply::Refused`], when nothing was changed, or by [`Reply::Unknown`].
    Change {
        /// A name for the request.
        request: RequestId,
        /// What shall change.
        change: Change,
    },
    /// An operator wants this node to campaign now rather than at its election timeout. A live leader is not disturbed.
    Campaign,
    /// An operator wants something else of this node than its configuration says. Holds until the node ends.
    Prefer {
        /// What.
        preference: Preference,
    },
    /// The transport saw a connection with this node end, or an attempt at one refused. A hint: it may be wrong, and may never come.
    PeerLost {
        /// The node.
        peer: NodeId,
    },
    /// This leader is to hand over to another voter. Answered by [`Reply::Transferred`].
    Transfer {
        /// A name for the request.
        request: RequestId,
        /// To whom; the most up-to-date one if it does not matter.
        to: Option<NodeId>,
    },
}

/// Everything that is to be done, at once: what must wait for the disk stays inside the core until [`Input::Stored`]
/// releases it. Take in the replies before the entries to apply, which may be theirs; the rest may be done in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Messages to send. May be lost.
    pub send: Vec<(NodeId, Message)>,
    /// The next write for the log store. There is never a second one before the first is answered by [`Input::Stored`].
    pub write: Option<Write>,
    /// Committed entries for the state machine: contiguous, each exactly once, in order.
    pub apply: Vec<Entry>,
    /// Entries to read from the log store.
    pub fetch: Vec<Fetch>,
    /// An image to take under this name: of the state machine as it is once it has applied all that it was given so far, `apply` among
    /// it. There is never a second one before the first is answered by [`Input::Snapshotted`].
    pub snapshot: Option<SnapshotId>,
    /// Work for the store of images. To be done in order, as far as it is about the same attempt.
    pub images: Vec<ImageWork>,
    /// The published image by which the state machine is to be replaced, after what it was given before and before `apply`.
    pub restore: Option<Published>,
    /// Answers to local requests.
    pub replies: Vec<Reply>,
    /// What an operator would like to know.
    pub notes: Vec<Note>,
}

impl Effects {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.send.is_empty()
            && self.write.is_none()
            && self.apply.is_empty()
            && self.fetch.is_empty()
            && self.snapshot.is_none()
            && self.images.is_empty()
            && self.restore.is_none()
            && self.replies.is_empty()
            && self.notes.is_empty()
    }
}

/// Something to do with the store of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageWork {
    /// Read a part of an image for a peer. Answered by [`Input::ImageRead`].
    Read {
        /// The peer.
        to: NodeId,
        /// The image.
        image: SnapshotId,
        /// Where the part begins.
        offset: u64,
        /// How many bytes, if the image has as many.
        max: u64,
    },
    /// Begin to write an image that is received, or go on with it. Whatever was received before is left off. Answered by
    /// [`Receipt::Stored`] or [`Receipt::Refused`].
    Begin {
        /// A name for this attempt.
        attempt: u64,
        /// What the image holds.
        meta: SnapshotMeta,
    },
    /// Add to it. Answered by [`Receipt::Stored`] or [`Receipt::Refused`].
    Append {
        /// The attempt.
        attempt: u64,
        /// The next bytes.
        data: Bytes,
    },
    /// It is whole: publish it. Answered by [`Receipt::Published`] or [`Receipt::Refused`].
    Publish {
        /// The attempt.
        attempt: u64,
    },
    /// It is damaged, or needed no more: forget it. Not answered.
    Discard {
        /// The attempt.
        attempt: u64,
    },
}

/// How far the receipt of an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// So much of it is durable.
    Stored {
        /// In bytes.
        upto: u64,
        /// Their CRC-32C.
        checksum: u32,
    },
    /// It is the newest image on this node's disk, or was dropped because a newer one is.
    Published,
    /// The store takes no more of it.
    Refused,
}

/// A write for the log store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Numbers the writes of this run from 1.
    pub seq: u64,
    /// What the log is to forget first ([`LogStore::compact`](crate::LogStore::compact)).
    pub compact: Option<LogId>,
    /// What to write.
    pub write: LogWrite,
}

/// A range to read from the log store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Whom the entries are for; to be given back with them. There is at most one fetch under way for each purpose.
    pub purpose: FetchPurpose,
    /// Which entries.
    pub range: Range<Index>,
    /// How much at most, before a single larger entry.
    pub max_bytes: u64,
}

/// Whom fetched entries are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FetchPurpose {
    /// A follower that lags behind the tail in memory.
    Follower(NodeId),
    /// The local state machine.
    Apply,
}

/// An answer to a local request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The batch is in the leader's log. It is committed once an entry with its id is applied here, and lost once
    /// another entry is applied at its index, or any entry of a later term before it (terms never go back along a log).
    Appended {
        /// The batch.
        request: RequestId,
        /// The id of its first command; the others follow.
        first: LogId,
    },
    /// Nothing was or will be proposed or read under this name.
    Refused {
        /// The request.
        request: RequestId,
        /// Why.
        reason: RefusedReason,
    },
    /// Nothing of the batch was or will be proposed by this node: it gave leadership away while it held the batch back.
    Returned {
        /// The batch.
        request: RequestId,
        /// Its commands, for the next leader.
        commands: Vec<Bytes>,
    },
    /// The batch was passed on to a leader that is none any more, before it answered. Or the leader was lost while it changed the
    /// configuration.
    Unknown {
        /// The batch, or the change.
        request: RequestId,
    },
    /// A read is linearizable here once this index is applied.
    Readable {
        /// The read.
        request: RequestId,
        /// The index.
        index: Index,
    },
    /// The outcome of [`Input::Change`].
    Changed {
        /// The request.
        request: RequestId,
        /// The id of the configuration that is now committed, or why nothing was changed.
        outcome: Result<LogId, ChangeRefused>,
    },
    /// The outcome of [`Input::Initialize`].
    Initialized {
        /// The request.
        request: RequestId,
        /// Done (or the same was done before), or why not.
        outcome: Result<(), InitializeRefused>,
    },
    /// There is an image that answers [`Input::Snapshot`].
    Snapshotted {
        /// The request.
        request: RequestId,
        /// The last entry that the image reflects; zero when nothing was applied yet, and so no image was needed.
        last: LogId,
    },
    /// The outcome of [`Input::Transfer`].
    Transferred {
        /// The request.
        request: RequestId,
        /// Who leads now, as was wished, or why not.
        outcome: Result<NodeId, TransferRefused>,
    },
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// This node does not lead, and could not pass it on.
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// A limit is reached.
    Overloaded,
    /// The leader gave leadership away before it took the batch: another one is there, or will be in a moment.
    Moved,
}

/// Why leadership was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferRefused {
    /// This node does not lead.
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// There is no such member.
    UnknownNode {
        /// Its id.
        id: NodeId,
    },
    /// The member does not vote, and so can't lead.
    NotVoter {
        /// Its id.
        id: NodeId,
    },
    /// A transfer is under way.
    InProgress {
        /// To this node.
        to: NodeId,
    },
    /// It is kept from leading, or its disk stalls.
    Unwilling {
        /// Its id.
        id: NodeId,
    },
    /// No other voter that would lead was heard lately.
    NoSuccessor,
    /// The successor did not lead within an election timeout.
    TimedOut,
    /// Another node was elected.
    OtherLeader {
        /// It leads now.
        leader: NodeId,
    },
}

/// How far a transfer of leadership is, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferStep {
    /// It begins.
    Begins,
    /// It was given up: the successor was not elected in time.
    GivenUp,
    /// It was given up: the successor said that it would not lead.
    Refused,
}

impl fmt::Display for TransferStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begins => "begins",
            Self::GivenUp => "is given up: it was not elected in time",
            Self::Refused => "is given up: it would not lead",
        })
    }
}

/// Why a node would not start a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitializeRefused {
    /// It has a log or a configuration already, or voted for a node that is not among the members.
    NotEmpty {
        /// What it has, for a person.
        existing: String,
    },
    /// The configuration makes no sense.
    Invalid {
        /// Why, for a person.
        reason: String,
    },
}

/// Something an operator would like to know. The runtime logs it and passes it on as an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The node's role or term changed.
    Role {
        /// Its role from now on.
        role: RoleKind,
        /// Its term.
        term: Term,
        /// Why.
        why: &'static str,
    },
    /// The node follows another leader, or none, from now on.
    Leader {
        /// Who leads.
        leader: Option<NodeId>,
        /// In which term.
        term: Term,
    },
    /// The connection with the leader was lost: it is asked early whether another node should lead.
    Suspect {
        /// The leader.
        leader: NodeId,
    },
    /// This leader begins to hand over by its own wish.
    Yield {
        /// To this node.
        to: NodeId,
        /// Why.
        why: &'static str,
    },
    /// Leadership is being handed over.
    Transfer {
        /// To this node.
        to: NodeId,
        /// How far it is.
        step: TransferStep,
    },
    /// Uncommitted entries of a former leader were proven to conflict with the present one's, and removed.
    Truncated {
        /// The first index removed.
        from: Index,
        /// The last one.
        upto: Index,
    },
    /// A configuration is in force from now on.
    Membership {
        /// Its place in the log.
        index: Index,
        /// The configuration.
        membership: Membership,
    },
    /// An image of the state machine was taken and published.
    SnapshotTaken {
        /// The last entry that it reflects.
        last: LogId,
        /// Its length in bytes.
        len: u64,
    },
    /// An image is being received. Noted at the beginning, and from time to time.
    ReceivingSnapshot {
        /// Who sends it.
        from: NodeId,
        /// The last entry that it reflects.
        last: LogId,
        /// How much of it is on disk, in bytes.
        stored: u64,
        /// Its length in bytes.
        len: u64,
        /// The mean rate since the attempt began, in bytes a second.
        rate: u64,
    },
    /// An image that was received takes the place of the state machine's state, and of the log up to its last entry.
    SnapshotInstalled {
        /// The last entry that it reflects.
        last: LogId,
        /// Its length in bytes.
        len: u64,
    },
    /// An image that is received is not what was sent or offered. It is dropped, and received again.
    SnapshotDamaged {
        /// Who sent it, or the last of it.
        from: NodeId,
        /// The last entry that it should reflect.
        last: LogId,
        /// Whether this was found of a part, as it came, or of the whole.
        part: bool,
    },
    /// A configuration that does not have this node any more is committed. It is not needed, and does not campaign.
    Removed {
        /// The configuration's place in the log.
        index: Index,
    },
    /// A message was of no use. Common and harmless, unless it happens all the time.
    Ignored {
        /// Who sent it.
        from: NodeId,
        /// What it was.
        message: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A peer said something that no correct node says. Its message was dropped.
    Violation {
        /// Who sent it.
        from: NodeId,
        /// What it was.
        message: &'static str,
        /// What is wrong with it.
        why: String,
    },
}
