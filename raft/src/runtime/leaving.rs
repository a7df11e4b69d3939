//! An orderly end: leadership is handed over first, and what is in progress gets its answer.
//!
//! A leader that is told to end takes in nothing new and hands over (thesis §3.10). Then it stays for a moment: followers
//! whose commands were on their way to it learn from it alone that it never took them. All of this is bounded by two
//! election timeouts, the first for the transfer.

use std::time::Duration;

use crate::config::Config;
use crate::consensus::{Consensus, RoleKind, Time};

/// A node that is about to end.
#[derive(Debug)]
pub(crate) struct Leaving {
    /// When it ends in any case.
    until: Time,
    /// When it was first seen to have nothing left to do but to stay.
    idle_since: Option<Time>,
    /// How long a former leader stays.
    stay: Duration,
    /// Whether it has asked for a transfer.
    pub(crate) handing_over: bool,
}

impl Leaving {
    pub(crate) fn begin(now: Time, config: &Config, leads: bool) -> Self {
        // As long as messages may be on their way, also where this node speaks often.
        let stay = if leads { config.heartbeat_interval.max(config.election_timeout / 3) } else { Duration::ZERO };
        let until = now.plus(config.election_timeout.saturating_mul(2));
        Self { until, idle_since: None, stay, handing_over: leads }
    }

    /// Whether the node may end now. `waiting` tells whether a client waits for an answer.
    pub(crate) fn is_over(&mut self, now: Time, core: &Consensus, waiting: bool) -> bool {
        if now >= self.until {
            return true;
        }
        let status = core.status(now);
        let led = self.handing_over && status.role != RoleKind::Leader && status.leader.is_none();
        if waiting || status.transferring_to.is_some() || led {
            self.idle_since = None;
            return false;
        }
        if status.role == RoleKind::Leader {
            // There was nobody to hand over to, or nobody took over.
            return true;
        }
        let since = *self.idle_since.get_or_insert(now);
        now.since(since) >= self.stay
    }

    /// When to look again at the latest.
    pub(crate) fn next_wake(&self) -> Time {
        self.idle_since.map_or(self.until, |since| since.plus(self.stay).min(self.until))
    }
}
