//! A node that does not get its work done should not lead: its disk, or its state machine.
//!
//! A disk that stalls commits nothing here, and a state machine that stalls answers nobody, while heartbeats keep the followers quiet.
//! Such a node does not campaign, takes leadership from nobody, and tells the leader so. A leader with a stalled disk steps down
//! (`heartbeat.rs`). One with a stalled state machine can still bring a successor's log up to its own, and hands over; it steps down if nobody
//! takes over.
//!
//! Slow is not stalled. A state machine that has much to apply, or a long image to restore, gets on: each batch that is applied counts, and
//! each sign of life that the runtime passes on ([`Input::Applying`](super::Input::Applying)).

use super::Consensus;
use super::io::{Note, Time};
use super::role::Role;
use crate::mutant;

impl Consensus {
    /// Whether the write under way takes so long that this node should not lead.
    pub(crate) fn disk_stalls(&self, now: Time) -> bool {
        let writing = self.durability.writing.as_ref();
        let stalls = writing.is_some_and(|writing| now.since(writing.since) >= self.config.stall_timeout);
        stalls && !mutant!("stalled-leader-stays")
    }

    /// Whether the state machine has not got on for so long that this node should not lead.
    pub(crate) fn machine_stalls(&self, now: Time) -> bool {
        let idle_for = self.applying.at_work_since().map(|since| now.since(since));
        idle_for.is_some_and(|time| time >= self.config.stall_timeout) && !mutant!("stuck-machine-leads")
    }

    /// Why this node should not lead, if it should not.
    pub(crate) fn stall(&self, now: Time) -> Option<&'static str> {
        if self.disk_stalls(now) {
            return Some("the disk here does not get a write done");
        }
        self.machine_stalls(now).then_some("the state machine here gets nothing done")
    }

    /// The state machine got on with what it was given, though nothing of it is done yet.
    pub(crate) fn on_applying(&mut self, now: Time) {
        self.applying.gets_on(now);
    }

    /// A leader's state machine stalls: tries to hand over, once. Whether it is about to.
    pub(crate) fn hands_over_stalled(&mut self, now: Time) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        if leader.transfer.is_some() {
            return true;
        }
        if leader.yielding.has_failed() {
            return false;
        }
        let Some(to) = self.successor(now) else { return false };
        self.out.notes.push(Note::Yield { to, why: "the state machine here gets nothing done" });
        self.begin_transfer(now, None, to);
        true
    }
}
