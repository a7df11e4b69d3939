//! The suites find what they are made to find: backends with one fault each, and the case that must fail for it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::conformance::{Fault, log_store, run, snapshot, state_machine};
use raftkv::testing::{Crash, Durable, MemLog, MemSnapshots, Random};
use raftkv::{
    Chunks, Entry, Fatal, Index, LogId, LogState, LogStore, LogWrite, Published, Record, Recorded, Snapshot,
    SnapshotId, SnapshotMeta, SnapshotWriter, StateMachine, StorageError,
};

/// What is wrong with a [`Ledger`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// An answer tells how many machines there are.
    DiffersFromNodeToNode,
    /// The last command of a batch counts for nothing.
    LosesTheEndOfABatch,
    /// An image is made when it is read.
    SnapshotIsNotFrozen,
    /// A restored machine keeps what the image does not name.
    RestoreAdds,
    /// An image is taken to come in one chunk.
    OneChunk,
    PanicsAtNonsense,
    /// The state and the applied id are written one after the other.
    AppliedIsApart,
}

/// A durable machine: each command adds a number to an account, as `name number`.
struct Ledger {
    wrong: Wrong,
    number: u64,
    disk: Arc<Mutex<Disk>>,
}

#[derive(Clone, Default)]
struct Disk {
    accounts: BTreeMap<String, u64>,
    applied: LogId,
    operations: u64,
    dead_from: Option<u64>,
}

impl Disk {
    fn write(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), Fatal> {
        self.operations += 1;
        if self.dead_from.is_some_and(|dead| self.operations > dead) {
            return Err(Fatal::state_machine("the disk is gone"));
        }
        change(self);
        Ok(())
    }

    fn image(&self) -> Vec<Bytes> {
        self.accounts.iter().map(|(name, sum)| Bytes::from(format!("{name} {sum}\n"))).collect()
    }
}

fn parse(command: &[u8]) -> Option<(&str, u64)> {
    let (name, number) = std::str::from_utf8(command).ok()?.split_once(' ')?;
    Some((name, number.parse().ok()?)).filter(|(name, _)| !name.contains('\n'))
}

struct Late(Arc<Mutex<Disk>>, usize);

#[async_trait]
impl Chunks for Late {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        self.1 += 1;
        Ok(self.0.lock().unwrap().image().get(self.1 - 1).cloned())
    }
}

#[async_trait]
impl StateMachine for Ledger {
    async fn applied(&self) -> Result<LogId, Fatal> {
        Ok(self.disk.lock().unwrap().applied)
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        let mut disk = self.disk.lock().unwrap();
        let parsed = parse(&command);
        if self.wrong == Wrong::PanicsAtNonsense {
            parsed.expect("a command makes sense");
        }
        let sum = parsed.map(|(name, number)| disk.accounts.get(name).map_or(0, |sum| *sum).wrapping_add(number));
        let mut answer = sum.map_or("nonsense".to_owned(), |sum| sum.to_string());
        let add = |disk: &mut Disk| {
            disk.accounts.extend(parsed.zip(sum).map(|((name, _), sum)| (name.to_owned(), sum)));
        };
        if self.wrong == Wrong::AppliedIsApart {
            disk.write(add)?;
            disk.write(|disk| disk.applied = at)?;
        } else {
            disk.write(|disk| {
                add(disk);
                disk.applied = at;
            })?;
        }
        if self.wrong == Wrong::DiffersFromNodeToNode {
            answer = format!("{answer} of machine {}", self.number);
        }
        Ok(answer.into())
    }

    async fn apply_batch(&mut self, mut batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
        let lost = if self.wrong == Wrong::LosesTheEndOfABatch { batch.pop() } else { None };
        let mut answers = Vec::new();
        for (at, command) in batch {
            answers.push(self.apply(at, command).await?);
        }
        answers.extend(lost.map(|_| "0".into()));
        Ok(answers)
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        if self.wrong == Wrong::SnapshotIsNotFrozen {
            return Ok(Box::new(Late(self.disk.clone(), 0)));
        }
        Ok(Box::new(self.disk.lock().unwrap().image().into_iter()))
    }

    async fn restore(&mut self, mut image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let mut bytes = Vec::new();
        while let Some(chunk) = image.next().await? {
            bytes.extend_from_slice(&chunk);
            if self.wrong == Wrong::OneChunk {
                break;
            }
        }
        let mut accounts = BTreeMap::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").ok_or_else(|| Fatal::state_machine("the image is cut short"))?;
            let (name, sum) = parse(line).ok_or_else(|| Fatal::state_machine("the image is no ledger"))?;
            accounts.insert(name.to_owned(), sum);
        }
        let adds = self.wrong == Wrong::RestoreAdds;
        self.disk.lock().unwrap().write(|disk| {
            if adds {
                disk.accounts.extend(accounts);
            } else {
                disk.accounts = accounts;
            }
        })
    }
}

struct Ledgers {
    wrong: Wrong,
    created: AtomicU64,
    last: Mutex<Arc<Mutex<Disk>>>,
}

impl Ledgers {
    fn new(wrong: Wrong) -> Self {
        Self { wrong, created: AtomicU64::new(0), last: Mutex::default() }
    }
}

impl state_machine::Backend for Ledgers {
    type Machine = Ledger;

    async fn create(&self) -> Ledger {
        let disk = Arc::new(Mutex::new(Disk::default()));
        *self.last.lock().unwrap() = disk.clone();
        Ledger { wrong: self.wrong, number: self.created.fetch_add(1, Ordering::Relaxed), disk }
    }

