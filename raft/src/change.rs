//! What a change of the configuration is: a list of edits, decided upon by the leader.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::types::{LogId, Membership, NodeId, Peer};

/// A change of who is in the cluster: any number of edits that take effect together.
///
/// ```
/// use raftkv::{Change, Peer};
/// let grow = Change::new().add_voter(Peer::new(4, "d:7000")).add_voter(Peer::new(5, "e:7000"));
/// let swap = Change::new().replace(3, Peer::new(6, "f:7000"));
/// # let _ = (grow, swap);
/// ```
///
/// Edits are applied to the configuration in force, one after the other; what counts is the result. A voter that is not a member yet first
/// gets the log as a learner, and votes once it has caught up (thesis §4.2.1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Change {
    /// The edits, in order.
    pub edits: Vec<Edit>,
    /// Only if this is the id of the configuration in force when the leader takes the change up.
    pub expected: Option<LogId>,
}

/// One edit of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Edit {
    /// This node shall vote: a new one, or one that is a learner.
    AddVoter(Peer),
    /// This new node shall get the log, and not vote.
    AddLearner(Peer),
    /// This learner shall vote.
    Promote(NodeId),
    /// This voter shall be a learner.
    Demote(NodeId),
    /// This member shall be none any more.
    Remove(NodeId),
    /// The new node takes over what the old one was, voter or learner. It may be a learner already.
    Replace {
        /// Who goes.
        old: NodeId,
        /// Who comes. A node that lost its data comes back under a new id.
        new: Peer,
    },
    /// This member is reached at another address from now on.
    SetAddress(Peer),
    /// The configuration shall be exactly this one.
    Set(Membership),
}

impl Change {
    /// No edit yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The configuration shall be exactly this one.
    #[must_use]
    pub fn to(target: Membership) -> Self {
        Self::new().edit(Edit::Set(target))
    }

    /// This node shall vote: a new one, or one that is a learner.
    #[must_use]
    pub fn add_voter(self, peer: Peer) -> Self {
        self.edit(Edit::AddVoter(peer))
    }

    /// This new node shall get the log, and not vote.
    #[must_use]
    pub fn add_learner(self, peer: Peer) -> Self {
        self.edit(Edit::AddLearner(peer))
    }

    /// This learner shall vote, once it has caught up.
    #[must_use]
    pub fn promote(self, id: impl Into<NodeId>) -> Self {
        self.edit(Edit::Promote(id.into()))
    }

    /// This voter shall be a learner.
    #[must_use]
    pub fn demote(self, id: impl Into<NodeId>) -> Self {
        self.edit(Edit::Demote(id.into()))
    }

    /// This member shall be none any more.
    #[must_use]
    pub fn remove(self, id: impl Into<NodeId>) -> Self {
        self.edit(Edit::Remove(id.into()))
    }

    /// The new node takes over what the old one was: the way to bring back a machine that lost its data.
    #[must_use]
    pub fn replace(self, old: impl Into<NodeId>, new: Peer) -> Self {
        self.edit(Edit::Replace { old: old.into(), new })
    }

    /// This member is reached at another address from now on.
    #[must_use]
    pub fn set_address(self, peer: Peer) -> Self {
        self.edit(Edit::SetAddress(peer))
    }

    /// Only if this is the id of the configuration in force ([`ConfigurationStatus::id`](crate::ConfigurationStatus::id)): nobody else
    /// changed it since it was looked at.
    #[must_use]
    pub fn only_if(self, id: LogId) -> Self {
        Self { expected: Some(id), ..self }
    }

    fn edit(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }

    /// What the change counts against byte limits.
    pub(crate) fn cost(&self) -> u64 {
        let peer = |peer: &Peer| 64 + peer.address.len() as u64;
        self.edits
            .iter()
            .map(|edit| match edit {
                Edit::AddVoter(new) | Edit::AddLearner(new) | Edit::Replace { new, .. } | Edit::SetAddress(new) => {
                    peer(new)
                }
                Edit::Promote(_) | Edit::Demote(_) | Edit::Remove(_) => 64,
                Edit::Set(target) => target.cost(),
            })
            .sum()
    }

