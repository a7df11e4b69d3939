//! What must be true of members that come and go (paper §6, thesis §4): who may vote, who is counted, and what each node takes for its
//! configuration.

use std::collections::BTreeSet;

use super::checker::{Checker, Nodes};
use super::cluster::Node;
use super::configurations::{self, NewVoters};
use crate::consensus::RoleKind;
use crate::metrics::Status;
use crate::testing::simulation::Coverage;
use crate::types::{Index, LogId, Membership, NodeId, Term};

impl Checker {
    /// Nodes that are to vote from an entry on have caught up before (thesis §4.2.1).
    pub(super) fn caught_up(&self, nodes: &Nodes, new: &NewVoters) -> Result<(), String> {
        let Some(upto) = self.settled(new.upto).filter(|_| self.limits.is_some()) else { return Ok(()) };
        match new.ids.iter().find(|id| nodes.get(id).is_some_and(|node| !node.held(upto))) {
            Some(id) => Err(format!("new voters: {id} votes from {} on, and does not even hold {upto}", new.at)),
            None => Ok(()),
        }
    }

    /// A node uses the latest configuration in its log, committed or not (paper §6).
    pub(super) fn configured(&self, status: &Status) -> Result<(), String> {
        // What a leader has just appended nobody has seen.
        let known = self.configurations.known_at(status.last).filter(|_| self.limits.is_some());
        let Some((at, membership)) = known else { return Ok(()) };
        match &status.configuration {
            Some(own) if own.id == at && own.membership == *membership => Ok(()),
            own => {
                let (id, last) = (status.id, status.last);
                Err(format!("configurations: {id} uses {own:?}, but in its log up to {last} is {membership} of {at}"))
            }
        }
    }

    /// A change was made that was meant for a certain configuration: the new one came of it.
    pub(super) fn changed(&self, expected: LogId, new: LogId) -> Result<(), String> {
        if self.limits.is_none() || (new > expected && self.configurations.came_of(new, expected)) {
            return Ok(());
        }
        Err(format!("configurations: {new} was made for whoever looked at {expected}, and did not come of it"))
    }

    /// A new leader has the votes of a quorum on disk (paper §5.2), of voters by the configuration in its own log.
    pub(super) fn elected(&self, nodes: &Nodes, node: &Node, term: Term) -> Result<(), String> {
        // An image may have taken the place of its log.
        let (image, log) = (node.images.last(), node.disk.last());
        let last = if image.index > log.index { image } else { log };
        let found = self.configurations.known_at(last).filter(|_| self.limits.is_some());
        let Some((at, membership)) = found else { return Ok(()) };
        let voted = nodes.keys().filter(|id| self.votes.get(&(**id, term)) == Some(&node.id));
        let voted: BTreeSet<_> = voted.copied().collect();
        if configurations::is_quorum(membership, &voted) {
            return Ok(());
        }
        Err(format!("votes: {} leads {term} by the votes of {voted:?}, no quorum of {membership} of {at}", node.id))
    }

    /// Whoever knows that it votes no more does not campaign.
    pub(super) fn stands(&self, status: &Status) -> Result<(), String> {
        let over = |found: &&crate::metrics::ConfigurationStatus| {
            found.committed && !found.membership.is_voter(status.id) && self.limits.is_some()
        };
        match (status.role, status.configuration.as_ref().filter(over)) {
            (RoleKind::PreCandidate | RoleKind::Candidate, Some(found)) => {
                Err(format!("disturbance: {} campaigns, and knows that {} does not let it vote", status.id, found.id))
            }
            (RoleKind::PreCandidate | RoleKind::Candidate, None) | (RoleKind::Follower | RoleKind::Leader, _) => Ok(()),
        }
    }

    /// A node has another configuration than before: counts what is new in it.
    pub(super) fn count_members(&mut self, coverage: &mut Coverage, id: NodeId, index: Index, new: &Membership) {
        if new.contains(id) && self.gone.remove(&id) {
            coverage.hit("removed nodes that came back");
        }
        let Some((at, old)) = self.config_at.insert(id, (index, new.clone())) else { return };
        if index < at {
            coverage.hit("configurations taken back");
            coverage.add("joint configurations taken back", u64::from(old.is_joint()));
            return;
        }
        let learns = |membership: &Membership, id: &NodeId| membership.contains(*id) && !membership.is_voter(*id);
        let moved = |peer: &&crate::types::Peer| old.get(peer.id).is_some_and(|before| before.address != peer.address);
        for (class, met) in [
            ("joint configurations left", old.is_joint() && !new.is_joint()),
            ("learners promoted", new.voters.keys().any(|id| learns(&old, id))),
            ("voters demoted", old.voters.keys().any(|id| learns(new, id))),
            ("clusters of one voter that grew", old.voters.len() == 1 && !old.is_joint() && new.voters.len() > 1),
            ("clusters that shrank to one voter", old.voters.len() > 1 && new.voters.len() == 1),
            ("addresses changed", new.members().any(|peer| moved(&peer))),
        ] {
            coverage.add(class, u64::from(met));
        }
    }

    /// All configurations that may yet be in force: the last that is committed, and whichever came after it in any log.
    pub(super) fn may_be_in_force(&self) -> Vec<Membership> {
        let last = self.settled(self.highest()).and_then(|last| self.configurations.known_at(last));
        self.configurations.since(last.map_or(Index::ZERO, |(at, _)| at.index)).cloned().collect()
    }
}
