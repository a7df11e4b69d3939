//! The configurations that an observer of all nodes has seen, and what must be true of them (paper §6, thesis §4).

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Term};

/// Every configuration that was ever sent or stored.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    all: BTreeMap<LogId, Membership>,
    /// By entry: the configuration that is in force at it, in any log that holds it.
    in_force: BTreeMap<LogId, LogId>,
    /// By configuration: the one before it.
    before: BTreeMap<LogId, LogId>,
    /// Entries that were seen before the one they follow.
    early: BTreeMap<LogId, Vec<Entry>>,
}

impl Seen {
    /// An entry is seen for the first time. `commits` tells the last entry that each term's leader has committed.
    ///
    /// Tells who is to vote that did not, and up to where those must hold the log by now.
    pub(crate) fn entry(
        &mut self,
        prev: LogId,
        entry: &Entry,
        commits: Option<&BTreeMap<Term, LogId>>,
    ) -> Result<Vec<NewVoters>, String> {
        let mut new = Vec::new();
        let mut next = vec![(prev, entry.clone())];
        while let Some((prev, entry)) = next.pop() {
            // A new member may be sent what comes after an entry that nobody was sent yet.
            let early = commits.is_some() && prev != LogId::ZERO && !self.in_force.contains_key(&prev);
            new.extend(self.follow(prev, &entry, commits)?);
            if early {
                self.early.entry(prev).or_default().push(entry);
            } else {
                let known = self.early.remove(&entry.id).unwrap_or_default();
                next.extend(known.into_iter().map(|later| (entry.id, later)));
            }
        }
        Ok(new)
    }

    fn follow(
        &mut self,
        prev: LogId,
        entry: &Entry,
        commits: Option<&BTreeMap<Term, LogId>>,
    ) -> Result<Option<NewVoters>, String> {
        let before = self.in_force.get(&prev).copied();
        if entry.kind != EntryKind::Config {
            self.in_force.extend(before.map(|at| (entry.id, at)));
            return Ok(None);
        }
        let membership =
            Membership::decode(&entry.data).map_err(|why| format!("configurations: {}: {why}", entry.id))?;
        if let (Some(at), Some(commits)) = (before, commits) {
            let old = &self.all[&at];
            if !follows(old, &membership) {
                return Err(format!("configurations: {membership} of {} can't follow {old} of {at}", entry.id));
            }
            let commit = commits.get(&entry.id.term).copied();
            if commit.is_none_or(|commit| commit.index < at.index) {
                return Err(format!(
                    "configurations: {} comes before that of {at} and an entry of its own term are committed ({commit:?})",
                    entry.id
                ));
            }
        }
        let new = before.and_then(|at| {
            let old = &self.all[&at];
            let ids: Vec<_> = membership.voters.keys().copied().filter(|id| !old.voters.contains_key(id)).collect();
            // A change begins before it makes learners of strangers, and its first round goes up to the end of the log there.
            (!ids.is_empty()).then_some(NewVoters { at: entry.id, ids, upto: at.index.prev() })
        });
        self.before.extend(before.map(|at| (entry.id, at)));
        self.all.insert(entry.id, membership);
        self.in_force.insert(entry.id, entry.id);
        Ok(new)
    }

    /// A configuration that is known from a leader's memory, or from a disk.
    pub(crate) fn add(&mut self, at: LogId, membership: &Membership) {
        self.all.entry(at).or_insert_with(|| membership.clone());
    }

    /// The configuration in force at an entry that was sent or stored, and where it is.
    pub(crate) fn known_at(&self, entry: LogId) -> Option<(LogId, &Membership)> {
        let at = *self.in_force.get(&entry)?;
        self.all.get(&at).map(|membership| (at, membership))
    }

    /// Whether one configuration came of another, in however many steps.
    pub(crate) fn came_of(&self, mut at: LogId, earlier: LogId) -> bool {
        while at > earlier {
            let Some(before) = self.before.get(&at) else { return false };
            at = *before;
        }
        at == earlier
    }

    /// All configurations from an index on, in whichever logs they are or were.
    pub(crate) fn since(&self, index: Index) -> impl Iterator<Item = &Membership> {
        self.all.iter().filter(move |(at, _)| at.index >= index).map(|(_, membership)| membership)
    }

    /// Whether these are a quorum in any configuration that was ever seen.
    pub(crate) fn is_quorum_of_any(&self, holders: &BTreeSet<NodeId>) -> bool {
        self.all.values().any(|membership| is_quorum(membership, holders))
    }
}

/// Nodes that are to vote from a configuration on.
#[derive(Debug)]
pub(crate) struct NewVoters {
    /// Where that configuration is.
    pub(crate) at: LogId,
    pub(crate) ids: Vec<NodeId>,
    /// By now they hold the log at least up to here (thesis §4.2.1).
    pub(crate) upto: Index,
}

/// Whether these are a majority of each half.
pub(crate) fn is_quorum(membership: &Membership, holders: &BTreeSet<NodeId>) -> bool {
    let half =
        |voters: &BTreeMap<NodeId, _>| voters.keys().filter(|id| holders.contains(id)).count() * 2 > voters.len();
    half(&membership.voters) && (membership.outgoing.is_empty() || half(&membership.outgoing))
}

/// Whether any quorum of the one has a node in common with any of the other.
fn follows(old: &Membership, new: &Membership) -> bool {
    let (was, is): (BTreeSet<_>, BTreeSet<_>) = (old.voters.keys().collect(), new.voters.keys().collect());
    match (old.is_joint(), new.is_joint()) {
        (false, false) => was.symmetric_difference(&is).count() <= 1,
        (false, true) => new.outgoing.keys().eq(old.voters.keys()),
        (true, false) => was == is,
        (true, true) => false,
    }
}