    /// What the change makes of a configuration that is not joint.
    ///
    /// # Errors
    /// Why it makes nothing of it.
    pub(crate) fn apply(&self, present: &Membership, max_members: usize) -> Result<Membership, ChangeRefused> {
        let mut target = present.clone();
        for edit in &self.edits {
            apply(edit, &mut target)?;
        }
        if target.voters.is_empty() {
            return Err(ChangeRefused::NoVoters);
        }
        target.validate().map_err(|reason| ChangeRefused::Invalid { reason })?;
        if target.is_joint() {
            let reason = "the configuration to be reached can't be joint itself".into();
            return Err(ChangeRefused::Invalid { reason });
        }
        let count = target.members().count();
        if count > max_members {
            let reason = format!("{count} members are more than max_members allows ({max_members})");
            return Err(ChangeRefused::Invalid { reason });
        }
        let mut at: BTreeMap<&str, NodeId> = BTreeMap::new();
        for peer in target.members() {
            if let Some(other) = at.insert(&peer.address, peer.id) {
                return Err(ChangeRefused::AddressConflict {
                    address: peer.address.to_string(),
                    nodes: [other, peer.id],
                });
            }
        }
        if target == *present { Err(ChangeRefused::NoDifference) } else { Ok(target) }
    }
}

fn apply(edit: &Edit, target: &mut Membership) -> Result<(), ChangeRefused> {
    let known = |target: &Membership, id: NodeId| match target.get(id) {
        Some(peer) => Ok(peer.clone()),
        None => Err(ChangeRefused::UnknownNode { id }),
    };
    let invalid = |reason: String| Err(ChangeRefused::Invalid { reason });
    match edit {
        Edit::AddVoter(peer) | Edit::AddLearner(peer) => {
            if let Some(present) = target.get(peer.id)
                && present != peer
            {
                return invalid(format!(
                    "node {} is at {} already; change its address first",
                    peer.id.0, present.address
                ));
            }
            if matches!(edit, Edit::AddVoter(_)) {
                target.learners.remove(&peer.id);
                target.voters.insert(peer.id, peer.clone());
            } else if target.is_voter(peer.id) {
                return invalid(format!("node {} is a voter; demote it", peer.id.0));
            } else {
                target.learners.insert(peer.id, peer.clone());
            }
        }
        Edit::Promote(id) => {
            let peer = known(target, *id)?;
            target.learners.remove(id);
            target.voters.insert(*id, peer);
        }
        Edit::Demote(id) => {
            let peer = known(target, *id)?;
            target.voters.remove(id);
            target.learners.insert(*id, peer);
        }
        Edit::Remove(id) => {
            known(target, *id)?;
            target.voters.remove(id);
            target.learners.remove(id);
        }
        Edit::Replace { old, new } => {
            known(target, *old)?;
            let known = target.get(new.id).is_some_and(|present| present != new);
            if target.is_voter(new.id) || known || *old == new.id {
                return invalid(format!("node {} is a member already, and can't take another's place", new.id.0));
            }
            let votes = target.voters.remove(old).is_some();
            target.learners.remove(old);
            target.learners.remove(&new.id);
            let into = if votes { &mut target.voters } else { &mut target.learners };
            into.insert(new.id, new.clone());
        }
        Edit::SetAddress(peer) => {
            known(target, peer.id)?;
            let among = if target.is_voter(peer.id) { &mut target.voters } else { &mut target.learners };
            among.insert(peer.id, peer.clone());
        }
        Edit::Set(wanted) => *target = wanted.clone(),
    }
    Ok(())
}

/// Why a leader did not make a change. Unless said otherwise, the configuration is what it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Error)]
#[non_exhaustive]
pub enum ChangeRefused {
    /// Another change is not finished: its configuration is not committed, or its new voters are catching up.
    #[error("another change of the configuration is in progress, at {at}; retry when it is finished")]
    InProgress {
        /// The configuration in force.
        at: LogId,
    },
    /// The leader has not committed an entry of its own term yet, and must not change the configuration before (a known flaw of
    /// the thesis, see the note of July 2015 to raft-dev). In a moment it has.
    #[error("the leader has just been elected, and can't change the configuration yet; retry in a moment")]
    NotReady,
    /// The configuration in force is not the one that the caller expected.
    #[error("the configuration in force is that of entry {actual}, not the one expected; look at it, and decide anew")]
    Mismatch {
        /// The id of the configuration in force.
        actual: LogId,
    },
    /// There is no such member.
    #[error("node {} is not a member", .id.0)]
    UnknownNode {
        /// Its id.
        id: NodeId,
    },
    /// Nobody would vote.
    #[error("a cluster needs at least one voter")]
    NoVoters,
    /// The configuration is as wished already.
    #[error("the configuration is like that already")]
    NoDifference,
    /// Two members would have one address.
    #[error("nodes {} and {} can't both be at {address}", .nodes[0].0, .nodes[1].0)]
    AddressConflict {
        /// The address.
        address: String,
        /// Who would be there.
        nodes: [NodeId; 2],
    },
    /// A node that was to vote has not caught up with the log within `Config::catch_up_timeout`. It is a learner now, and goes on
    /// catching up; nothing else was changed.
    #[error(
        "node {} has not caught up in time (it has {matched} of {last}): it stays a learner; promote it later, or remove it", .id.0
    )]
    NotCaughtUp {
        /// The node.
        id: NodeId,
        /// Its log equals the leader's up to here.
        matched: crate::Index,
        /// The end of the leader's log.
        last: crate::Index,
    },
    /// The leader has heard no majority of the voters that there would be: the cluster could not go on. Nodes that were to become voters
    /// are learners now.
    #[error("too few of the voters that there would be are reachable: {}; start them, or remove them as well", list(.silent))]
    Unreachable {
        /// The voters that were not heard for an election timeout.
        silent: Vec<NodeId>,
    },
    /// The change makes no sense.
    #[error("this can't be: {reason}")]
    Invalid {
        /// Why, for a person.
        reason: String,
    },
}

