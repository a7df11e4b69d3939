//! A log in memory, with a disk that can be slow, stuck, or broken.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::lock;
use crate::error::StorageError;
use crate::traits::{HardState, LogState, LogStore, LogWrite};
use crate::types::{Entry, Index, LogId};

/// A log in memory. Clones share it: keep one, and give a node that is restarted what [`MemLog::reopen`] returns.
#[derive(Clone, Debug, Default)]
pub struct MemLog {
    shared: Arc<Shared>,
    /// The crashes that had happened when this was opened.
    session: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when something about holding changes.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    hard_state: HardState,
    base: LogId,
    last: LogId,
    /// Entries as they were written: contiguous pieces, none empty.
    pieces: VecDeque<Vec<Entry>>,
    latency: Duration,
    held: bool,
    /// Writes that wait while writes are held, in order.
    waiting: VecDeque<LogWrite>,
    /// Fail the write after this many.
    fail_after: Option<u64>,
    /// Why all further writes fail.
    broken: Option<String>,
    /// Counts crashes: who opened the log before one can't write to it any more.
    crashes: u64,
    writes: u64,
}

/// What becomes of the write that is under way when a node crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing of it is there.
    Lost,
    /// All of it is there, though nobody was told.
    Kept,
    /// The hard state and this many of its entries are there.
    Torn(usize),
}

impl MemLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The log as a restarted node finds it. After a crash, earlier handles can steer and read, but not write.
    #[must_use]
    pub fn reopen(&self) -> Self {
        Self { shared: self.shared.clone(), session: lock(&self.shared.state).crashes }
    }

    /// Makes each write take this long from now on.
    pub fn set_latency(&self, latency: Duration) {
        lock(&self.shared.state).latency = latency;
    }

    /// Writes that begin from now on do not return before [`MemLog::release`].
    pub fn hold(&self) {
        lock(&self.shared.state).held = true;
    }

    /// Lets held writes through.
    pub fn release(&self) {
        lock(&self.shared.state).held = false;
        self.shared.changed.notify_waiters();
    }

    /// Whether a write is held back at the moment.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !lock(&self.shared.state).waiting.is_empty()
    }

    /// Lets `n` further writes succeed and fails the one after them, and then all others, until [`MemLog::crash`].
    pub fn fail_after(&self, n: u64) {
        lock(&self.shared.state).fail_after = Some(n);
    }

    /// What a loss of power leaves: what was durable, and what `crash` says of the write under way. Mends the disk as well.
    /// The node that was using it can't write any more, and stops when it tries.
    pub fn crash(&self, crash: Crash) {
        let mut state = lock(&self.shared.state);
        let under_way = state.waiting.pop_front();
        state.waiting.clear();
        if let Some(mut write) = under_way {
            match crash {
                Crash::Lost => {}
                Crash::Kept => state.put(write),
                Crash::Torn(entries) => {
                    write.entries.truncate(entries);
                    state.put(write);
                }
            }
        }
        state.crashes += 1;
        state.held = false;
        state.fail_after = None;
        state.broken = None;
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// How many writes have become durable.
    #[must_use]
    pub fn writes(&self) -> u64 {
        lock(&self.shared.state).writes
    }

    /// All entries held, for assertions.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        lock(&self.shared.state).pieces.iter().flatten().cloned().collect()
    }

    /// Waits as long as the write is to take, and while writes are held.
    async fn delay(&self, write: LogWrite) -> Result<LogWrite, StorageError> {
        let latency = {
            let mut state = lock(&self.shared.state);
            state.check_alive(self.session)?;
            if !state.held && state.latency.is_zero() {
                return Ok(write);
            }
            state.waiting.push_back(write);
            state.latency
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = lock(&self.shared.state);
                state.check_alive(self.session)?;
                if !state.held {
                    let write = state.waiting.pop_front();
                    return write.ok_or_else(|| StorageError::Misuse("writes overlap".into()));
                }
            }
            changed.await;
        }
    }
}

impl State {
    fn first(&self) -> Index {
        self.base.index.next()
    }

    /// Takes in a write that is known to fit.
    fn put(&mut self, write: LogWrite) {
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        if let (Some(first), Some(last)) = (write.entries.first(), write.entries.last()) {
            self.last = last.id;
            self.truncate(first.id.index);
            self.pieces.push_back(write.entries);
        }
        self.writes += 1;
    }

    /// Removes the entry at `from` and all after it.
    fn truncate(&mut self, from: Index) {
        while let Some(piece) = self.pieces.back_mut() {
            let Some(first) = piece.first() else { break };
            if first.id.index < from {
                piece.truncate(usize::try_from(from.since(first.id.index)).unwrap_or(usize::MAX));
                break;
            }
            self.pieces.pop_back();
        }
    }

    fn check_alive(&self, session: u64) -> Result<(), StorageError> {
        if session != self.crashes {
            return Err(StorageError::Sticky("the machine crashed".into()));
        }
        self.broken.as_ref().map_or(Ok(()), |reason| Err(StorageError::Sticky(reason.clone())))
    }

