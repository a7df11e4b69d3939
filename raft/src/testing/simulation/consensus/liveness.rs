//! After the faults: a majority that works must elect and commit, whatever goes on elsewhere; and once all works, all must agree.

use std::time::Duration;

use super::disk::Disk;
use super::timed::Timed;
use crate::config::Config;
use crate::consensus::RoleKind;
use crate::metrics::Status;
use crate::types::{Entry, Index, NodeId};

/// Within so many election timeouts a majority that works has elected a leader and committed, besides the time to catch up.
const BOUND: u32 = 40;
/// Without polls before elections, or without leaders that are left alone, every node that comes back disturbs: it takes longer.
const BOUND_WHEN_DISTURBED: u32 = 400;
/// Clients of the majority write every so many election timeouts: faster than entries travel, the log would never be caught up with.
const PAUSE: u32 = 5;
/// Within so many election timeouts all nodes agree, once all of them work, besides the time to catch up.
const BOUND_OF_ALL: u32 = 30;
impl Timed<'_> {
    /// Everything that must happen once faults end.
    pub(crate) fn recovery(&mut self) -> Result<(), String> {
        let changing = self.world.swarm.weather.change > 0;
        self.majority()?;
        if changing {
            self.regrouped()?;
        }
        self.all()?;
        if self.world.swarm.weather.prefer > 0 {
            self.preferred()?;
        }
        if changing { self.parting() } else { Ok(()) }
    }

    fn majority(&mut self) -> Result<(), String> {
        self.forget_changes();
        let ids = self.survivors();
        self.world.cluster.announce(|| format!("from here on these work: {ids:?}"));
        (self.faults, self.requests) = (true, false);
        self.steady(&ids)?;
        // Those that were told may have failed before they could tell the others: the operator tells all that work.
        for id in &ids {
            self.initialize(*id)?;
        }
        self.begin_faults();
        let config = self.world.swarm.config.clone();
        let bound = bound(&config);
        let begun = self.at;
        // A log that is cut when it has been caught up with would look as if that had taken no time (seed 32733).
        let mut catching_up = Duration::ZERO;
        let mut written = Vec::new();
        let mut took = 0;
        while !self.is_seen(&ids, &written) {
            // What is proposed meanwhile lengthens the log that has to be caught up with.
            catching_up = catching_up.max(self.catching_up());
            if self.at > begun + config.election_timeout * bound + catching_up {
                return Err(format!("liveness: {ids:?} work, and committed nothing within {took} election timeouts"));
            }
            if took % PAUSE == 0 {
                for id in &ids {
                    written.push(self.propose(*id)?);
                }
            }
            took += 1;
            self.run(config.election_timeout)?;
        }
        self.longest_recovery(took);
        Ok(())
    }

    /// Whether one of the commands was applied at one of the nodes.
    fn is_seen(&self, ids: &[NodeId], commands: &[bytes::Bytes]) -> bool {
        let upto = ids.iter().map(|id| self.applied_upto(*id)).max().unwrap_or_default();
        let places = commands.iter().filter_map(|command| self.world.cluster.checker.place_of(command));
        places.map(|id| id.index).min().is_some_and(|first| first <= upto)
    }

    /// Everything works again: soon there is one leader, every node accepts writes and reads, and all agree.
    fn all(&mut self) -> Result<(), String> {
        let ids = self.world.ids.clone();
        self.world.cluster.announce(|| "all is healed".into());
        (self.faults, self.requests) = (false, false);
        self.steady(&ids)?;
        // A batch that was passed on, and whose answer was lost, is given up by its client; everything else is answered.
        for node in self.world.cluster.nodes.values_mut() {
            let asked = std::mem::take(&mut node.clients.asked);
            node.clients.timed_out.extend(asked.into_keys());
            node.clients.timed_out.extend(std::mem::take(&mut node.clients.changing));
        }
        let timeout = self.world.swarm.config.election_timeout;
        self.agree()?;
        self.late_messages()?;
        self.agree()?;
        // A successor may have been told to campaign before, and do so now.
        self.run(timeout)?;
        self.agree()?;
        let (mut written, mut asked) = (Vec::new(), Vec::new());
        for id in &ids {
            // One after the other: limits may be so small that another at the same time is refused.
            written.push(self.propose(*id)?);
            self.run(timeout)?;
            asked.push((*id, self.read(*id)?));
            self.run(timeout)?;
        }
        for command in written {
            if self.world.cluster.checker.place_of(&command).is_none() {
                return Err(format!("liveness: {command:?} was proposed after the healing, and is not applied"));
            }
        }
        self.agree()?;
        match asked.iter().find(|(_, request)| !self.world.cluster.served.contains(request)) {
            Some((id, request)) => {
                Err(format!("liveness: r{} at {id} came after the healing, and is not served", request.0))
            }
            None => Ok(()),
        }
    }

    /// The node that should lead does, and leadership rests there; it is handed over when its leader is kept from leading, and comes back.
    fn preferred(&mut self) -> Result<(), String> {
        let config = self.world.swarm.config.clone();
        // What the leader said long ago may still come: a successor that was told to campaign does so.
        self.run(config.election_timeout * 13)?;
        self.agree()?;
        let yields = self.world.cluster.checker.yields();
        self.run(config.priority_settle * 4)?;
        self.agree()?;
        if self.world.cluster.checker.yields() != yields {
            return Err("preferences: leadership is handed over although the right node leads".into());
        }
        let leader = self.statuses().iter().find(|status| status.role == RoleKind::Leader).map(|status| status.id);
        let Some(leader) = leader.filter(|_| self.world.ids.len() > 1) else { return Ok(()) };
        self.let_lead(leader, false)?;
        self.agree()?;
        self.world.cluster.coverage.hit("leaders kept from leading that handed over");
        self.let_lead(leader, true)?;
        self.agree()
    }

    /// Lets time go by until all agree, within a bound.
    fn agree(&mut self) -> Result<(), String> {
        let end = self.at + self.settling();
        loop {
            self.run(self.world.swarm.config.election_timeout)?;
            let outcome = self.agreement();
            if outcome.is_ok() || self.at > end {
                return outcome;
            }
        }
    }

    /// How long it may take until a leader is found and whoever lacks the whole log has it.
    fn settling(&self) -> Duration {
        let config = &self.world.swarm.config;
        config.election_timeout * BOUND_OF_ALL + config.stall_timeout + self.catching_up() + self.preferring()
    }

    /// How long it may take in addition until the right node leads: after many attempts to hand over that failed the next one is put off.
    pub(super) fn preferring(&self) -> Duration {
        let config = &self.world.swarm.config;
        let put_off = config.priority_settle.max(config.election_timeout) * 40;
        if self.world.swarm.weather.prefer > 0 { put_off } else { Duration::ZERO }
    }

    /// How long the whole log takes on its way to a node, in pieces as large as all limits allow.
    ///
    /// What is sent ahead spares nothing here: on these links one append overtakes another, is rejected, and the leader asks anew where
    /// the logs agree. So each piece may take more than a round trip, as may each term in which the logs differ.
    pub(super) fn catching_up(&self) -> Duration {
        let (swarm, config) = (&self.world.swarm, &self.world.swarm.config);
        let limit = config.max_append_bytes.min(config.max_write_bytes).min(config.max_applying_bytes);
        // Any of them may lead, and some have cut off more of their logs than others.
        let trips = self.world.cluster.nodes.values().map(|node| trips(&node.disk, limit)).max().unwrap_or_default();
        let trip = swarm.latency * 6 + swarm.disk_latency * 6 + Duration::from_millis(2);
        trip * u32::try_from(trips).unwrap_or(u32::MAX) + self.receiving_images()
    }

    /// How long an image takes on its way to a node, in pieces as large as all limits allow; and once more, for a newer one may take its
    /// place. Whoever asks a node that is not there any more notices it, and so does one that asks for an image that is gone. What is lost,
    /// for the leader may be one of those that do not work, is missed after an election timeout.
    fn receiving_images(&self) -> Duration {
        let (swarm, config) = (&self.world.swarm, &self.world.swarm.config);
        let longest =
            self.world.cluster.nodes.values().filter_map(|node| node.images.published().map(|image| image.len));
        let Some(longest) = longest.max() else { return Duration::ZERO };
        let parts = longest.div_ceil(config.snapshot_chunk_bytes.min(config.snapshot_window_bytes)) + 4;
        let trip = swarm.latency * 4 + Duration::from_millis(2);
        let lost = u32::try_from(parts * 2 * swarm.weather.drop / 100).unwrap_or(u32::MAX);
        config.election_timeout * (8 + lost) + trip * u32::try_from(parts * 2).unwrap_or(u32::MAX)
    }

    fn agreement(&mut self) -> Result<(), String> {
        let statuses = self.statuses();
        let leaders: Vec<_> = statuses.iter().filter(|status| status.role == RoleKind::Leader).collect();
        let [leader] = leaders[..] else {
            return Err(format!("agreement: after the healing these lead: {leaders:?}"));
        };
        if let Some(to) = leader.transferring_to {
            return Err(format!("agreement: {} hands over to {to}", leader.id));
        }
        if let Some(fitter) = fitter(&statuses, leader) {
            return Err(format!("preferences: {leader:?} leads, and {fitter:?} should"));
        }
        for status in &statuses {
            let same = status.term == leader.term && status.leader == Some(leader.id) && status.last == leader.last;
            if !same || status.applied != leader.last.index || status.stored != leader.last.index {
                return Err(format!("agreement: after the healing {status:?} differs from {leader:?}"));
            }
        }
        if let Some(peer) = leader.peers.iter().find(|peer| peer.inflight > 0 || peer.matched != leader.last.index) {
            return Err(format!("agreement: after the healing {peer:?} is behind {leader:?}"));
        }
        for node in self.world.cluster.nodes.values() {
            let clients = &node.clients;
            if !clients.reads.is_empty() || !clients.readable.is_empty() {
                return Err(format!("hanging: reads at {}: {clients:?}", node.id));
            }
            if !clients.asked.is_empty() || !clients.appended.is_empty() {
                return Err(format!("hanging: writes at {}: {clients:?}", node.id));
            }
        }
        if leader.commit == Index::ZERO {
            return Err("agreement: nothing is committed".into());
        }
        Ok(())
    }
}

