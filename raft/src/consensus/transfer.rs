//! Leadership is handed over (thesis §3.10).
//!
//! The leader takes in no more commands, brings its successor's log up to its own, and tells it to campaign at once
//! (`TimeoutNow`). The successor does so without a poll, and its requests for votes say that the leader itself wants it: voters then
//! answer although they hear a live leader. No other campaign says so.
//!
//! What clients propose meanwhile is held back, in order and within the limits on what is not committed. If the successor is
//! elected, it was never proposed, and goes to the new leader; if not within an election timeout, it is appended here.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::Consensus;
use super::forward::SeenForwards;
use super::io::{Note, RefusedReason, Reply, Time, TransferRefused, TransferStep};
use super::role::{Leader, Role};
use crate::message::{Body, ForwardOutcome, RequestId};
use crate::mutant;
use crate::types::{Entry, EntryKind, LogId, NodeId, Term};

/// A leader's attempt to hand over.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    /// Who asked for it; nobody when the leader itself wants it.
    request: Option<RequestId>,
    pub(crate) to: NodeId,
    /// When it is given up.
    pub(super) deadline: Time,
    /// Whether the successor was told to campaign.
    told: bool,
    held: VecDeque<Proposal>,
    /// What the held commands cost.
    held_bytes: u64,
}

/// Commands that are held back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Proposal {
    /// The follower that passed them on; none for a local client's.
    pub(crate) follower: Option<NodeId>,
    pub(crate) request: RequestId,
    pub(crate) kind: EntryKind,
    pub(crate) commands: Vec<Bytes>,
}

/// A request for a transfer whose leader has stepped down: answered when the next leader is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandedOver {
    pub(super) request: RequestId,
    pub(super) to: NodeId,
    pub(super) deadline: Time,
}

/// What a former leader remembers of a term that it led, to tell followers which of their batches it never took.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Retired {
    pub(super) term: Term,
    pub(super) seen: SeenForwards,
}

impl Transfer {
    /// For the limits.
    #[cfg(feature = "testing")]
    pub(crate) fn held(&self) -> (usize, u64) {
        (self.held.len(), self.held_bytes)
    }

    #[cfg(feature = "testing")]
    pub(super) fn fingerprint(&self, passed: bool, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        let Self { request, to, deadline: _, told, held, held_bytes } = self;
        (request, to, passed, told, held, held_bytes).hash(hasher);
    }
}

