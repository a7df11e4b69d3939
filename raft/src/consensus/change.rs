//! How the leader changes the configuration (paper §6, thesis §4).
//!
//! One change at a time: the configuration in force must be committed, and so must an entry of the leader's own term (the note of
//! July 2015 to raft-dev). New voters get the log as learners first, until they have caught up (thesis §4.2.1). Where the voters then differ
//! by one at most, any majority of the new ones meets any of the old ones, and one entry does it (thesis §4.1). Else a joint configuration
//! comes between, in which both halves must agree. Whoever leads when it is committed ends it.

use std::collections::{BTreeMap, BTreeSet};

use super::Consensus;
use super::io::{RefusedReason, Reply, Time};
use super::quorum;
use super::role::Role;
use crate::change::{Change, ChangeRefused};
use crate::message::{Body, ChangeOutcome, RequestId};
use crate::metrics::{ChangeStatus, ConfigurationStatus};
use crate::mutant;
use crate::types::{Index, Membership, NodeId};

/// Changes passed on to this term's leader that it has not answered.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct PassedOn(BTreeSet<RequestId>);

/// The change that this leader is making.
#[derive(Clone, Debug)]
pub(crate) struct Changing {
    pub(super) asker: Asker,
    /// What is to be reached.
    pub(super) target: Membership,
    /// The voters to be, until they have caught up.
    pub(super) catching_up: BTreeMap<NodeId, Round>,
    /// When those must have caught up.
    pub(super) until: Time,
    /// Whether anything of it is in the log.
    pub(super) appended: bool,
    /// Whether all that is left is to commit what is in the log.
    pub(super) decided: bool,
}

/// Who waits for it: a local client, or one at a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asker {
    pub(super) follower: Option<NodeId>,
    pub(super) request: RequestId,
}

/// A new voter gets the log in rounds: each brings what came during the one before (thesis §4.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// The end of the log when the round began.
    pub(super) upto: Index,
    pub(super) since: Time,
    /// Whether a round was over within an election timeout: then it lacks no more than what comes in such a time.
    pub(super) caught_up: bool,
}

