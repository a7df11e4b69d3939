//! A simulated disk on which a test does something in between.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use raftkv_storage_file::sim::SimDisk;
use raftkv_storage_file::{Access, Guard, Vfs, VfsFile};

type Hook = Box<dyn FnOnce() + Send>;
type Listed = Box<dyn FnMut() + Send>;

/// A disk that does something at the next read of a file, after it, or when files have been listed, and counts what is read.
#[derive(Clone)]
pub struct Hooked {
    pub disk: SimDisk,
    pub hook: Arc<Mutex<Option<Hook>>>,
    pub after: Arc<Mutex<Option<Hook>>>,
    pub listed: Arc<Mutex<Option<Listed>>>,
    /// In bytes.
    pub read: Arc<AtomicU64>,
}

impl Hooked {
    pub fn new() -> Self {
        Self {
            disk: SimDisk::new(),
            hook: Arc::default(),
            after: Arc::default(),
            listed: Arc::default(),
            read: Arc::default(),
        }
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooked").finish_non_exhaustive()
    }
}

impl Vfs for Hooked {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let found = self.disk.list(dir);
        if let Some(listed) = &mut *self.listed.lock().unwrap() {
            listed();
        }
        found
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        let file = self.disk.open(path, access)?;
        Ok(Arc::new(HookedFile { file, hook: self.hook.clone(), after: self.after.clone(), read: self.read.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Guard>> {
        self.disk.lock(path)
    }

    fn random(&self) -> u64 {
        self.disk.random()
    }
}

struct HookedFile {
    file: Arc<dyn VfsFile>,
    hook: Arc<Mutex<Option<Hook>>>,
    after: Arc<Mutex<Option<Hook>>>,
    read: Arc<AtomicU64>,
}

impl fmt::Debug for HookedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl VfsFile for HookedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let hook = self.hook.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        let read = self.file.read_at(buf, offset)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        let after = self.after.lock().unwrap().take();
        if let Some(after) = after {
            after();
        }
        Ok(read)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        self.file.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn is_nameless(&self) -> io::Result<bool> {
        self.file.is_nameless()
    }
}
