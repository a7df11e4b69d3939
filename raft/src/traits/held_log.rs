use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{HardState, LogState, LogWrite};
use crate::error::StorageError;
use crate::types::{Entry, Index, LogId};

/// A whole log in memory: what a [`LogStore`](super::LogStore) holds that keeps its entries there beside the disk, and what each of its steps makes of that. How
/// it gets to the disk, and back, is the store's. What serde makes of it may be another in another version of this crate: write a version of your own beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLog {
    hard_state: HardState,
    base: LogId,
    entries: Vec<Entry>,
}

impl HeldLog {
    /// What [`LogStore::load`](super::LogStore::load) tells.
    #[must_use]
    pub fn state(&self) -> LogState {
        LogState::of(self.hard_state, self.base, self.entries.iter().map(|entry| entry.id))
    }

    /// All entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    /// How many entries there are before this index.
    fn before(&self, index: Index) -> usize {
        self.entries.partition_point(|entry| entry.id.index < index)
    }

    /// Answers [`LogStore::read`](super::LogStore::read).
    ///
    /// # Errors
    /// The range is empty, or its start is not held ([`StorageError::Misuse`]).
    pub fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let (base, last) = (self.base.index, self.last().index);
        if range.start >= range.end || range.start <= base || range.start > last {
            let (from, to) = (range.start, range.end);
            return Err(StorageError::Misuse(format!(
                "a read of {from} to {to} from a log from {} to {last}",
                base.next()
            )));
        }
        let wanted = &self.entries[self.before(range.start)..self.before(range.end)];
        Ok(Entry::fitting(wanted.iter().cloned(), max_bytes))
    }

    /// Whether this write joins the log: to be asked before it goes to the disk.
    ///
    /// # Errors
    /// [`StorageError::Misuse`] says what does not fit.
    pub fn check(&self, write: &LogWrite) -> Result<(), StorageError> {
        write.check(self.base, self.last())
    }

    /// Takes a write up, when it is on the disk, or is read from there.
    ///
    /// # Errors
    /// It does not join the log ([`HeldLog::check`]), which stays as it was.
    pub fn write(&mut self, write: LogWrite) -> Result<(), StorageError> {
        self.check(&write)?;
        self.hard_state = write.hard_state.unwrap_or(self.hard_state);
        if let Some(first) = write.entries.first() {
            self.entries.truncate(self.before(first.id.index));
        }
        self.entries.extend(write.entries);
        Ok(())
    }

    /// Forgets what [`LogStore::compact`](super::LogStore::compact) says. False if that changes nothing.
    pub fn compact(&mut self, upto: LogId) -> bool {
        if upto.index <= self.base.index {
            return false;
        }
        let kept = self.entries.split_off(self.before(upto.index.next()));
        let holds = self.entries.last().is_some_and(|entry| entry.id == upto);
        self.entries = if holds { kept } else { Vec::new() };
        self.base = upto;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EntryKind, NodeId, Term};

    fn entries(term: u64, indexes: Range<u64>) -> Vec<Entry> {
        let entry = |index| Entry { id: LogId::new(term, index), kind: EntryKind::Command, data: vec![7; 10].into() };
        indexes.map(entry).collect()
    }

    fn write(term: u64, indexes: Range<u64>) -> LogWrite {
        LogWrite { hard_state: None, entries: entries(term, indexes) }
    }

    fn held() -> HeldLog {
        let mut held = HeldLog::default();
        held.write(write(1, 1..8)).unwrap();
        held
    }

    #[test]
    fn a_write_replaces_what_it_overlaps_and_one_that_does_not_join_changes_nothing() {
        let mut held = held();
        let hard_state = HardState { term: Term(2), voted_for: Some(NodeId(3)) };
        held.write(LogWrite { hard_state: Some(hard_state), ..write(2, 4..6) }).unwrap();
        assert_eq!(held.entries(), [entries(1, 1..4), entries(2, 4..6)].concat());
        held.write(LogWrite { hard_state: None, entries: Vec::new() }).unwrap();
        assert_eq!(held.state(), LogState::of(hard_state, LogId::ZERO, held.entries().iter().map(|e| e.id)));
        let before = held.clone();
        assert!(matches!(held.write(write(3, 7..9)), Err(StorageError::Misuse(_))), "a gap");
        assert_eq!(held, before);
    }

    #[test]
    fn a_read_gives_what_fits_and_refuses_what_is_not_held() {
        let mut held = held();
        held.compact(LogId::new(1, 2));
        assert_eq!(held.read(Index(3)..Index(6), u64::MAX).unwrap(), entries(1, 3..6));
        assert_eq!(held.read(Index(7)..Index(20), 0).unwrap(), entries(1, 7..8), "one at least");
        let two = 2 * entries(1, 3..4)[0].cost();
        assert_eq!(held.read(Index(3)..Index(8), two).unwrap(), entries(1, 3..5));
        for (from, to) in [(2, 4), (8, 9), (4, 4), (5, 4), (0, 1)] {
            assert!(matches!(held.read(Index(from)..Index(to), 99), Err(StorageError::Misuse(_))), "{from}..{to}");
        }
    }

    #[test]
    fn a_compaction_keeps_what_is_behind_and_only_that_of_the_same_term() {
        let mut held = held();
        assert!(!held.clone().compact(LogId::ZERO));
        assert!(held.compact(LogId::new(1, 3)));
        assert_eq!((held.entries(), held.state().base), (&entries(1, 4..8)[..], LogId::new(1, 3)));
        assert!(!held.compact(LogId::new(1, 2)), "below the base");
        let mut other = held.clone();
        assert!(other.compact(LogId::new(2, 5)));
        assert_eq!((other.entries().len(), other.state().last), (0, LogId::new(2, 5)), "another term");
        assert!(held.compact(LogId::new(1, 9)));
        assert_eq!((held.entries().len(), held.state().last), (0, LogId::new(1, 9)), "beyond the end");
        held.write(write(2, 10..11)).unwrap();
    }
}
