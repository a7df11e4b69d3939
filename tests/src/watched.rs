//! The files of a server under test (`kv-node`), on which something happens right before what changes a disk.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv_storage_file::{Access, Guard, OsVfs, Vfs, VfsFile};

/// What is about to be done, and where.
type Before = Arc<dyn Fn(&str, &Path) + Send + Sync>;

/// The files of the system, where each operation that changes them is told before it is done.
#[derive(Clone)]
pub struct Watched(Before);

impl Watched {
    /// Calls this before each.
    pub fn new(before: impl Fn(&str, &Path) + Send + Sync + 'static) -> Self {
        Self(Arc::new(before))
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl Vfs for Watched {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        OsVfs.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsVfs.list(dir)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        if access == Access::Create {
            (self.0)("create", path);
        }
        let file = OsVfs.open(path, access)?;
        Ok(Arc::new(WatchedFile { file, path: path.to_owned(), before: self.0.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.0)("rename", from);
        OsVfs.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        (self.0)("remove", path);
        OsVfs.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        (self.0)("sync", dir);
        OsVfs.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Guard>> {
        OsVfs.lock(path)
    }

    fn random(&self) -> u64 {
        OsVfs.random()
    }
}

struct WatchedFile {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    before: Before,
}

impl fmt::Debug for WatchedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WatchedFile").field(&self.path).finish()
    }
}

impl VfsFile for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        (self.before)("write", &self.path);
        self.file.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        (self.before)("sync", &self.path);
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        (self.before)("allocate", &self.path);
        self.file.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        (self.before)("cut", &self.path);
        self.file.set_len(len)
    }

    fn direct(&self) -> io::Result<Arc<dyn VfsFile>> {
        let file = self.file.direct()?;
        Ok(Arc::new(Self { file, path: self.path.clone(), before: self.before.clone() }))
    }

    fn is_nameless(&self) -> io::Result<bool> {
        self.file.is_nameless()
    }
}
