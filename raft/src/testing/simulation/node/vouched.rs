//! Remembers what a log acknowledged, across restarts: it must be there at each start.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::time::Instant;

use super::record::Record;
use crate::error::StorageError;
use crate::testing::lock;
use crate::traits::{HardState, LogState, LogStore, LogWrite};
use crate::types::{Entry, Index, LogId, NodeId, Term};

/// What one node's log has acknowledged. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Mutex<Known>>);

#[derive(Clone, Debug, Default)]
struct Known {
    /// The run whose writes count.
    run: u64,
    held: Held,
    /// What it would hold if the write under way were there, with 0, 1, 2 and so on of its entries.
    doubtful: Vec<Held>,
    /// When the write began that is under way, or has failed.
    began: Option<Instant>,
    /// The same of what is done to images and to the state machine, by number.
    imaging: BTreeMap<u64, Instant>,
    numbers: u64,
}

impl Memory {
    /// When the first write began, to the log, to images, or to what the state machine keeps, that did not succeed.
    pub(super) fn began(&self) -> Option<Instant> {
        let known = lock(&self.0);
        known.imaging.values().copied().chain(known.began).min()
    }

    /// Does something to images or the state machine, and notes when it began until it has succeeded.
    pub(super) async fn watch<T, E>(&self, run: u64, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let number = {
            let mut known = lock(&self.0);
            known.numbers += 1;
            let number = known.numbers;
            if known.run == run {
                known.imaging.insert(number, Instant::now());
            }
            number
        };
        let done = work.await;
        let mut known = lock(&self.0);
        if done.is_ok() && known.run == run {
            known.imaging.remove(&number);
        }
        done
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    hard_state: HardState,
    base: LogId,
    terms: BTreeMap<Index, Term>,
}

impl Held {
    fn of(state: &LogState) -> Self {
        let mut terms = BTreeMap::new();
        let mut runs = state.runs.iter().peekable();
        while let Some(run) = runs.next() {
            let end = runs.peek().map_or(state.last.index.next(), |next| next.first);
            terms.extend((run.first.0..end.0).map(|index| (Index(index), run.term)));
        }
        Self { hard_state: state.hard_state, base: state.base, terms }
    }

    /// After a write, of which so many entries are there.
    fn after(&self, write: &LogWrite, entries: usize) -> Self {
        let mut held = self.clone();
        held.hard_state = write.hard_state.unwrap_or(held.hard_state);
        if let Some(first) = write.entries.first().filter(|_| entries > 0) {
            held.terms.split_off(&first.id.index);
            held.terms.extend(write.entries.iter().take(entries).map(|entry| (entry.id.index, entry.id.term)));
        }
        held
    }

    fn last(&self) -> LogId {
        self.terms.last_key_value().map_or(self.base, |(index, term)| LogId { term: *term, index: *index })
    }
}

/// A log whose word is remembered.
pub(super) struct Vouched {
    log: Arc<dyn LogStore>,
    memory: Memory,
    run: u64,
    node: NodeId,
    record: Record,
}

impl Vouched {
    pub(super) fn new(log: Arc<dyn LogStore>, memory: Memory, run: u64, node: NodeId, record: Record) -> Self {
        Self { log, memory, run, node, record }
    }

    /// Works on the memory, unless the node was started again meanwhile.
    fn remember(&self, work: impl FnOnce(&mut Known)) {
        let mut known = lock(&self.memory.0);
        if known.run == self.run {
            work(&mut known);
        }
    }
}

#[async_trait]
impl LogStore for Vouched {
    async fn load(&self) -> Result<LogState, StorageError> {
        let state = self.log.load().await?;
        let found = Held::of(&state);
        let mut known = lock(&self.memory.0);
        if found != known.held && !known.doubtful.contains(&found) {
            let (had, has) = (known.held.last(), found.last());
            self.record.violated(format!(
                "forgotten: the log of {} acknowledged entries up to {had} and {:?}, and now holds others, up to {has} and {:?}",
                self.node, known.held.hard_state, found.hard_state
            ));
        }
        *known = Known { run: self.run, held: found, numbers: known.numbers, ..Known::default() };
        Ok(state)
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.log.read(range, max_bytes).await
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        self.remember(|known| {
            known.began = Some(Instant::now());
            known.doubtful = (0..=write.entries.len()).map(|entries| known.held.after(&write, entries)).collect();
        });
        self.log.write(write).await?;
        self.remember(|known| {
            known.held = known.doubtful.pop().unwrap_or_default();
            known.doubtful.clear();
            known.began = None;
        });
        Ok(())
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.remember(|known| {
            known.began = Some(Instant::now());
            let mut after = known.held.clone();
            let kept = after.terms.split_off(&upto.index.next());
            let holds = after.terms.get(&upto.index) == Some(&upto.term);
            known.doubtful = vec![Held { base: upto, terms: if holds { kept } else { BTreeMap::new() }, ..after }];
        });
        self.log.compact(upto).await?;
        let state = self.log.load().await?;
        self.remember(|known| {
            (known.held, known.doubtful, known.began) = (Held::of(&state), Vec::new(), None);
        });
        Ok(())
    }
}