impl Consensus {
    /// Somebody wants another node to lead: a certain one, or whichever is most up-to-date.
    pub(crate) fn on_transfer_asked(&mut self, now: Time, request: RequestId, to: Option<NodeId>) {
        let refusal = match (&self.role, to) {
            (Role::Leader(_), Some(to)) if to == self.id => Ok(None),
            (Role::Leader(leader), _) if leader.transfer.is_some() => Err(TransferRefused::InProgress {
                to: leader.transfer.as_ref().map_or(self.id, |transfer| transfer.to),
            }),
            (Role::Leader(_), Some(to)) => self.check_successor(to).map(|()| Some(to)),
            (Role::Leader(_), None) => self.successor(now).map(Some).ok_or(TransferRefused::NoSuccessor),
            (Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_), _) => {
                Err(TransferRefused::NotLeader { leader: self.leader() })
            }
        };
        match refusal {
            Ok(Some(to)) => self.begin_transfer(now, Some(request), to),
            Ok(None) => self.out.replies.push(Reply::Transferred { request, outcome: Ok(self.id) }),
            Err(refused) => self.out.replies.push(Reply::Transferred { request, outcome: Err(refused) }),
        }
    }

    fn check_successor(&self, to: NodeId) -> Result<(), TransferRefused> {
        let refuses = |leader: &Leader| leader.peers.get(&to).is_some_and(|progress| progress.refuses);
        match self.membership() {
            Some(membership) if membership.is_voter(to) => match &self.role {
                Role::Leader(leader) if refuses(leader) => Err(TransferRefused::Unwilling { id: to }),
                Role::Leader(_) | Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => Ok(()),
            },
            Some(membership) if membership.get(to).is_some() => Err(TransferRefused::NotVoter { id: to }),
            Some(_) | None => Err(TransferRefused::UnknownNode { id: to }),
        }
    }

    /// Who should lead if this node does not.
    pub(crate) fn successor(&self, now: Time) -> Option<NodeId> {
        let (Role::Leader(leader), Some(membership)) = (&self.role, self.membership()) else { return None };
        leader.best_successor(now, self.config.election_timeout, |id| membership.is_voter(id))
    }

    /// Begins to hand over to a voter.
    pub(crate) fn begin_transfer(&mut self, now: Time, request: Option<RequestId>, to: NodeId) {
        let deadline = now.plus(self.config.election_timeout);
        let Role::Leader(leader) = &mut self.role else { return };
        leader.transfer = Some(Transfer { request, to, deadline, told: false, held: VecDeque::new(), held_bytes: 0 });
        self.out.notes.push(Note::Transfer { to, step: TransferStep::Begins });
    }

    /// Tells the successor to campaign, once its log is this leader's.
    pub(crate) fn hand_over(&mut self) {
        let last = self.log.last().index;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        let ready = leader.peers.get(&transfer.to).is_some_and(|progress| progress.matched == last);
        if ready && !transfer.told {
            transfer.told = true;
            leader.abdicated = true;
            let to = transfer.to;
            self.send(to, Body::TimeoutNow);
        }
    }

    /// The word may have been lost: it goes out again with the next heartbeats.
    pub(crate) fn hand_over_again(&mut self) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(transfer) = &mut leader.transfer
        {
            transfer.told = false;
        }
    }

    /// The leader wants this node to lead in its place: it campaigns at once, without a poll.
    pub(crate) fn on_timeout_now(&mut self, now: Time, from: NodeId) {
        if !self.hear_leader(now, from, "TimeoutNow") {
            return;
        }
        if !self.may_campaign() {
            return self.ignored(from, "TimeoutNow", "this node does not vote");
        }
        let refusal =
            if self.is_kept_from_leading() { Some("this node is kept from leading") } else { self.stall(now) };
        if let Some(why) = refusal {
            self.ignored(from, "TimeoutNow", why);
            // Whoever waits for it need not do so any longer.
            return self.answer_heartbeat(now, from, 0, Duration::ZERO);
        }
        // The leader lives, and can still tell what became of what was passed on to it.
        self.await_former_leader(now);
        self.stand(now, "its leader handed over to it", true);
    }

    /// Holds commands back while leadership is being handed over; gives them back otherwise. What exceeds the limits is refused.
    pub(crate) fn hold(&mut self, proposal: Proposal) -> Option<Proposal> {
        let unstored = self.log.unstored_bytes();
        let Role::Leader(leader) = &mut self.role else { return Some(proposal) };
        let Some(transfer) = &mut leader.transfer else { return Some(proposal) };
        if mutant!("held-proposals-dropped") {
            return None;
        }
        let cost: u64 = proposal.commands.iter().map(|command| Entry::OVERHEAD + command.len() as u64).sum();
        let waiting = leader.uncommitted.max(unstored) + transfer.held_bytes;
        let full = waiting > 0 && waiting + cost > self.config.max_uncommitted_bytes;
        if full || transfer.held.len() >= self.config.max_pending_requests {
            self.refuse_proposal(&proposal);
        } else {
            transfer.held_bytes += cost;
            transfer.held.push_back(proposal);
        }
        None
    }

    fn refuse_proposal(&mut self, proposal: &Proposal) {
        let request = proposal.request;
        match proposal.follower {
            Some(follower) => {
                self.send(follower, Body::ForwardReply { request, outcome: ForwardOutcome::Overloaded });
            }
            None => self.out.replies.push(Reply::Refused { request, reason: RefusedReason::Overloaded }),
        }
    }

    /// When the transfer under way, or the answer to one that was asked for here, is given up.
    pub(crate) fn transfer_due(&self) -> Option<Time> {
        let under_way = match &self.role {
            Role::Leader(leader) => leader.transfer.as_ref().map(|transfer| transfer.deadline),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => None,
        };
        under_way.or(self.handed_over.as_ref().map(|handed| handed.deadline))
    }

    /// Time went on: a transfer that took too long is over, and the leader serves again.
    pub(crate) fn expire_transfer(&mut self, now: Time) {
        if self.transfer_due().is_none_or(|due| now < due) {
            return;
        }
        if let Some(HandedOver { request, .. }) = self.handed_over.take() {
            self.out.replies.push(Reply::Transferred { request, outcome: Err(TransferRefused::TimedOut) });
        }
        self.abort_transfer(now, TransferStep::GivenUp);
    }

    /// The successor says that it would not lead.
    pub(crate) fn on_unwilling(&mut self, now: Time, from: NodeId) {
        if self.transferring_to() == Some(from) {
            self.abort_transfer(now, TransferStep::Refused);
        }
    }

    /// Gives the transfer up, and appends what was held back.
    fn abort_transfer(&mut self, now: Time, step: TransferStep) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(Transfer { request, to, held, .. }) = leader.transfer.take() else { return };
        self.note_failed_transfer(now, to);
        self.out.notes.push(Note::Transfer { to, step });
        if let Some(request) = request {
            let refused = match step {
                TransferStep::Refused => TransferRefused::Unwilling { id: to },
                TransferStep::Begins | TransferStep::GivenUp => TransferRefused::TimedOut,
            };
            self.out.replies.push(Reply::Transferred { request, outcome: Err(refused) });
        }
        // There was room for it when it came.
        for Proposal { follower, request, kind, commands } in held {
            let first = self.append_all(now, kind, commands);
            self.tell_appended(follower, request, first);
        }
    }

    pub(crate) fn tell_appended(&mut self, follower: Option<NodeId>, request: RequestId, first: LogId) {
        match follower {
            Some(follower) => {
                let outcome = ForwardOutcome::Appended { first };
                self.send(follower, Body::ForwardReply { request, outcome });
            }
            None => self.out.replies.push(Reply::Appended { request, first }),
        }
    }

    /// Leadership is over: what was held back was never proposed, and is given back.
    pub(crate) fn retire(&mut self, leader: Leader) {
        // The hard state is of a later term by now, perhaps; the last note is of the term that was led.
        self.retired = Some(Retired { term: self.noted_term, seen: leader.seen });
        self.refuse_reads_of(leader.reads);
        let Some(Transfer { request, to, deadline, held, .. }) = leader.transfer else { return };
        self.handed_over = request.map(|request| HandedOver { request, to, deadline });
        for Proposal { follower, request, kind: _, commands } in held {
            match follower {
                Some(follower) => {
                    self.send(follower, Body::ForwardReply { request, outcome: ForwardOutcome::Moved });
                }
                None => self.out.replies.push(Reply::Returned { request, commands }),
            }
        }
    }

    /// A leader of this term is known: is it the one that was to be?
    pub(crate) fn tell_transferred(&mut self) {
        let Some(leader) = self.leader() else { return };
        let Some(HandedOver { request, to, .. }) = self.handed_over.take() else { return };
        let outcome = if leader == to { Ok(leader) } else { Err(TransferRefused::OtherLeader { leader }) };
        self.out.replies.push(Reply::Transferred { request, outcome });
    }

    /// Whether the leader never took a batch of a term that it led, as far as it remembers.
    pub(crate) fn never_took(&self, from: NodeId, term: Term, request: RequestId) -> bool {
        self.retired.as_ref().is_some_and(|retired| retired.term == term && !retired.seen.contains(from, request))
    }
}