/// A voter that should lead rather than the one that does: leadership is about to be handed over.
pub(super) fn fitter<'a>(statuses: &'a [Status], leader: &Status) -> Option<&'a Status> {
    let votes = |id| leader.configuration.as_ref().is_some_and(|found| found.membership.is_voter(id));
    let fits = |status: &&Status| status.priority > leader.priority || !leader.may_lead;
    statuses.iter().filter(|status| status.may_lead && votes(status.id)).find(fits)
}

/// How many round trips it takes at most to bring a log to a node that has nothing of it.
fn trips(disk: &Disk, limit: u64) -> u64 {
    let entries = disk.entries.as_slice();
    let terms = entries.iter().zip(entries.iter().skip(1)).filter(|(one, next)| one.id.term != next.id.term).count();
    (pieces(entries, limit) + terms as u64).min(disk.last().index.0)
}

/// How many messages or writes of so many bytes these entries fill: a larger entry passes alone.
fn pieces(entries: &[Entry], limit: u64) -> u64 {
    let (mut pieces, mut filled) = (0, u64::MAX);
    for cost in entries.iter().map(Entry::cost) {
        filled = filled.saturating_add(cost);
        if filled > limit {
            (pieces, filled) = (pieces + 1, cost);
        }
    }
    pieces
}

pub(super) fn bound(config: &Config) -> u32 {
    if config.pre_vote && config.check_quorum { BOUND } else { BOUND_WHEN_DISTURBED }
}
