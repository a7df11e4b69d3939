//! What the log holds, in memory: its bounds, terms and hard state, and where entries are.
//!
//! Positions are kept for one entry in about every 32 KiB of log (24 bytes each, so some 0.8 MB for a log of 1 GiB); a
//! reader walks from there. A truncation starts a new stretch, so a walk never meets an entry that was replaced.

use std::collections::VecDeque;

use raftkv::{HardState, Index, LogId, LogState, Term, TermRun};

/// How far apart positions are kept, in bytes.
const MARK_EVERY: u64 = 32 << 10;

/// Where an entry's header is. The entries after it follow in the same segment, up to the next mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) first: Index,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// The part of the state that each segment's header repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) hard_state: HardState,
    pub(crate) base: LogId,
    pub(crate) last: LogId,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct LogIndex {
    pub(crate) hard_state: HardState,
    base: LogId,
    last: LogId,
    runs: Vec<TermRun>,
    marks: VecDeque<Mark>,
    /// Entries up to here are in segments that are gone. While replaying only: they must turn out to be compacted.
    gone: Index,
    /// The next entry starts a new stretch.
    broken: bool,
}

impl LogIndex {
    /// The state that the header of the oldest segment left tells.
    pub(crate) fn resume(from: Summary) -> Self {
        let runs = if from.last.index > from.base.index {
            vec![TermRun { term: from.last.term, first: from.last.index }]
        } else {
            Vec::new()
        };
        Self {
            hard_state: from.hard_state,
            base: from.base,
            last: from.last,
            runs,
            marks: VecDeque::new(),
            gone: from.last.index,
            broken: true,
        }
    }

    pub(crate) fn base(&self) -> LogId {
        self.base
    }

    pub(crate) fn last(&self) -> LogId {
        self.last
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary { hard_state: self.hard_state, base: self.base, last: self.last }
    }

    pub(crate) fn state(&self) -> LogState {
        LogState { hard_state: self.hard_state, base: self.base, last: self.last, runs: self.runs.clone() }
    }

    /// The entries that are needed but are in no segment, if any.
    pub(crate) fn missing(&self) -> Option<(Index, Index)> {
        (self.gone > self.base.index).then(|| (self.base.index.next(), self.gone))
    }

