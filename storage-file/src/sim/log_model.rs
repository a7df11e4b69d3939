//! What a log holds, as simply as it can be said: tests of log stores compare with it what they find after a loss of power.

#![allow(clippy::panic, reason = "a test reports by panicking")]

use std::ops::Range;

use raftkv::{Entry, EntryKind, HardState, Index, LogId, LogState, LogWrite, NodeId, StorageError, Term};

/// An entry with so many bytes, which tell of which one.
#[must_use]
pub fn entry(term: u64, index: u64, len: usize) -> Entry {
    let data: Vec<u8> = format!("{term}/{index} ").bytes().cycle().take(len).collect();
    Entry { id: LogId::new(term, index), kind: EntryKind::Command, data: data.into() }
}

/// A write of such entries.
#[must_use]
pub fn write(term: u64, indexes: Range<u64>, len: usize) -> LogWrite {
    LogWrite { hard_state: None, entries: indexes.map(|index| entry(term, index, len)).collect() }
}

/// A write of a vote.
#[must_use]
pub fn vote(term: u64, node: u64) -> LogWrite {
    LogWrite { hard_state: Some(HardState { term: Term(term), voted_for: Some(NodeId(node)) }), entries: Vec::new() }
}

/// What a log is told to do.
#[derive(Clone, Debug)]
pub enum Call {
    /// [`LogStore::write`](raftkv::LogStore::write).
    Write(LogWrite),
    /// [`LogStore::compact`](raftkv::LogStore::compact).
    Compact(LogId),
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogModel {
    /// The hard state.
    pub hard_state: HardState,
    /// The entry before the first one.
    pub base: LogId,
    /// The entries.
    pub entries: Vec<Entry>,
}

impl LogModel {
    /// The last entry, or the one before all.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    /// Does what a log must do.
    pub fn apply(&mut self, call: &Call) {
        match call {
            Call::Write(write) => {
                self.hard_state = write.hard_state.unwrap_or(self.hard_state);
                if let Some(first) = write.entries.first() {
                    self.entries.retain(|entry| entry.id.index < first.id.index);
                    self.entries.extend(write.entries.iter().cloned());
                }
            }
            Call::Compact(upto) if upto.index > self.base.index => {
                let held = self.entries.iter().any(|entry| entry.id == *upto);
                self.entries.retain(|entry| held && entry.id.index > upto.index);
                self.base = *upto;
            }
            Call::Compact(_) => {}
        }
    }

    /// What a log holds by its own account, all entries read.
    ///
    /// # Errors
    /// Those of the reads.
    ///
    /// # Panics
    /// The account contradicts itself.
    pub fn read(
        state: &LogState,
        read: impl FnOnce(Range<Index>) -> Result<Vec<Entry>, StorageError>,
    ) -> Result<Self, StorageError> {
        let mut entries = Vec::new();
        if state.last.index > state.base.index {
            entries = read(state.base.index.next()..state.last.index.next())?;
        }
        let model = Self { hard_state: state.hard_state, base: state.base, entries };
        assert_eq!(model.last(), state.last, "the bounds contradict the entries");
        for entry in &model.entries {
            let run = state.runs.iter().rev().find(|run| run.first <= entry.id.index);
            assert_eq!(run.map(|run| run.term), Some(entry.id.term), "the terms contradict the entries");
        }
        assert!(model.entries.iter().zip(1..).all(|(entry, n)| entry.id.index == Index(model.base.index.0 + n)));
        Ok(model)
    }
}
