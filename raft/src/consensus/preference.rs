//! Which node should lead when it can: priorities, and nodes that are kept from leading.
//!
//! A preference, and never a rule of safety: whoever has the votes of a majority leads, and votes are given as ever.
//!
//! A priority belongs to the place where a node runs, so each node knows its own, and tells the leader with each answer to a heartbeat.
//! It is no part of the configuration: to change it takes no quorum, and what the leader was told last is at most a heartbeat old. A
//! leader hands over (thesis §3.10, `transfer.rs`) to a voter with a higher priority once that one was heard, and kept up with the
//! log, for [`Config::priority_settle`](crate::Config::priority_settle) without a break. Who fails to take over is not asked again for
//! twice as long each time, so that leadership does not move back and forth.
//!
//! A node that is kept from leading follows and votes, and never campaigns: not when it hears no leader, not when an operator
//! asks for it, and not when the leader hands over to it, who is told so. If it leads already it hands over as soon as another voter keeps up;
//! while there is none it goes on, for a cluster without a leader serves nobody. The price: where only such nodes are left of
//! those whose logs hold everything that is committed, nobody leads until one of them may again, or another comes back.

use std::time::Duration;

use super::Consensus;
use super::io::{Note, Time};
use super::progress::Progress;
use super::role::{Follower, Leader, Role, RoleKind};
use crate::config::Config;
use crate::mutant;
use crate::types::{Index, NodeId};

/// What an operator wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Preference {
    /// Among the nodes that can, the one with the highest leads.
    pub priority: u32,
    /// Whether it may lead at all.
    pub may_lead: bool,
}

/// How often the pause after a transfer that failed is doubled at most.
const MAX_DOUBLINGS: u32 = 5;

/// A leader's attempts to hand over by its own wish.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Yielding {
    /// Not before this.
    not_before: Time,
    /// How many transfers failed in this term.
    failed: u32,
    /// Where the log ended one round of heartbeats ago: whoever has this keeps up.
    keeps_up: Index,
}

impl Yielding {
    /// Whether a transfer failed in this term.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed > 0
    }

    /// A transfer has failed.
    fn failed(&mut self, now: Time, config: &Config) {
        let pause = config.priority_settle.max(config.election_timeout);
        self.not_before = now.plus(pause.saturating_mul(1 << self.failed.min(MAX_DOUBLINGS)));
        self.failed += 1;
    }
}

impl Consensus {
    /// What is wanted of this node now.
    #[must_use]
    pub fn preference(&self) -> Preference {
        self.preference
    }

    /// The operator wants something else of this node.
    pub(crate) fn prefer(&mut self, now: Time, preference: Preference) {
        self.preference = preference;
        let campaigns = matches!(self.role.kind(), RoleKind::PreCandidate | RoleKind::Candidate);
        if campaigns && !preference.may_lead && !mutant!("kept-from-leading-campaigns") {
            self.transition(now, Role::Follower(self.fresh_follower()), "it is kept from leading");
        }
    }

    /// Whether this node is kept from leading.
    pub(crate) fn is_kept_from_leading(&self) -> bool {
        !self.preference.may_lead && !mutant!("kept-from-leading-campaigns")
    }

    /// The priority with which this node would lead; none while it would not.
    pub(crate) fn would_lead(&self, now: Time) -> Option<u32> {
        let would = self.preference.may_lead && self.stall(now).is_none();
        would.then_some(self.preference.priority)
    }

    /// No leader was heard for an election timeout, and this node does not campaign, or not any more: but it knows of no leader either, so
    /// that its clients need not wait for one that may be dead.
    pub(crate) fn stand_back(&mut self, now: Time) {
        match &self.role {
            Role::Follower(Follower { leader: None, .. }) | Role::Leader(_) => {}
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                self.transition(
                    now,
                    Role::Follower(self.fresh_follower()),
                    "it heard no leader, and does not campaign",
                );
            }
        }
    }

    /// A round of heartbeats is due: hands over to a node that should lead rather than this one, if there is one.
    pub(crate) fn yield_leadership(&mut self, now: Time) {
        self.see_who_is_ready(now);
        let Role::Leader(leader) = &self.role else { return };
        // Nothing of its own term is committed yet: it has hardly begun.
        if leader.transfer.is_some() || now < leader.yielding.not_before || self.commit < leader.opened {
            return;
        }
        let Preference { priority, may_lead } = self.preference;
        let settle = if mutant!("yields-without-patience") { Duration::ZERO } else { self.config.priority_settle };
        let ready_for = |progress: &Progress| progress.ready_since.map(|since| now.since(since));
        let why = if may_lead { "its priority is higher" } else { "this node is kept from leading" };
        let fits = |progress: &Progress| match (may_lead, ready_for(progress)) {
            (_, None) => false,
            // In the middle of a change it would leave somebody without an answer, which can wait.
            (true, Some(long)) => {
                let higher =
                    progress.priority > priority || (mutant!("yields-to-equals") && progress.priority == priority);
                higher && long >= settle && leader.change.is_none()
            }
            (false, Some(_)) => !mutant!("kept-from-leading-stays"),
        };
        let fitting = leader.peers.iter().filter(|(_, progress)| fits(progress));
        let best = fitting.max_by_key(|(id, progress)| (progress.priority, progress.matched, std::cmp::Reverse(**id)));
        if let Some(to) = best.map(|(id, _)| *id) {
            self.out.notes.push(Note::Yield { to, why });
            self.begin_transfer(now, None, to);
        }
    }

    /// Which voters were heard, would lead, and have what the log held one round ago, and since when without a break.
    fn see_who_is_ready(&mut self, now: Time) {
        let last = self.log.last().index;
        let Some(membership) = self.configurations.current() else { return };
        let Role::Leader(leader) = &mut self.role else { return };
        let keeps_up = std::mem::replace(&mut leader.yielding.keeps_up, last);
        for (id, progress) in &mut leader.peers {
            let heard = progress.heard.is_some_and(|heard| now.since(heard) < self.config.election_timeout);
            let ready = heard && !progress.refuses && progress.matched >= keeps_up && membership.is_voter(*id);
            progress.ready_since = if ready { progress.ready_since.or(Some(now)) } else { None };
        }
    }

    /// A transfer was given up. Its successor must show again that it is fit.
    pub(crate) fn note_failed_transfer(&mut self, now: Time, to: NodeId) {
        if mutant!("yields-without-patience") {
            return;
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.yielding.failed(now, &self.config);
            if let Some(progress) = leader.peers.get_mut(&to) {
                progress.ready_since = None;
            }
        }
    }
}

impl Leader {
    /// The voter that needs least to lead in this one's place, and should rather than others: of those heard lately that would lead,
    /// first those that keep up, then by priority, then by their logs.
    pub(crate) fn best_successor(
        &self,
        now: Time,
        timeout: Duration,
        is_voter: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        let alive = self.peers.iter().filter(|(id, progress)| {
            is_voter(**id) && !progress.refuses && progress.heard.is_some_and(|heard| now.since(heard) < timeout)
        });
        let fitness = |(id, progress): &(&NodeId, &Progress)| {
            let keeps_up = progress.matched >= self.yielding.keeps_up;
            (keeps_up, progress.priority, progress.matched, std::cmp::Reverse(**id))
        };
        alive.max_by_key(fitness).map(|(id, _)| *id)
    }
}
