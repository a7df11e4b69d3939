//! An election, in the order in which it happens (paper §5.2, §5.4.1; thesis §9.6 for the poll before it).
//!
//! A follower hears no leader for its election timeout. It first asks whether it would be elected, without any harm
//! done ([`Consensus::campaign`], `on_pre_vote`, `on_pre_vote_reply`). If a majority would, it opens a term, votes for itself and
//! asks in earnest (`stand`, `on_vote`, `on_vote_reply`); with the votes of a majority it leads (`win_if_elected`).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::Consensus;
use super::backlog::Backlog;
use super::forward::SeenForwards;
use super::io::{Note, Time};
use super::lease::Lease;
use super::preference::Yielding;
use super::progress::Progress;
use super::quorum;
use super::read::Reads;
use super::role::{Campaign, Follower, Leader, Role, RoleKind};
use crate::message::{Body, Message};
use crate::mutant;
use crate::traits::HardState;
use crate::types::{EntryKind, Index, LogId, Membership, NodeId, Term};

impl Consensus {
    /// Draws a new election timeout from now. Each draw is independent, so that split votes do not repeat (paper §5.2).
    pub(crate) fn reset_election_timer(&mut self, now: Time) {
        self.election_due = now.plus(self.random.once_to_twice(self.config.election_timeout));
    }

    /// Only a voter campaigns, and one that is none any more until that is committed: it may be needed until then, although it does not
    /// count itself (thesis §4.2.2).
    pub(crate) fn may_campaign(&self) -> bool {
        self.configurations.all().any(|membership| membership.is_voter(self.id)) || mutant!("removed-node-campaigns")
    }

    /// Whether a live leader is there, so that campaigns of others are only a disturbance (thesis §4.2.3, §6.2).
    pub(crate) fn hears_leader(&self, now: Time) -> bool {
        match &self.role {
            Role::Leader(_) => true,
            Role::Follower(follower) => {
                follower.leader.is_some()
                    && !follower.suspect
                    && follower.heard.is_some_and(|heard| now.since(heard) < self.config.election_timeout)
            }
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        }
    }

    /// The transport lost a peer. If that is the leader, it may be dead. A leader that lives speaks once a heartbeat interval, and takes the suspicion
    /// away; one that does not speak when it should is missed then, not at the election timeout.
    ///
    /// Suspicion is each node's own. Others answer the poll as they see the leader themselves, so that a connection lost here alone disturbs
    /// nobody.
    pub(crate) fn on_peer_lost(&mut self, now: Time, peer: NodeId) {
        if let Role::Leader(leader) = &mut self.role {
            return leader.on_peer_lost(now, peer, &self.config);
        }
        let Role::Follower(follower) = &mut self.role else { return };
        let leader = follower.leader == Some(peer) || mutant!("any-lost-peer-is-the-leader");
        if !leader || follower.suspect {
            return;
        }
        follower.suspect = true;
        if mutant!("suspicion-breaks-the-promise") {
            self.bound_until = now;
        }
        let interval = self.config.heartbeat_interval;
        let spoken = follower.heartbeat.unwrap_or(now).plus(interval);
        // The others may be told later, and the leader has to connect again before it is heard. Nor would anybody be elected before the promises are
        // over that all gave.
        let told = now.max(self.bound_until).plus(self.turn());
        self.election_due = self.election_due.min(self.turn_after(spoken.max(told), peer));
        self.out.notes.push(Note::Suspect { leader: peer });
    }

    /// When this node is to poll of those that all wait for the same moment. They take turns, by the order of their ids: with delays that are only drawn
    /// at random they would wait longer, or poll at once.
    fn turn_after(&mut self, moment: Time, leader: NodeId) -> Time {
        let voters: BTreeSet<NodeId> = self.membership().into_iter().flat_map(Membership::all_voters).collect();
        let before = voters.range(..self.id).filter(|id| **id != leader).count();
        // Of many that are down some are waited for, and then the timeouts are near.
        let turn = if mutant!("turns-are-one") { 0 } else { u32::try_from(before).unwrap_or(u32::MAX).min(5) };
        moment.plus(self.turn().saturating_mul(turn)).plus(self.random.once_to_twice(self.turn() / 4))
    }

    /// How long one takes. A poll and a vote take round trips, however often a leader speaks.
    fn turn(&self) -> Duration {
        (self.config.heartbeat_interval / 2).max(self.config.election_timeout / 6)
    }

    /// No leader was heard for an election timeout.
    pub(crate) fn on_election_timeout(&mut self, now: Time) {
        // A node whose disk takes longer than this to store its vote would open term after term in vain.
        let voting = self.role.kind() == RoleKind::Candidate && !self.durability.hard_state_is_stored();
        if voting {
            return self.reset_election_timer(now);
        }
        if self.is_kept_from_leading() || self.stall(now).is_some() {
            self.stand_back(now);
            return self.reset_election_timer(now);
        }
        if self.is_bound(now) {
            return self.reset_election_timer(now);
        }
        let suspects = matches!(&self.role, Role::Follower(follower) if follower.suspect);
        let why = if suspects {
            "the connection with its leader was lost"
        } else {
            "no leader was heard for an election timeout"
        };
        self.campaign(now, why);
    }