    /// The oldest segment that holds a live entry.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.marks.front().map(|mark| mark.segment)
    }

    /// Whether there may be entries in this segment: those in front of the oldest that holds any are removed.
    pub(crate) fn reaches_back_to(&self, segment: u64) -> bool {
        self.oldest_segment().is_some_and(|oldest| oldest <= segment)
    }

    /// The term of an entry held, or of the base.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last.index {
            return None;
        }
        let after = self.runs.partition_point(|run| run.first <= index);
        after.checked_sub(1).and_then(|n| self.runs.get(n)).map(|run| run.term)
    }

    /// Whether entries starting at `first` may be spliced in.
    pub(crate) fn takes(&self, first: Index) -> bool {
        first > self.base.index && first <= self.last.index.next()
    }

    /// Drops entries from `first` on.
    pub(crate) fn truncate(&mut self, first: Index) {
        if first > self.last.index {
            return;
        }
        let last = first.prev();
        let term = self.term_at(last).unwrap_or_default();
        self.last = LogId { term, index: last };
        self.gone = self.gone.min(last);
        while self.runs.last().is_some_and(|run| run.first >= first) {
            self.runs.pop();
        }
        while self.marks.back().is_some_and(|mark| mark.first >= first) {
            self.marks.pop_back();
        }
        self.broken = true;
    }

    /// Adds the entry after the last one.
    pub(crate) fn append(&mut self, id: LogId, segment: u64, offset: u64) {
        let near = self.marks.back().is_some_and(|m| m.segment == segment && offset - m.offset < MARK_EVERY);
        if self.broken || !near {
            self.marks.push_back(Mark { first: id.index, segment, offset });
            self.broken = false;
        }
        if self.runs.last().is_none_or(|run| run.term != id.term) {
            self.runs.push(TermRun { term: id.term, first: id.index });
        }
        self.last = id;
    }

    /// Whether moving the base to `upto` empties the log: it does not hold that entry.
    pub(crate) fn emptied_by(&self, upto: LogId) -> bool {
        self.term_at(upto.index) != Some(upto.term)
    }

    /// Moves the base.
    pub(crate) fn compact(&mut self, upto: LogId, empties: bool) {
        if upto.index <= self.base.index {
            return;
        }
        self.base = upto;
        if empties || upto.index >= self.last.index {
            self.last = upto;
            self.gone = self.gone.min(upto.index);
            self.runs.clear();
            self.marks.clear();
            self.broken = true;
            return;
        }
        let first = upto.index.next();
        let keep = self.runs.partition_point(|run| run.first <= first).saturating_sub(1);
        self.runs.drain(..keep);
        if let Some(run) = self.runs.first_mut() {
            run.first = run.first.max(first);
        }
        while self.marks.get(1).is_some_and(|mark| mark.first <= first) {
            self.marks.pop_front();
        }
    }

    /// The stretches that hold entries from `start` to before `end`, which must be held: each a mark and the index that
    /// its stretch ends before.
    pub(crate) fn stretches(&self, start: Index, end: Index) -> Vec<(Mark, Index)> {
        let from = self.marks.partition_point(|mark| mark.first <= start).saturating_sub(1);
        let mut out = Vec::new();
        for (n, mark) in self.marks.iter().enumerate().skip(from) {
            if mark.first >= end {
                break;
            }
            let upto = self.marks.get(n + 1).map_or(end, |next| next.first.min(end));
            out.push((*mark, upto));
        }
        out
    }

    /// Bytes of memory that positions and terms take.
    pub(crate) fn memory(&self) -> usize {
        self.marks.capacity() * size_of::<Mark>() + self.runs.capacity() * size_of::<TermRun>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> LogIndex {
        let mut index = LogIndex::resume(Summary::default());
        for i in 1..=4 {
            index.append(LogId::new(1, i), 1, i * 512);
        }
        for i in 5..=6 {
            index.append(LogId::new(2, i), 2, i * 512);
        }
        index
    }

    #[test]
    fn a_truncation_ends_a_stretch() {
        let mut index = filled();
        index.truncate(Index(3));
        assert_eq!(index.last(), LogId::new(1, 2));
        index.append(LogId::new(3, 3), 2, 9000);
        let stretches = index.stretches(Index(1), Index(4));
        assert_eq!(stretches.len(), 2);
        assert_eq!((stretches[0].0.offset, stretches[0].1), (512, Index(3)));
        assert_eq!((stretches[1].0.offset, stretches[1].1), (9000, Index(4)));
        let runs = [TermRun { term: Term(1), first: Index(1) }, TermRun { term: Term(3), first: Index(3) }];
        assert_eq!(index.state().runs, runs);
    }

    #[test]
    fn a_compaction_cuts_the_first_run() {
        let mut index = filled();
        assert!(!index.emptied_by(LogId::new(1, 2)));
        index.compact(LogId::new(1, 2), false);
        assert_eq!(index.state().runs[0], TermRun { term: Term(1), first: Index(3) });
        assert_eq!((index.term_at(Index(2)), index.term_at(Index(1))), (Some(Term(1)), None));
        index.compact(LogId::new(1, 4), false);
        assert_eq!(index.state().runs, [TermRun { term: Term(2), first: Index(5) }]);
        assert_eq!(index.oldest_segment(), Some(2));
        assert!(index.emptied_by(LogId::new(9, 6)));
        index.compact(LogId::new(9, 6), true);
        assert_eq!((index.last(), index.state().runs.len()), (LogId::new(9, 6), 0));
    }

    #[test]
    fn entries_of_segments_that_are_gone_must_be_compacted() {
        let from = Summary { base: LogId::new(1, 2), last: LogId::new(2, 6), ..Summary::default() };
        let mut index = LogIndex::resume(from);
        assert_eq!(index.missing(), Some((Index(3), Index(6))));
        index.truncate(Index(5));
        index.append(LogId::new(3, 5), 4, 512);
        assert_eq!(index.missing(), Some((Index(3), Index(4))));
        index.compact(LogId::new(1, 4), false);
        assert_eq!(index.missing(), None);
        assert_eq!(index.state().runs, [TermRun { term: Term(3), first: Index(5) }]);
    }
}
