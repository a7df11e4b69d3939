//! A file of records: all that a small store needs of a disk.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raftkv::StorageError;

use crate::frame::{MAX_ALIGN, Salt, put, u32_at, u64_at};
use crate::recovery::corrupt;
use crate::vfs::{Access, Guard, Vfs, VfsFile, failed, read_full, write_all};

const MAGIC: &[u8; 8] = b"RAFTKVR1";
/// The magic, and the file's nonce.
const HEADER: usize = 16;
/// Before each record: its length, a checksum of that, and one of its bytes.
const FRAME: usize = 16;

/// A file of records, each of which is durable when it was added: for a store that holds what it keeps in memory as well, and reads it when it is opened. When
/// they have become more than what there is to keep ([`Records::has_grown`]), the file is begun anew with one record.
///
/// What a loss of power leaves of the last record is told from damage: a record that is not whole, and has none behind it, was not added, and whatever
/// else does not match its checksum is [`StorageError::Corrupt`]. So damage to the end of a file looks as if its last records had not been added; that to the first, with which the file was begun, is
/// always noticed. Each record has sectors of 4096 bytes of its own, as what a disk is writing when power is lost may come to nothing as a whole.
///
/// After a failure nobody knows what is in the file, and nothing is added any more. One process at a time has it open: beside it lies a file that is locked (`NAME.lock`), and
/// while it is begun anew another one (`NAME.new`).
///
/// ```
/// # fn main() -> Result<(), raftkv::StorageError> {
/// use std::sync::Arc;
/// use raftkv_storage_file::OsVfs;
/// use raftkv_storage_file::parts::Records;
///
/// # let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("votes");
/// let (mut votes, found) = Records::open(Arc::new(OsVfs), path.clone())?;
/// assert!(found.is_empty());
/// votes.replace(b"none")?;
/// votes.push(b"for 3")?;
/// drop(votes);
/// let (mut votes, found) = Records::open(Arc::new(OsVfs), path)?;
/// assert_eq!(found, [&b"none"[..], b"for 3"]);
/// votes.replace(b"for 3, and none before")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Records {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    /// None before the first [`Records::replace`].
    file: Option<File>,
    failed: Option<String>,
    _lock: Box<dyn Guard>,
}

#[derive(Debug)]
struct File {
    file: Arc<dyn VfsFile>,
    salt: Salt,
    /// How long it was with its first record.
    begun: u64,
    end: u64,
}

impl Records {
    /// Opens a file, and reads what it holds, in order; nothing if there is no such file. Blocks.
    ///
    /// What is found may be in the page cache alone, where the process before was killed or a sync of its failed. So it has to be written anew, by [`Records::replace`], before
    /// anything can be added or relied on; that takes the room of a second copy for a moment.
    ///
    /// # Errors
    /// * [`StorageError::Refused`]: another process, or another store of this one, has it open.
    /// * [`StorageError::Corrupt`]: it is damaged.
    /// * [`StorageError::Full`], [`StorageError::Io`]: as the operating system says.
    pub fn open(vfs: Arc<dyn Vfs>, path: PathBuf) -> Result<(Self, Vec<Bytes>), StorageError> {
        let lock = beside(&path, ".lock");
        let lock = vfs.lock(&lock).map_err(|error| {
            if error.kind() != ErrorKind::WouldBlock {
                return failed("lock", &lock)(error);
            }
            let reason = "the file is in use by another process, or another store of this one".into();
            StorageError::Refused { path: path.display().to_string(), reason }
        })?;
        let found = Self::read(&*vfs, &path)?;
        Ok((Self { vfs, path, file: None, failed: None, _lock: lock }, found))
    }

