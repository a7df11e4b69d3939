//! What a node knows of itself: [`Status`]; and what it counts: [`Metrics`].

mod counts;

pub use counts::{
    Applies, Dropped, Failed, Histogram, Leadership, LogWrites, Metrics, Refused, RefusedFor, Requests, Snapshots,
    Traffic,
};

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::consensus::RoleKind;
use crate::types::{Index, LogId, Membership, NodeId, Peer, Term};

/// A node's view of itself and its group at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node.
    pub id: NodeId,
    /// Its role.
    pub role: RoleKind,
    /// Its term.
    pub term: Term,
    /// The leader it follows; itself when it leads.
    pub leader: Option<NodeId>,
    /// The members of the configuration in force; empty before the node learned of one.
    pub members: Vec<Peer>,
    /// The configuration in force; none before the node learned of one.
    pub configuration: Option<ConfigurationStatus>,
    /// The change of the configuration that this leader is making.
    pub change: Option<ChangeStatus>,
    /// The committed configuration that does not have this node any more, if it has seen itself removed in this run.
    pub removed: Option<LogId>,
    /// The id before its first log entry.
    pub base: LogId,
    /// The id of its last log entry.
    pub last: LogId,
    /// The last index that is on its disk.
    pub stored: Index,
    /// The last index that it knows to be committed.
    pub commit: Index,
    /// The last index that its state machine has applied.
    pub applied: Index,
    /// The newest image of its state machine; none if there is none yet.
    pub snapshot: Option<SnapshotStatus>,
    /// The client sessions that it knows of.
    #[serde(default)]
    pub sessions: SessionsStatus,
    /// The image that it is receiving.
    #[serde(default)]
    pub receiving: Option<ReceivingStatus>,
    /// What a leader knows of the other members; empty on others.
    pub peers: Vec<PeerStatus>,
    /// On a leader that hands over: to whom.
    #[serde(default)]
    pub transferring_to: Option<NodeId>,
    /// Its priority.
    #[serde(default)]
    pub priority: u32,
    /// Whether it may lead.
    #[serde(default)]
    pub may_lead: bool,
    /// On a leader that has a lease: for how long it may answer reads by its clock, if it hears nothing more.
    #[serde(default)]
    pub lease_left: Option<Duration>,
    /// Whether a write of its log is under way for longer than `Config::stall_timeout`: then it gives leadership up.
    #[serde(default)]
    pub disk_stalls: bool,
    /// Whether its state machine did not get on for that long with what it has to do: then it does so as well.
    #[serde(default)]
    pub machine_stalls: bool,
}

impl Status {
    /// A node that has just begun and knows of nothing: for those who stand in for nodes in tests, and say what is different.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn of_new(id: NodeId) -> Self {
        Self {
            id,
            role: RoleKind::Follower,
            term: Term(0),
            leader: None,
            members: Vec::new(),
            configuration: None,
            change: None,
            removed: None,
            base: LogId::ZERO,
            last: LogId::ZERO,
            stored: Index(0),
            commit: Index(0),
            applied: Index(0),
            snapshot: None,
            sessions: SessionsStatus::default(),
            receiving: None,
            peers: Vec::new(),
            transferring_to: None,
            priority: 0,
            may_lead: true,
            lease_left: None,
            disk_stalls: false,
            machine_stalls: false,
        }
    }
}

/// An image of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// The last entry that it reflects.
    pub last: LogId,
    /// Its length in bytes.
    pub len: u64,
}

/// Client sessions, in the state that a node has applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsStatus {
    /// How many are open.
    pub open: u64,
    /// What the answers cost that are kept for repetitions, in bytes.
    pub kept_bytes: u64,
}

/// An image that is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceivingStatus {
    /// Who sends it.
    pub from: NodeId,
    /// The last entry that it reflects.
    pub last: LogId,
    /// How much of it is on disk, in bytes.
    pub stored: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The mean rate since the attempt began, in bytes a second.
    pub rate: u64,
}

/// A configuration, and whether it is there to stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationStatus {
    /// The entry that holds it.
    pub id: LogId,
    /// Whether this node knows that it is committed. Until then it may be taken back.
    pub committed: bool,
    /// Who is in it.
    pub membership: Membership,
}

/// A change of the configuration under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeStatus {
    /// What is to be reached.
    pub target: Membership,
    /// The voters to be that have not caught up yet. Their progress is in [`Status::peers`].
    pub catching_up: Vec<NodeId>,
    /// How long they still have to; none once that is behind, and only the commit is awaited.
    pub left: Option<Duration>,
}

/// What a leader knows of another member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The member.
    pub id: NodeId,
    /// How entries are sent to it.
    pub state: ReplicationState,
    /// The last index known to be on its disk and equal to the leader's.
    pub matched: Index,
    /// The next index to be sent to it.
    pub next: Index,
    /// Append messages on their way.
    pub inflight: usize,
    /// While it is offered an image: how far it has come with it, in bytes.
    #[serde(default)]
    pub fetched: Option<u64>,
    /// How long ago it was last heard; none if not in this term.
    pub silent_for: Option<Duration>,
    /// The priority with which it would lead; none if it would not, or was not heard in this term.
    #[serde(default)]
    pub priority: Option<u32>,
}

/// How a leader sends entries to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicationState {
    /// Finds out where the logs agree, one message at a time.
    Probe,
    /// Sends ahead of the acknowledgements.
    Replicate,
    /// Offers an image: what the follower lacks is not in the log any more.
    Snapshot,
}
