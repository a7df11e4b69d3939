//! A file of records: all that a small store needs of a disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raftkv::StorageError;

use crate::frame::{MIN_ALIGN, Salt, u32_at, u64_at};
use crate::recovery::corrupt;
use crate::vfs::{Access, Vfs, VfsFile, failed, read_full, write_all};

const MAGIC: &[u8; 8] = b"RAFTKVR1";
/// The magic, and the file's nonce.
const HEADER: usize = 16;
/// Before each record: its length, a checksum of that, and one of its bytes.
const FRAME: usize = 16;

/// A file of records, each of which is durable when it was added: for a store that holds what it keeps in memory as well, and reads it when it is opened. When
/// they have become more than what there is to keep, the file is begun anew with one record.
///
/// What a loss of power leaves of the last record is told from damage: a record that is not whole, and has none behind it, was not added, and whatever
/// else does not match its checksum is [`StorageError::Corrupt`]. Damage to the last record looks as if it had not been added; that to the first, with which the file was begun, is noticed always.
///
/// ```
/// # fn main() -> Result<(), raftkv::StorageError> {
/// use std::sync::Arc;
/// use raftkv_storage_file::OsVfs;
/// use raftkv_storage_file::parts::Records;
///
/// # let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("votes");
/// let mut votes = Records::begin(Arc::new(OsVfs), path.clone(), b"none")?;
/// votes.push(b"for 3")?;
/// assert_eq!(Records::read(&OsVfs, &path)?, [&b"none"[..], b"for 3"]);
/// votes.replace(b"for 3, and none before")?;
/// assert_eq!(Records::read(&OsVfs, &path)?, [&b"for 3, and none before"[..]]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Records {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    salt: Salt,
    end: u64,
}

impl Records {
    /// What a file holds, in order; nothing if there is no such file. What is found may be in the page cache alone, where the process before was killed or a sync of its
    /// failed: begin the file anew ([`Records::begin`]) before you rely on it.
    ///
    /// # Errors
    /// It can't be read, or is damaged.
    pub fn read(vfs: &dyn Vfs, path: &Path) -> Result<Vec<Bytes>, StorageError> {
        let file = match vfs.open(path, Access::Read) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened.map_err(failed("open", path))?,
        };
        let len = file.len().map_err(failed("read", path))?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        let read = read_full(&*file, &mut bytes, 0).map_err(failed("read", path))?;
        bytes.truncate(read);
        parse(&bytes.into(), path)
    }

    /// Begins a file with this record, in the place of what may be there, in one step that is durable when this returns. Blocks.
    ///
    /// # Errors
    /// As the operating system says: nobody knows then which of the two is there.
    pub fn begin(vfs: Arc<dyn Vfs>, path: PathBuf, record: &[u8]) -> Result<Self, StorageError> {
        let mut nonce = vfs.random().to_le_bytes().to_vec();
        let salt = Salt::new(u64_at(&nonce, 0), 0);
        let mut bytes = MAGIC.to_vec();
        bytes.append(&mut nonce);
        put(&mut bytes, record, HEADER as u64, salt);
        let new = path.with_extension("new");
        let file = vfs.open(&new, Access::Create).map_err(failed("create", &new))?;
        write_all(&*file, &bytes, 0).and_then(|()| file.sync_data()).map_err(failed("write", &new))?;
        vfs.rename(&new, &path).map_err(failed("rename", &new))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        vfs.sync_dir(dir).map_err(failed("sync", dir))?;
        Ok(Self { vfs, path, file, salt, end: bytes.len() as u64 })
    }

    /// Begins the file anew with this record alone: [`Records::begin`]. Blocks.
    ///
    /// # Errors
    /// As there.
    pub fn replace(&mut self, record: &[u8]) -> Result<(), StorageError> {
        *self = Self::begin(self.vfs.clone(), self.path.clone(), record)?;
        Ok(())
    }

    /// Adds a record, which is durable when this returns. Blocks.
    ///
    /// # Errors
    /// As the operating system says: nobody knows then what is there, and nothing may be added any more ([`Worker`](super::parts::Worker) sees to that).
    pub fn push(&mut self, record: &[u8]) -> Result<(), StorageError> {
        // In a sector of its own: one that is being written when power is lost may come to nothing as a whole.
        let at = self.end.next_multiple_of(u64::from(MIN_ALIGN));
        let mut bytes = Vec::with_capacity(FRAME + record.len());
        put(&mut bytes, record, at, self.salt);
        let written = write_all(&*self.file, &bytes, at).and_then(|()| self.file.sync_data());
        self.end = at + bytes.len() as u64;
        written.map_err(failed("write", &self.path))
    }
}

