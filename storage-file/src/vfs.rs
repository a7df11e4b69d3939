//! The seam between the log and the machine: every file operation of this crate goes through [`Vfs`] and [`VfsFile`], so
//! that a simulated disk can lose, tear, flip and refuse.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation};

use raftkv::StorageError;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// An empty file, to read and write: a new one, or an existing one cut to nothing.
    Create,
}

/// A file system, as far as this crate needs one. Paths are used as they are given.
///
/// Nothing is durable before the matching sync: bytes need [`VfsFile::sync_data`], a name that was created, renamed or
/// removed needs [`Vfs::sync_dir`] on its directory.
pub trait Vfs: fmt::Debug + Send + Sync + 'static {
    /// Creates a directory with its missing parents, durably. Does nothing where it exists.
    ///
    /// # Errors
    /// As the operating system says.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// As the operating system says; names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens a file.
    ///
    /// # Errors
    /// As the operating system says.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>>;

    /// Gives a file another name in the same directory, replacing what had that name.
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name. Open handles go on reading.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes names in a directory durable.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the lock that a file stands for, creating the file, and holds it until the guard is dropped or the process
    /// ends. The file then names the process.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Guard>>;

    /// A number nobody can foretell.
    fn random(&self) -> u64;
}

/// Holds a lock until it is dropped.
pub trait Guard: fmt::Debug + Send + Sync {}

/// An open file. Positions are given with each call; calls may run at the same time.
pub trait VfsFile: fmt::Debug + Send + Sync {
    /// Reads at an offset. May return fewer bytes than asked; 0 at the end.
    ///
    /// # Errors
    /// As the operating system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at an offset. May write fewer bytes than asked.
    ///
    /// # Errors
    /// As the operating system says.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes the bytes durable, and as much of the metadata as reading them back takes (`fdatasync`).
    ///
    /// # Errors
    /// As the operating system says. Afterwards nobody knows what is durable, whatever a later sync says.
    fn sync_data(&self) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// As for [`VfsFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Extends the file to `len` zero bytes, with room reserved where the file system can: tells whether it is.
    ///
    /// # Errors
    /// As the operating system says, [`io::ErrorKind::StorageFull`] above all.
    fn allocate(&self, len: u64) -> io::Result<bool>;

    /// Cuts or extends the file. Room for what it is extended by is found when that is written to.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Another handle of the same file, of which writes go past the page cache (`O_DIRECT`). Other handles read what it wrote as soon as a write returns, and
    /// their [`VfsFile::sync_data`] makes it durable.
    ///
    /// Offset and length of each write are multiples of the disk's blocks, and so is where the bytes lie in memory: otherwise it may fail with [`io::ErrorKind::InvalidInput`]. The default is for
    /// file systems without such a way.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where there is no such way, or as the operating system says.
    fn direct(&self) -> io::Result<Arc<dyn VfsFile>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether no name leads to the file any more: then its room comes back when the last handle goes. The default is for file systems that can't tell.
    ///
    /// # Errors
    /// As the operating system says.
    fn is_nameless(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Takes the file for this handle alone, until the handle is dropped or the process ends. False if another has it. The default is for file systems
    /// that one process has to itself.
    ///
    /// # Errors
    /// As the operating system says.
    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsVfs;

#[derive(Debug)]
struct OsGuard {
    _file: File,
}

impl Guard for OsGuard {}

impl Vfs for OsVfs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let parent = match dir.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Ok(()),
        };
        if dir.is_dir() {
            // Whoever made it may have been stopped before its name was durable. A parent that is not ours to open was made
            // by somebody else.
            return self.sync_dir(parent).or_else(|e| {
                let foreign = e.kind() == io::ErrorKind::PermissionDenied;
                if foreign { Ok(()) } else { Err(e) }
            });
        }
        self.create_dir_all(parent)?;
        match fs::create_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            Ok(()) | Err(_) => {}
        }
        self.sync_dir(parent)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read);
        match access {
            Access::Read | Access::Write => {}
            Access::Create => {
                options.create(true).truncate(true);
            }
        }
        Ok(Arc::new(OsFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Guard>> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        // The name is for people; the lock itself is the kernel's, and ends with the process.
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Box::new(OsGuard { _file: file }))
    }

    fn random(&self) -> u64 {
        RandomState::new().build_hasher().finish()
    }
}