    fn command(&self, random: &mut Random) -> Bytes {
        format!("{} {}", random.pick(&["ann", "bob", "eve"]).unwrap(), random.below(1000)).into()
    }

    async fn reopen(&self) -> Option<Ledger> {
        let disk = self.last.lock().unwrap().clone();
        disk.lock().unwrap().dead_from = None;
        Some(Ledger { wrong: self.wrong, number: 0, disk })
    }

    fn arm(&self, _fault: Fault, after: u64) -> bool {
        let disk = self.last.lock().unwrap().clone();
        let mut disk = disk.lock().unwrap();
        disk.dead_from = Some(disk.operations + after);
        true
    }
}

mod a_right_ledger {
    use super::*;
    raftkv::state_machine_conformance!(Ledgers::new(Wrong::Nothing));
}

macro_rules! caught {
    ($($suite:ident: $name:ident, $backend:expr, $case:ident;)*) => {$(
        #[test]
        #[should_panic]
        fn $name() {
            run($suite::$case(&$backend));
        }
    )*};
}

caught! {
    state_machine: answers_that_differ, Ledgers::new(Wrong::DiffersFromNodeToNode),
        the_same_commands_give_the_same_answers_and_images;
    state_machine: a_batch_that_loses_its_end, Ledgers::new(Wrong::LosesTheEndOfABatch),
        a_batch_is_as_good_as_its_commands_one_by_one;
    state_machine: an_image_that_is_made_late, Ledgers::new(Wrong::SnapshotIsNotFrozen), a_snapshot_is_a_frozen_view;
    state_machine: a_restore_that_keeps_the_old_state, Ledgers::new(Wrong::RestoreAdds), restoring_replaces_everything;
    state_machine: a_restore_that_reads_one_chunk, Ledgers::new(Wrong::OneChunk), an_image_may_be_cut_anywhere;
    state_machine: a_panic_at_nonsense, Ledgers::new(Wrong::PanicsAtNonsense),
        commands_of_nonsense_are_answered_and_do_not_panic;
    state_machine: a_kill_between_state_and_applied, Ledgers::new(Wrong::AppliedIsApart),
        a_kill_at_any_point_keeps_state_and_applied_together;
}

/// Keeps what it should forget of sessions.
#[derive(Clone, Default)]
struct Hoarder(Durable, Arc<Mutex<Vec<Record>>>);

#[async_trait]
impl StateMachine for Hoarder {
    async fn applied(&self) -> Result<LogId, Fatal> {
        self.0.applied().await
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        self.0.apply(at, command).await
    }

    async fn apply_recorded(&mut self, batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        let answers = self.0.apply_recorded(batch).await?;
        let now = self.0.records().await?.unwrap_or_default();
        let mut all = self.1.lock().unwrap();
        all.retain(|old| now.iter().all(|new| new.key != old.key));
        all.extend(now);
        Ok(answers)
    }

    async fn records(&self) -> Result<Option<Vec<Record>>, Fatal> {
        Ok(Some(self.1.lock().unwrap().clone()))
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        self.0.snapshot().await
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.0.restore(image).await
    }
}

#[derive(Default)]
struct Hoarders(Mutex<Hoarder>);

impl state_machine::Backend for Hoarders {
    type Machine = Hoarder;

    async fn create(&self) -> Hoarder {
        let machine = Hoarder::default();
        *self.0.lock().unwrap() = machine.clone();
        machine
    }

    fn command(&self, random: &mut Random) -> Bytes {
        random.below(1000).to_string().into()
    }

    async fn reopen(&self) -> Option<Hoarder> {
        Some(self.0.lock().unwrap().clone())
    }
}

#[test]
#[should_panic(expected = "the records after 42@3")]
fn records_that_are_never_forgotten() {
    run(state_machine::records_of_sessions_are_kept_with_the_state(&Hoarders::default()));
}

/// A log that tells of success when a write has failed.
#[derive(Clone)]
struct Careless(MemLog);

#[async_trait]
impl LogStore for Careless {
    async fn load(&self) -> Result<LogState, StorageError> {
        self.0.load().await
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.0.read(range, max_bytes).await
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        let _ = self.0.write(write).await;
        Ok(())
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.0.compact(upto).await
    }
}

impl log_store::Backend for Careless {
    type Store = Self;

    async fn open(&self) -> Self {
        self.0.crash(Crash::Lost);
        Self(self.0.reopen())
    }

    fn arm(&self, _fault: Fault, after: u64) -> bool {
        self.0.fail_after(after);
        true
    }
}

caught! {
    log_store: an_acknowledgement_before_the_disk, Careless(MemLog::new()),
        a_loss_of_power_at_any_point_loses_nothing_that_was_acknowledged;
}

/// Shows an image before it is published.
#[derive(Clone, Default)]
struct Eager(MemSnapshots, Arc<Mutex<Option<SnapshotMeta>>>);

#[async_trait]
impl Snapshot for Eager {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        let begun = self.1.lock().unwrap().clone().map(|meta| Published { meta, len: 0, checksum: 0 });
        Ok(begun.or(self.0.latest().await?))
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        self.0.read(id, offset, max).await
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        *self.1.lock().unwrap() = Some(meta.clone());
        self.0.begin(meta).await
    }
}

impl snapshot::Backend for Eager {
    type Store = Self;

    async fn open(&self) -> Result<Self, StorageError> {
        Ok(self.clone())
    }
}

caught! {
    snapshot: an_image_that_is_seen_early, Eager::default(), an_unfinished_image_is_never_visible;
}
