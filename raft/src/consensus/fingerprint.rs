//! What of a core decides how it behaves, as a hash, for a search that must know a state when it meets it again
//! (`testing/exploration`).
//!
//! Every field is named below, so that a new one makes the compiler ask. What is left out may differ between two cores that
//! count as one, so each omission says why no later step can tell them apart. The times are the greater part. They are told apart
//! only as *recent* and *long ago*, which is enough under the clock of the search: it moves either by a nanosecond, or by a
//! [`LONG_AGO`], which is longer than every timeout, and it reaches any timeout by such leaps only. So "at least a timeout ago"
//! is always the same as "before the last leap", whichever the timeout is.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;

use super::change::{Changing, Round};
use super::durability::{Durability, Held, Writing};
use super::io::Time;
use super::membership::Leaving;
use super::progress::{Progress, Said};
use super::role::{Follower, Leader, Role};
use super::transfer::HandedOver;
use super::{Consensus, RoleKind};
use crate::config::Config;
use crate::types::{Index, LogId, Term};

/// The election timeout of a search.
const TIMEOUT: Duration = Duration::from_secs(1000);
/// How far a clock leaps. Lost appends are noticed after at most 16 timeouts (`Progress::notice_lost_appends`), elections begin after
/// at most two.
pub(crate) const LONG_AGO: Duration = Duration::from_secs(100_000);

impl Config {
    /// Times that suit a search: many heartbeats fit into a timeout, and a leap exceeds them all. A disk never counts as stalled: that
    /// only keeps nodes from campaigning, and makes leaders step down, both of which happen anyway. No backlog is too old for a further command.
    pub(crate) fn for_exploration() -> Self {
        let heartbeat_interval = Duration::from_nanos(1);
        let never = Duration::MAX;
        Self {
            election_timeout: TIMEOUT,
            heartbeat_interval,
            stall_timeout: never,
            write_timeout: never,
            ..Self::default()
        }
    }
}

/// Whether that was before the last leap of the clock.
fn long_ago(now: Time, then: Time) -> bool {
    now.since(then) >= TIMEOUT
}

impl Consensus {
    /// Hashes what decides how this core goes on. Two cores of one node with equal hashes take equal inputs to equal effects, under the
    /// clock of the search, as far as the hash has no collisions.
    pub(crate) fn fingerprint(&self, now: Time, hasher: &mut impl Hasher) {
        let Self {
            // The same for all states of one node.
            id: _,
            config: _,
            hard_state,
            role,
            log,
            durability,
            configurations,
            commit,
            applying,
            // No search applies as much as an image is taken for, and none asks for one.
            snapshots: _,
            fetching,
            // A leap exceeds every draw: whoever is woken after one is always due, whenever and whatever was drawn.
            election_due: _,
            random: _,
            preference,
            // No search has leases: they are about how long something takes, which a search does not know.
            bound_until: _,
            forwarded,
            asked,
            passed_on,
            removed,
            handed_over,
            retired,
            initializing,
            noted_leader,
            noted_term,
            commit_due,
            // Counted for whoever watches; nothing depends on it.
            read_rounds: _,
            leased_reads: _,
            // Empty between two actions, for each of them collects all effects; its spare capacity does not matter.
            out: _,
            // Read by the invariants alone. All but the leader of this term, which the node may have forgotten, is in here twice.
            past,
        } = self;
        past.leader.filter(|(term, _)| *term == hard_state.term).hash(hasher);
        (hard_state, log, configurations, commit, fetching).hash(hasher);
        applying.fingerprint(hasher);
        (passed_on, removed, preference).hash(hasher);
        (&forwarded.asked, initializing, noted_leader, noted_term, commit_due, retired).hash(hasher);
        for (request, until) in &forwarded.former {
            (request, now >= *until).hash(hasher);
        }
        let handed_over = handed_over.as_ref();
        handed_over.map(|HandedOver { request, to, deadline }| (request, to, now >= *deadline)).hash(hasher);
        for (request, (since, lease)) in &asked.0 {
            (request, long_ago(now, *since), lease).hash(hasher);
        }
        durability.fingerprint(hasher);
        role.fingerprint(now, hasher);
    }

    /// The number of the last round of heartbeats, on a leader.
    pub(crate) fn rounds(&self) -> u64 {
        match &self.role {
            Role::Leader(leader) => leader.round,
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => 0,
        }
    }