/// How much of a file's room is given back at once, in bytes. What syncs on that file system meanwhile waits for it: for a GiB the tenth part of a second.
const FREED_AT_ONCE: u64 = 4 << 20;

/// Removes files durably. Their room is taken until what is returned is dropped, or given back piece by piece by [`give_back`].
///
/// # Errors
/// As the operating system says.
pub(crate) fn remove_all(vfs: &dyn Vfs, dir: &Path, paths: &[PathBuf]) -> Result<Vec<Arc<dyn VfsFile>>, StorageError> {
    let mut files = Vec::new();
    for path in paths {
        // Where one can't be opened its room is given back at once.
        files.extend(vfs.open(path, Access::Write));
        vfs.remove(path).map_err(failed("remove", path))?;
    }
    // A file that is cut must not come back after a loss of power.
    vfs.sync_dir(dir).map_err(failed("fsync", dir))?;
    Ok(files)
}

/// Cuts a removed file piece by piece, which nobody may read any more. One that has other names is left as it is.
pub(crate) fn give_back(file: &dyn VfsFile) {
    while give_back_some(file) {}
}

/// Cuts a piece off such a file. Tells whether there is more to be cut.
pub(crate) fn give_back_some(file: &dyn VfsFile) -> bool {
    let cut = || {
        let len = file.len()?;
        if len <= FREED_AT_ONCE || !file.is_nameless()? {
            return Ok(false);
        }
        file.set_len(len - FREED_AT_ONCE)?;
        file.sync_data()?;
        io::Result::Ok(true)
    };
    cut().unwrap_or_else(|error| {
        tracing::debug!(%error, "the room of a file that was removed could not be given back piece by piece");
        false
    })
}

/// Opens a file once more, to write past the page cache.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn past_the_cache(file: &File) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    /// Those of ext2 to ext4, and of xfs: there what was cached of a place is dropped when that is written to. Of others (FUSE, networks) not all do so; btrfs and f2fs
    /// take most of what we write through the cache all the same, which costs more than to write it there.
    const KNOWN: [i64; 2] = [0xef53, 0x5846_5342];
    #[allow(clippy::unnecessary_cast, reason = "its type is not the same on all platforms")]
    let kind = rustix::fs::fstatfs(file)?.f_type as i64;
    if !KNOWN.contains(&kind) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    // The same file, whatever has its name by now.
    OpenOptions::new().write(true).custom_flags(flags).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn past_the_cache(_: &File) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[derive(Debug)]
struct OsFile(File);

impl VfsFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.0.set_len(len).map(|()| false),
            done => Ok(done.map(|()| true)?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn direct(&self) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(Self(past_the_cache(&self.0)?)))
    }

    fn is_nameless(&self) -> io::Result<bool> {
        Ok(std::os::unix::fs::MetadataExt::nlink(&self.0.metadata()?) == 0)
    }

    fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Writes all of `buf`, however many calls that takes.
///
/// # Errors
/// As the operating system says.
pub fn write_all(file: &dyn VfsFile, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.write_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                buf = &buf[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Fills `buf` as far as the file goes, and tells how far.
///
/// # Errors
/// As the operating system says.
pub fn read_full(file: &dyn VfsFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Reads a small file whole, up to `limit` bytes.
pub(crate) fn read_small(vfs: &dyn Vfs, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; limit];
    let n = read_full(&*vfs.open(path, Access::Read)?, &mut buf, 0)?;
    buf.truncate(n);
    Ok(buf)
}

/// Turns a refusal of the operating system into ours, which says what was tried on what. Costs nothing where there is none: readers call
/// this for each entry.
pub fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| {
        let path = path.display().to_string();
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            StorageError::Full { op, path }
        } else {
            StorageError::Io { op, path, source }
        }
    }
}

/// A moving view of a file: reads ahead in large pieces, and hands out slices.
pub(crate) struct Window<'a> {
    file: &'a dyn VfsFile,
    buf: Vec<u8>,
    start: u64,
    filled: usize,
    ahead: usize,
}

impl<'a> Window<'a> {
    /// A view that reads `ahead` bytes at a time.
    pub(crate) fn new(file: &'a dyn VfsFile, ahead: usize) -> Self {
        Self { file, buf: Vec::new(), start: 0, filled: 0, ahead }
    }

