//! A database of redb in a directory that one node has to itself: made, opened, checked, repaired, closed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use raftkv::StorageError;
use raftkv_storage_file::parts::{Claim, SyncedNote, failed, read_full, write_all};
use raftkv_storage_file::{Access, Identity, Vfs, VfsFile};
use redb::{Database, DatabaseStats, ReadTransaction, ReadableDatabase, WriteTransaction};

use crate::Commit;
use crate::backend::{Backend, Ledger};
use crate::blank::Blank;
use crate::error::{Trouble, corrupt, guarded};

/// Copying goes in pieces of this many bytes.
const PIECE: usize = 1 << 20;
/// What redb reads and writes at once; a piece of the file without a byte in it is not copied.
const PAGE: usize = 4096;

/// A file of fewer bytes is not worth shrinking.
const SMALL: u64 = 1 << 20;

/// What a database is, and how it is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// What the directory's identity file calls it.
    pub(crate) kind: &'static str,
    /// The name of its file.
    pub(crate) file: &'static str,
    pub(crate) commit: Commit,
    pub(crate) cache_bytes: usize,
    /// Whether the store has a thread of its own.
    pub(crate) background: bool,
}

/// An open database.
#[derive(Debug)]
pub(crate) struct Volume {
    backend: Backend,
    plan: Plan,
    nonce: u64,
    /// Away once it is closed. Readers hold the lock, so that closing waits for them.
    open: RwLock<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    database: Database,
    /// None for somebody who only looks at it.
    claim: Option<Claim>,
}

/// A database as it was found, before anybody relies on it.
pub(crate) struct Found<'a> {
    /// Its contents.
    pub(crate) contents: ReadTransaction,
    pub(crate) nonce: u64,
    pub(crate) path: &'a Path,
}

