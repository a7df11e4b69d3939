//! Where a database is, and what lies beside it: the file that is made to take its place, and the mark that says that it is not to be trusted.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::{Fatal, StorageError, mutant};
use raftkv_storage_file::parts::{failed, read_full, write_all};
use raftkv_storage_file::{Access, Vfs, VfsFile};
use redb::{DatabaseError, StorageBackend};

/// The file of a database in its directory.
#[derive(Debug)]
pub(super) struct Place {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    path: PathBuf,
    fresh: PathBuf,
    distrust: PathBuf,
    names: Vec<String>,
}

impl Place {
    /// Looks at what is there.
    pub(super) fn look(vfs: Arc<dyn Vfs>, path: &Path) -> Result<Self, Fatal> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let names = vfs.list(&dir).map_err(failed("list", &dir))?;
        let beside = |extension| path.with_extension(extension);
        let (fresh, distrust) = (beside("redb.new"), beside("redb.failed"));
        Ok(Self { vfs, dir, path: path.to_owned(), fresh, distrust, names })
    }

    fn has(&self, path: &Path) -> bool {
        self.names.iter().any(|name| path.file_name().is_some_and(|wanted| wanted == name.as_str()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the disk failed under the file.
    pub(super) fn is_distrusted(&self) -> bool {
        self.has(&self.distrust)
    }

    /// Whether there is a file to go on with.
    pub(super) fn is_usable(&self) -> bool {
        self.has(&self.path) && !self.is_distrusted()
    }

    /// The mark that goes with the file.
    pub(super) fn distrust(&self) -> Distrust {
        let (vfs, dir) = (self.vfs.clone(), self.dir.clone());
        Distrust { vfs, dir, database: self.path.clone(), path: self.distrust.clone() }
    }

    /// The file that is there.
    pub(super) fn open(&self) -> Result<Arc<dyn VfsFile>, StorageError> {
        self.vfs.open(&self.path, Access::Write).map_err(failed("open", &self.path))
    }

    /// An empty file that is to take its place. A process that ends in the middle of this leaves no half-made file there.
    pub(super) fn create(&self) -> Result<Arc<dyn VfsFile>, StorageError> {
        if self.has(&self.fresh) {
            self.vfs.remove(&self.fresh).map_err(failed("remove", &self.fresh))?;
        }
        self.vfs.open(&self.fresh, Access::Create).map_err(failed("create", &self.fresh))
    }

    /// Puts that in its place. What it holds is durable by now.
    pub(super) fn replace(&self) -> Result<(), StorageError> {
        self.vfs.rename(&self.fresh, &self.path).map_err(failed("rename", &self.fresh))?;
        self.sync()?;
        if self.is_distrusted() {
            tracing::warn!("the disk failed under {}: a new one is made from image and log", self.path.display());
            // Not before the new one has the name for certain: without the mark the old one would be trusted.
            self.vfs.remove(&self.distrust).map_err(failed("remove", &self.distrust))?;
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.vfs.sync_dir(&self.dir).map_err(failed("fsync", &self.dir))
    }
}

/// A file that tells the next start that the disk has failed under the database.
#[derive(Clone, Debug)]
pub(super) struct Distrust {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    /// The database.
    database: PathBuf,
    path: PathBuf,
}

impl Distrust {
    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sees to it that the next start makes a new database. Where the mark can't be made, for want of room or of file descriptors, the database goes: it
    /// holds nothing that image and log do not hold, and a start that believed it could make another state of it than the others have.
    ///
    /// # Errors
    /// The database is still there, and nothing tells the next start.
    pub(super) fn mark(&self) -> io::Result<()> {
        match self.vfs.open(&self.path, Access::Create) {
            Ok(mark) => _ = mark.sync_data(),
            Err(error) => {
                let (mark, database) = (self.path.display(), self.database.display());
                tracing::warn!(%error, "{mark} can't be made, so {database} is removed; the next start makes a new one from image and log");
                match self.vfs.remove(&self.database) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        // A loss of power may undo it where a sync fails. It also takes what the operating system shows beside the disk, and what is on the disk can be believed.
        _ = self.vfs.sync_dir(&self.dir);
        Ok(())
    }
}

/// A file as redb writes it: redb's own seam to the machine, laid onto the one of `raftkv-storage-file`.
#[derive(Debug)]
pub(super) struct Medium(Arc<dyn VfsFile>);

impl Medium {
    /// Takes the file for one process.
    pub(super) fn take(file: Arc<dyn VfsFile>) -> Result<Self, DatabaseError> {
        match file.try_lock() {
            Ok(true) => Ok(Self(file)),
            Ok(false) => Err(DatabaseError::DatabaseAlreadyOpen),
            Err(error) => Err(redb::StorageError::Io(error).into()),
        }
    }
}

impl StorageBackend for Medium {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let whole = read_full(&*self.0, out, offset)? == out.len();
        if whole { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if mutant!("database-never-synced") { Ok(()) } else { self.0.sync_data() }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        write_all(&*self.0, data, offset)
    }
}
