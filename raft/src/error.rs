//! Errors say what happened and what the caller may do about it.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::change::ChangeRefused;
use crate::types::{ClusterId, GroupId, Index, LogId, NodeId, Peer};

/// Why a write or a read was not answered.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// This node does not lead, and could not pass the request on. Nothing was proposed: safe to retry, at the leader if
    /// it is named.
    #[error("not proposed: this node is not the leader{}; retry{}", named(.leader), at(.leader))]
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<Peer>,
    },
    /// No leader answered within the time allowed, or what a read was to reflect did not come. Nothing was proposed: safe to retry.
    #[error(
        "not proposed: no leader was reachable in time (the cluster may have lost its quorum); retry later, or at another node"
    )]
    Unavailable,
    /// A queue is at its limit. Nothing was proposed: safe to retry, after a pause.
    #[error("not proposed: too much is in progress already; retry after a pause")]
    Overloaded,
    /// The command exceeds `Config::max_command_bytes`. Nothing was proposed, and a retry will not help.
    #[error(
        "not proposed: the command has {size} bytes, more than the {limit} of max_command_bytes; split it or raise the limit"
    )]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The command was proposed, and then proven overwritten by another leader's entries: it was not and will not be
    /// applied. Safe to retry.
    #[error("the command was overwritten after a change of leader, and will never be applied; retry")]
    Lost,
    /// The command was proposed and may still be applied, now or later. Retry only a command that may be applied twice, or a
    /// [`Session`](crate::Session)'s under the same name.
    #[error(
        "the outcome is unknown: the command may have been applied or may still be; retry only if applying it twice is harmless"
    )]
    OutcomeUnknown,
    /// A read was to reflect an entry ([`Consistency::AtLeast`](crate::Consistency::AtLeast)) that was not committed and never will be:
    /// another leader's entry is in its place, or before it. No retry helps, here or elsewhere.
    #[error(
        "the entry {wanted} was never committed: {found} took its place after a change of leader; no node will ever reflect it"
    )]
    NeverCommitted {
        /// The entry that the read was to reflect.
        wanted: LogId,
        /// A committed entry that rules it out.
        found: LogId,
    },
    /// A read was to reflect an entry ([`Consistency::AtLeast`](crate::Consistency::AtLeast)) of which this node can't tell whether it was
    /// committed: the log in front of an image was cut off, and terms have changed since. A linearizable read reflects it if it was.
    #[error(
        "this node can't tell any more whether the entry {wanted} was committed: its log begins after {base}; read linearizably instead"
    )]
    Compacted {
        /// The entry that the read was to reflect.
        wanted: LogId,
        /// What this node's log begins after.
        base: LogId,
    },
    /// The write's session was not used for too long, or was closed: this attempt was not applied. An earlier attempt at the same write may
    /// have been.
    #[error(
        "the session has expired or was closed: this attempt was not applied (an earlier one may have been); open a new session"
    )]
    SessionExpired,
    /// The write of a session was applied, once; but its answer is not kept any more.
    #[error("the write was applied, once, but its answer is not kept any more (max_session_bytes): read what it did")]
    AnswerForgotten,
    /// The number of a session's write does not fit: this attempt was not applied.
    #[error(
        "this attempt was not applied: the session has told that it wants no answer to this write any more, or the write's number is 256 or more ahead of the oldest that waits for one"
    )]
    OutOfSequence,
    /// The node is down.
    #[error("this node has stopped: {0}")]
    Stopped(Fatal),
}

fn named(leader: &Option<Peer>) -> String {
    leader.as_ref().map_or_else(|| " and knows of none".into(), |peer| format!(" (that is {peer})"))
}

fn at(leader: &Option<Peer>) -> &'static str {
    if leader.is_some() { " there" } else { " later" }
}

impl Error {
    /// Whether the same request may be sent again without any risk that it takes effect twice.
    #[must_use]
    pub fn is_safe_to_retry(&self) -> bool {
        match self {
            Self::NotLeader { .. } | Self::Unavailable | Self::Overloaded | Self::Lost => true,
            Self::TooLarge { .. }
            | Self::OutcomeUnknown
            | Self::NeverCommitted { .. }
            | Self::Compacted { .. }
            | Self::SessionExpired
            | Self::AnswerForgotten
            | Self::OutOfSequence
            | Self::Stopped(_) => false,
        }
    }
}

