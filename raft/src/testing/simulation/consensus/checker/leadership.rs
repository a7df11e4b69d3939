//! A live leader is disturbed by nobody, and gives up or hands over for a reason only.

use super::{Checker, Nodes};
use crate::consensus::Time;
use crate::testing::simulation::consensus::cluster::Node;
use crate::types::{NodeId, Term};

/// Why a leader with a stuck state machine hands over.
pub(super) const STUCK: &str = "the state machine here gets nothing done";

impl Checker {
    /// How often leaders handed over by their own wish.
    pub(crate) fn yields(&self) -> u64 {
        self.yields
    }

    /// A leader gives leadership up for its state machine, which must have got nothing done for long.
    pub(super) fn gives_up_stuck(&mut self, node: &Node) {
        let idle_for = node.idle_for();
        if self.limits.as_ref().is_some_and(|config| idle_for < config.stall_timeout) {
            let id = node.id;
            self.dropped =
                Some(format!("live leaders: {id} gives up for its state machine, which got on {idle_for:?} ago"));
        }
    }

    /// A leader hands over by its own wish: not before it has seen for a while who is fit, and not again soon after one failed.
    pub(super) fn yielded(&mut self, node: &Node, to: NodeId, for_priority: bool) {
        self.yields += 1;
        let Some(config) = &self.limits else { return };
        let led_for = self.leading_since.get(&node.id).map(|(_, since)| node.now.since(*since));
        let failed_for = self.failed_at.get(&node.id).map(|failed| node.now.since(*failed));
        let too_soon = |time: Option<std::time::Duration>| time.is_some_and(|time| time < config.priority_settle);
        if (for_priority && too_soon(led_for)) || too_soon(failed_for) {
            self.dropped = Some(format!(
                "preferences: {} hands over to {to} {led_for:?} after its election, {failed_for:?} after one that failed",
                node.id
            ));
        }
    }

    /// A node took a leader's message of this term in, or one that is of no use.
    pub(crate) fn heard(&mut self, id: NodeId, heard: Option<(Term, Time)>) {
        if let Some(heard) = heard {
            self.heard.insert(id, heard);
        }
    }

    /// A message reached a node that is in its term.
    pub(crate) fn reached(&mut self, id: NodeId, from: NodeId, term: Term, now: Time) {
        self.attention.hears(id, from, term, now);
    }

    /// A node is about to hear that its connection with another was lost: from now on it may doubt that its leader lives.
    pub(crate) fn lost(&mut self, id: NodeId, peer: NodeId) {
        self.heard.retain(|node, (term, _)| *node != id || self.terms.leader(*term) != Some(peer));
    }

    /// Whether a node hears a live leader of this term.
    pub(super) fn hears(&self, id: NodeId, term: Term, now: Time) -> bool {
        let Some(config) = &self.limits else { return false };
        let recent = |(of, at): &(Term, Time)| *of == term && now.since(*at) < config.election_timeout;
        self.heard.get(&id).is_some_and(recent)
    }

    /// A poll is about to reach a node.
    pub(crate) fn polled(&mut self, id: NodeId, from: NodeId, proposed: Term, term: Term, now: Time) {
        if self.limits.is_some() && !self.hears(id, term, now) {
            self.polls.insert((id, from, proposed));
        }
    }

    /// A campaign came to a node, which was in a term before and is in one now: a live leader is not disturbed (thesis §4.2.3, §9.6).
    pub(crate) fn campaigned(&self, id: NodeId, before: Term, after: Term, now: Time) -> Result<(), String> {
        let ignores = self.limits.as_ref().is_some_and(|config| config.check_quorum);
        if after > before && ignores && self.hears(id, before, now) {
            return Err(format!("disturbance: {id} hears the leader of {before}, and a campaign takes it to {after}"));
        }
        Ok(())
    }

    /// A successor has all of the leader's log.
    pub(super) fn hands_over(&mut self, nodes: &Nodes, from: NodeId, to: NodeId, term: Term) -> Result<(), String> {
        self.successors.insert((to, term));
        let Some(core) = &nodes[&from].core else { return Ok(()) };
        let last = core.status(nodes[&from].now).last;
        // Another leader may have overwritten it in a later term, in which this one's word means nothing.
        if nodes.get(&to).is_some_and(|node| node.disk.hard_state.term > term) {
            return Ok(());
        }
        match nodes.get(&to).is_some_and(|node| node.held(last)) || self.limits.is_none() {
            true => Ok(()),
            false => Err(format!("transfer: {from} hands over to {to}, which does not hold {last}")),
        }
    }
}
