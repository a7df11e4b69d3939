//! The file of a database, as redb writes it: redb's own seam to the machine ([`StorageBackend`]), laid onto the one of
//! `raftkv-storage-file`, so that the same simulated disk can hurt both.
//!
//! Three things are added on the way.
//!
//! **The header is kept twice.** redb overwrites its first 320 bytes in place with each commit, and relies on the disk to leave the sector
//! either old or new when power fails. A disk that leaves it unreadable would take the whole database along, so there are copies in the unused
//! rest of the first page, in sectors of their own:
//!
//! ```text
//! byte 0       redb's header, 320 bytes
//! byte 320     "RAFTKVH1"
//! byte 328     epoch: how many syncs came before, eight bytes
//! byte 336     CRC-32C of the bytes before it
//! byte 512     a copy of these 512 bytes, when the epoch is even
//! byte 1024    a copy of them, when it is odd
//! ```
//!
//! Between two syncs the epoch stays the same, so a loss of power hits the sector at 0 and the copy of the present epoch, and never the copy of
//! the one before: that is the header as it was last synced. To redb's own tools the file is a database like any other.
//!
//! **A ledger tells the next process what was synced** ([`Ledger`]).
//!
//! **New room is filled with zeros**, piece by piece, before the first write to it ([`Blank`]): later syncs are cheaper then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftkv::StorageError;
use raftkv_storage_file::VfsFile;
use raftkv_storage_file::parts::{SyncedNote, failed, read_full, write_all, zero};
use redb::StorageBackend;

use crate::blank::Blank;
use crate::error::corrupt;

const SECTOR: usize = 512;
/// What redb writes at offset 0.
const HEADER: usize = 320;
const MAGIC: &[u8; 8] = b"RAFTKVH1";
const EPOCH_AT: usize = HEADER + MAGIC.len();
const SUM_AT: usize = EPOCH_AT + 8;

/// What is known to be on disk, noted for the next process: the last commit that was synced, and whether the database was closed in good order
/// after it.
///
/// The second is more than redb knows. A sync that fails leaves pages in the page cache that the system takes for clean: the next process reads
/// them as if they were on the disk, no later sync writes them, and a loss of power takes them away. So nobody shall go on in a file that was
/// not closed.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// None: nobody is told.
    note: Option<SyncedNote>,
    sequence: u64,
    closed: bool,
}

impl Ledger {
    /// The ledger that a note is kept for, with what was read from it: 0 where there was nothing to be read, which says nothing about how the
    /// database was left.
    pub(crate) fn new(note: SyncedNote, noted: u64) -> Self {
        Self { note: Some(note), ..Self::noted(noted) }
    }

    /// For somebody who only looks at what was noted.
    pub(crate) fn noted(noted: u64) -> Self {
        Self { note: None, sequence: noted / 2, closed: noted > 0 && noted.is_multiple_of(2) }
    }

    /// The last commit that was synced, as far as is known.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether the database was closed in good order.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn set(&mut self, sequence: u64, closed: bool) -> Result<(), StorageError> {
        if (self.sequence, self.closed) != (sequence, closed) {
            self.note.as_mut().map_or(Ok(()), |note| note.set(sequence * 2 + u64::from(!closed)))?;
            (self.sequence, self.closed) = (sequence, closed);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.note.as_ref().map_or(Ok(()), SyncedNote::sync)
    }

    /// Something is about to be written.
    fn open(&mut self) -> Result<(), StorageError> {
        self.set(self.sequence, false)
    }
}

/// A file that redb keeps a database in. Clones are the same file.
#[derive(Clone, Debug)]
pub(crate) struct Backend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Arc<dyn VfsFile>,
    /// Its name, for reports.
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    /// What of the file was never written to.
    blank: Blank,
    /// How many syncs that a header was written for have passed.
    epoch: u64,
    /// A header was written in this epoch.
    header_written: bool,
    /// Something was written since the last sync.
    unsynced: bool,
    failed: bool,
    /// What the system refused last, until somebody asks.
    failure: Option<StorageError>,
}