/// Why the configuration was not changed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The leader refused. [`ChangeRefused`] says why, and what is the case now.
    #[error("not changed: {0}")]
    Refused(#[from] ChangeRefused),
    /// No leader took the change up within the time allowed. Nothing was changed: safe to retry.
    #[error("not changed: no leader was reachable in time; retry later, or at another node")]
    Unavailable,
    /// Too many changes wait at this node. Nothing was changed.
    #[error("not changed: too many changes wait already; retry when they are done")]
    Overloaded,
    /// The leader was lost, or did not answer in time, in the middle of the change. The next leader completes a joint configuration that it
    /// finds; learners may have been added.
    #[error(
        "the outcome is unknown: the change may have been made, or be half-way; look at the configuration before you decide anew"
    )]
    OutcomeUnknown,
    /// The node is down.
    #[error("this node has stopped: {0}")]
    Stopped(Fatal),
}

/// Why a node is down. Sticky: once there, every call gets it.
#[derive(Clone, Debug)]
pub struct Fatal(Arc<FatalKind>);

/// The kinds of [`Fatal`].
#[derive(Debug)]
#[non_exhaustive]
pub enum FatalKind {
    /// `shutdown` was called, or every handle was dropped.
    Shutdown,
    /// The log or snapshot store failed. It is never written to again: after a failed fsync nobody knows what is on disk.
    Storage(StorageError),
    /// The state machine failed or panicked, or broke its contract.
    StateMachine(String),
    /// The node can't be what it was told to be.
    Config(String),
    /// A bug in this crate, stopped before it could spread.
    Bug(String),
}

impl Fatal {
    /// A reason of any kind.
    #[must_use]
    pub fn new(kind: FatalKind) -> Self {
        Self(Arc::new(kind))
    }

    /// A failure of the state machine.
    pub fn state_machine(reason: impl Into<String>) -> Self {
        Self::new(FatalKind::StateMachine(reason.into()))
    }

    /// An orderly end.
    #[must_use]
    pub fn shutdown() -> Self {
        Self::new(FatalKind::Shutdown)
    }

    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> &FatalKind {
        &self.0
    }

    /// Whether the node ended in good order.
    #[must_use]
    pub fn is_shutdown(&self) -> bool {
        matches!(*self.0, FatalKind::Shutdown)
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            FatalKind::Shutdown => write!(f, "it was shut down"),
            FatalKind::Storage(e) => write!(f, "its storage failed: {e}"),
            FatalKind::StateMachine(reason) => write!(f, "its state machine failed: {reason}"),
            FatalKind::Config(reason) => write!(f, "it can't run as configured: {reason}"),
            FatalKind::Bug(reason) => write!(f, "an internal check failed (please report this): {reason}"),
        }
    }
}

impl std::error::Error for Fatal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            FatalKind::Storage(e) => Some(e),
            FatalKind::Shutdown | FatalKind::StateMachine(_) | FatalKind::Config(_) | FatalKind::Bug(_) => None,
        }
    }
}

impl From<StorageError> for Fatal {
    fn from(error: StorageError) -> Self {
        Self::new(FatalKind::Storage(error))
    }
}

/// A failure of a log or snapshot store. Always fatal to the node.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried, such as `write` or `fsync`.
        op: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// No room. What was acknowledged is safe; make room and restart.
    #[error("{op} {path}: no space left; nothing acknowledged is lost: make room, then restart the node")]
    Full {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: String,
    },
    /// Bytes that were known to be good are not. Nothing was changed: restore the file, or replace the node.
    #[error("{path}: corrupt{}: {reason}; the file is left as it is: repair the disk, or replace this node with a new one (an old copy of the file would forget acknowledged entries)", place(.offset, .index))]
    Corrupt {
        /// The file.
        path: String,
        /// Where the damage begins, in bytes, where it is known.
        offset: Option<u64>,
        /// The log index concerned, where it is known.
        index: Option<Index>,
        /// What is wrong.
        reason: String,
    },
    /// The directory is another node's, or another cluster's, or in use.
    #[error("{path}: {reason}")]
    Refused {
        /// The directory or file.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// An earlier failure; the store takes no more writes.
    #[error("the store stopped after an earlier failure: {0}")]
    Sticky(String),
    /// A caller broke the contract of the trait: a bug.
    #[error("misuse of the store: {0}")]
    Misuse(String),
}

impl StorageError {
    /// What became of an operation that the operating system refused: `File::open(path).map_err(StorageError::io("open", path))`. Where there is no
    /// room, it says so.
    pub fn io(op: &'static str, path: &std::path::Path) -> impl Fn(std::io::Error) -> Self + Clone + use<> {
        let path = path.display().to_string();
        move |source| {
            let path = path.clone();
            let full = matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
            if full { Self::Full { op, path } } else { Self::Io { op, path, source } }
        }
    }
}

