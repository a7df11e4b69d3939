//! How a leader makes itself known, confirms that it leads, and gives up when no quorum hears it (thesis §6.2).

use std::time::Duration;

use super::Consensus;
use super::io::Time;
use super::quorum;
use super::role::{Leader, Role};
use crate::config::Config;
use crate::message::{Body, Message};
use crate::mutant;
use crate::types::{Index, NodeId};

impl Consensus {
    /// The heartbeat interval is over.
    pub(crate) fn heartbeat(&mut self, now: Time) {
        let why = if self.lost_quorum(now) {
            Some("it heard no quorum for an election timeout")
        } else if self.disk_stalls(now) {
            Some("its disk does not get a write done")
        } else if self.machine_stalls(now) && !self.hands_over_stalled(now) {
            Some("its state machine gets nothing done")
        } else {
            None
        };
        if let Some(why) = why {
            if mutant!("step-down-forgets-vote") {
                self.hard_state.voted_for = None;
            }
            return self.transition(now, Role::Follower(self.fresh_follower()), why);
        }
        self.part_with_removed(now);
        self.yield_leadership(now);
        self.hand_over_again();
        if let Role::Leader(leader) = &mut self.role {
            let interval = self.config.heartbeat_interval;
            leader.heartbeat_due = now.plus(interval);
            leader.hurry_due = leader.hurry_due.map(|due| due.max(now.plus(pause(interval))));
        }
        let lease = self.lease_length();
        self.heartbeat_round(now, lease);
        self.ask_for_promises(now);
    }

    /// Begins a round of heartbeats to all. `lease` is for how long they ask to be followed.
    pub(crate) fn heartbeat_round(&mut self, now: Time, lease: Duration) {
        let term = self.hard_state.term;
        let Role::Leader(leader) = &mut self.role else { return };
        let lacking: Vec<_> =
            leader.peers.iter().filter(|(_, progress)| progress.awaits_image()).map(|(id, _)| *id).collect();
        leader.round += 1;
        for (id, progress) in &mut leader.peers {
            // Never beyond what is known to match: the follower's log may differ there.
            let known = if mutant!("heartbeat-commit-past-the-match") { self.commit } else { progress.matched };
            let commit = self.commit.min(known);
            progress.commit_told = progress.commit_told.max(commit);
            if let Some(leaving) = leader.leaving.get_mut(id).filter(|leaving| commit >= leaving.at) {
                leaving.told.get_or_insert(leader.round);
            }
            if mutant!("told-taken-for-heard") {
                progress.heard = Some(now);
            }
            self.out.send.push((*id, Message { term, body: Body::Heartbeat { commit, round: leader.round, lease } }));
        }
        lacking.into_iter().for_each(|id| self.offer(id));
    }

    /// Whether no majority was heard within the last election timeout.
    fn lost_quorum(&self, now: Time) -> bool {
        let (Role::Leader(leader), Some(membership)) = (&self.role, self.membership()) else { return false };
        if !self.config.check_quorum || mutant!("stale-leader-stays") {
            return false;
        }
        let heard = |id: NodeId| {
            if id == self.id {
                return now;
            }
            leader.peers.get(&id).and_then(|progress| progress.heard).unwrap_or(leader.since)
        };
        let quorum_heard = quorum::reached(membership, heard);
        quorum_heard.is_some_and(|heard| now.since(heard) >= self.config.election_timeout)
    }

    pub(crate) fn on_heartbeat(&mut self, now: Time, from: NodeId, commit: Index, round: u64, lease: Duration) {
        if !self.hear_leader(now, from, "Heartbeat") {
            return;
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.heartbeat = Some(now);
        }
        self.follow_commit(commit);
        self.ask_again(now);
        let lease = self.promise(now, lease);
        self.answer_heartbeat(now, from, round, lease);
    }

    /// Tells the leader that it was heard, where this node stands, and what it promises.
    pub(crate) fn answer_heartbeat(&mut self, now: Time, from: NodeId, round: u64, lease: Duration) {
        let (hard_state_is_stored, priority) = (self.durability.hard_state_is_stored(), self.would_lead(now));
        let Role::Follower(follower) = &mut self.role else { return };
        let matching = follower.matching;
        // Whoever has not this term on disk yet has nothing to acknowledge in it.
        let stored = if hard_state_is_stored { matching.min(self.log.stored()) } else { Index::ZERO };
        follower.acked = follower.acked.max(stored);
        self.send(from, Body::HeartbeatReply { round, matching, stored, priority, lease });
    }

    pub(crate) fn on_heartbeat_reply(
        &mut self,
        now: Time,
        from: NodeId,
        round: u64,
        matching: Index,
        stored: Index,
        priority: Option<u32>,
    ) {
        let last = self.log.last().index;
        let Role::Leader(leader) = &mut self.role else {
            return self.ignored(from, "HeartbeatReply", "this node does not lead");
        };
        if matching > last || stored > matching || round > leader.round {
            let why = format!(
                "it answers round {round} of {}, {matching} matches and {stored} is stored, and the log ends at {last}",
                leader.round
            );
            return self.violation(from, "HeartbeatReply", why);
        }
        let Some(progress) = leader.peers.get_mut(&from) else {
            return self.ignored(from, "HeartbeatReply", "it is not from a member");
        };
        let silent_for = now.since(progress.heard.unwrap_or(leader.since));
        progress.heard = Some(now);
        progress.round = progress.round.max(round);
        (progress.refuses, progress.priority) = (priority.is_none(), priority.unwrap_or(progress.priority));
        self.commit_due |= progress.note_stored(stored);
        if silent_for >= self.config.election_timeout {
            progress.send_again(now, matching);
        } else {
            progress.notice_lost_appends(now, matching, self.config.election_timeout);
        }
        if priority.is_none() {
            self.on_unwilling(now, from);
        }
    }

    /// Speaks once more, to peers whose connections were lost a moment ago. No round begins: what is asked in rounds is asked at its own pace.
    pub(crate) fn hurry(&mut self, now: Time) {
        let term = self.hard_state.term;
        let interval = self.config.heartbeat_interval;
        let Role::Leader(leader) = &mut self.role else { return };
        leader.hurry_due = None;
        for (id, progress) in &mut leader.peers {
            if !progress.is_hurried(now, interval) {
                continue;
            }
            leader.hurry_due = Some(now.plus(pause(interval)));
            let commit = self.commit.min(progress.matched);
            progress.commit_told = progress.commit_told.max(commit);
            let body = Body::Heartbeat { commit, round: leader.round, lease: Duration::ZERO };
            self.out.send.push((*id, Message { term, body }));
        }
    }
}

impl Leader {
    /// The connection with a peer that was there was lost. Whoever lost this leader polls soon, and what is sent before there is another connection does not arrive: so
    /// it speaks to that peer more often for an interval.
    pub(crate) fn on_peer_lost(&mut self, now: Time, peer: NodeId, config: &Config) {
        let Some(progress) = self.peers.get_mut(&peer) else { return };
        let heard = progress.heard.is_some_and(|heard| now.since(heard) < config.election_timeout);
        // It may be told of each attempt at one of two connections, and is not put off by that.
        let hurries = progress.lost.is_some_and(|lost| now.since(lost) < config.heartbeat_interval);
        if heard && !hurries {
            progress.lost = Some(now);
            let due = now.plus(pause(config.heartbeat_interval));
            self.hurry_due = Some(self.hurry_due.map_or(due, |earlier| earlier.min(due)));
        }
    }
}

/// Between two words of a leader that hurries.
fn pause(interval: Duration) -> Duration {
    (interval / 4).max(Duration::from_nanos(1))
}
