//! What the tests of the log share: a model of a log, and ways to open one on a simulated disk.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::{ClusterId, Entry, EntryKind, GroupId, HardState, Index, LogId, LogWrite, NodeId, StorageError, Term};
use raftkv_storage_file::sim::SimDisk;
use raftkv_storage_file::{Identity, Options, Wal};

pub const IDENTITY: Identity = Identity { cluster: ClusterId(0xc0ffee), node: NodeId(1), group: GroupId(0) };

pub fn dir() -> PathBuf {
    PathBuf::from("/log")
}

pub fn segment(id: u64) -> PathBuf {
    dir().join(format!("{id:020}.wal"))
}

/// Segments so small that a few batches fill one.
pub fn tiny() -> Options {
    Options { segment_bytes: 3072, background: false, ..Options::default() }
}

pub fn open(disk: &SimDisk) -> Result<Wal, StorageError> {
    open_with(disk, tiny())
}

pub fn open_with(disk: &SimDisk, options: Options) -> Result<Wal, StorageError> {
    Wal::open(Arc::new(disk.clone()), Path::new("/log"), IDENTITY, options)
}

pub fn entry(term: u64, index: u64, len: usize) -> Entry {
    let data: Vec<u8> = format!("{term}/{index} ").bytes().cycle().take(len).collect();
    Entry { id: LogId::new(term, index), kind: EntryKind::Command, data: data.into() }
}

pub fn write(term: u64, indexes: std::ops::Range<u64>, len: usize) -> LogWrite {
    LogWrite { hard_state: None, entries: indexes.map(|index| entry(term, index, len)).collect() }
}

pub fn vote(term: u64, node: u64) -> LogWrite {
    LogWrite { hard_state: Some(HardState { term: Term(term), voted_for: Some(NodeId(node)) }), entries: Vec::new() }
}

/// What a log holds, as simply as it can be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub hard_state: HardState,
    pub base: LogId,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
pub enum Call {
    Write(LogWrite),
    Compact(LogId),
}

impl Model {
    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    pub fn apply(&mut self, call: &Call) {
        match call {
            Call::Write(write) => {
                if let Some(hard_state) = write.hard_state {
                    self.hard_state = hard_state;
                }
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
    pub fn of(wal: &Wal) -> Result<Self, StorageError> {
        let state = wal.state();
        let mut entries = Vec::new();
        if state.last.index > state.base.index {
            entries = wal.read(state.base.index.next()..state.last.index.next(), u64::MAX)?;
        }
        let model = Self { hard_state: state.hard_state, base: state.base, entries };
        assert_eq!(model.last(), state.last, "the bounds contradict the entries");
        for entry in &model.entries {
            let run = state.runs.iter().rev().find(|run| run.first <= entry.id.index).unwrap();
            assert_eq!(run.term, entry.id.term, "the terms contradict the entries");
        }
        assert!(model.entries.iter().zip(1..).all(|(entry, n)| entry.id.index == Index(model.base.index.0 + n)));
        Ok(model)
    }
}

pub fn perform(wal: &mut Wal, call: &Call) -> Result<(), StorageError> {
    match call {
        Call::Write(write) => wal.write(write),
        Call::Compact(upto) => wal.compact(*upto),
    }
}
