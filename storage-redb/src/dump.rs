//! A log, line by line, for people: what is there, and what is wrong with it.
//!
//! The lines are those of [`raftkv_storage_file::dump`], as far as a database has the same to tell: it keeps what holds, so batches of which nothing is left
//! are not there, and where in its file something is only redb knows.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::{HardState, Index, LogId, StorageError, TermRun};
use raftkv_storage_file::parts::{Claim, SyncedNote, failed};
use raftkv_storage_file::{Access, DumpEntries, DumpVerdict, Identity, OsVfs, Vfs, VfsFile};
use redb::{ReadTransaction, ReadableTable};

use crate::Options;
use crate::backend::Ledger;
use crate::error::Trouble;
use crate::overlay::Overlay;
use crate::record::{Checked, ENTRIES, Salt};
use crate::store::{check, plan, read_state};
use crate::volume::Volume;

/// One line of a [`dump`]. Its `Display` is the line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpLine {
    /// Whose log it is, and the last batch that is noted as synced (0: none).
    Log {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        identity: Identity,
        /// The batch.
        synced: u64,
    },
    /// The database begins.
    Database {
        /// Its file.
        path: PathBuf,
        /// The file's length in bytes.
        bytes: u64,
        /// Whether it was closed in good order.
        closed: bool,
    },
    /// What is known besides the entries.
    State {
        /// The batch that wrote it.
        sequence: u64,
        /// The hard state.
        hard_state: HardState,
        /// The id of the entry before the first one.
        base: LogId,
    },
    /// Entries that one batch wrote: those that are left of them.
    Batch {
        /// Its number.
        sequence: u64,
        /// The entries.
        entries: DumpEntries,
    },
    /// Something that is not as it was written.
    Damage {
        /// The entry, if it is known which one.
        index: Option<Index>,
        /// What is wrong.
        reason: String,
    },
    /// What a node that opens the log would find, or why it would refuse.
    Verdict(DumpVerdict),
}

/// Goes through a log that no process has open, and tells what is there. Changes nothing.
///
/// # Errors
/// The directory is no log of this crate's, is in use, or can't be read. Damage within is no error: it is told.
pub fn dump(dir: impl AsRef<Path>, each: impl FnMut(DumpLine)) -> Result<(), StorageError> {
    dump_on(Arc::new(OsVfs), dir, each)
}

/// Goes through a log on a file system of your own; see [`dump`].
///
/// # Errors
/// As there.
pub fn dump_on(vfs: Arc<dyn Vfs>, dir: impl AsRef<Path>, mut each: impl FnMut(DumpLine)) -> Result<(), StorageError> {
    let dir = dir.as_ref();
    let plan = plan(Options::default());
    let refused = |reason: &str| StorageError::Refused { path: dir.display().to_string(), reason: reason.into() };
    let claim = Claim::find(&*vfs, dir, plan.kind)?.ok_or_else(|| {
        refused("there is no log here (no IDENTITY file): name the directory that a node keeps its log in")
    })?;
    let ledger = Ledger::noted(SyncedNote::peek(&*vfs, dir, claim.nonce()));
    each(DumpLine::Log { dir: dir.to_owned(), identity: claim.identity(), synced: ledger.sequence() });
    let path = dir.join(plan.file);
    let file = match vfs.open(&path, Access::Read) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if ledger.sequence() == 0 {
                return Err(refused("the log was not made to its end: the next start begins it anew"));
            }
            let reason =
                format!("{} is missing, but {} batches had been synced to it", path.display(), ledger.sequence());
            each(DumpLine::Verdict(DumpVerdict::Damaged(reason)));
            return Ok(());
        }
        opened => opened.map_err(failed("open", &path))?,
    };
    let bytes = file.len().map_err(failed("stat", &path))?;
    each(DumpLine::Database { path: path.clone(), bytes, closed: ledger.is_closed() });
    let open = |thorough| {
        let overlay: Arc<dyn VfsFile> = Arc::new(Overlay::new(file.clone()).map_err(failed("stat", &path))?);
        Volume::look_into(overlay, path.clone(), plan, claim.nonce(), thorough)
    };
    let verdict = match open(true) {
        Ok(volume) => {
            list(&volume, &mut each)?;
            volume.check(ledger.sequence(), check)
        }
        Err(error) => {
            // redb says that something is damaged, and not what: the entries that can be read tell by what is not among them.
            match open(false) {
                Ok(volume) => list(&volume, &mut each)?,
                Err(StorageError::Corrupt { .. }) => {}
                Err(other) => return Err(other),
            }
            Err(error)
        }
    };
    each(DumpLine::Verdict(match verdict {
        Ok((contents, sequence)) => DumpVerdict::Sound { state: contents.log, sequence, torn: 0 },
        Err(error @ StorageError::Corrupt { .. }) => DumpVerdict::Damaged(error.to_string()),
        Err(other) => return Err(other),
    }));
    Ok(())
}

