//! After the faults, where members came and went: whoever is needed works, all become voters again, and some leave for good.

use std::collections::BTreeSet;

use super::configurations;
use super::liveness::{bound, fitter};
use super::timed::Timed;
use crate::consensus::RoleKind;
use crate::metrics::Status;
use crate::types::{Membership, NodeId};

/// A change that was lost or refused is asked for again after so many election timeouts.
const PAUSE: u32 = 5;

impl Timed<'_> {
    /// No more nodes than it takes for a quorum of every configuration that may yet be in force; chance says which.
    pub(super) fn survivors(&mut self) -> Vec<NodeId> {
        let in_play = self.in_play();
        let mut left: BTreeSet<_> = self.world.ids.iter().copied().collect();
        let mut asked = self.world.ids.clone();
        while !asked.is_empty() {
            let place = self.world.random.below(asked.len() as u64);
            let id = asked.swap_remove(usize::try_from(place).unwrap_or_default());
            left.remove(&id);
            if !in_play.iter().all(|membership| configurations::is_quorum(membership, &left)) {
                left.insert(id);
            }
        }
        left.into_iter().collect()
    }

    /// The configurations that may yet be in force, those that leaders are about to make among them.
    fn in_play(&self) -> Vec<Membership> {
        let cluster = &self.world.cluster;
        let mut all = cluster.checker.may_be_in_force();
        let statuses = self.statuses();
        all.extend(statuses.iter().filter_map(|status| status.change.as_ref()).map(|change| change.target.clone()));
        all.extend(statuses.into_iter().filter_map(|status| status.configuration).map(|found| found.membership));
        if all.is_empty() {
            all.push(cluster.membership());
        }
        all
    }

    pub(super) fn statuses(&self) -> Vec<Status> {
        let nodes = self.world.cluster.nodes.values();
        nodes.filter_map(|node| node.core.as_ref().map(|core| core.status(node.now))).collect()
    }

    /// Everything works: whoever leads, an operator makes voters of all nodes.
    pub(super) fn regrouped(&mut self) -> Result<(), String> {
        let ids = self.world.ids.clone();
        self.world.cluster.announce(|| "all is healed, and all shall vote".into());
        (self.faults, self.requests) = (false, false);
        self.steady(&ids)?;
        let config = &self.world.swarm.config;
        let most = config.election_timeout * bound(config) + config.catch_up_timeout * 4 + self.catching_up() * 4;
        self.reach(&ids, most, |statuses| statuses.iter().all(|status| is_committed(status, &ids)))
    }

    /// Some members leave, the leader perhaps among them: the others go on, and those that left are told.
    pub(super) fn parting(&mut self) -> Result<(), String> {
        let mut stay = self.world.ids.clone();
        if stay.len() < 2 {
            return Ok(());
        }
        let leader = self.statuses().iter().find(|status| status.role == RoleKind::Leader).map(|status| status.id);
        let config = &self.world.swarm.config;
        let protected = config.pre_vote || config.check_quorum;
        let mut gone = Vec::new();
        for _ in 0..=self.world.random.below(stay.len() as u64 - 1) {
            let place = self.world.random.below(stay.len() as u64);
            let id = stay.swap_remove(usize::try_from(place).unwrap_or_default());
            // Whom it does not tell any more would disturb the others for ever, if nothing keeps it from that (thesis §4.2.3).
            if protected || leader != Some(id) { gone.push(id) } else { stay.push(id) }
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.world.cluster.announce(|| format!("these leave for good: {gone:?}"));
        let removes_itself = leader.is_some_and(|id| gone.contains(&id));
        self.world.cluster.coverage.add("leaders that leave for good", u64::from(removes_itself));
        let config = &self.world.swarm.config;
        let most = config.election_timeout * bound(config) + self.catching_up() * 2 + self.preferring();
        self.reach(&stay, most, |statuses| {
            // What comes while leadership is handed over is given back to its client, who would have to ask again.
            let leads = |status: &&Status| status.role == RoleKind::Leader && stay.contains(&status.id);
            let rests = |leader: &Status| leader.transferring_to.is_none() && fitter(statuses, leader).is_none();
            statuses.iter().filter(leads).all(rests)
                && statuses.iter().all(|status| match stay.contains(&status.id) {
                    true => is_committed(status, &stay) && status.leader.is_some_and(|id| stay.contains(&id)),
                    // A leader that is removed itself does not wait until all the others know.
                    false => status.removed.is_some() || (removes_itself && leader != Some(status.id)),
                })
        })?;
        let Some(first) = stay.first() else { return Ok(()) };
        let command = self.propose(*first)?;
        let timeout = self.world.swarm.config.election_timeout;
        self.run(timeout * PAUSE + self.catching_up())?;
        match self.world.cluster.checker.place_of(&command) {
            Some(_) => Ok(()),
            None => Err(format!("liveness: {gone:?} left, and what {first} was told then is not applied")),
        }
    }

    /// Asks whoever leads that these be the voters, again and again, until all is as it should be.
    fn reach(
        &mut self,
        voters: &[NodeId],
        most: std::time::Duration,
        done: impl Fn(&[Status]) -> bool,
    ) -> Result<(), String> {
        let end = self.at + most;
        loop {
            let statuses = self.statuses();
            if done(&statuses) {
                return Ok(());
            }
            if self.at > end {
                return Err(format!("liveness: all work, and not all could be made of {voters:?}: {statuses:?}"));
            }
            let leads = |status: &&Status| status.role == RoleKind::Leader && status.change.is_none();
            if let Some(leader) = statuses.iter().find(leads) {
                self.regroup(leader.id, voters)?;
            }
            self.run(self.world.swarm.config.election_timeout * PAUSE)?;
        }
    }
}

/// Whether a node knows that these are the voters, and that it stays so.
fn is_committed(status: &Status, voters: &[NodeId]) -> bool {
    status.configuration.as_ref().is_some_and(|found| {
        let same = found.membership.voters.len() == voters.len()
            && voters.iter().all(|id| found.membership.voters.contains_key(id));
        found.committed && same && !found.membership.is_joint()
    })
}
