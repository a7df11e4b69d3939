//! Leases: a leader answers reads by its clock, without asking a quorum each time (thesis §6.4.1).
//!
//! With each regular heartbeat the leader asks to be followed for a while. A node that agrees says so in its answer, and stays out of every
//! election for that long, by its own clock: it gives no vote, answers no poll and does not campaign, whatever becomes of its role, of
//! its term, or of its connection with the leader. The leader counts a promise from the moment at which it *sent* the
//! heartbeat, when the promise had not even begun, and takes off what the other's clock may gain on its own (`Config::lease_drift`). As long as
//! a quorum's promises hold, nobody else is elected, since every majority that could elect somebody has a node that promised.
//! Hence what this leader has committed is all that is committed, and reads need not wait for a round.
//!
//! What could break that, and why it does not:
//!
//! * **The leader hands over.** Voters answer the successor's campaign whatever they promised. So the lease ends before the leader tells
//!   the successor to campaign, and since that word may arrive at any time later, none begins any more in its term (`Leader::abdicated`).
//! * **A node restarts** and forgets what it promised. It promises at most its own election timeout, and after a start it stays out of
//!   elections for as long (`Consensus::new`).
//! * **A process or a machine stands still.** Its clock goes on, so that it knows afterwards. Time is read after a read has come: if the
//!   lease held then, the read may be answered however much later.
//! * **Nodes have other election timeouts, or no leases.** Each says itself what it promises. Nothing is assumed of it.
//! * **Members change.** Promises are counted in the configuration in force, in both halves of a joint one. Whoever could win an election has
//!   that configuration or the one before, whose majorities meet (paper §6): others lack the entry of the leader's own term that is committed
//!   before it reads or changes anything.
//! * **An operator or a lost connection** makes a node campaign early. Neither lets it break its promise.

use std::collections::VecDeque;
use std::time::Duration;

use super::Consensus;
use super::io::Time;
use super::quorum;
use super::role::Role;
use crate::config::shortened;
use crate::mutant;
use crate::types::NodeId;

/// What a leader has asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    /// The rounds of heartbeats whose answers may still count, and when each was sent: as many as fit into an election timeout.
    pub(super) asked: VecDeque<(u64, Time)>,
}

impl Consensus {
    /// For how long a leader asks to be followed.
    pub(crate) fn lease_length(&self) -> Duration {
        if self.config.lease_drift.is_some() { self.config.election_timeout } else { Duration::ZERO }
    }

    /// Remembers that promises are asked for with this round.
    pub(crate) fn ask_for_promises(&mut self, now: Time) {
        let length = self.lease_length();
        let Role::Leader(leader) = &mut self.role else { return };
        let asked = &mut leader.lease.asked;
        while asked.front().is_some_and(|(_, sent)| now.since(*sent) >= length) {
            asked.pop_front();
        }
        if !length.is_zero() {
            asked.push_back((leader.round, now));
        }
    }

    /// Promises its leader to stay out of elections for a while. Tells for how long.
    pub(crate) fn promise(&mut self, now: Time, asked: Duration) -> Duration {
        if self.config.lease_drift.is_none() {
            return Duration::ZERO;
        }
        let promised = asked.min(self.config.election_timeout);
        self.bound_until = self.bound_until.max(now.plus(promised));
        promised
    }

    /// Whether this node has promised to stay out of elections.
    pub(crate) fn is_bound(&self, now: Time) -> bool {
        now < self.bound_until
    }

    /// Another node has promised so much, in answer to a round.
    pub(crate) fn on_promise(&mut self, now: Time, from: NodeId, round: u64, promised: Duration) {
        let asked = self.lease_length();
        let Role::Leader(leader) = &mut self.role else { return };
        if promised > asked {
            let why = format!("it promises {promised:?}, where {asked:?} was asked for");
            return self.violation(from, "HeartbeatReply", why);
        }
        let Some(drift) = self.config.lease_drift else { return };
        let Some((_, sent)) = leader.lease.asked.iter().find(|(asked, _)| *asked == round) else { return };
        let sent = if mutant!("lease-counted-from-the-reply") { now } else { *sent };
        let drift = if mutant!("lease-ignores-drift") { Duration::ZERO } else { drift };
        if let Some(progress) = leader.peers.get_mut(&from) {
            progress.bound_until = progress.bound_until.max(sent.plus(shortened(promised, drift)));
        }
    }

    /// Until when nobody else can be elected, as far as this leader knows.
    fn leased_until(&self) -> Option<Time> {
        let (Role::Leader(leader), Some(membership)) = (&self.role, self.membership()) else { return None };
        let abdicated = leader.abdicated && !mutant!("lease-kept-across-a-transfer");
        if self.config.lease_drift.is_none() || abdicated {
            return None;
        }
        // As long as it leads, it votes for nobody else itself.
        let bound_until = |id: NodeId| {
            let own = id == self.id;
            if own { Time(Duration::MAX) } else { leader.peers.get(&id).map_or(Time::default(), |p| p.bound_until) }
        };
        quorum::reached(membership, bound_until)
    }

    /// For how long this leader may still answer reads by its clock: none when it may not.
    pub(crate) fn lease_left(&self, now: Time) -> Option<Duration> {
        self.leased_until().filter(|until| now < *until).map(|until| until.since(now))
    }
}
