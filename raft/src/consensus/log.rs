//! The log as the core sees it: the terms of all entries, the payloads of recent ones, and how much is on disk.

use std::collections::VecDeque;

use crate::mutant;
use crate::traits::{LogState, TermRun};
use crate::types::{Entry, Index, LogId, Term};

/// How many terms of what was forgotten are remembered.
const MAX_PAST: usize = 1024;

/// Knows the term of every entry, and holds the newest entries in memory (the tail). Older payloads are in the log store alone.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Log {
    /// The id before the first entry held.
    base: LogId,
    /// The id of the last entry; equals `base` in an empty log.
    last: LogId,
    /// Where each term begins, in order. A log has few terms, so this stays small.
    runs: VecDeque<TermRun>,
    /// Where the terms of what was forgotten in this run of the node began: the latest of them, up to the base.
    past: VecDeque<TermRun>,
    /// The newest entries, contiguous up to `last`.
    tail: VecDeque<Entry>,
    /// What they cost.
    tail_bytes: u64,
    /// Everything up to here is on this node's disk.
    stored: Index,
    /// What the entries beyond cost.
    unstored_bytes: u64,
}

impl Log {
    /// The log that a store holds: all of it is on disk, nothing in memory.
    pub(crate) fn new(state: &LogState) -> Self {
        Self {
            base: state.base,
            last: state.last,
            runs: state.runs.iter().copied().collect(),
            past: VecDeque::new(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            stored: state.last.index,
            unstored_bytes: 0,
        }
    }

    pub(crate) fn base(&self) -> LogId {
        self.base
    }

    pub(crate) fn last(&self) -> LogId {
        self.last
    }

    pub(crate) fn stored(&self) -> Index {
        self.stored
    }

    /// What the entries in memory cost.
    #[cfg(feature = "testing")]
    pub(crate) fn tail_bytes(&self) -> u64 {
        self.tail_bytes
    }

    /// What the entries that are not on disk cost.
    pub(crate) fn unstored_bytes(&self) -> u64 {
        self.unstored_bytes
    }

    /// The first index whose payload is in memory; one past the last if none is.
    pub(crate) fn tail_start(&self) -> Index {
        Index(self.last.index.0 + 1 - self.tail.len() as u64)
    }

    /// The term of the entry at `index`, or of the base; none below the base and beyond the end.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index > self.last.index || index < self.base.index {
            return None;
        }
        if index == self.base.index {
            return Some(self.base.term);
        }
        // Nearly all questions are about the newest term.
        if let Some(run) = self.runs.back()
            && index >= run.first
        {
            return Some(run.term);
        }
        let after = self.runs.partition_point(|run| run.first <= index);
        self.runs.get(after.checked_sub(1)?).map(|run| run.term)
    }

    /// As [`Log::term_at`], and also of what was forgotten, as far as its terms are remembered.
    pub(crate) fn term_remembered_at(&self, index: Index) -> Option<Term> {
        if index >= self.base.index {
            return self.term_at(index);
        }
        let after = self.past.partition_point(|run| run.first <= index);
        self.past.get(after.checked_sub(1)?).map(|run| run.term)
    }

    /// The id of the entry at `index`, where its term is known.
    pub(crate) fn id_at(&self, index: Index) -> Option<LogId> {
        self.term_at(index).map(|term| LogId { term, index })
    }

    /// Whether the log holds this very entry, or has it as its base.
    pub(crate) fn holds(&self, id: LogId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    /// The last entry at or before `limit.index` whose term is at most `limit.term`; the base if there is none.
    ///
    /// Asked in turn by both sides of a conflict, it finds where two logs agree in one step for each term in which they differ.
    pub(crate) fn last_at_most(&self, limit: LogId) -> LogId {
        let mut end = self.last.index;
        for run in self.runs.iter().rev() {
            let upto = end.min(limit.index);
            if run.term <= limit.term && run.first <= upto {
                return LogId { term: run.term, index: upto };
            }
            end = run.first.prev();
        }
        self.base
    }

    /// Adds an entry at the end.
    pub(crate) fn append(&mut self, entry: Entry) {
        assert_eq!(entry.id.index, self.last.index.next(), "entries are contiguous");
        assert!(entry.id.term >= self.last.term, "terms never go back along a log");
        if self.runs.back().is_none_or(|run| run.term < entry.id.term) {
            self.runs.push_back(TermRun { term: entry.id.term, first: entry.id.index });
        }
        self.last = entry.id;
        self.tail_bytes += entry.cost();
        self.unstored_bytes += entry.cost();
        self.tail.push_back(entry);
    }

    /// Removes the entry at `from` and all after it. What was on disk of them does not count as stored any more.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(from > self.base.index && from <= self.last.index, "only entries held can be removed");
        while self.tail.back().is_some_and(|entry| entry.id.index >= from) {
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= entry.cost();
                if entry.id.index > self.stored {
                    self.unstored_bytes -= entry.cost();
                }
            }
        }
        while self.runs.back().is_some_and(|run| run.first >= from) {
            self.runs.pop_back();
        }
        let term = self.runs.back().map_or(self.base.term, |run| run.term);
        self.last = LogId { term, index: from.prev() };
        if !mutant!("truncation-leaves-the-durable-cursor") {
            self.stored = self.stored.min(self.last.index);
        }
    }

    /// Forgets the entries up to this one, which stays known as the base. They must be on disk: only what is applied is forgotten.
    pub(crate) fn compact(&mut self, upto: LogId) {
        assert!(upto.index > self.base.index && upto.index <= self.stored, "what is forgotten is on disk");
        assert!(self.holds(upto), "only entries held can be forgotten");
        while self.tail.front().is_some_and(|entry| entry.id.index <= upto.index) {
            if let Some(entry) = self.tail.pop_front() {
                self.tail_bytes -= entry.cost();
            }
        }
        for run in self.runs.iter().take_while(|run| run.first <= upto.index) {
            // The rest of a term that was cut in two is remembered already.
            if self.past.back().is_none_or(|last| last.term < run.term) {
                self.past.push_back(*run);
            }
        }
        self.past.drain(..self.past.len().saturating_sub(MAX_PAST));
        let first = upto.index.next();
        while self.runs.get(1).is_some_and(|run| run.first <= first) {
            self.runs.pop_front();
        }
        if upto.index == self.last.index {
            self.runs.clear();
        } else if let Some(run) = self.runs.front_mut() {
            run.first = first;
        }
        self.base = upto;
    }

    /// Forgets all entries: the log begins after `base`, which an image reflects.
    pub(crate) fn reset(&mut self, base: LogId) {
        assert!(base.index > self.base.index, "the base goes forward");
        *self = Self::new(&LogState { base, last: base, ..LogState::default() });
    }

    /// Notes that everything up to `index` is on disk.
    pub(crate) fn mark_stored(&mut self, index: Index) {
        assert!(index >= self.stored && index <= self.last.index, "storage goes forward, within the log");
        self.unstored_bytes -= self.cost(self.stored.next(), index);
        self.stored = index;
    }

    /// Entries from `from` up to `upto`, as many as cost at most `max_bytes`, but at least one. None if the first is not in
    /// memory.
    pub(crate) fn slice(&self, from: Index, upto: Index, max_bytes: u64) -> Option<Vec<Entry>> {
        let start = self.tail_start();
        if from < start || from > upto || upto > self.last.index {
            return None;
        }
        let offset = usize::try_from(from.since(start)).ok()?;
        let most = usize::try_from(upto.since(from)).ok()? + 1;
        let mut bytes = 0;
        let fitting = self.tail.range(offset..offset + most).take_while(|entry| {
            bytes += entry.cost();
            bytes <= max_bytes
        });
        let count = fitting.count().max(1);
        Some(self.tail.range(offset..offset + count).cloned().collect())
    }

    /// What the entries from `from` to `upto` cost. All must be in memory.
    pub(crate) fn cost(&self, from: Index, upto: Index) -> u64 {
        let start = self.tail_start();
        assert!(from >= start && upto <= self.last.index, "the entries are in memory");
        let skip = usize::try_from(from.since(start)).unwrap_or(usize::MAX);
        let count = usize::try_from(upto.next().since(from)).unwrap_or(usize::MAX);
        self.tail.range(skip..skip + count).map(Entry::cost).sum()
    }

    /// Drops the oldest payloads from memory until they cost at most `max_bytes`; those beyond `keep` and those not on disk stay.
    pub(crate) fn evict(&mut self, max_bytes: u64, keep: Index) {
        let limit = if mutant!("memory-drops-what-is-not-durable") { self.last.index } else { self.stored.min(keep) };
        while self.tail_bytes > max_bytes && self.tail.front().is_some_and(|entry| entry.id.index <= limit) {
            if let Some(entry) = self.tail.pop_front() {
                self.tail_bytes -= entry.cost();
            }
        }
    }

    /// Checks the structure; for tests and debug builds.
    pub(crate) fn check(&self) {
        assert!(self.base.index <= self.stored && self.stored <= self.last.index, "base <= stored <= last");
        assert!(self.tail_start() > self.base.index, "the tail lies above the base");
        assert!(self.unstored_bytes <= self.tail_bytes, "what is not stored is in memory");
        assert!(self.stored.next() >= self.tail_start(), "what is not stored is in memory");
        assert_eq!(self.tail.back().map_or(self.last, |entry| entry.id), self.last, "the tail ends the log");
        assert_eq!(self.term_at(self.last.index), Some(self.last.term), "the runs know the last term");
        let ordered = |a: &TermRun, b: &TermRun| a.term < b.term && a.first < b.first;
        assert!(self.runs.iter().zip(self.runs.iter().skip(1)).all(|(a, b)| ordered(a, b)), "the runs are in order");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::EntryKind;

    fn entry(term: u64, index: u64) -> Entry {
        Entry { id: LogId::new(term, index), kind: EntryKind::Command, data: Bytes::from_static(b"0123456789") }
    }

    /// A log of these terms, from index 1.
    fn log(terms: &[u64]) -> Log {
        let mut log = Log::new(&LogState::default());
        for (n, term) in (1..).zip(terms) {
            log.append(entry(*term, n));
        }
        log.check();
        log
    }

    #[test]
    fn every_term_is_known() {
        let log = log(&[1, 1, 2, 4, 4]);
        let terms: Vec<_> = (0..=6).map(|n| log.term_at(Index(n)).map(|t| t.0)).collect();
        assert_eq!(terms, [Some(0), Some(1), Some(1), Some(2), Some(4), Some(4), None]);
    }

    #[test]
    fn a_conflict_skips_whole_terms() {
        let log = log(&[1, 1, 2, 4, 4]);
        assert_eq!(log.last_at_most(LogId::new(4, 9)), LogId::new(4, 5));
        assert_eq!(log.last_at_most(LogId::new(4, 4)), LogId::new(4, 4));
        assert_eq!(log.last_at_most(LogId::new(3, 5)), LogId::new(2, 3));
        assert_eq!(log.last_at_most(LogId::new(1, 9)), LogId::new(1, 2));
        assert_eq!(log.last_at_most(LogId::new(0, 9)), LogId::ZERO);
    }

    #[test]
    fn truncation_takes_the_durable_position_back() {
        let mut log = log(&[1, 1, 2, 4, 4]);
        log.mark_stored(Index(5));
        log.truncate(Index(4));
        log.check();
        assert_eq!((log.last(), log.stored()), (LogId::new(2, 3), Index(3)));
        log.truncate(Index(1));
        log.check();
        assert_eq!((log.last(), log.stored(), log.tail_bytes), (LogId::ZERO, Index(0), 0));
    }

    #[test]
    fn a_slice_is_bounded_but_one_oversize_entry_passes_alone() {
        let log = log(&[1, 1, 1]);
        let cost = entry(1, 1).cost();
        let count = |max| log.slice(Index(1), Index(3), max).map(|entries| entries.len());
        assert_eq!(
            (count(cost * 2), count(cost * 3 - 1), count(u64::MAX), count(1)),
            (Some(2), Some(2), Some(3), Some(1))
        );
        assert_eq!(log.slice(Index(3), Index(4), u64::MAX), None);
    }

    #[test]
    fn eviction_keeps_what_is_not_on_disk_or_asked_to_stay() {
        let mut log = log(&[1, 1, 1, 1]);
        log.mark_stored(Index(3));
        log.evict(0, Index(2));
        log.check();
        assert_eq!(log.tail_start(), Index(3));
        log.evict(0, Index(4));
        log.check();
        assert_eq!(log.tail_start(), Index(4));
        assert_eq!(log.term_at(Index(2)), Some(Term(1)));
        assert_eq!(log.slice(Index(3), Index(4), u64::MAX), None);
    }

    #[test]
    fn compaction_keeps_the_terms_of_what_is_left() {
        let compacted = |upto: LogId| {
            let mut log = log(&[1, 1, 2, 4, 4]);
            log.mark_stored(Index(5));
            log.compact(upto);
            log.check();
            log
        };
        let after = compacted(LogId::new(1, 1));
        assert_eq!(
            after.runs.iter().map(|run| (run.term.0, run.first.0)).collect::<Vec<_>>(),
            [(1, 2), (2, 3), (4, 4)]
        );
        assert_eq!(
            (after.term_at(Index(1)), after.term_at(Index(2)), after.term_at(Index(0))),
            (Some(Term(1)), Some(Term(1)), None)
        );
        let after = compacted(LogId::new(2, 3));
        assert_eq!(after.runs.iter().map(|run| (run.term.0, run.first.0)).collect::<Vec<_>>(), [(4, 4)]);
        assert_eq!((after.last_at_most(LogId::new(3, 9)), after.tail_start()), (LogId::new(2, 3), Index(4)));
        let mut after = compacted(LogId::new(4, 5));
        assert_eq!(
            (after.base(), after.last(), after.stored(), after.tail_bytes),
            (after.last, LogId::new(4, 5), Index(5), 0)
        );
        after.append(entry(5, 6));
        after.check();
    }

    #[test]
    fn the_terms_of_what_was_forgotten_are_remembered_for_a_while() {
        let mut log = log(&[1, 1, 2, 4, 4]);
        log.mark_stored(Index(5));
        for upto in [LogId::new(1, 1), LogId::new(2, 3), LogId::new(4, 4)] {
            log.compact(upto);
        }
        let terms: Vec<_> = (0..=6).map(|n| log.term_remembered_at(Index(n)).map(|t| t.0)).collect();
        assert_eq!(terms, [None, Some(1), Some(1), Some(2), Some(4), Some(4), None]);
        let many = MAX_PAST as u64 + 10;
        for term in 5..5 + many {
            log.append(entry(term, term + 1));
        }
        log.mark_stored(log.last().index);
        log.compact(log.last());
        assert_eq!(log.past.len(), MAX_PAST);
        assert_eq!(log.term_remembered_at(Index(5)), None);
        assert_eq!(log.term_remembered_at(Index(3 + many)), Some(Term(2 + many)));
    }

    #[test]
    fn a_log_read_from_disk_has_terms_but_no_payloads() {
        let state = LogState {
            base: LogId::new(2, 10),
            last: LogId::new(5, 14),
            runs: vec![TermRun { term: Term(3), first: Index(11) }, TermRun { term: Term(5), first: Index(13) }],
            ..LogState::default()
        };
        let mut log = Log::new(&state);
        log.check();
        assert_eq!(log.term_at(Index(9)), None);
        assert_eq!(log.term_at(Index(10)), Some(Term(2)));
        assert_eq!(log.term_at(Index(12)), Some(Term(3)));
        assert_eq!(log.slice(Index(13), Index(14), u64::MAX), None);
        log.append(entry(5, 15));
        log.check();
        assert_eq!(log.slice(Index(15), Index(15), u64::MAX).map(|e| e.len()), Some(1));
    }
}