    /// An operator wants this node to lead. Not against a live leader, or one that may count on this node.
    pub(crate) fn on_campaign_asked(&mut self, now: Time) {
        if self.is_kept_from_leading() {
            return self.ignored(self.id, "Campaign", "this node is kept from leading");
        }
        if let Some(why) = self.stall(now) {
            return self.ignored(self.id, "Campaign", why);
        }
        if self.hears_leader(now) {
            self.ignored(self.id, "Campaign", "a live leader is heard");
        } else if self.is_bound(now) {
            self.ignored(self.id, "Campaign", "this node may have promised to stay out of elections for a while");
        } else {
            self.campaign(now, "an operator asked for it");
        }
    }

    /// Begins to campaign, unless this node leads already or may not.
    fn campaign(&mut self, now: Time, why: &'static str) {
        if self.role.kind() == RoleKind::Leader || !self.may_campaign() {
            return;
        }
        if !self.config.pre_vote || self.is_elected_by(&[self.id]) {
            return self.stand(now, why, false);
        }
        let campaign = Campaign { granted: [self.id].into(), ..Campaign::default() };
        self.transition(now, Role::PreCandidate(campaign), why);
        self.broadcast(&Body::PreVote { proposed: self.hard_state.term.next(), last: self.log.last() });
    }

    /// Answers a poll. Nothing changes here, whatever the answer.
    pub(crate) fn on_pre_vote(&mut self, now: Time, from: NodeId, proposed: Term, last: LogId) {
        // Polls of a later term were turned away in `disturbs` by the same rule.
        if self.hears_leader(now) && !mutant!("poll-granted-against-a-live-leader") {
            return self.ignored(from, "PreVote", "a live leader is heard");
        }
        if self.is_bound(now) {
            return self.ignored(from, "PreVote", "this node promised to stay out of elections");
        }
        let granted = proposed > self.hard_state.term && last >= self.log.last();
        self.send(from, Body::PreVoteReply { proposed, granted });
    }

    pub(crate) fn on_pre_vote_reply(&mut self, now: Time, from: NodeId, proposed: Term, granted: bool) {
        let current = proposed == self.hard_state.term.next();
        let Role::PreCandidate(campaign) = &mut self.role else {
            return self.ignored(from, "PreVoteReply", "the poll is over");
        };
        if !current {
            return self.ignored(from, "PreVoteReply", "it answers another poll");
        }
        campaign.record(from, granted);
        let campaign = campaign.clone();
        if self.is_elected_by(&campaign.granted) {
            if self.stall(now).is_some() {
                return self.stand_back(now);
            }
            self.stand(now, "a majority would elect it", false);
        } else if self.is_refused_by(&campaign.refused) {
            self.transition(now, Role::Follower(self.fresh_follower()), "a majority would not elect it");
        }
    }

    /// Opens a term and asks for votes. The requests leave when the vote for itself, and all of the log they speak of, are on
    /// disk: otherwise votes given to a candidate that then crashed could be counted for one with a shorter log.
    /// `transfer` tells whether the leader itself asked for it.
    pub(crate) fn stand(&mut self, now: Time, why: &'static str, transfer: bool) {
        assert!(transfer || !self.is_bound(now), "a node that promised to stay out of elections does not campaign");
        let term = self.hard_state.term.next();
        self.set_hard_state(HardState { term, voted_for: Some(self.id) });
        self.transition(now, Role::Candidate(Campaign::default()), why);
        let last = self.log.last();
        if mutant!("candidate-counts-itself-early") {
            self.durability.stored = self.durability.changes;
        }
        let transfer = transfer || mutant!("every-campaign-says-transfer");
        let others: Vec<_> =
            self.membership().into_iter().flat_map(Membership::all_voters).filter(|id| *id != self.id).collect();
        for id in others {
            self.send_when_stored(id, last.index, Message { term, body: Body::Vote { last, transfer } });
        }
    }

    /// Gives the vote of this term to the first candidate whose log is at least as up-to-date (paper §5.2, §5.4.1). Whether one of the two
    /// is a voter is for the candidate to know: its configuration may be the later one.
    pub(crate) fn on_vote(&mut self, now: Time, from: NodeId, last: LogId, transfer: bool) {
        if self.role.kind() == RoleKind::Leader || self.leader().is_some() {
            return self.ignored(from, "Vote", "the term has a leader");
        }
        // It may have come to this term by another message.
        if self.is_bound(now) && !transfer {
            return self.ignored(from, "Vote", "this node promised to stay out of elections");
        }
        if mutant!("promoted-learner-refuses-votes") && !self.may_campaign() {
            return self.send(from, Body::VoteReply { granted: false });
        }
        let free = self.hard_state.voted_for.is_none_or(|id| id == from) || mutant!("votes-twice-in-a-term");
        let behind = if mutant!("log-compared-by-index-first") {
            last.index < self.log.last().index
        } else {
            last < self.log.last() && !mutant!("votes-for-any-log")
        };
        if !free || behind {
            return self.send(from, Body::VoteReply { granted: false });
        }
        let term = self.hard_state.term;
        if self.hard_state.voted_for.is_none() {
            self.set_hard_state(HardState { term, voted_for: Some(from) });
        }
        if self.role.kind() == RoleKind::PreCandidate {
            self.transition(now, Role::Follower(self.fresh_follower()), "it gave its vote");
        }
        self.reset_election_timer(now);
        if mutant!("vote-before-durable") {
            return self.send(from, Body::VoteReply { granted: true });
        }
        self.send_when_stored(from, Index::ZERO, Message { term, body: Body::VoteReply { granted: true } });
    }