    fn read(vfs: &dyn Vfs, path: &Path) -> Result<Vec<Bytes>, StorageError> {
        let file = match vfs.open(path, Access::Read) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened.map_err(failed("open", path))?,
        };
        let len = file.len().map_err(failed("read", path))?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        let read = read_full(&*file, &mut bytes, 0).map_err(failed("read", path))?;
        bytes.truncate(read);
        parse(&bytes.into(), path)
    }

    /// Puts a file with this record alone in the place of the one that may be there, in one step that is durable when this returns. Blocks.
    ///
    /// # Errors
    /// As the operating system says: nobody knows then which of the two is there. [`StorageError::Sticky`] if something failed before.
    pub fn replace(&mut self, record: &[u8]) -> Result<(), StorageError> {
        self.tried(|this| {
            this.file = None;
            let new = beside(&this.path, ".new");
            let file = this.vfs.open(&new, Access::Create).map_err(failed("create", &new))?;
            let nonce = this.vfs.random();
            let salt = Salt::new(nonce, 0);
            let head = [MAGIC, &nonce.to_le_bytes(), &frame(record, HEADER as u64, salt)[..]].concat();
            let end = (head.len() + record.len()) as u64;
            let written = write_all(&*file, &head, 0)
                .and_then(|()| write_all(&*file, record, head.len() as u64))
                .and_then(|()| file.sync_data());
            if let Err(error) = written {
                // The room that it takes may be what there is too little of.
                let _ = this.vfs.remove(&new);
                return Err(failed("write", &new)(error));
            }
            this.vfs.rename(&new, &this.path).map_err(failed("rename", &new))?;
            let dir = this.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            this.vfs.sync_dir(dir).map_err(failed("sync", dir))?;
            this.file = Some(File { file, salt, begun: end, end });
            Ok(())
        })
    }

    /// Adds a record, which is durable when this returns. Blocks.
    ///
    /// # Errors
    /// As the operating system says: nobody knows then whether it is there. [`StorageError::Sticky`] if something failed before; [`StorageError::Misuse`] before the first
    /// [`Records::replace`].
    pub fn push(&mut self, record: &[u8]) -> Result<(), StorageError> {
        self.tried(|this| {
            let Some(File { file, salt, end, .. }) = &mut this.file else {
                return Err(StorageError::Misuse("a record is added to what was found, and not written anew".into()));
            };
            let at = end.next_multiple_of(u64::from(MAX_ALIGN));
            let head = frame(record, at, *salt);
            *end = at + (head.len() + record.len()) as u64;
            let written = write_all(&**file, &head, at)
                .and_then(|()| write_all(&**file, record, at + head.len() as u64))
                .and_then(|()| file.sync_data());
            written.map_err(failed("write", &this.path))
        })
    }

    /// Whether the file has become more than twice as long as it was with its first record, and by a MiB: to begin it anew then with what there is to keep costs less than what was added.
    #[must_use]
    pub fn has_grown(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.end > 2 * file.begun + (1 << 20))
    }

    fn tried(&mut self, work: impl FnOnce(&mut Self) -> Result<(), StorageError>) -> Result<(), StorageError> {
        if let Some(reason) = &self.failed {
            return Err(StorageError::Sticky(reason.clone()));
        }
        let done = work(self);
        // A wrong question is no failure: nothing was done.
        let failure = done.as_ref().err().filter(|error| !matches!(error, StorageError::Misuse(_)));
        self.failed = failure.map(ToString::to_string);
        done
    }
}

/// A file beside this one, whose name goes on.
fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(more);
    name.into()
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
    let mut behind = (next(at + 1)..bytes.len()).step_by(MAX_ALIGN as usize);
    if records.is_empty() || behind.any(|at| whole(bytes, at, salt).is_some()) {
        let reason = "a record does not match its checksum, and is not one that was just being written";
        return Err(corrupt(path, at as u64, None, reason));
    }
    Ok(records)
}

/// What comes before a record at this place of its file.
fn frame(record: &[u8], at: u64, salt: Salt) -> [u8; FRAME] {
    let len = (record.len() as u64).to_le_bytes();
    let mut frame = [0; FRAME];
    put(&mut frame, 0, &len);
    put(&mut frame, 8, &salt.sum(at, &len).to_le_bytes());
    put(&mut frame, 12, &salt.sum(at, record).to_le_bytes());
    frame
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
        for at in std::iter::once(HEADER).chain((MAX_ALIGN as usize..bytes.len()).step_by(MAX_ALIGN as usize)) {
            let Some(len) = bytes.get(at..at + FRAME).map(|frame| u64_at(frame, 0)) else { continue };
            let sum = salt.sum(at as u64, &len.to_le_bytes());
            put(&mut bytes[at..], 8, &sum.to_le_bytes());
            let to = (at + FRAME).saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
            if let Some(record) = bytes.get(at + FRAME..to) {
                let sum = salt.sum(at as u64, record);
                put(&mut bytes[at..], 12, &sum.to_le_bytes());
            }
        }
    }
    parse(&bytes.into(), Path::new("records")).map(drop)
}

/// A file of two records, for fuzzing.
#[cfg(feature = "testing")]
pub(crate) fn sample(first: &[u8], second: &[u8]) -> Vec<u8> {
    let salt = Salt::new(7, 0);
    let mut bytes = [MAGIC, &7u64.to_le_bytes(), &frame(first, HEADER as u64, salt)[..], first].concat();
    bytes.resize(next(bytes.len()), 0);
    let head = frame(second, bytes.len() as u64, salt);
    [&bytes, &head[..], second].concat()
}