    /// The ids of all entries, and the payloads of those in memory.
    pub(crate) fn log_entries(&self) -> Vec<(LogId, Option<Bytes>)> {
        let (start, last) = (self.log.tail_start(), self.log.last().index);
        let entry = |index: Index| {
            let held = if index >= start { self.log.slice(index, index, 0) } else { None };
            let payload = held.and_then(|entries| entries.into_iter().next()).map(|entry| entry.data);
            (self.log.id_at(index).unwrap_or_default(), payload)
        };
        (self.log.base().index.next().0..=last.0).map(Index).map(entry).collect()
    }

    /// Its term and what it is in it.
    pub(crate) fn standing(&self) -> (Term, RoleKind) {
        (self.hard_state.term, self.role.kind())
    }

    /// What it knows to be committed.
    pub(crate) fn committed(&self) -> Index {
        self.commit
    }
}

impl Durability {
    /// The counters are compared with each other only, and a write is known by its number only while it is under way: that they are
    /// equal, and which is ahead, is all that matters.
    fn fingerprint(&self, hasher: &mut impl Hasher) {
        let Self { changes, handed, stored, write_from, compact, seq: _, writing, held } = self;
        (changes - handed, changes - stored, write_from, compact, writing.is_some()).hash(hasher);
        if let Some(Writing { since: _, changes: written, upto }) = writing {
            // No disk stalls in a search, so that `since` has no effect.
            (changes - written, upto).hash(hasher);
        }
        for Held { changes: needed, index, to, message } in held {
            (changes - needed, index, to, message).hash(hasher);
        }
    }
}

impl Role {
    fn fingerprint(&self, now: Time, hasher: &mut impl Hasher) {
        self.kind().hash(hasher);
        match self {
            // The heartbeat's time has a say in when a suspicion becomes a poll alone, and a search may wake a node at any time.
            Self::Follower(Follower { leader, heard, heartbeat: _, suspect, matching, acked, ack_due }) => {
                let heard = heard.map(|heard| long_ago(now, heard));
                (leader, heard, suspect, matching, acked, ack_due).hash(hasher);
            }
            Self::PreCandidate(campaign) | Self::Candidate(campaign) => campaign.hash(hasher),
            Self::Leader(leader) => {
                // A leader is woken when it is to speak, so its heartbeats are always due.
                let Leader {
                    peers,
                    opened,
                    since,
                    // No search has sessions.
                    clocked: _,
                    uncommitted,
                    // No write of a search has waited for too long.
                    backlog: _,
                    round,
                    heartbeat_due: _,
                    hurry_due: _,
                    lease: _,
                    reads,
                    seen,
                    leaving,
                    change,
                    transfer,
                    // All nodes of a search have one priority, and all may lead: nobody hands over by its own wish.
                    yielding: _,
                    abdicated,
                } = &**leader;
                (opened, uncommitted, round, reads, seen, abdicated, transfer.is_some()).hash(hasher);
                if let Some(transfer) = transfer {
                    transfer.fingerprint(now >= transfer.deadline, hasher);
                }
                for (id, Leaving { peer, at, told, until }) in leaving {
                    (id, peer, at, told, now >= *until).hash(hasher);
                }
                if let Some(Changing { asker, target, catching_up, until, appended, decided }) = change {
                    (asker, target, now >= *until, appended, decided).hash(hasher);
                    for (id, Round { upto, since, caught_up }) in catching_up {
                        (id, upto, long_ago(now, *since), caught_up).hash(hasher);
                    }
                }
                for (id, progress) in peers {
                    id.hash(hasher);
                    progress.fingerprint(now, *since, hasher);
                }
            }
        }
    }
}

impl Progress {
    fn fingerprint(&self, now: Time, elected: Time, hasher: &mut impl Hasher) {
        // All nodes of a search have one priority, and all would lead.
        let Self {
            matched,
            next,
            pace,
            heard,
            lost: _,
            round,
            bound_until: _,
            commit_told,
            said,
            furthest: _,
            priority: _,
            refuses: _,
            ready_since: _,
        } = self;
        // Who was never heard counts as heard at the election. The gap stretches a patience that a leap exceeds however far it is
        // stretched, and nanoseconds never reach.
        let Said { matching, since, gap: _ } = said;
        let silent = long_ago(now, heard.unwrap_or(elected));
        (matched, next, pace, silent, round, commit_told, matching, long_ago(now, *since)).hash(hasher);
    }
}
