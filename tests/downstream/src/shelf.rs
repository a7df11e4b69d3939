//! The short way to a `Snapshot` store: bytes under names, in a directory. What is a draft, what an image, and what is left of either after a crash is `raftkv`'s part
//! (`Shelved`); files are ours.

use std::io::{Error, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raftkv::{Shelf, Shelved, StorageError};
use raftkv_storage_file::parts::{failed, read_full, write_all};
use raftkv_storage_file::{Access, Vfs, VfsFile};

/// The directory.
pub struct Shelves(Arc<dyn Vfs>, PathBuf);

impl Shelves {
    /// Opens the images in this directory, which may be new.
    pub fn open(files: Arc<dyn Vfs>, dir: PathBuf) -> Result<Shelved<Self>, StorageError> {
        files.create_dir_all(&dir).map_err(failed("create", &dir))?;
        Shelved::open(Self(files, dir))
    }

    fn sync_names(&self) -> Result<(), Error> {
        self.0.sync_dir(&self.1)
    }
}

impl Shelf for Shelves {
    fn names(&self) -> Result<Vec<String>, StorageError> {
        self.0.list(&self.1).map_err(failed("list", &self.1))
    }

    fn read(&self, name: &str) -> Result<Bytes, StorageError> {
        let path = self.1.join(name);
        let read = |file: Arc<dyn VfsFile>| {
            let mut bytes = vec![0; file.len()? as usize];
            read_full(&*file, &mut bytes, 0).map(|_| bytes.into())
        };
        self.0.open(&path, Access::Read).and_then(read).map_err(failed("read", &path))
    }

    fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.1.join(name);
        let opened = match self.0.open(&path, Access::Write) {
            Err(error) if error.kind() == ErrorKind::NotFound => self.0.open(&path, Access::Create),
            opened => opened,
        };
        let written = opened.and_then(|file| write_all(&*file, bytes, file.len()?).and_then(|()| file.sync_data()));
        written.and_then(|()| self.sync_names()).map_err(failed("write", &path))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StorageError> {
        let (path, to) = (self.1.join(from), self.1.join(to));
        self.0.rename(&path, &to).and_then(|()| self.sync_names()).map_err(failed("rename", &path))
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        let path = self.1.join(name);
        self.0.remove(&path).map_err(failed("remove", &path))
    }

    fn place(&self, name: &str) -> String {
        self.1.join(name).display().to_string()
    }
}
