//! Files on which the process dies, as by `kill -9`, at a chosen operation of the install of an image.
//!
//! What counts is what changes a disk, from the file of an unfinished image on: its parts, its publication, and the cut of the log that follows. Each
//! operation is told on standard error before it is done; the chosen one is not done any more. The server under test (`kv-node`) has such files
//! when [`DIE_AT`] says so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use raftkv_storage_file::{Access, Guard, OsVfs, Vfs, VfsFile};
use rustix::process::{Signal, getpid, kill_process};

use crate::process::notice;

/// The environment variable that holds the number of the operation at which a server dies.
pub const DIE_AT: &str = "RAFTKV_TEST_DIE_AT";

/// The files of a process that dies.
#[derive(Clone, Debug)]
pub struct Mortal(Arc<Install>);

#[derive(Debug)]
struct Install {
    die_at: u64,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    operations: u64,
    /// The image has its name: what is left is the cut of the log.
    published: bool,
    complete: bool,
}

impl Mortal {
    /// Files on which this process dies at the operation that the environment names; none if it names none.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let die_at = std::env::var(DIE_AT).ok()?.parse().ok()?;
        Some(Self(Arc::new(Install { die_at, progress: Mutex::default() })))
    }
}

impl Install {
    /// An operation is about to be done.
    fn reaches(&self, operation: &str, path: &Path) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |extension: &str| path.extension().is_some_and(|found| found == extension);
        if progress.complete || (progress.operations == 0 && !is("part")) {
            return;
        }
        progress.operations += 1;
        let number = progress.operations;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A database that was written anew at the start has another name by now than when it was opened.
        let name = name.strip_suffix(".new").unwrap_or(&name);
        notice(&format!("operation {number} of an install: {operation} {name}"));
        if number == self.die_at {
            // Whatever comes back from this, no operation is done any more: they wait for the lock.
            let _ = kill_process(getpid(), Signal::KILL);
            loop {
                std::thread::park();
            }
        }
        progress.published |= operation == "rename" && is("part");
        // The log: a segment, or a database.
        if progress.published && operation == "sync" && (is("wal") || name == "log.redb") {
            progress.complete = true;
            notice(&format!("the install is complete after {number} operations"));
        }
    }
}

impl Vfs for Mortal {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        OsVfs.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsVfs.list(dir)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        if access == Access::Create {
            self.0.reaches("create", path);
        }
        let file = OsVfs.open(path, access)?;
        Ok(Arc::new(MortalFile { file, path: path.to_owned(), install: self.0.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.reaches("rename", from);
        OsVfs.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.reaches("remove", path);
        OsVfs.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.reaches("sync", dir);
        OsVfs.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Guard>> {
        OsVfs.lock(path)
    }

    fn random(&self) -> u64 {
        OsVfs.random()
    }
}

#[derive(Debug)]
struct MortalFile {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    install: Arc<Install>,
}

impl VfsFile for MortalFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.install.reaches("write", &self.path);
        self.file.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.install.reaches("sync", &self.path);
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        self.install.reaches("allocate", &self.path);
        self.file.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.install.reaches("cut", &self.path);
        self.file.set_len(len)
    }
}
