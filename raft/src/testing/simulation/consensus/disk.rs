//! A disk that keeps exactly what it was told to keep, and checks the contract of `LogWrite` as it goes.

use std::ops::Range;

use crate::traits::{HardState, LogState, LogWrite, TermRun};
use crate::types::{Entry, EntryKind, Index, LogId, Membership};

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    /// The last entry compacted away, and the configuration in force there.
    pub(crate) base: LogId,
    pub(crate) base_membership: Option<(LogId, Membership)>,
    pub(crate) entries: Vec<Entry>,
}

impl Disk {
    pub(crate) fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    pub(crate) fn get(&self, index: Index) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.base.index.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    pub(crate) fn holds(&self, id: LogId) -> bool {
        id == LogId::ZERO || id == self.base || self.get(id.index).is_some_and(|entry| entry.id == id)
    }

    /// Whether an entry that is committed is on this disk, or was before it was compacted away.
    pub(crate) fn held(&self, id: LogId) -> bool {
        id.index <= self.base.index || self.holds(id)
    }

    /// Forgets the entries up to this one, which is committed. Of what is not there, the configuration has to be told afterwards.
    pub(crate) fn compact(&mut self, upto: LogId) {
        if upto.index <= self.base.index {
            return;
        }
        let all = self.entries.len();
        let forgotten =
            if self.holds(upto) { usize::try_from(upto.index.since(self.base.index)).unwrap_or(all) } else { all };
        for entry in self.entries.drain(..forgotten) {
            if entry.kind == EntryKind::Config
                && entry.id.index <= upto.index
                && let Ok(membership) = Membership::decode(&entry.data)
            {
                self.base_membership = Some((entry.id, membership));
            }
        }
        self.base = upto;
    }

    /// What a node finds here when it starts.
    pub(crate) fn state(&self) -> LogState {
        let mut runs: Vec<TermRun> = Vec::new();
        for entry in &self.entries {
            if runs.last().is_none_or(|run| run.term != entry.id.term) {
                runs.push(TermRun { term: entry.id.term, first: entry.id.index });
            }
        }
        LogState { hard_state: self.hard_state, base: self.base, last: self.last(), runs }
    }

    /// The last configuration at or before `applied`, and all after it.
    pub(crate) fn configurations(&self, applied: Index) -> Vec<(LogId, Membership)> {
        let configs = self.entries.iter().filter(|entry| entry.kind == EntryKind::Config);
        let decoded = configs.filter_map(|entry| Membership::decode(&entry.data).ok().map(|found| (entry.id, found)));
        let mut all: Vec<_> = self.base_membership.clone().into_iter().chain(decoded).collect();
        let settled = all.iter().take_while(|(id, _)| id.index <= applied).count();
        all.drain(..settled.saturating_sub(1));
        all
    }

    /// Makes the hard state of a step durable, and its first `keep` entries: all of them, or what a loss of power may leave.
    pub(crate) fn tear(&mut self, write: &LogWrite, keep: usize) -> Result<(), String> {
        if let Some(next) = write.hard_state {
            self.check_hard_state(next)?;
            self.hard_state = next;
        }
        let Some(first) = write.entries.first() else { return Ok(()) };
        if first.id.index <= self.base.index || first.id.index > self.last().index.next() {
            return Err(format!("the write begins at {}, the log ends at {}", first.id, self.last()));
        }
        for (before, after) in write.entries.iter().zip(write.entries.iter().skip(1)) {
            if after.id.index != before.id.index.next() || after.id.term < before.id.term {
                return Err(format!("{} follows {} in one write", after.id, before.id));
            }
        }
        if keep > 0 {
            let kept = usize::try_from(first.id.index.since(self.base.index.next())).unwrap_or(usize::MAX);
            self.entries.truncate(kept);
            if self.last().term > first.id.term {
                return Err(format!("{} follows {} on the disk", first.id, self.last()));
            }
            self.entries.extend(write.entries.iter().take(keep).cloned());
        }
        Ok(())
    }

    /// A term never goes back, and a vote never changes within its term (paper §5.2).
    fn check_hard_state(&self, next: HardState) -> Result<(), String> {
        let now = self.hard_state;
        if next.term < now.term {
            return Err(format!("the term on the disk goes back from {} to {}", now.term, next.term));
        }
        if next.term == now.term && now.voted_for.is_some() && now.voted_for != next.voted_for {
            return Err(format!("the vote in {} changes from {:?} to {:?}", now.term, now.voted_for, next.voted_for));
        }
        Ok(())
    }

    /// Entries of the range from its start, as `LogStore::read` gives them.
    pub(crate) fn read(&self, range: Range<Index>, max_bytes: u64) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut index = range.start;
        while index < range.end {
            let Some(entry) = self.get(index) else { break };
            bytes += entry.cost();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
            index = index.next();
        }
        entries
    }
}
