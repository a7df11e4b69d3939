//! The log itself, blocking.

use std::ops::{Bound, Range};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use raftkv::{Entry, Index, LogId, LogState, LogWrite, StorageError};
use raftkv_storage_file::{Identity, Vfs};
use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use crate::dump::{DumpLine, dump_on};
use crate::error::{Trouble, corrupt};
use crate::index::Contents;
use crate::record::{Checked, ENTRIES, ENTRY_HEADER, STATE, Salt, State, encode_entry};
use crate::volume::{Found, Plan, Volume};
use crate::{Options, Stats};

/// A log, for one writer and many readers.
#[derive(Debug)]
pub(crate) struct Store {
    volume: Volume,
    salt: Salt,
    contents: RwLock<Arc<Contents>>,
    /// Held from before a commit until the contents tell of it.
    committing: Mutex<()>,
    /// What failed first.
    failed: OnceLock<String>,
}

impl Store {
    pub(crate) fn open(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        identity: Identity,
        options: Options,
    ) -> Result<Self, StorageError> {
        let opened = Volume::open(vfs, dir, plan(options), identity, make, check);
        let (volume, contents) = opened.map_err(|error| name_the_entry(error, vfs, dir))?;
        let LogState { base, last, .. } = contents.log;
        tracing::info!(dir = %dir.display(), %base, %last, commits = contents.sequence, "opened the log");
        let salt = Salt::new(volume.nonce());
        let contents = RwLock::new(Arc::new(contents));
        Ok(Self { volume, salt, contents, committing: Mutex::default(), failed: OnceLock::new() })
    }