    /// The `len` bytes from `offset`; fewer where the file ends.
    pub(crate) fn at(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let end = self.start + self.filled as u64;
        if offset < self.start || offset + len as u64 > end {
            self.refill(offset, len)?;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX).min(self.filled);
        let to = from.saturating_add(len).min(self.filled);
        Ok(&self.buf[from..to])
    }

    fn refill(&mut self, offset: u64, len: usize) -> io::Result<()> {
        let end = self.start + self.filled as u64;
        if offset >= self.start && offset < end {
            let skip = usize::try_from(offset - self.start).unwrap_or(self.filled);
            self.buf.copy_within(skip..self.filled, 0);
            self.filled -= skip;
        } else {
            self.filled = 0;
        }
        self.start = offset;
        let want = len.max(self.ahead);
        if self.buf.len() < want {
            // Zeroed memory straight from the system, which costs nothing until it is used.
            let mut larger = vec![0; want];
            larger[..self.filled].copy_from_slice(&self.buf[..self.filled]);
            self.buf = larger;
        }
        while self.filled < len {
            match self.file.read_at(&mut self.buf[self.filled..want], offset + self.filled as u64) {
                Ok(0) => break,
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::sim::{Fate, Pending, SimDisk};

    /// Syncs waited a tenth of a second while an image of a GiB was removed at once.
    #[test]
    fn the_room_of_a_large_file_is_given_back_piece_by_piece_once_nobody_can_find_it() {
        let disk = SimDisk::new();
        let (dir, path) = (Path::new("/dir"), PathBuf::from("/dir/large"));
        let size = 2 * FREED_AT_ONCE + 5;
        disk.create_dir_all(dir).unwrap();
        let file = disk.open(&path, Access::Create).unwrap();
        file.allocate(size).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(dir).unwrap();
        disk.record();
        let removed = remove_all(&disk, dir, std::slice::from_ref(&path)).unwrap();
        removed.iter().for_each(|file| give_back(&**file));
        let moments = disk.take_recording();
        for moment in &moments {
            for (name, rest) in [(Fate::Lost, Fate::Lost), (Fate::Lost, Fate::Kept), (Fate::Kept, Fate::Lost)] {
                let fate = |pending: &Pending| if matches!(pending, Pending::Name { .. }) { name } else { rest };
                let found = moment.lose_power(fate).contents(&path).map(|bytes| bytes.len() as u64);
                assert!(found.is_none_or(|len| len == size), "{found:?} bytes are left of it");
            }
        }
        // Its name, and two pieces with a sync each.
        assert_eq!((moments.len(), file.len().unwrap()), (2 + 2 * 2 + 1, 5));
        assert!(disk.now().lose_power(|_| Fate::Lost).contents(&path).is_none());
    }

    /// Its name may still be on the disk, and would lead to what is left of it.
    #[test]
    fn a_file_whose_name_did_not_go_durably_is_not_cut() {
        let disk = SimDisk::new();
        let (dir, path) = (Path::new("/dir"), PathBuf::from("/dir/large"));
        disk.create_dir_all(dir).unwrap();
        let file = disk.open(&path, Access::Create).unwrap();
        file.allocate(2 * FREED_AT_ONCE).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(dir).unwrap();
        disk.fail_at(disk.operations() + 1, crate::sim::Fault::Refuse(io::ErrorKind::Other));
        assert!(remove_all(&disk, dir, std::slice::from_ref(&path)).is_err());
        let after = disk.now().lose_power(|_| Fate::Lost);
        assert_eq!(after.contents(&path).map(|bytes| bytes.len() as u64), Some(2 * FREED_AT_ONCE));
    }

    /// Whoever keeps images by `cp -l` must find them whole.
    #[test]
    fn a_file_that_has_another_name_is_not_cut() {
        let place = tempfile::tempdir().unwrap();
        let (path, other) = (place.path().join("one"), place.path().join("other"));
        let file = OsVfs.open(&path, Access::Create).unwrap();
        file.set_len(FREED_AT_ONCE + 7).unwrap();
        std::fs::hard_link(&path, &other).unwrap();
        assert!(!file.is_nameless().unwrap());
        remove_all(&OsVfs, place.path(), &[path]).unwrap().iter().for_each(|file| give_back(&**file));
        assert_eq!(file.len().unwrap(), FREED_AT_ONCE + 7);
        remove_all(&OsVfs, place.path(), &[other]).unwrap().iter().for_each(|file| give_back(&**file));
        assert_eq!((file.is_nameless().unwrap(), file.len().unwrap()), (true, 7));
    }
}