/// Tells what can be read. What can't is told as well.
fn list(volume: &Volume, each: &mut impl FnMut(DumpLine)) -> Result<(), StorageError> {
    let salt = Salt::new(volume.nonce());
    let listed = volume.read("read", |contents| {
        let mut next = match read_state(&contents, volume.nonce(), volume.path()) {
            Ok(state) => {
                let (sequence, hard_state, base) = (state.sequence, state.hard_state, state.base);
                each(DumpLine::State { sequence, hard_state, base });
                Some(base.index.next())
            }
            Err(Trouble::Ours(StorageError::Corrupt { reason, .. })) => {
                each(DumpLine::Damage { index: None, reason });
                None
            }
            Err(other) => return Err(other),
        };
        entries(&contents, salt, &mut next, each)
    });
    match listed {
        Err(StorageError::Corrupt { index, reason, .. }) => each(DumpLine::Damage { index, reason }),
        other => other?,
    }
    Ok(())
}

/// Tells the entries, by batch. `next` is the index that the next one should have, where that is known.
fn entries(
    contents: &ReadTransaction,
    salt: Salt,
    next: &mut Option<Index>,
    each: &mut impl FnMut(DumpLine),
) -> Result<(), Trouble> {
    let mut batch: Option<(u64, DumpEntries)> = None;
    let tell = |batch: Option<(u64, DumpEntries)>, each: &mut dyn FnMut(DumpLine)| {
        if let Some((sequence, entries)) = batch {
            each(DumpLine::Batch { sequence, entries });
        }
    };
    for row in contents.open_table(ENTRIES)?.iter()? {
        let (key, value) = match row {
            Ok(row) => row,
            Err(error) => {
                tell(batch, each);
                each(DumpLine::Damage { index: *next, reason: format!("redb says: {error}") });
                return Ok(());
            }
        };
        let index = Index(key.value());
        if let Some(missing) = next.filter(|next| *next != index) {
            tell(batch.take(), each);
            each(DumpLine::Damage { index: Some(missing), reason: format!("entry {} is in its place", index.0) });
        }
        *next = Some(Index(index.0.saturating_add(1)));
        let entry = match Checked::new(index.0, value.value(), salt) {
            Ok(entry) => entry,
            Err(reason) => {
                tell(batch.take(), each);
                each(DumpLine::Damage { index: Some(index), reason: reason.into() });
                continue;
            }
        };
        let id = LogId { term: entry.term, index };
        if batch.as_ref().is_some_and(|(sequence, _)| *sequence != entry.sequence) {
            tell(batch.take(), each);
        }
        let new = || (entry.sequence, DumpEntries { first: id, last: id, runs: Vec::new(), payload: 0 });
        let (_, all) = batch.get_or_insert_with(new);
        all.last = id;
        all.payload += entry.data.len() as u64;
        if all.runs.last().is_none_or(|run| run.term != id.term) {
            all.runs.push(TermRun { term: id.term, first: id.index });
        }
    }
    tell(batch, each);
    Ok(())
}

impl fmt::Display for DumpLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log { dir, identity, synced } => {
                let (dir, identity, synced) = (dir.clone(), *identity, *synced);
                write!(f, "{}", raftkv_storage_file::DumpLine::Log { dir, identity, synced })
            }
            Self::Database { path, bytes, closed } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let left =
                    if *closed { "closed in good order" } else { "not closed, so the next start writes it anew" };
                write!(f, "database {name}, {bytes} bytes: {left}")
            }
            Self::State { sequence, hard_state, base } => write!(f, "  batch {sequence}; {hard_state}; base {base}"),
            Self::Batch { sequence, entries } => write!(f, "  batch {sequence}; {entries}"),
            Self::Damage { index: Some(index), reason } => write!(f, "  entry {}  DAMAGED: {reason}", index.0),
            Self::Damage { index: None, reason } => write!(f, "  DAMAGED: {reason}"),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}
