//! What a node is at the moment: the data of each role, and nothing of its behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::backlog::Backlog;
use super::change::Changing;
use super::forward::SeenForwards;
use super::io::Time;
use super::lease::Lease;
use super::membership::Leaving;
use super::preference::Yielding;
use super::progress::Progress;
use super::read::Reads;
use super::transfer::Transfer;
use crate::types::{Index, NodeId};

/// The roles of the paper (figure 4), with the pre-candidate of the thesis (§9.6).
#[derive(Clone, Debug)]
pub(crate) enum Role {
    Follower(Follower),
    PreCandidate(Campaign),
    Candidate(Campaign),
    Leader(Box<Leader>),
}

/// Passive: answers leaders and candidates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Follower {
    /// Who leads this term, once it was heard.
    pub(crate) leader: Option<NodeId>,
    /// When it was last heard. While that is recent, campaigns of others are ignored.
    pub(crate) heard: Option<Time>,
    /// When its last heartbeat came: the next one is due an interval later at most, whatever else it sends.
    pub(crate) heartbeat: Option<Time>,
    /// Whether the connection with the leader was lost after that: then it is not counted as live.
    pub(crate) suspect: bool,
    /// The log equals the leader's of this term up to here; beyond it nothing is known.
    pub(crate) matching: Index,
    /// The last index acknowledged to the leader.
    pub(crate) acked: Index,
    /// Whether an append came that has not been answered.
    pub(crate) ack_due: bool,
}

/// Collects votes, in earnest or as a poll.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Campaign {
    /// Who said yes. A set: a duplicated answer counts once.
    pub(crate) granted: BTreeSet<NodeId>,
    /// Who said no.
    pub(crate) refused: BTreeSet<NodeId>,
}

/// Decides what is in the log, and brings it to all.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    /// What is known of each other member, and of those that are leaving.
    pub(crate) peers: BTreeMap<NodeId, Progress>,
    /// Those of the peers that are members no more, and do not know it yet.
    pub(crate) leaving: BTreeMap<NodeId, Leaving>,
    /// The change of the configuration under way.
    pub(crate) change: Option<Changing>,
    /// The index of the entry that opened the term. Once it is committed, so is everything before it (paper §5.4.2).
    pub(crate) opened: Index,
    /// When the term was opened: nobody can have been heard for longer than since then.
    pub(crate) since: Time,
    /// When it last wrote into the log for how long it leads ([`EntryKind::Clock`](crate::EntryKind::Clock)).
    pub(crate) clocked: Option<Time>,
    /// What this leader's entries beyond the commit index cost.
    pub(crate) uncommitted: u64,
    /// For how long they wait.
    pub(crate) backlog: Backlog,
    /// The number of the last round of heartbeats.
    pub(crate) round: u64,
    /// When the next round is due.
    pub(crate) heartbeat_due: Time,
    /// When it speaks to peers whose connections were just lost.
    pub(crate) hurry_due: Option<Time>,
    /// The promises that were asked for.
    pub(crate) lease: Lease,
    /// Reads that wait for a round.
    pub(crate) reads: Reads,
    /// Batches forwarded by followers in this term.
    pub(crate) seen: SeenForwards,
    /// An attempt to hand leadership over.
    pub(crate) transfer: Option<Transfer>,
    /// Its attempts to hand over by its own wish.
    pub(crate) yielding: Yielding,
    /// Whether another node was told to campaign in this term. That word may arrive at any time later.
    pub(crate) abdicated: bool,
}

/// A role's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleKind {
    /// Knows a leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks to be elected.
    Candidate,
    /// Leads.
    Leader,
}

impl fmt::Display for RoleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
        })
    }
}

impl Role {
    pub(crate) fn kind(&self) -> RoleKind {
        match self {
            Self::Follower(_) => RoleKind::Follower,
            Self::PreCandidate(_) => RoleKind::PreCandidate,
            Self::Candidate(_) => RoleKind::Candidate,
            Self::Leader(_) => RoleKind::Leader,
        }
    }
}
