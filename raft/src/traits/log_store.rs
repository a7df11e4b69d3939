use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::StorageError;
use crate::types::{Entry, Index, LogId, NodeId, Term};

/// What a node must not forget about elections (paper, figure 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardState {
    /// The latest term the node has seen.
    pub term: Term,
    /// The candidate that has its vote in that term.
    pub voted_for: Option<NodeId>,
}

impl fmt::Display for HardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.voted_for {
            Some(node) => write!(f, "term {}, vote for node {}", self.term.0, node.0),
            None => write!(f, "term {}, no vote", self.term.0),
        }
    }
}

/// A stretch of entries of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TermRun {
    /// The term.
    pub term: Term,
    /// The index of its first entry.
    pub first: Index,
}

/// What a log store holds, without the payloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// The last hard state written.
    pub hard_state: HardState,
    /// The id of the entry before the first one held: zero, or the last one compacted away.
    pub base: LogId,
    /// The id of the last entry held; equals `base` when none is.
    pub last: LogId,
    /// The terms of all entries held: one run a term, in order. Empty when no entry is held.
    pub runs: Vec<TermRun>,
}

impl LogState {
    /// What is held where these entries follow the base. For stores that have their ids at hand.
    #[must_use]
    pub fn of(hard_state: HardState, base: LogId, ids: impl IntoIterator<Item = LogId>) -> Self {
        let mut state = Self { hard_state, base, last: base, runs: Vec::new() };
        for id in ids {
            if state.runs.last().is_none_or(|run| run.term != id.term) {
                state.runs.push(TermRun { term: id.term, first: id.index });
            }
            state.last = id;
        }
        state
    }
}

/// One atomic, durable step: hard state first, then entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogWrite {
    /// A new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Contiguous entries. The first one's index is at most one past the last held and above the base; whatever the
    /// store holds at that index and beyond is replaced.
    pub entries: Vec<Entry>,
}

impl LogWrite {
    /// Checks what the caller of [`LogStore::write`] owes: that the entries follow each other, and join a log that goes from behind `base` to `last`.
    ///
    /// # Errors
    /// [`StorageError::Misuse`] says what does not fit.
    pub fn check(&self, base: LogId, last: LogId) -> Result<(), StorageError> {
        let misuse = |reason| Err(StorageError::Misuse(reason));
        let Some(first) = self.entries.first() else { return Ok(()) };
        if first.id.index <= base.index || first.id.index > last.index.next() {
            return misuse(format!("entries from {} do not join a log from {} to {last}", first.id, base.index.next()));
        }
        match self.entries.windows(2).find(|pair| pair[1].id.index != pair[0].id.index.next()) {
            Some(pair) => misuse(format!("entry {} after entry {}", pair[1].id, pair[0].id)),
            None => Ok(()),
        }
    }
}

/// Keeps the log and the hard state.
///
/// The runtime calls [`LogStore::write`] and [`LogStore::compact`] one at a time; [`LogStore::read`] may run beside them.
/// Any error stops the node, and the store must refuse every later write: after a failed fsync nobody knows
/// what is on disk.
///
/// For a store that holds its entries in memory as well, [`HeldLog`](super::HeldLog) is that half of it.
#[async_trait]
pub trait LogStore: Send + Sync + 'static {
    /// Tells what is held. Called once, before everything else.
    ///
    /// # Errors
    /// The log can't be read, or is damaged.
    async fn load(&self) -> Result<LogState, StorageError>;

    /// Reads entries of the range, from its start: as many as cost at most `max_bytes` together
    /// ([`Entry::cost`]), but at least one.
    ///
    /// # Errors
    /// The range is empty or its start is not held ([`StorageError::Misuse`]), or the entries can't be read or are damaged.
    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError>;

    /// Makes one step durable: when it returns, the whole step survives a loss of power; when power is lost before, either
    /// the whole step is there, or the hard state and a prefix of its entries, or nothing of it.
    ///
    /// The node's main task polls this future, to its end: leave to other threads what blocks or takes long, one step after the other, and none after one
    /// that failed. (`Worker` in `raftkv_storage_file::parts` does.)
    ///
    /// A disk that loses power while it writes may leave garbage in all of a sector. So nothing that was acknowledged may share one with what is written later: begin each step
    /// at a multiple of 512 bytes, or of 4096 where a disk writes these as one.
    ///
    /// A partial step never leaves entries behind that the step replaces, once one of its own entries is there.
    ///
    /// # Errors
    /// Sticky: every later write fails as well.
    async fn write(&self, write: LogWrite) -> Result<(), StorageError>;

    /// Forgets entries up to and including `upto`, which becomes the base. Where the log does not hold `upto` with this
    /// very term, it becomes empty. An `upto` at or below the base changes nothing. May keep more than asked on disk, but not in
    /// what [`LogStore::load`] tells.
    ///
    /// # Errors
    /// Sticky, as for writes.
    async fn compact(&self, upto: LogId) -> Result<(), StorageError>;
}

#[async_trait]
impl<T: LogStore + ?Sized> LogStore for Arc<T> {
    async fn load(&self) -> Result<LogState, StorageError> {
        (**self).load().await
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        (**self).read(range, max_bytes).await
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        (**self).write(write).await
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        (**self).compact(upto).await
    }
}