/// The records in a file of this path.
fn parse(bytes: &Bytes, path: &Path) -> Result<Vec<Bytes>, StorageError> {
    if !bytes.starts_with(MAGIC) || bytes.len() < HEADER {
        return Err(corrupt(path, 0, None, "this is no file of records, or its first bytes are damaged"));
    }
    let salt = Salt::new(u64_at(bytes, MAGIC.len()), 0);
    let (mut records, mut at) = (Vec::new(), HEADER);
    while let Some(record) = whole(bytes, at, salt) {
        at = next(at + FRAME + record.len());
        records.push(record);
    }
    let mut behind = (next(at + 1)..bytes.len()).step_by(MIN_ALIGN as usize);
    if records.is_empty() || behind.any(|at| whole(bytes, at, salt).is_some()) {
        let reason = "a record does not match its checksum, and is not one that was just being written";
        return Err(corrupt(path, at as u64, None, reason));
    }
    Ok(records)
}

/// Adds a record that is to be written at this place of its file.
fn put(bytes: &mut Vec<u8>, record: &[u8], at: u64, salt: Salt) {
    let len = (record.len() as u64).to_le_bytes();
    bytes.extend_from_slice(&len);
    bytes.extend_from_slice(&salt.sum(at, &len).to_le_bytes());
    bytes.extend_from_slice(&salt.sum(at, record).to_le_bytes());
    bytes.extend_from_slice(record);
}

/// The record at this place, if one is there.
fn whole(bytes: &Bytes, at: usize, salt: Salt) -> Option<Bytes> {
    let from = at.checked_add(FRAME)?;
    let frame = bytes.get(at..from)?;
    if u32_at(frame, 8) != salt.sum(at as u64, &frame[..8]) {
        return None;
    }
    let to = from.checked_add(usize::try_from(u64_at(frame, 0)).ok()?)?;
    let is_right = u32_at(frame, 12) == salt.sum(at as u64, bytes.get(from..to)?);
    is_right.then(|| bytes.slice(from..to))
}

/// What the decoder must bear, for fuzzing: bytes as they are, or with right checksums wherever a frame may be.
#[cfg(feature = "testing")]
pub(crate) fn fuzz(bytes: &[u8], sealed: bool) -> Result<(), StorageError> {
    let mut bytes = bytes.to_vec();
    if sealed && bytes.len() >= HEADER {
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        let salt = Salt::new(u64_at(&bytes, MAGIC.len()), 0);
        for at in std::iter::once(HEADER).chain((MIN_ALIGN as usize..bytes.len()).step_by(MIN_ALIGN as usize)) {
            let Some(len) = bytes.get(at..at + FRAME).map(|frame| u64_at(frame, 0)) else { continue };
            let sum = salt.sum(at as u64, &len.to_le_bytes());
            crate::frame::put(&mut bytes[at..], 8, &sum.to_le_bytes());
            let to = (at + FRAME).saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
            if let Some(record) = bytes.get(at + FRAME..to) {
                let sum = salt.sum(at as u64, record);
                crate::frame::put(&mut bytes[at..], 12, &sum.to_le_bytes());
            }
        }
    }
    parse(&bytes.into(), Path::new("records")).map(drop)
}

/// A file of two records, for fuzzing.
#[cfg(feature = "testing")]
pub(crate) fn sample(first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&7u64.to_le_bytes());
    let salt = Salt::new(7, 0);
    put(&mut bytes, first, HEADER as u64, salt);
    bytes.resize(next(bytes.len()), 0);
    let at = bytes.len() as u64;
    put(&mut bytes, second, at, salt);
    bytes
}