    pub(crate) fn on_vote_reply(&mut self, now: Time, from: NodeId, granted: bool) {
        let Role::Candidate(campaign) = &mut self.role else {
            return self.ignored(from, "VoteReply", "the election is over");
        };
        campaign.record(from, granted);
        let refused = campaign.refused.clone();
        if self.is_refused_by(&refused) {
            self.transition(now, Role::Follower(self.fresh_follower()), "a majority refused its vote");
        } else {
            self.win_if_elected(now);
        }
    }

    /// A candidate's own vote counts once it is on disk, with all of its log.
    pub(crate) fn on_own_vote_stored(&mut self, now: Time) {
        let stored = self.durability.hard_state_is_stored() && self.log.stored() == self.log.last().index;
        if let Role::Candidate(campaign) = &mut self.role
            && stored
        {
            campaign.granted.insert(self.id);
            self.win_if_elected(now);
        }
    }

    /// Becomes leader with the votes of a majority: assumes that all logs agree, and opens the term with an entry of its own,
    /// for only such an entry can be committed by counting (paper §5.4.2, §8).
    fn win_if_elected(&mut self, now: Time) {
        let Role::Candidate(campaign) = &self.role else { return };
        if !campaign.granted.contains(&self.id) || !self.is_elected_by(&campaign.granted) {
            return;
        }
        let last = self.log.last().index;
        let (members, leaving) = self.peers_of_new_leader(now);
        let all = members.into_iter().chain(leaving.iter().map(|(id, _)| *id));
        let leader = Leader {
            peers: all.map(|id| (id, Progress::new(now, last))).collect(),
            leaving: leaving.into_iter().collect(),
            change: None,
            opened: last.next(),
            since: now,
            clocked: None,
            uncommitted: 0,
            backlog: Backlog::default(),
            round: 0,
            heartbeat_due: now.plus(self.config.heartbeat_interval),
            hurry_due: None,
            lease: Lease::default(),
            reads: Reads::default(),
            seen: SeenForwards::default(),
            transfer: None,
            yielding: Yielding::default(),
            abdicated: false,
        };
        self.transition(now, Role::Leader(Box::new(leader)), "a majority elected it");
        self.append_own(EntryKind::Noop, Bytes::new());
        if mutant!("elected-leader-commits-its-log") {
            self.commit_to(last);
        }
    }

    /// Whether these nodes hold a majority.
    fn is_elected_by<'a>(&self, ids: impl IntoIterator<Item = &'a NodeId> + Clone) -> bool {
        self.membership().is_some_and(|membership| quorum::is_majority(membership, ids))
    }

    /// Whether no majority is left without these nodes.
    fn is_refused_by<'a>(&self, ids: impl IntoIterator<Item = &'a NodeId> + Clone) -> bool {
        self.membership().is_some_and(|membership| quorum::is_veto(membership, ids))
    }

    /// A leader of this term was heard: every other role gives way to it. Tells whether the message is to be taken.
    pub(crate) fn hear_leader(&mut self, now: Time, from: NodeId, message: &'static str) -> bool {
        match &self.role {
            Role::Follower(Follower { leader: Some(leader), .. }) if *leader != from => {
                let why = format!("{from} claims to lead {}, which {leader} leads", self.hard_state.term);
                self.violation(from, message, why);
                return false;
            }
            Role::Leader(_) => {
                let why = format!("{from} claims to lead {}, which this node leads", self.hard_state.term);
                self.violation(from, message, why);
                return false;
            }
            Role::Follower(_) => {}
            Role::PreCandidate(_) | Role::Candidate(_) => {
                self.transition(now, Role::Follower(self.fresh_follower()), "the term has a leader");
            }
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.leader = Some(from);
            follower.heard = Some(now);
            follower.suspect = mutant!("suspicion-outlives-the-leaders-word") && follower.suspect;
        }
        if !mutant!("leader-heard-does-not-reset-the-timer") {
            self.reset_election_timer(now);
        }
        self.note_leader();
        true
    }
}

impl Campaign {
    /// A yes stands, whatever arrives later.
    fn record(&mut self, from: NodeId, granted: bool) {
        if granted {
            if mutant!("repeated-vote-counts-twice") && self.granted.contains(&from) {
                self.granted.insert(NodeId(from.0 % 3 + 1));
            }
            self.refused.remove(&from);
            self.granted.insert(from);
        } else if !self.granted.contains(&from) {
            self.refused.insert(from);
        }
    }
}