impl Backend {
    pub(crate) fn new(file: Arc<dyn VfsFile>, path: PathBuf, ledger: Ledger, blank: Blank) -> Self {
        let (epoch, failure) = (0, None);
        let state = State { ledger, blank, epoch, header_written: false, unsynced: false, failed: false, failure };
        Self(Arc::new(Inner { file, path, state: Mutex::new(state) }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// What the system refused, told once.
    pub(crate) fn failure(&self) -> Option<StorageError> {
        self.0.state().failure.take()
    }

    /// Takes no more writes: what is damaged is left as it is.
    pub(crate) fn seal(&self) {
        self.0.state().failed = true;
    }

    /// The length of the file.
    pub(crate) fn file_len(&self) -> Result<u64, StorageError> {
        self.0.file.len().map_err(failed("stat", &self.0.path))
    }

    /// The commit with this number is synced: notes it.
    pub(crate) fn settle(&self, sequence: u64) -> Result<(), StorageError> {
        let mut state = self.0.state();
        if state.failed { Ok(()) } else { state.ledger.set(sequence, false) }
    }

    /// Makes the ledger's note durable.
    pub(crate) fn sync_note(&self) -> Result<(), StorageError> {
        self.0.state().ledger.sync()
    }

    /// redb has closed the database after the commit with this number: notes it durably, unless something is not synced.
    pub(crate) fn closed(&self, sequence: u64) -> Result<(), StorageError> {
        let mut state = self.0.state();
        if state.failed || state.unsynced {
            return Ok(());
        }
        state.ledger.set(sequence, true)?;
        state.ledger.sync()
    }

    /// Looks for a whole header in an existing file, and mends what is not whole of the others.
    pub(crate) fn restore_header(&self) -> Result<(), StorageError> {
        let inner = &self.0;
        let mut sectors = [[0; SECTOR]; 3];
        for (place, sector) in sectors.iter_mut().enumerate() {
            read_full(&*inner.file, sector, (place * SECTOR) as u64).map_err(failed("read", &inner.path))?;
        }
        let whole = sectors.iter().enumerate().filter_map(|(place, sector)| Some((epoch_of(place, sector)?, *sector)));
        let Some((epoch, newest)) = whole.max_by_key(|(epoch, _)| *epoch) else {
            let reason = "neither the header of the database nor a copy of it is whole";
            return Err(corrupt(&inner.path, None, reason));
        };
        // At most one of these differs: the newest is in the other.
        for place in [0, copy_of(epoch)] {
            if sectors[place] != newest {
                tracing::warn!(path = %inner.path.display(), sector = place, "mending the header of the database from its copy");
                inner.write(newest.as_slice(), (place * SECTOR) as u64).map_err(|_| self.told())?;
                inner.sync().map_err(|_| self.told())?;
            }
        }
        inner.state().epoch = epoch + 1;
        Ok(())
    }

    fn told(&self) -> StorageError {
        self.failure().unwrap_or_else(|| StorageError::Sticky("the file has failed before".into()))
    }
}

/// The sector that has the copy of an epoch's header.
fn copy_of(epoch: u64) -> usize {
    if epoch.is_multiple_of(2) { 1 } else { 2 }
}

/// The epoch of a header, if it is whole and in a place where it belongs.
fn epoch_of(place: usize, sector: &[u8; SECTOR]) -> Option<u64> {
    let number = |at: usize| sector.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let sum = sector.get(SUM_AT..SUM_AT + 4)?.try_into().ok().map(u32::from_le_bytes)?;
    let whole = sector.get(HEADER..EPOCH_AT)? == MAGIC && sum == crc32c::crc32c(&sector[..SUM_AT]);
    let epoch = number(EPOCH_AT)?;
    let rest_is_blank = sector[SUM_AT + 4..].iter().all(|byte| *byte == 0);
    (whole && rest_is_blank && (place == 0 || place == copy_of(epoch))).then_some(epoch)
}

/// Computes the checksums of a header and its copies anew, for fuzzing.
#[cfg(feature = "testing")]
pub(crate) fn seal_header(disk: &raftkv_storage_file::sim::SimDisk, path: &Path) {
    let contents = disk.contents(path).unwrap_or_default();
    for (place, sector) in contents.chunks_exact(SECTOR).take(3).enumerate() {
        let sum = crc32c::crc32c(&sector[..SUM_AT]);
        disk.misdirect(path, place * SECTOR + SUM_AT, &sum.to_le_bytes());
    }
}

impl Inner {
    /// Nothing that holds this lock can leave its data half-changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the file, and keeps what goes wrong: redb passes on less than we want to tell.
    fn tried<T>(&self, op: &'static str, work: impl FnOnce(&mut State) -> Result<T, Refused>) -> io::Result<T> {
        let mut state = self.state();
        if state.failed {
            return Err(io::Error::other("an earlier operation on the file failed"));
        }
        work(&mut state).map_err(|refused| {
            state.failed = true;
            let (kind, failure) = match refused {
                Refused::Io(source) => (source.kind(), failed(op, &self.path)(source)),
                Refused::Ours(error) => (io::ErrorKind::Other, error),
            };
            state.failure = Some(failure);
            kind.into()
        })
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.tried("write", |state| {
            self.begin_write(state, offset, data.len())?;
            Ok(write_all(&*self.file, data, offset)?)
        })
    }

    /// So many bytes are about to be written at an offset.
    fn begin_write(&self, state: &mut State, offset: u64, len: usize) -> Result<(), Refused> {
        state.ledger.open()?;
        state.unsynced = true;
        for room in state.blank.take(offset..offset + len as u64) {
            zero(&*self.file, room.start, room.end)?;
        }
        Ok(())
    }

    fn write_header(&self, header: &[u8]) -> io::Result<()> {
        self.tried("write", |state| {
            if header.len() > HEADER {
                return Err(io::Error::other("this release of redb has a longer header").into());
            }
            self.begin_write(state, 0, 3 * SECTOR)?;
            let mut sector = [0; SECTOR];
            sector[..header.len()].copy_from_slice(header);
            sector[HEADER..EPOCH_AT].copy_from_slice(MAGIC);
            sector[EPOCH_AT..SUM_AT].copy_from_slice(&state.epoch.to_le_bytes());
            let sum = crc32c::crc32c(&sector[..SUM_AT]);
            sector[SUM_AT..SUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
            write_all(&*self.file, &sector, 0)?;
            write_all(&*self.file, &sector, (copy_of(state.epoch) * SECTOR) as u64)?;
            state.header_written = true;
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.tried("fsync", |state| {
            self.file.sync_data()?;
            state.epoch += u64::from(state.header_written);
            (state.header_written, state.unsynced) = (false, false);
            Ok(())
        })
    }
}

/// Why an operation on the file was refused.
enum Refused {
    Io(io::Error),
    Ours(StorageError),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<StorageError> for Refused {
    fn from(error: StorageError) -> Self {
        Self::Ours(error)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.tried("stat", |_| Ok(self.0.file.len()?))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let done = match read_full(&*self.0.file, out, offset) {
            Ok(n) if n == out.len() => return Ok(()),
            Ok(n) => Err(Refused::Ours(StorageError::Corrupt {
                path: self.0.path.display().to_string(),
                offset: Some(offset),
                index: None,
                reason: format!("{} bytes were to be there, and {n} are", out.len()),
            })),
            Err(error) => Err(error.into()),
        };
        // Readers run side by side: only a failure needs the lock.
        self.0.tried("read", |_| done)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.tried("allocate", |state| {
            let before = self.0.file.len()?;
            if len > before {
                state.ledger.open()?;
                state.unsynced = true;
                self.0.file.allocate(len)?;
                state.blank.add(before..len);
                return Ok(());
            }
            state.blank.cut(len);
            // redb cuts only what no commit refers to: whether the cut reaches the disk makes no difference.
            Ok(self.0.file.set_len(len)?)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset == 0 { self.0.write_header(data) } else { self.0.write(data, offset) }
    }
}