    /// Entries from `from` on.
    fn from(&self, from: Index) -> impl Iterator<Item = &Entry> {
        let piece = self.pieces.partition_point(|piece| piece.last().is_some_and(|last| last.id.index < from));
        self.pieces.range(piece..).flatten().skip_while(move |entry| entry.id.index < from)
    }
}

#[async_trait]
impl LogStore for MemLog {
    async fn load(&self) -> Result<LogState, StorageError> {
        let state = lock(&self.shared.state);
        Ok(LogState::of(state.hard_state, state.base, state.pieces.iter().flatten().map(|entry| entry.id)))
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let state = lock(&self.shared.state);
        if range.start < state.first() || range.start > state.last.index || range.is_empty() {
            let (base, last) = (state.base, state.last);
            return Err(StorageError::Misuse(format!("{range:?} is read from a log from {base} to {last}")));
        }
        let wanted = state.from(range.start).take_while(|entry| entry.id.index < range.end);
        Ok(Entry::fitting(wanted.cloned(), max_bytes))
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        let write = self.delay(write).await?;
        let mut state = lock(&self.shared.state);
        state.check_alive(self.session)?;
        if let Some(left) = &mut state.fail_after {
            if *left == 0 {
                state.broken = Some("a write was made to fail".into());
                let source = std::io::Error::other("made to fail by a test");
                return Err(StorageError::Io { op: "write", path: "memory".into(), source });
            }
            *left -= 1;
        }
        if let Err(misuse) = write.check(state.base, state.last) {
            state.broken = Some(misuse.to_string());
            return Err(misuse);
        }
        state.put(write);
        Ok(())
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        let mut state = lock(&self.shared.state);
        state.check_alive(self.session)?;
        if upto.index <= state.base.index {
            return Ok(());
        }
        let held = state.from(upto.index).next().is_some_and(|entry| entry.id == upto);
        let rest: Vec<Entry> = if held { state.from(upto.index.next()).cloned().collect() } else { Vec::new() };
        state.base = upto;
        state.last = rest.last().map_or(upto, |entry| entry.id);
        state.pieces = Some(rest).filter(|rest| !rest.is_empty()).into_iter().collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::EntryKind;

    fn write(ids: &[(u64, u64)]) -> LogWrite {
        let entry = |(term, index): &(u64, u64)| Entry {
            id: LogId::new(*term, *index),
            kind: EntryKind::Command,
            data: format!("{index}").into(),
        };
        LogWrite { hard_state: None, entries: ids.iter().map(entry).collect() }
    }

    fn ids(log: &MemLog) -> Vec<(u64, u64)> {
        log.entries().iter().map(|entry| (entry.id.term.0, entry.id.index.0)).collect()
    }

    #[tokio::test]
    async fn a_write_replaces_what_it_covers() {
        let log = MemLog::new();
        log.write(write(&[(1, 1), (1, 2), (1, 3)])).await.unwrap();
        log.write(write(&[(2, 2)])).await.unwrap();
        assert_eq!(ids(&log), [(1, 1), (2, 2)]);
        let state = log.load().await.unwrap();
        assert_eq!((state.last, state.runs.len()), (LogId::new(2, 2), 2));
        assert!(log.write(write(&[(2, 4)])).await.is_err());
    }

    #[tokio::test]
    async fn reads_are_bounded_and_compaction_moves_the_base() {
        let log = MemLog::new();
        log.write(write(&[(1, 1), (1, 2)])).await.unwrap();
        log.write(write(&[(1, 3), (1, 4)])).await.unwrap();
        assert_eq!(log.read(Index(2)..Index(9), 130).await.unwrap().len(), 2);
        assert_eq!(log.read(Index(2)..Index(9), 1).await.unwrap().len(), 1);
        log.compact(LogId::new(1, 3)).await.unwrap();
        assert_eq!(ids(&log), [(1, 4)]);
        assert!(log.read(Index(3)..Index(9), 1).await.is_err());
        log.compact(LogId::new(7, 4)).await.unwrap();
        assert_eq!((ids(&log).len(), log.load().await.unwrap().last), (0, LogId::new(7, 4)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_write_is_lost_torn_or_kept_by_a_crash() {
        for (crash, left) in [(Crash::Lost, 1), (Crash::Torn(1), 2), (Crash::Kept, 3)] {
            let log = MemLog::new();
            log.write(write(&[(1, 1)])).await.unwrap();
            log.hold();
            let under_way = tokio::spawn({
                let log = log.clone();
                async move { log.write(write(&[(1, 2), (1, 3)])).await }
            });
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(log.is_holding());
            log.crash(crash);
            assert!(under_way.await.unwrap().is_err(), "nobody is told of it");
            assert_eq!(ids(&log).len(), left);
        }
    }

    #[tokio::test]
    async fn a_failed_write_is_sticky() {
        let log = MemLog::new();
        log.fail_after(1);
        log.write(write(&[(1, 1)])).await.unwrap();
        assert!(matches!(log.write(write(&[(1, 2)])).await, Err(StorageError::Io { .. })));
        assert!(matches!(log.write(write(&[(1, 2)])).await, Err(StorageError::Sticky(_))));
        log.crash(Crash::Lost);
        assert!(log.write(write(&[(1, 2)])).await.is_err(), "that machine is gone");
        log.reopen().write(write(&[(1, 2)])).await.unwrap();
    }
}