    fn contents(&self) -> Arc<Contents> {
        Arc::clone(&self.contents.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn state(&self) -> LogState {
        self.contents().log.clone()
    }

    /// Reads entries; see [`raftkv::LogStore::read`].
    pub(crate) fn read(&self, range: &Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if let Some(entries) = self.read_now(range, max_bytes)? {
            return Ok(entries);
        }
        // A commit came in between, of which the contents did not tell yet, or that failed half-way. While this lock is held there is none: whatever
        // does not fit then never will. It may have to wait for the disk, which is rare.
        let _none = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_running()?;
        let entries = self.read_now(range, max_bytes)?;
        entries.ok_or_else(|| {
            let sequence = self.contents().sequence;
            corrupt(self.volume.path(), None, format!("the database is not as it was after commit {sequence}"))
        })
    }

    /// None if the database is not as the contents say.
    fn read_now(&self, range: &Range<Index>, max_bytes: u64) -> Result<Option<Vec<Entry>>, StorageError> {
        let contents = self.contents();
        let held = contents.held(range)?;
        self.volume.read("read", |transaction| self.read_as_of(&transaction, &contents, &held, max_bytes))
    }

    /// None if the database is not, or no longer, as these contents say.
    fn read_as_of(
        &self,
        transaction: &ReadTransaction,
        contents: &Contents,
        held: &Range<Index>,
        max_bytes: u64,
    ) -> Result<Option<Vec<Entry>>, Trouble> {
        let path = self.volume.path();
        let table = transaction.open_table(ENTRIES)?;
        let state = read_state(transaction, self.volume.nonce(), path)?;
        if last_commit(&table, &state, self.salt, path)? != contents.sequence {
            return Ok(None);
        }
        let (mut entries, mut bytes) = (Vec::new(), 0_u64);
        let mut rows = table.range(held.start.0..held.end.0)?;
        let mut next = held.start;
        while next < held.end {
            let damaged = |reason: &str| corrupt(path, Some(next), reason);
            let row = rows.next().transpose()?.filter(|(key, _)| key.value() == next.0);
            let (_, value) = row.ok_or_else(|| damaged("the entry is missing"))?;
            let entry = Checked::new(next.0, value.value(), self.salt).map_err(damaged)?.entry(next.0);
            if contents.term_of(next) != Some(entry.id.term) {
                return Err(damaged("it is an earlier entry, which was replaced").into());
            }
            bytes = bytes.saturating_add(entry.cost());
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
            next = next.next();
        }
        Ok(Some(entries))
    }

    /// Makes one step durable; see [`raftkv::LogStore::write`].
    pub(crate) fn write(&self, write: &LogWrite) -> Result<(), StorageError> {
        if write.hard_state.is_none() && write.entries.is_empty() {
            return self.check_running();
        }
        self.commit(
            "write",
            |contents| {
                contents.check_contract(write)?;
                let replaced = write.entries.first().filter(|first| first.id.index <= contents.log.last.index);
                let replaced = replaced.map(|first| (Bound::Included(first.id.index.0), Bound::Unbounded));
                Ok(Some((contents.after_write(write), replaced)))
            },
            &write.entries,
        )
    }

    /// Moves the base; see [`raftkv::LogStore::compact`].
    pub(crate) fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.commit(
            "compact",
            |contents| {
                if upto.index <= contents.log.base.index {
                    return Ok(None);
                }
                let next = contents.after_compaction(upto);
                let end = if next.log.last == upto { Bound::Unbounded } else { Bound::Included(upto.index.0) };
                Ok(Some((next, Some((Bound::Unbounded, end)))))
            },
            &[],
        )
    }

    /// One transaction: what comes next, entries that go, and entries that come.
    fn commit(
        &self,
        op: &'static str,
        next: impl FnOnce(&Contents) -> Result<Option<(Contents, Option<Indexes>)>, StorageError>,
        entries: &[Entry],
    ) -> Result<(), StorageError> {
        let _one = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_running()?;
        let done = next(&self.contents()).and_then(|step| {
            let Some((mut next, gone)) = step else { return Ok(()) };
            let (freed, added) = self.volume.write(op, |transaction| self.change(transaction, gone, entries, &next))?;
            next.entry_bytes = next.entry_bytes.saturating_sub(freed).saturating_add(added);
            *self.contents.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
            Ok(())
        });
        if let Err(error) = &done {
            tracing::error!(%error, "the log failed, and takes no more writes");
            let _ = self.failed.set(error.to_string());
        }
        done
    }

    /// Makes the changes of one step. Tells how many bytes of entries went, and how many came.
    fn change(
        &self,
        transaction: &WriteTransaction,
        gone: Option<Indexes>,
        entries: &[Entry],
        next: &Contents,
    ) -> Result<(u64, u64), Trouble> {
        let (mut freed, mut added) = (0, 0);
        if gone.is_some() || !entries.is_empty() {
            let mut table = transaction.open_table(ENTRIES)?;
            if let Some(gone) = gone {
                table.retain_in(gone, |_, value| {
                    freed += row_bytes(value);
                    false
                })?;
            }
            // Entries are added at the end, in order, which redb does in one sweep.
            let mut end = table.upper_bound_mut(Bound::<u64>::Unbounded)?;
            let mut value = Vec::new();
            for entry in entries {
                value.resize(ENTRY_HEADER + entry.data.len(), 0);
                encode_entry(&mut value, entry, next.sequence, self.salt);
                end.insert_before(entry.id.index.0, value.as_slice())?;
                added += row_bytes(&value);
            }
            end.close()?;
        }
        let now = self.contents();
        if entries.is_empty() || (now.log.hard_state, now.log.base) != (next.log.hard_state, next.log.base) {
            let mut table = transaction.open_table(STATE)?;
            table.insert(0, next.state().encode(self.volume.nonce()).as_slice())?;
        }
        Ok((freed, added))
    }

    /// What can be done after a write has been answered: notes that it is synced.
    pub(crate) fn settle(&self) {
        if self.check_running().is_ok() {
            self.volume.settle(self.contents().sequence);
        }
    }

    /// How much room the database takes, and what for.
    pub(crate) fn stats(&self) -> Result<Stats, StorageError> {
        Ok(Stats { file_bytes: self.volume.file_len()?, entry_bytes: self.contents().entry_bytes })
    }

    pub(crate) fn close(&self) {
        let sequence = self.check_running().is_ok().then(|| self.contents().sequence);
        self.volume.close(sequence);
    }

    fn check_running(&self) -> Result<(), StorageError> {
        match self.failed.get() {
            Some(reason) => Err(StorageError::Sticky(reason.clone())),
            None => Ok(()),
        }
    }
}

/// What the database of a log is.
pub(crate) fn plan(Options { commit, cache_bytes, background }: Options) -> Plan {
    Plan { kind: "redb log", file: "log.redb", commit, cache_bytes, background }
}

type Indexes = (Bound<u64>, Bound<u64>);

/// What an entry takes in its table: its index, and its record.
fn row_bytes(record: &[u8]) -> u64 {
    (size_of::<u64>() + record.len()) as u64
}

/// Fills a new database: its first commit.
fn make(transaction: &WriteTransaction, nonce: u64) -> Result<(), Trouble> {
    drop(transaction.open_table(ENTRIES)?);
    let state = State { sequence: 1, hard_state: Default::default(), base: LogId::ZERO };
    transaction.open_table(STATE)?.insert(0, state.encode(nonce).as_slice())?;
    Ok(())
}

/// Reads the whole log: every entry is there, in order, whole, and no other.
pub(crate) fn check(found: &Found<'_>) -> Result<(Contents, u64), Trouble> {
    let salt = Salt::new(found.nonce);
    let state = read_state(&found.contents, found.nonce, found.path)?;
    let mut contents = Contents::new(&state);
    let table = found.contents.open_table(ENTRIES)?;
    let mut written = 0;
    for row in table.iter()? {
        let (key, value) = row?;
        let next = contents.log.last.index.next();
        let damaged = |reason: &str| corrupt(found.path, Some(next), reason);
        let index = key.value();
        if index != next.0 {
            return Err(damaged(&format!("entry {index} is in its place")).into());
        }
        let entry = Checked::new(index, value.value(), salt).map_err(damaged)?;
        if entry.sequence < written {
            return Err(damaged("it was written before the entry in front of it").into());
        }
        written = entry.sequence;
        contents.add(LogId { term: entry.term, index: next });
        contents.entry_bytes += row_bytes(value.value());
    }
    contents.sequence = contents.sequence.max(written);
    let sequence = contents.sequence;
    Ok((contents, sequence))
}

/// redb, which checks each page before we read an entry, does not say what it found in a damaged one: the first entry that can't be read tells.
fn name_the_entry(error: StorageError, vfs: &Arc<dyn Vfs>, dir: &Path) -> StorageError {
    if cfg!(panic = "abort") {
        // redb may panic in a page that it did not check, and the error would never be told.
        return error;
    }
    let StorageError::Corrupt { path, offset: None, index: None, reason } = error else { return error };
    let mut first = None;
    let looked = dump_on(vfs.clone(), dir, |line| {
        if let DumpLine::Damage { index: Some(index), reason } = line {
            first.get_or_insert((index, reason));
        }
    });
    match (looked, first) {
        (Ok(()), Some((index, of_entry))) => corrupt(Path::new(&path), Some(index), format!("{of_entry} ({reason})")),
        (Ok(()) | Err(_), _) => StorageError::Corrupt { path, offset: None, index: None, reason },
    }
}

/// The number of the last commit.
fn last_commit(
    entries: &impl ReadableTable<u64, &'static [u8]>,
    state: &State,
    salt: Salt,
    path: &Path,
) -> Result<u64, Trouble> {
    let Some((key, value)) = entries.last()? else { return Ok(state.sequence) };
    let index = key.value();
    let damaged = |reason| corrupt(path, Some(Index(index)), reason);
    let last = Checked::new(index, value.value(), salt).map_err(damaged)?;
    Ok(state.sequence.max(last.sequence))
}

pub(crate) fn read_state(transaction: &ReadTransaction, nonce: u64, path: &Path) -> Result<State, Trouble> {
    let table = transaction.open_table(STATE)?;
    let value = table.get(0)?.ok_or_else(|| corrupt(path, None, "the state of the log is missing"))?;
    State::decode(value.value(), nonce).map_err(|reason| corrupt(path, None, reason).into())
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use raftkv::{ClusterId, EntryKind, GroupId, NodeId};
    use raftkv_storage_file::parts::SyncedNote;
    use raftkv_storage_file::sim::{Fate, Fault, Moment, Pending, SimDisk};

    use super::*;
    use crate::backend::Ledger;

    const ALL: Range<Index> = Index(1)..Index(9);

    fn entry(index: u64) -> Entry {
        Entry { id: LogId::new(1, index), kind: EntryKind::Command, data: vec![7; 100].into() }
    }

    const DIR: &str = "/log";

    fn open(disk: &SimDisk) -> Store {
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let identity = Identity { cluster: ClusterId(1), node: NodeId(1), group: GroupId(0) };
        let options = Options { background: false, ..Options::default() };
        Store::open(&vfs, Path::new(DIR), identity, options).unwrap()
    }

    fn store() -> Store {
        let store = open(&SimDisk::new());
        store.write(&LogWrite { hard_state: None, entries: vec![entry(1), entry(2)] }).unwrap();
        store
    }

    /// Commits an entry as a writer does that is held up before the contents tell of it.
    fn commit_silently(store: &Store) -> Contents {
        let write = LogWrite { hard_state: None, entries: vec![entry(3)] };
        let next = store.contents().after_write(&write);
        store.volume.write("write", |transaction| store.change(transaction, None, &write.entries, &next)).unwrap();
        next
    }

    /// Whether the next process would go on in the file as it is.
    fn counts_as_closed(disk: &SimDisk, nonce: u64) -> bool {
        let (note, noted) = SyncedNote::open(disk, Path::new(DIR), nonce).unwrap();
        Ledger::new(note, noted).is_closed()
    }

    /// Whether all of the database is on the disk. That a cut of its length is not does not matter.
    fn is_on_disk(moment: &Moment) -> bool {
        let file = Path::new(DIR).join("log.redb");
        let contents = |disk: &SimDisk| disk.contents(&file).unwrap();
        let (now, later) = (contents(&moment.kill()), contents(&moment.lose_power(|_| Fate::Lost)));
        later.get(..now.len()) == Some(&now)
    }

    /// One that was closed, and is open again; from then on it is recorded.
    fn reopened() -> (SimDisk, Store) {
        let disk = SimDisk::new();
        let store = open(&disk);
        store.write(&LogWrite { hard_state: None, entries: vec![entry(1), entry(2)] }).unwrap();
        store.close();
        disk.record();
        let store = open(&disk);
        store.write(&LogWrite { hard_state: None, entries: vec![entry(3)] }).unwrap();
        (disk, store)
    }

    /// Whoever finds that it was closed goes on in it, and never syncs again what an earlier process has written.
    #[test]
    fn a_database_counts_as_closed_only_while_all_of_it_is_on_the_disk() {
        let (disk, store) = reopened();
        let nonce = store.volume.nonce();
        store.close();
        let moments = disk.take_recording();
        let (mut not_on_disk, mut closed) = (0, 0);
        for (at, moment) in moments.iter().enumerate() {
            let is_on_disk = is_on_disk(moment);
            not_on_disk += usize::from(!is_on_disk);
            // The process ends; or power is lost, when of all that was written the note alone has got to the disk.
            let note_alone = |pending: &Pending| match pending {
                Pending::Sector { path, .. } if path.ends_with("SYNCED") => Fate::Kept,
                Pending::Sector { .. } | Pending::Length { .. } | Pending::Name { .. } => Fate::Lost,
            };
            for disk in [moment.kill(), moment.lose_power(note_alone)] {
                let counts = counts_as_closed(&disk, nonce);
                assert!(is_on_disk || !counts, "at operation {at} of {} it counts as closed", moments.len());
                closed += usize::from(counts);
            }
        }
        let end = moments.last().unwrap().lose_power(|_| Fate::Lost);
        assert!(counts_as_closed(&end, nonce), "the mark is not on the disk");
        assert!(not_on_disk > 5 && closed > 5, "{not_on_disk} and {closed} of {}", moments.len());
    }

    /// What such a sync should have written the system takes for clean, so the next process must not go on in it.
    #[test]
    fn a_database_does_not_count_as_closed_when_a_sync_has_failed_at_the_end() {
        let (disk, store) = reopened();
        let begins = disk.operations();
        store.close();
        let mut forgotten = 0;
        for at in begins..disk.operations() {
            let (disk, store) = reopened();
            assert_eq!(disk.operations(), begins, "this run is another");
            disk.fail_at(at, Fault::Forget);
            let nonce = store.volume.nonce();
            store.close();
            let is_on_disk = is_on_disk(&disk.now());
            forgotten += usize::from(!is_on_disk);
            assert!(is_on_disk || !counts_as_closed(&disk, nonce), "operation {at} failed, and it counts as closed");
        }
        assert!(forgotten > 0, "no sync failed");
    }

    /// It used to be told after ten seconds of looking, on the clock.
    #[test]
    fn a_database_at_another_commit_is_told_at_once_when_nobody_writes() {
        let store = store();
        commit_silently(&store);
        let began = Instant::now();
        let error = store.read(&ALL, u64::MAX).unwrap_err();
        assert!(matches!(&error, StorageError::Corrupt { reason, .. } if reason.contains("after commit 2")), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "told after {:?}", began.elapsed());
    }

    #[test]
    fn a_reader_waits_for_the_commit_that_is_under_way_however_long_that_takes() {
        let store = store();
        thread::scope(|scope| {
            let writing = store.committing.lock().unwrap();
            let next = commit_silently(&store);
            let reader = scope.spawn(|| store.read(&ALL, u64::MAX));
            thread::sleep(Duration::from_millis(50));
            assert!(!reader.is_finished(), "it did not wait for the writer");
            *store.contents.write().unwrap() = Arc::new(next);
            drop(writing);
            assert_eq!(reader.join().unwrap().unwrap(), [entry(1), entry(2), entry(3)]);
        });
    }

    #[test]
    fn a_reader_that_meets_with_a_commit_that_failed_says_so() {
        let store = store();
        commit_silently(&store);
        store.failed.set("the disk is gone".into()).unwrap();
        let error = store.read(&ALL, u64::MAX).unwrap_err();
        assert!(matches!(&error, StorageError::Sticky(reason) if reason.contains("the disk is gone")), "{error}");
    }
}