/// Where the record begins that follows one which ends here.
fn next(end: usize) -> usize {
    end.next_multiple_of(MIN_ALIGN as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Fate, SimDisk};

    const PATH: &str = "/records";

    fn record(n: u8) -> Vec<u8> {
        vec![n; 300 * usize::from(n)]
    }

    fn begun(disk: &SimDisk) -> Records {
        disk.create_dir_all(Path::new("/")).unwrap();
        Records::begin(Arc::new(disk.clone()), PATH.into(), &record(1)).unwrap()
    }

    fn read(disk: &SimDisk) -> Result<Vec<Vec<u8>>, StorageError> {
        Ok(Records::read(disk, Path::new(PATH))?.iter().map(|record| record.to_vec()).collect())
    }

    #[test]
    fn records_come_back_and_a_file_that_is_not_there_has_none() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/")).unwrap();
        assert_eq!(read(&disk).unwrap(), Vec::<Vec<u8>>::new());
        let mut records = begun(&disk);
        records.push(&[]).unwrap();
        records.push(&record(5)).unwrap();
        assert_eq!(read(&disk).unwrap(), [record(1), Vec::new(), record(5)]);
        records.replace(&record(2)).unwrap();
        records.push(&record(3)).unwrap();
        assert_eq!(read(&disk).unwrap(), [record(2), record(3)]);
    }

    /// Whatever a loss of power at any operation leaves of what was pending: what was added is there, and of what was being added all or nothing.
    #[test]
    fn a_loss_of_power_at_any_operation_takes_nothing_that_was_added() {
        let disk = SimDisk::new();
        begun(&disk);
        for after in 0..12 {
            let disk = disk.now().kill();
            let mut records = begun(&disk);
            disk.die_at(disk.operations() + after);
            let mut added = vec![record(1)];
            let mut then = Vec::new();
            for n in 2..=4 {
                if records.push(&record(n)).is_err() {
                    then = [&added[..], &[record(n)]].concat();
                    break;
                }
                added.push(record(n));
            }
            if then.is_empty() && records.replace(&record(5)).is_err() {
                then = vec![record(5)];
            } else if then.is_empty() {
                added = vec![record(5)];
                then = added.clone();
            }
            let now = disk.now();
            for one in 0..=now.pending().len() {
                for (all, other) in [(Fate::Kept, Fate::Lost), (Fate::Lost, Fate::Kept)] {
                    let mut asked = 0;
                    let left = now.lose_power(|_| {
                        asked += 1;
                        if asked == one { other } else { all }
                    });
                    let found = read(&left).unwrap();
                    assert!(found == added || found == then, "after {after} operations: {} records", found.len());
                }
            }
        }
    }

    #[test]
    fn damage_is_told_from_a_last_record_that_was_not_written_to_its_end() {
        let disk = SimDisk::new();
        let mut records = begun(&disk);
        (2..=3).for_each(|n| records.push(&record(n)).unwrap());
        let path = PathBuf::from(PATH);
        let len = disk.contents(&path).unwrap().len();
        let last = len - record(3).len() - FRAME;
        for at in 0..len {
            disk.flip(&path, at, 4);
            match read(&disk) {
                // What is between records is nobody's.
                Ok(found) if at < last => assert_eq!(found, [record(1), record(2), record(3)], "byte {at}"),
                Ok(found) => assert_eq!(found, [record(1), record(2)], "byte {at}"),
                Err(error) => assert!(matches!(error, StorageError::Corrupt { .. }) && at < last, "byte {at}: {error}"),
            }
            disk.flip(&path, at, 4);
        }
        let again = disk.clone();
        (0..HEADER + FRAME + record(1).len()).for_each(|at| {
            again.flip(&path, at, 1);
            assert!(matches!(read(&again), Err(StorageError::Corrupt { .. })), "byte {at} of the first record");
            again.flip(&path, at, 1);
        });
    }

    /// A record may hold what once was a file of records.
    #[test]
    fn what_looks_like_a_record_within_one_that_was_not_written_to_its_end_is_none() {
        let disk = SimDisk::new();
        let path = PathBuf::from(PATH);
        let mut records = begun(&disk);
        records.push(&record(2)).unwrap();
        let file = disk.contents(&path).unwrap();
        let end = file.len();
        // The frame of the outer one comes first: the inner ones begin where sectors do.
        records.push(&[&vec![0; MIN_ALIGN as usize - FRAME][..], &file].concat()).unwrap();
        disk.flip(&path, next(end), 1);
        assert_eq!(read(&disk).unwrap(), [record(1), record(2)]);
    }
}