/// Where the record begins that follows one which ends here.
fn next(end: usize) -> usize {
    end.next_multiple_of(MAX_ALIGN as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Fate, Fault, SimDisk};

    const PATH: &str = "/records";

    fn record(n: u8) -> Vec<u8> {
        vec![n; 2000 * usize::from(n)]
    }

    fn open(disk: &SimDisk) -> Result<(Records, Vec<Vec<u8>>), StorageError> {
        disk.create_dir_all(Path::new("/")).unwrap();
        let (records, found) = Records::open(Arc::new(disk.clone()), PATH.into())?;
        Ok((records, found.iter().map(|record| record.to_vec()).collect()))
    }

    fn begun(disk: &SimDisk) -> Records {
        let (mut records, _) = open(disk).unwrap();
        records.replace(&record(1)).unwrap();
        records
    }

    fn read(disk: &SimDisk) -> Result<Vec<Vec<u8>>, StorageError> {
        Ok(Records::read(disk, Path::new(PATH))?.iter().map(|record| record.to_vec()).collect())
    }

    #[test]
    fn records_come_back_and_a_file_that_is_not_there_has_none() {
        let disk = SimDisk::new();
        let (mut records, found) = open(&disk).unwrap();
        assert!(found.is_empty());
        assert!(matches!(records.push(&[]), Err(StorageError::Misuse(_))), "nothing was begun");
        records.replace(&record(1)).unwrap();
        records.push(&[]).unwrap();
        records.push(&record(5)).unwrap();
        drop(records);
        let (mut records, found) = open(&disk).unwrap();
        assert_eq!(found, [record(1), Vec::new(), record(5)]);
        records.replace(&record(2)).unwrap();
        records.push(&record(3)).unwrap();
        assert_eq!(read(&disk).unwrap(), [record(2), record(3)]);
    }

    #[test]
    fn a_file_that_is_open_is_refused_to_others() {
        let disk = SimDisk::new();
        let records = begun(&disk);
        assert!(matches!(open(&disk), Err(StorageError::Refused { .. })));
        drop(records);
        open(&disk).unwrap();
    }

    /// Names that differ behind their last dot had one file for what is new.
    #[test]
    fn files_of_one_directory_are_not_in_each_others_way() {
        let names = ["n.log", "n.images", "n", "n.new"];
        assert!(names.iter().all(|name| beside(Path::new(name), ".new") == Path::new(&format!("{name}.new"))));
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/")).unwrap();
        let open = |name: &str| Records::open(Arc::new(disk.clone()), Path::new("/").join(name)).unwrap();
        let (mut log, mut images) = (open("n.log").0, open("n.images").0);
        log.replace(b"log").unwrap();
        images.replace(b"images").unwrap();
        drop((log, images));
        assert_eq!((&open("n.log").1[0][..], &open("n.images").1[0][..]), (&b"log"[..], &b"images"[..]));
    }

    /// What a failed sync left in the page cache is taken for written by later ones.
    #[test]
    fn nothing_is_added_after_a_failure() {
        for after in 0..8 {
            let disk = SimDisk::new();
            let mut records = begun(&disk);
            disk.fail_at(disk.operations() + after, Fault::Refuse(ErrorKind::Other));
            let mut steps = 0;
            let failed = loop {
                let done = if steps % 2 == 0 { records.push(&record(2)) } else { records.replace(&record(3)) };
                steps += 1;
                if let Err(error) = done {
                    break error;
                }
            };
            assert!(matches!(failed, StorageError::Io { .. }), "{failed}");
            assert!(matches!(records.push(&record(4)), Err(StorageError::Sticky(_))));
            assert!(matches!(records.replace(&record(4)), Err(StorageError::Sticky(_))));
        }
    }

    #[test]
    fn a_file_has_grown_when_most_of_it_was_added() {
        let mut records = begun(&SimDisk::new());
        let mut pushed = 0;
        while !records.has_grown() {
            records.push(&[7; 100_000]).unwrap();
            pushed += 1;
        }
        assert_eq!(pushed, 11);
        records.replace(&[7; 1_000_000]).unwrap();
        (0..19).for_each(|_| records.push(&[7; 100_000]).unwrap());
        assert!(!records.has_grown());
        records.push(&[7; 100_000]).unwrap();
        assert!(records.has_grown());
    }

    /// Whatever a loss of power at any operation leaves of what was pending: what was added is there, and of what was being added all or nothing.
    #[test]
    fn a_loss_of_power_at_any_operation_takes_nothing_that_was_added() {
        let disk = SimDisk::new();
        drop(begun(&disk));
        for after in 0..16 {
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
        records.push(&[&vec![0; MAX_ALIGN as usize - FRAME][..], &file].concat()).unwrap();
        disk.flip(&path, next(end), 1);
        assert_eq!(read(&disk).unwrap(), [record(1), record(2)]);
    }
}
