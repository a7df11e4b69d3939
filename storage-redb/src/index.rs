//! What the log holds, without the payloads.

use std::ops::Range;

use raftkv::{Index, LogId, LogState, LogWrite, StorageError, Term, TermRun};

use crate::record::{ABSURD, MAX_PAYLOAD, State};

/// The log after a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    /// The number of the commit.
    pub(crate) sequence: u64,
    pub(crate) log: LogState,
    /// What the entries take in their table.
    pub(crate) entry_bytes: u64,
}

impl Contents {
    /// A log of which no entry has been seen yet: they are added by [`Contents::add`].
    pub(crate) fn new(state: &State) -> Self {
        let log = LogState { hard_state: state.hard_state, base: state.base, last: state.base, runs: Vec::new() };
        Self { sequence: state.sequence, log, entry_bytes: 0 }
    }

    /// What is kept in the database of it, besides the entries.
    pub(crate) fn state(&self) -> State {
        State { sequence: self.sequence, hard_state: self.log.hard_state, base: self.log.base }
    }

    /// An entry follows.
    pub(crate) fn add(&mut self, id: LogId) {
        if self.log.runs.last().is_none_or(|run| run.term != id.term) {
            self.log.runs.push(TermRun { term: id.term, first: id.index });
        }
        self.log.last = id;
    }

    /// The term of an entry that is held.
    pub(crate) fn term_of(&self, index: Index) -> Option<Term> {
        if index <= self.log.base.index || index > self.log.last.index {
            return None;
        }
        let after = self.log.runs.partition_point(|run| run.first <= index);
        Some(self.log.runs.get(after.checked_sub(1)?)?.term)
    }

    /// The next commit: a write that keeps the contract.
    pub(crate) fn after_write(&self, write: &LogWrite) -> Self {
        let mut next = self.clone();
        next.sequence += 1;
        next.log.hard_state = write.hard_state.unwrap_or(next.log.hard_state);
        if let Some(first) = write.entries.first() {
            next.log.runs.retain(|run| run.first < first.id.index);
            write.entries.iter().for_each(|entry| next.add(entry.id));
        }
        next
    }

    /// The next commit: a compaction up to an entry above the base. Where the log does not hold that entry, nothing is left.
    pub(crate) fn after_compaction(&self, upto: LogId) -> Self {
        let mut next = self.clone();
        next.sequence += 1;
        next.log.base = upto;
        if self.term_of(upto.index) != Some(upto.term) || upto.index == self.log.last.index {
            next.log.last = upto;
            next.log.runs.clear();
            return next;
        }
        let first = upto.index.next();
        let keep = next.log.runs.partition_point(|run| run.first <= first).saturating_sub(1);
        next.log.runs.drain(..keep);
        if let Some(run) = next.log.runs.first_mut() {
            run.first = run.first.max(first);
        }
        next
    }

    /// The entries of a range that is to be read: those that are held, from its start.
    pub(crate) fn held(&self, range: &Range<Index>) -> Result<Range<Index>, StorageError> {
        let LogState { base, last, .. } = self.log;
        if range.start >= range.end || range.start <= base.index || range.start > last.index {
            let (from, to) = (range.start, range.end);
            return Err(StorageError::Misuse(format!(
                "a read of {from} to {to} from a log that has {} to {last}",
                base.index.next()
            )));
        }
        Ok(range.start..range.end.min(last.index.next()))
    }

    /// What the trait asks of whoever writes.
    pub(crate) fn check_contract(&self, write: &LogWrite) -> Result<(), StorageError> {
        let misuse = |reason: String| Err(StorageError::Misuse(reason));
        let terms = write.hard_state.map(|state| state.term).into_iter().chain(write.entries.iter().map(|e| e.id.term));
        if let Some(term) = terms.into_iter().find(|term| term.0 >= ABSURD) {
            return misuse(format!("{term}: no log counts this far"));
        }
        write.check(self.log.base, self.log.last)?;
        match write.entries.iter().find(|entry| entry.data.len() > MAX_PAYLOAD) {
            Some(entry) => misuse(format!("entry {} has {} bytes; 3 GiB is the limit", entry.id, entry.data.len())),
            None => Ok(()),
        }
    }
}