impl Consensus {
    /// Somebody here wants the configuration to change.
    pub(crate) fn change(&mut self, now: Time, request: RequestId, change: Change) {
        match (&self.role, self.reachable_leader()) {
            (Role::Leader(_), _) => self.begin_change(now, Asker { follower: None, request }, &change),
            (Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_), Some(leader)) => {
                self.passed_on.0.insert(request);
                if self.passed_on.0.len() > self.config.max_pending_requests {
                    let oldest = self.passed_on.0.pop_first();
                    self.out.replies.extend(oldest.map(|request| Reply::Unknown { request }));
                }
                self.send(leader, Body::Change { request, change });
            }
            (Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_), None) => {
                let reason = RefusedReason::NotLeader { leader: None };
                self.out.replies.push(Reply::Refused { request, reason });
            }
        }
    }

    /// A follower passes a change on. One that came before is not answered again.
    pub(crate) fn on_change(&mut self, now: Time, from: NodeId, request: RequestId, change: &Change) {
        if self.leaves_unanswered(from, request) {
            return self.ignored(from, "Change", "it came before, or too many that are no members ask");
        }
        let leader = match &mut self.role {
            Role::Leader(leader) if leader.peers.contains_key(&from) => leader,
            // Whoever voted for itself may have led this term, and have taken this very change before it came again.
            Role::Follower(_) | Role::PreCandidate(_) if self.hard_state.voted_for == Some(self.id) => {
                return self.ignored(from, "Change", "this node may have led the term, and leads no more");
            }
            Role::Leader(_) | Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                return self.send(from, Body::ChangeReply { request, outcome: ChangeOutcome::NotLeader });
            }
        };
        if !leader.seen.insert_change(from, request, self.config.max_pending_requests) {
            return self.ignored(from, "Change", "it came before");
        }
        self.begin_change(now, Asker { follower: Some(from), request }, change);
    }

    pub(crate) fn on_change_reply(&mut self, from: NodeId, request: RequestId, outcome: ChangeOutcome) {
        if !self.passed_on.0.remove(&request) {
            return self.ignored(from, "ChangeReply", "nothing waits for it");
        }
        self.answer_change(Asker { follower: None, request }, outcome);
    }

    /// The term moved on: whether its leader made the changes that were passed on is not to be known any more.
    pub(crate) fn give_up_passed_on(&mut self) {
        let passed_on = std::mem::take(&mut self.passed_on.0);
        self.out.replies.extend(passed_on.into_iter().map(|request| Reply::Unknown { request }));
    }

    fn answer_change(&mut self, asker: Asker, outcome: ChangeOutcome) {
        let request = asker.request;
        if let Some(follower) = asker.follower {
            return self.send(follower, Body::ChangeReply { request, outcome });
        }
        self.out.replies.push(match outcome {
            ChangeOutcome::Done { id } => Reply::Changed { request, outcome: Ok(id) },
            ChangeOutcome::Refused(refused) => Reply::Changed { request, outcome: Err(refused) },
            ChangeOutcome::NotLeader => {
                Reply::Refused { request, reason: RefusedReason::NotLeader { leader: self.leader() } }
            }
            ChangeOutcome::Unknown => Reply::Unknown { request },
        });
    }

    /// A leader is to change the configuration: it does, or says why not.
    fn begin_change(&mut self, now: Time, asker: Asker, change: &Change) {
        let target = match self.check_change(change) {
            Ok(target) => target,
            Err(refused) => return self.answer_change(asker, ChangeOutcome::Refused(refused)),
        };
        let Some(mut learning) = self.membership().cloned() else { return };
        let round = Round { upto: self.log.last().index, since: now, caught_up: false };
        let new_voters = target.voters.values().filter(|peer| !learning.voters.contains_key(&peer.id));
        let catching_up: BTreeMap<_, _> = new_voters.map(|peer| (peer.id, round.clone())).collect();
        let strangers: Vec<_> = catching_up
            .keys()
            .filter(|id| !learning.contains(**id))
            .filter_map(|id| target.get(*id).cloned())
            .collect();
        let appended = !strangers.is_empty();
        learning.learners.extend(strangers.into_iter().map(|peer| (peer.id, peer)));
        let until = now.plus(self.config.catch_up_timeout);
        if let Role::Leader(leader) = &mut self.role {
            leader.change = Some(Changing { asker, target, catching_up, until, appended, decided: false });
        }
        if appended {
            self.append_configuration(now, &learning);
        }
    }

    /// What the change makes of the configuration in force, if it may be changed now.
    fn check_change(&self, change: &Change) -> Result<Membership, ChangeRefused> {
        let (Role::Leader(leader), Some((at, current))) = (&self.role, self.configurations.latest()) else {
            return Err(ChangeRefused::NotReady);
        };
        if self.commit < leader.opened && !mutant!("change-before-the-term-is-open") {
            return Err(ChangeRefused::NotReady);
        }
        let unfinished = leader.change.is_some() || at.index > self.commit || current.is_joint();
        if unfinished && !mutant!("second-change-before-the-first-is-committed") {
            return Err(ChangeRefused::InProgress { at });
        }
        if change.expected.is_some_and(|expected| expected != at) && !mutant!("expected-configuration-ignored") {
            return Err(ChangeRefused::Mismatch { actual: at });
        }
        change.apply(current, self.config.max_members)
    }

    /// Takes the next step of a change, once the configuration in force is committed.
    pub(crate) fn advance_change(&mut self, now: Time) {
        self.refuse_late(now);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some((at, current)) = self.configurations.latest() else { return };
        if at.index > self.commit || self.commit < leader.opened {
            return;
        }
        if current.is_joint() && !mutant!("joint-configuration-is-not-left") {
            let next = Membership { outgoing: BTreeMap::new(), ..current.clone() };
            return self.append_configuration(now, &next);
        }
        let Some(change) = &mut leader.change else { return };
        if change.decided {
            let asker = change.asker;
            leader.change = None;
            return self.answer_change(asker, ChangeOutcome::Done { id: at });
        }
        let (last, timeout) = (self.log.last().index, self.config.election_timeout);
        for (id, round) in &mut change.catching_up {
            round.advance(now, leader.peers.get(id).map_or(Index::ZERO, |progress| progress.matched), last, timeout);
        }
        if change.catching_up.values().all(|round| round.caught_up) || mutant!("promoted-before-it-caught-up") {
            self.decide_change(now);
        }
    }

    /// Gives a change up whose voters to be have not caught up in time.
    fn refuse_late(&mut self, now: Time) {
        let last = self.log.last().index;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(change) = leader.change.take_if(|change| !change.decided && now >= change.until) else { return };
        let late = change.catching_up.iter().find(|(_, round)| !round.caught_up).map(|(id, _)| *id);
        let matched = |id| leader.peers.get(&id).map_or(Index::ZERO, |progress| progress.matched);
        let outcome = match late {
            Some(id) => ChangeOutcome::Refused(ChangeRefused::NotCaughtUp { id, matched: matched(id), last }),
            // The learners themselves are not committed in all this time.
            None => ChangeOutcome::Unknown,
        };
        self.answer_change(change.asker, outcome);
    }

    /// All that were to catch up have: the voters change.
    fn decide_change(&mut self, now: Time) {
        let (Role::Leader(leader), Some(current)) = (&self.role, self.configurations.current()) else { return };
        let Some(Changing { asker, target, .. }) = leader.change.clone() else { return };
        if let Some(silent) = self.unreachable(now, &target) {
            if let Role::Leader(leader) = &mut self.role {
                leader.change = None;
            }
            return self.answer_change(asker, ChangeOutcome::Refused(ChangeRefused::Unreachable { silent }));
        }
        let (old, new) = (&current.voters, &target.voters);
        let differ = old.keys().filter(|id| !new.contains_key(id)).count()
            + new.keys().filter(|id| !old.contains_key(id)).count();
        let next = if differ > 1 && !mutant!("no-joint-configuration") {
            // One address for each node, in both halves: the new one.
            let outgoing = old.iter().map(|(id, peer)| (*id, target.get(*id).unwrap_or(peer).clone())).collect();
            Membership { outgoing, ..target }
        } else {
            target
        };
        if let Role::Leader(leader) = &mut self.role
            && let Some(change) = &mut leader.change
        {
            change.catching_up.clear();
            (change.appended, change.decided) = (true, true);
        }
        self.append_configuration(now, &next);
    }

    /// Who of the voters to be was not heard for an election timeout, if those heard are no majority.
    fn unreachable(&self, now: Time, target: &Membership) -> Option<Vec<NodeId>> {
        let Role::Leader(leader) = &self.role else { return None };
        let lively = |id: NodeId| {
            let heard = leader.peers.get(&id).and_then(|progress| progress.heard);
            id == self.id || heard.is_some_and(|heard| now.since(heard) < self.config.election_timeout)
        };
        let silent = || target.voters.keys().copied().filter(|id| !lively(*id)).collect();
        (quorum::reached(target, lively) != Some(true)).then(silent)
    }

    /// Leadership is lost: a change that nothing is in the log of was not made; what becomes of another is for others to say.
    pub(crate) fn abandon_change(&mut self, change: Option<Changing>) {
        if let Some(Changing { asker, appended, .. }) = change {
            self.answer_change(asker, if appended { ChangeOutcome::Unknown } else { ChangeOutcome::NotLeader });
        }
    }

    /// A leader that its committed configuration does not let vote steps down (paper §6). It hands over to a voter that has all of its log,
    /// so that nobody waits for an election timeout (thesis §4.2.2).
    pub(crate) fn retire_if_removed(&mut self, now: Time) {
        let (Role::Leader(leader), Some((at, current))) = (&self.role, self.configurations.latest()) else { return };
        let removed = at.index <= self.commit && leader.change.is_none() && !current.is_voter(self.id);
        if removed && !mutant!("removed-leader-stays") {
            let last = self.log.last().index;
            let complete = |id: &NodeId| leader.peers.get(id).is_some_and(|progress| progress.matched == last);
            if let Some(to) = self.successor(now).filter(complete) {
                self.send(to, Body::TimeoutNow);
            }
            let follower = Role::Follower(self.fresh_follower());
            self.transition(now, follower, "the configuration does not let it vote any more");
        }
    }

    /// The configuration in force, for those who ask.
    pub(crate) fn configuration_status(&self) -> Option<ConfigurationStatus> {
        let (id, membership) = self.configurations.latest()?;
        Some(ConfigurationStatus { id, committed: id.index <= self.commit, membership: membership.clone() })
    }

    /// How far the change under way is.
    pub(crate) fn change_status(&self, now: Time) -> Option<ChangeStatus> {
        let Role::Leader(leader) = &self.role else { return None };
        let change = leader.change.as_ref()?;
        let waiting = change.catching_up.iter().filter(|(_, round)| !round.caught_up).map(|(id, _)| *id).collect();
        let left = (!change.decided).then(|| change.until.since(now));
        Some(ChangeStatus { target: change.target.clone(), catching_up: waiting, left })
    }
}

impl Round {
    fn advance(&mut self, now: Time, matched: Index, last: Index, timeout: std::time::Duration) {
        if self.caught_up || matched < self.upto {
            return;
        }
        if now.since(self.since) < timeout || matched >= last {
            self.caught_up = true;
        } else {
            (self.upto, self.since) = (last, now);
        }
    }
}
