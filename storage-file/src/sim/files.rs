//! The simulated disk as the log sees it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Fault, Inode, NameChange, SimDisk};
use crate::vfs::{Access, Guard, Vfs, VfsFile};

impl Vfs for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.state().image.dirs.insert(dir.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        if !state.image.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.image.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        let mut state = self.state();
        let inode = match (access, state.inode(path)) {
            (Access::Read | Access::Write, found) => found?,
            (Access::Create, Ok(inode)) => {
                state.begin_io()?;
                state.image.inodes[inode].set_len(0);
                inode
            }
            (Access::Create, Err(_)) => {
                state.begin_io()?;
                let inode = state.image.inodes.len();
                state.image.inodes.push(Inode { path: path.to_owned(), ..Inode::default() });
                state.change(NameChange::Link(path.to_owned(), inode));
                inode
            }
        };
        Ok(Arc::new(SimFile { disk: self.clone(), inode, direct: false, locked: AtomicBool::new(false) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin_io()?;
        let inode = state.inode(from)?;
        state.change(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin_io()?;
        state.inode(path)?;
        state.change(NameChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin_io()?;
        let image = &mut state.image;
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            std::mem::take(&mut image.changes).into_iter().partition(|change| change.path().parent() == Some(dir));
        for change in here {
            change.apply(&mut image.disk_names);
        }
        image.changes = elsewhere;
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Guard>> {
        if !self.state().locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimGuard { disk: self.clone(), path: path.to_owned() }))
    }

    fn random(&self) -> u64 {
        let mut state = self.state();
        state.random += 1;
        state.random.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

#[derive(Debug)]
struct SimGuard {
    disk: SimDisk,
    path: PathBuf,
}

impl Guard for SimGuard {}

impl Drop for SimGuard {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: usize,
    /// Whether it writes past the cache. What is read, and what is durable when, is the same either way, but for what the cache alone had of the pages around.
    direct: bool,
    /// Whether this handle has the file's lock.
    locked: AtomicBool,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.locked.load(Ordering::Relaxed) {
            self.disk.state().taken.remove(&self.inode);
        }
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl VfsFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let from = position(offset)?;
        Ok(state.image.inodes[self.inode].cache.read(from, buf))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        if self.direct {
            let block = state.image.direct.block.unwrap_or(usize::MAX);
            let whole = buf.len().is_multiple_of(block) && offset.is_multiple_of(block as u64);
            if !whole || buf.as_ptr().align_offset(block) != 0 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        state.begin_io()?;
        let buf = &buf[..buf.len().min(state.write_limit.unwrap_or(usize::MAX))];
        let from = position(offset)?;
        if self.direct {
            state.image.direct.writes += 1;
            state.image.inodes[self.inode].drop_clean(from, buf.len());
        }
        let more = state.image.inodes[self.inode].room_for(from, buf.len());
        state.check_room(more)?;
        state.image.inodes[self.inode].write(buf, from);
        Ok(buf.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let mut begun = state.begin();
        if begun.is_ok() && std::mem::take(&mut state.forget_next_sync) {
            begun = Err(Fault::Forget);
            state.failures += 1;
        }
        let inode = &mut state.image.inodes[self.inode];
        match begun {
            Ok(()) => inode.sync(),
            Err(Fault::Refuse(kind)) => return Err(kind.into()),
            Err(Fault::Forget) => {
                inode.take_dirty();
                return Err(io::Error::other("the disk failed"));
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().image.inodes[self.inode].cache.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        let mut state = self.disk.state();
        state.begin_io()?;
        let (len, have) = (position(len)?, state.image.inodes[self.inode].cache.len());
        if len > have {
            state.check_room(len - have)?;
            state.image.inodes[self.inode].set_len(len);
        }
        Ok(true)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.begin_io()?;
        state.image.inodes[self.inode].set_len_sparsely(position(len)?);
        Ok(())
    }

    fn direct(&self) -> io::Result<Arc<dyn VfsFile>> {
        if self.disk.state().image.direct.block.is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (disk, inode) = (self.disk.clone(), self.inode);
        Ok(Arc::new(Self { disk, inode, direct: true, locked: AtomicBool::new(false) }))
    }

    fn is_nameless(&self) -> io::Result<bool> {
        Ok(!self.disk.state().image.names.values().any(|inode| *inode == self.inode))
    }

    fn try_lock(&self) -> io::Result<bool> {
        let taken = self.disk.state().taken.insert(self.inode);
        self.locked.fetch_or(taken, Ordering::Relaxed);
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OsVfs;

    #[test]
    fn what_a_file_is_extended_by_takes_room_when_it_is_written_to() {
        let disk = SimDisk::new();
        let file = disk.open(Path::new("/a"), Access::Create).unwrap();
        file.set_len(100_000).unwrap();
        assert_eq!((disk.used(), file.len().unwrap()), (0, 100_000));
        disk.set_capacity(Some(10_000));
        file.write_at(&[1; 6000], 8192).unwrap();
        assert_eq!(disk.used(), 8192);
        file.write_at(&[2; 4096], 12_288).unwrap();
        let full = |done: io::Result<usize>| assert_eq!(done.unwrap_err().kind(), io::ErrorKind::StorageFull);
        full(file.write_at(&[3; 10], 4096));
        full(file.write_at(&[3; 4200], 99_900));
        assert_eq!(file.allocate(102_000).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.set_len(9000).unwrap();
        file.set_len(100_000).unwrap();
        disk.set_capacity(None);
        file.sync_data().unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let after = disk.now().lose_power(|_| crate::sim::Fate::Lost);
        assert_eq!(after.contents(Path::new("/a")).map(|bytes| bytes.len()), Some(100_000));
    }

    #[test]
    fn a_write_past_the_cache_drops_what_a_failed_sync_left_there_alone() {
        for durable in [8192, 512] {
            let disk = SimDisk::new();
            let file = disk.open(Path::new("/a"), Access::Create).unwrap();
            file.allocate(durable).unwrap();
            file.sync_data().unwrap();
            file.allocate(8192).unwrap();
            file.write_at(&[1; 1024], 0).unwrap();
            disk.forget_next_sync();
            assert!(file.sync_data().is_err());
            let mut found = [0; 2048];
            file.read_at(&mut found, 0).unwrap();
            assert_eq!((found[0], found[512]), (1, 1), "the cache keeps it");
            let bytes = [2; 2 * 512 + 512];
            let start = bytes.as_ptr().align_offset(512);
            file.direct().unwrap().write_at(&bytes[start..start + 512], 1024).unwrap();
            file.read_at(&mut found, 0).unwrap();
            assert_eq!([found[0], found[512], found[1024], found[1536]], [0, 0, 2, 0], "{durable} bytes are durable");
        }
    }

    #[test]
    fn a_file_is_for_one_handle_as_long_as_that_lives() {
        let dir = tempfile::tempdir().unwrap();
        let vfss: [(Arc<dyn Vfs>, PathBuf); 2] =
            [(Arc::new(SimDisk::new()), "/a".into()), (Arc::new(OsVfs), dir.path().join("a"))];
        for (vfs, path) in vfss {
            let first = vfs.open(&path, Access::Create).unwrap();
            let second = vfs.open(&path, Access::Write).unwrap();
            assert!(first.try_lock().unwrap() && !second.try_lock().unwrap());
            drop(second);
            let third = vfs.open(&path, Access::Write).unwrap();
            assert!(!third.try_lock().unwrap(), "whoever was refused took the lock along");
            drop(first);
            assert!(third.try_lock().unwrap());
        }
    }
}