/// Where damage is, as far as it is known.
fn place(offset: &Option<u64>, index: &Option<Index>) -> String {
    match (offset, index) {
        (Some(offset), Some(index)) => format!(" at offset {offset} (entry {})", index.0),
        (Some(offset), None) => format!(" at offset {offset}"),
        (None, Some(index)) => format!(" at entry {}", index.0),
        (None, None) => String::new(),
    }
}

/// Why a batch could not be handed to a peer. It is logged and counted, and never reaches a client.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// No connection, for now.
    #[error("{peer} is unreachable: {reason}")]
    Unreachable {
        /// The peer.
        peer: Peer,
        /// Why.
        reason: String,
    },
    /// The peer answered that it is not who was meant, or one of the two did not prove who it is.
    #[error("{peer} refused: {reason}")]
    Refused {
        /// The peer.
        peer: Peer,
        /// The words of whoever refused.
        reason: String,
    },
    /// A message exceeds the transport's limit, and was dropped.
    #[error("a message of {size} bytes to {peer} exceeds the limit of {limit}")]
    TooLarge {
        /// The peer.
        peer: Peer,
        /// The message's size.
        size: u64,
        /// The transport's limit.
        limit: u64,
    },
}

/// Why a node would not take an envelope. Both sides should log it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It comes from another cluster.
    #[error("this is cluster {ours}, not {theirs}: check the addresses and the cluster name of both")]
    WrongCluster {
        /// The receiver's cluster.
        ours: ClusterId,
        /// The sender's.
        theirs: ClusterId,
    },
    /// It is meant for another node.
    #[error("this is node {ours}, not {wanted}: check which node has this address")]
    WrongNode {
        /// The receiver.
        ours: NodeId,
        /// Who was meant.
        wanted: NodeId,
    },
    /// Its messages look otherwise than those of this node.
    #[error("this node speaks version {ours} of the messages, not {theirs}: run the same version on both")]
    WrongVersion {
        /// The receiver's version.
        ours: u32,
        /// The sender's.
        theirs: u32,
    },
    /// The process hosts no such group.
    #[error("this process hosts no group {0}")]
    UnknownGroup(GroupId),
    /// The node is down.
    #[error("this node has stopped")]
    Stopped,
}

/// Why leadership was not handed over.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum TransferError {
    /// Only the leader can hand over.
    #[error("this node is not the leader{}; ask {}", named(.leader), if .leader.is_some() { "there" } else { "later" })]
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<Peer>,
    },
    /// No member has this id.
    #[error("there is no member {id}: look at the members that `status` lists")]
    UnknownNode {
        /// The id.
        id: NodeId,
    },
    /// A learner can't lead.
    #[error("{id} does not vote, and so can't lead: promote it first, or choose another member")]
    NotVoter {
        /// The id.
        id: NodeId,
    },
    /// One transfer at a time.
    #[error("leadership is being handed over to {to} already: wait for the outcome, at most an election timeout")]
    InProgress {
        /// To whom.
        to: NodeId,
    },
    /// The member is kept from leading ([`Raft::set_may_lead`](crate::Raft::set_may_lead)), or its disk stalls.
    #[error(
        "{id} would not lead: it is kept from leading, or its disk stalls; choose another member, or let it lead first"
    )]
    Unwilling {
        /// The id.
        id: NodeId,
    },
    /// There is nobody to hand over to.
    #[error("no other voter that would lead was heard lately: nobody could take over")]
    NoSuccessor,
    /// The successor did not lead within an election timeout. The former leader serves again, unless it lost its quorum meanwhile.
    #[error(
        "the successor did not take over within an election timeout; the transfer was given up, and the node serves as before"
    )]
    TimedOut,
    /// Another node was elected meanwhile.
    #[error("{leader} was elected meanwhile, another node than was asked for")]
    OtherLeader {
        /// It leads now.
        leader: NodeId,
    },
    /// The node is down.
    #[error("this node has stopped: {0}")]
    Stopped(Fatal),
}

/// Why `initialize` did nothing.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum InitializeError {
    /// The node already has a log or a vote, and not from these members.
    #[error("this node already belongs to a cluster ({existing}); to start a new cluster use an empty directory")]
    NotEmpty {
        /// What it has.
        existing: String,
    },
    /// These members can't form a cluster.
    #[error("these members can't form a cluster: {0}")]
    Invalid(String),
    /// The node is down.
    #[error("this node has stopped: {0}")]
    Stopped(Fatal),
}