impl ChangeRefused {
    /// What the reason counts against byte limits.
    pub(crate) fn cost(&self) -> u64 {
        match self {
            Self::AddressConflict { address: text, .. } | Self::Invalid { reason: text } => text.len() as u64,
            Self::Unreachable { silent } => 10 * silent.len() as u64,
            Self::InProgress { .. }
            | Self::NotReady
            | Self::Mismatch { .. }
            | Self::UnknownNode { .. }
            | Self::NoVoters
            | Self::NoDifference
            | Self::NotCaughtUp { .. } => 0,
        }
    }
}

fn list(ids: &[NodeId]) -> String {
    let ids: Vec<_> = ids.iter().map(|id| id.0.to_string()).collect();
    format!("no word of node {}", ids.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u64) -> Peer {
        Peer::new(id, format!("h{id}"))
    }

    fn apply(change: &Change) -> Result<String, ChangeRefused> {
        let present = Membership::new([1, 2, 3].map(peer)).with_learners([peer(4)]);
        change.apply(&present, 9).map(|target| target.to_string())
    }

    #[test]
    fn edits_add_up() {
        let change =
            Change::new().replace(3, peer(6)).promote(4).demote(2).add_learner(peer(5)).set_address(Peer::new(1, "x"));
        assert_eq!(apply(&change), Ok("1=x,4=h4,6=h6 learners 2=h2,5=h5".into()));
        assert_eq!(apply(&Change::new().add_voter(peer(4))), Ok("1=h1,2=h2,3=h3,4=h4".into()));
        assert_eq!(apply(&Change::to(Membership::new([peer(7)]))), Ok("7=h7".into()));
        assert_eq!(apply(&Change::new().replace(4, peer(5))), Ok("1=h1,2=h2,3=h3 learners 5=h5".into()));
        assert_eq!(apply(&Change::new().replace(3, peer(4))), Ok("1=h1,2=h2,4=h4".into()));
        // The old node's machine, under a new id.
        assert_eq!(apply(&Change::new().replace(3, Peer::new(6, "h3"))), Ok("1=h1,2=h2,6=h3 learners 4=h4".into()));
    }

    #[test]
    fn nothing_that_makes_no_sense_is_a_silent_no_op() {
        use ChangeRefused::{AddressConflict, NoDifference, NoVoters, UnknownNode};
        let nodes = [NodeId(3), NodeId(9)];
        for (change, refused) in [
            (Change::new(), NoDifference),
            (Change::new().add_voter(peer(2)), NoDifference),
            (Change::new().add_learner(peer(4)), NoDifference),
            (Change::new().promote(1), NoDifference),
            (Change::new().add_voter(peer(5)).remove(5), NoDifference),
            (Change::new().remove(9), UnknownNode { id: NodeId(9) }),
            (Change::new().promote(9), UnknownNode { id: NodeId(9) }),
            (Change::new().demote(9), UnknownNode { id: NodeId(9) }),
            (Change::new().replace(9, peer(5)), UnknownNode { id: NodeId(9) }),
            (Change::new().set_address(peer(9)), UnknownNode { id: NodeId(9) }),
            (Change::new().remove(1).remove(2).remove(3), NoVoters),
            (Change::new().add_voter(Peer::new(9, "h3")), AddressConflict { address: "h3".into(), nodes }),
        ] {
            assert_eq!(apply(&change), Err(refused), "{change:?}");
        }
        for change in [
            Change::new().add_voter(Peer::new(2, "other")),
            Change::new().add_learner(peer(2)),
            Change::new().replace(3, peer(2)),
            Change::new().replace(3, Peer::new(4, "other")),
            Change::new().replace(3, peer(3)),
            Change::new().add_voter(Peer::new(0, "zero")),
            Change::new().add_voter(Peer::new(9, "")),
            Change::to(Membership { outgoing: Membership::new([peer(1)]).voters, ..Membership::new([peer(2)]) }),
            Change::to(Membership::new((1..=10).map(peer))),
        ] {
            assert!(matches!(apply(&change), Err(ChangeRefused::Invalid { .. })), "{change:?}");
        }
    }
}