impl Volume {
    /// Opens the database in `dir`, making both where they are missing. `make` fills a new one, whose first commit has number 1; `check`
    /// looks through what is there, and tells the number of the last commit.
    ///
    /// After an unclean stop the file is copied to a new one, which is synced, repaired, checked, and given the name only then. So all of it is on
    /// the disk for certain, and where it turns out to be damaged, the evidence is untouched.
    pub(crate) fn open<T>(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        plan: Plan,
        identity: Identity,
        make: impl FnOnce(&WriteTransaction, u64) -> Result<(), Trouble>,
        check: impl FnOnce(&Found<'_>) -> Result<(T, u64), Trouble>,
    ) -> Result<(Self, T), StorageError> {
        let is_there = |names: &[String]| names.iter().any(|name| name == plan.file);
        let claim = Claim::take(&**vfs, dir, plan.kind, identity, is_there)?;
        let (note, noted) = SyncedNote::open(&**vfs, dir, claim.nonce())?;
        let ledger = Ledger::new(note, noted);
        let place = Place { vfs: &**vfs, path: dir.join(plan.file), new: dir.join(format!("{}.new", plan.file)), dir };
        let names = vfs.list(dir).map_err(failed("list", dir))?;
        if names.iter().any(|name| Path::new(name) == place.new.file_name().unwrap_or_default()) {
            // Whoever wrote it was stopped before it counted.
            vfs.remove(&place.new).map_err(failed("remove", &place.new))?;
        }
        let (sequence, exists) = (ledger.sequence(), is_there(&names));
        if !exists && sequence > 0 {
            let reason = format!("the file is missing, but {sequence} commits had been synced to it");
            return Err(corrupt(&place.path, None, reason));
        }
        let in_place = exists && ledger.is_closed();
        let mut blank = Blank::new(plan.background);
        let file = match (exists, in_place) {
            (true, true) => vfs.open(&place.path, Access::Write).map_err(failed("open", &place.path))?,
            (true, false) => place.copy(&mut blank)?,
            (false, _) => vfs.open(&place.new, Access::Create).map_err(failed("create", &place.new))?,
        };
        let backend = Backend::new(file, place.path.clone(), ledger, blank);
        // A copy that does not come to count would only take up room, and whoever runs the node wonder what it is. While this node has the directory.
        let give_up = |_: &StorageError| {
            if !in_place {
                let _ = vfs.remove(&place.new);
            }
        };
        if exists {
            backend.restore_header().inspect_err(give_up)?;
        }
        let database = open_database(&backend, plan.cache_bytes, true).inspect_err(give_up)?;
        let nonce = claim.nonce();
        let volume = Self { backend, plan, nonce, open: RwLock::new(Some(Open { database, claim: Some(claim) })) };
        if !exists {
            volume.write("write", |transaction| make(transaction, nonce))?;
        }
        let checked = volume.check(sequence, check).inspect_err(|_| volume.backend.seal());
        let (contents, last) = checked.inspect_err(give_up)?;
        volume.shrink()?;
        if !in_place {
            vfs.rename(&place.new, &place.path).map_err(failed("rename", &place.new))?;
            vfs.sync_dir(dir).map_err(failed("fsync", dir))?;
        }
        volume.backend.settle(last)?;
        volume.backend.sync_note()?;
        Ok((volume, contents))
    }

    /// Opens the database in a file for somebody who only looks at it: `file` must keep what is written to it to itself. Damage that redb would find is only
    /// looked for if this is to be `thorough`.
    pub(crate) fn look_into(
        file: Arc<dyn VfsFile>,
        path: PathBuf,
        plan: Plan,
        nonce: u64,
        thorough: bool,
    ) -> Result<Self, StorageError> {
        let backend = Backend::new(file, path, Ledger::noted(0), Blank::new(plan.background));
        backend.restore_header()?;
        let database = open_database(&backend, plan.cache_bytes, thorough)?;
        Ok(Self { backend, plan, nonce, open: RwLock::new(Some(Open { database, claim: None })) })
    }

    /// Looks through what is there, which ends at the commit that was noted or later.
    pub(crate) fn check<T>(
        &self,
        noted: u64,
        check: impl FnOnce(&Found<'_>) -> Result<(T, u64), Trouble>,
    ) -> Result<(T, u64), StorageError> {
        let path = self.backend.path();
        let checked = self.read("read", |contents| check(&Found { contents, nonce: self.nonce, path }))?;
        let (_, last) = &checked;
        if *last < noted {
            let reason = format!("commit {noted} had been synced, but the database ends at commit {last}");
            return Err(corrupt(path, None, reason));
        }
        Ok(checked)
    }

    /// Gives back the room of a file of which less than a quarter is in use: redb by itself only cuts what is free at the end. Takes time for what is
    /// in use.
    fn shrink(&self) -> Result<(), StorageError> {
        let before = self.backend.file_len()?;
        let pages = |stats: DatabaseStats| stats.allocated_pages() * stats.page_size() as u64;
        if before < SMALL || self.look("read", |transaction| Ok(pages(transaction.stats()?)))? > before / 4 {
            return Ok(());
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(Open { database, .. }) = &mut *open {
            guarded(&self.backend, "compact", || Ok(database.compact()?))?;
        }
        let after = self.backend.file_len()?;
        tracing::info!(path = %self.path().display(), before, after, "gave back room that the database does not need");
        Ok(())
    }

    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }

    pub(crate) fn path(&self) -> &Path {
        self.backend.path()
    }

    pub(crate) fn file_len(&self) -> Result<u64, StorageError> {
        self.backend.file_len()
    }

    /// Does something in a transaction that reads. What it pins of the file is free again when this returns.
    pub(crate) fn read<T>(
        &self,
        op: &'static str,
        work: impl FnOnce(ReadTransaction) -> Result<T, Trouble>,
    ) -> Result<T, StorageError> {
        self.with(op, |database| work(database.begin_read()?))
    }

    /// Does something in a transaction that writes, and commits it: when this returns, it is on the disk.
    pub(crate) fn write<T>(
        &self,
        op: &'static str,
        work: impl FnOnce(&WriteTransaction) -> Result<T, Trouble>,
    ) -> Result<T, StorageError> {
        self.with(op, |database| {
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(self.plan.commit == Commit::TwoPhase);
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    /// Looks at a transaction that writes, and gives it up.
    pub(crate) fn look<T>(
        &self,
        op: &'static str,
        work: impl FnOnce(&WriteTransaction) -> Result<T, Trouble>,
    ) -> Result<T, StorageError> {
        self.with(op, |database| {
            let transaction = database.begin_write()?;
            let done = work(&transaction)?;
            transaction.abort()?;
            Ok(done)
        })
    }

    fn with<T>(&self, op: &'static str, work: impl FnOnce(&Database) -> Result<T, Trouble>) -> Result<T, StorageError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Open { database, .. }) = &*open else {
            return Err(StorageError::Sticky("the database is closed".into()));
        };
        guarded(&self.backend, op, || work(database))
    }

    /// Notes that the commit with this number is synced, for the next process. If that fails, the next open has more to do.
    pub(crate) fn settle(&self, sequence: u64) {
        if let Err(error) = self.backend.settle(sequence) {
            tracing::warn!(%error, "could not note what is synced; nothing is lost");
        }
    }

    /// Waits for the readers, and ends in good order: the next open needs no repair. `sequence` is the last commit, unless something failed.
    pub(crate) fn close(&self, sequence: Option<u64>) {
        let open = self.open.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Open { database, claim }) = open else { return };
        let closed = guarded(&self.backend, "close", || Ok(database.close()?));
        // After a failure there is nothing to be said that was not said then.
        let Some(sequence) = sequence else { return drop(claim) };
        if let Err(error) = closed.and_then(|()| self.backend.closed(sequence)) {
            tracing::warn!(%error, path = %self.path().display(), "the database could not be closed in good order; nothing is lost");
        }
        drop(claim);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.close(None);
    }
}

/// Opens what is in a file, and has redb repair what an unclean stop left, and check every page of it unless that shall come later.
fn open_database(backend: &Backend, cache_bytes: usize, thorough: bool) -> Result<Database, StorageError> {
    let mut builder = Database::builder();
    let path = backend.path().to_owned();
    builder.set_cache_size(cache_bytes).set_check_integrity_on_open(thorough).set_repair_callback(move |check| {
        let percent = (check.progress() * 100.0).round();
        tracing::debug!(path = %path.display(), percent, "checking the database");
    });
    guarded(backend, "open", || Ok(builder.create_with_backend(backend.clone())?)).inspect_err(|_| backend.seal())
}

/// Where a database is, and where the one is made that takes its place.
struct Place<'a> {
    vfs: &'a dyn Vfs,
    dir: &'a Path,
    path: PathBuf,
    new: PathBuf,
}

impl Place<'_> {
    /// Copies the file, durably, save its name. What it left out is told to `blank`.
    fn copy(&self, blank: &mut Blank) -> Result<Arc<dyn VfsFile>, StorageError> {
        let from = self.vfs.open(&self.path, Access::Read).map_err(failed("open", &self.path))?;
        let to = self.vfs.open(&self.new, Access::Create).map_err(failed("create", &self.new))?;
        let len = from.len().map_err(failed("stat", &self.path))?;
        tracing::info!(path = %self.path.display(), bytes = len, "writing the database anew: after an unclean stop nobody knows what of it is on the disk");
        to.set_len(len).map_err(failed("allocate", &self.new))?;
        let mut buf = vec![0; PIECE];
        let (mut at, mut copied) = (0, 0);
        while at < len {
            let n = read_full(&*from, &mut buf, at).map_err(failed("read", &self.path))?;
            if n == 0 {
                return Err(corrupt(&self.path, None, format!("the file ends at {at}, and not at {len}")));
            }
            for (start, end) in written(&buf[..n]) {
                blank.add(copied..at + start as u64);
                write_all(&*to, &buf[start..end], at + start as u64).map_err(failed("write", &self.new))?;
                copied = at + end as u64;
            }
            at += n as u64;
        }
        blank.add(copied..len);
        to.sync_data().map_err(failed("fsync", &self.new))?;
        self.vfs.sync_dir(self.dir).map_err(failed("fsync", self.dir))?;
        Ok(to)
    }
}

/// The stretches of pages in which there is something else than zeros.
fn written(buf: &[u8]) -> Vec<(usize, usize)> {
    let mut stretches: Vec<(usize, usize)> = Vec::new();
    for (n, page) in buf.chunks(PAGE).enumerate() {
        if page.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (start, end) = (n * PAGE, n * PAGE + page.len());
        match stretches.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            Some(_) | None => stretches.push((start, end)),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_of_zeros_are_left_out() {
        let mut buf = vec![0; 5 * PAGE + 10];
        assert_eq!(written(&buf), []);
        buf[PAGE] = 1;
        buf[3 * PAGE - 1] = 1;
        buf[5 * PAGE + 9] = 1;
        assert_eq!(written(&buf), [(PAGE, 3 * PAGE), (5 * PAGE, 5 * PAGE + 10)]);
    }
}
