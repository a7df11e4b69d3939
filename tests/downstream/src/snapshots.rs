//! Images in a directory, a file each. What is a draft, what an image, and what is left of either after a crash is `raftkv`'s part (`Shelved`); files are ours.

use std::io::Error;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raftkv::{Shelf, Shelved, StorageError};
use raftkv_storage_file::parts::{failed, write_all};
use raftkv_storage_file::{Access, Vfs};

use crate::files;

/// The directory.
pub struct Images(Arc<dyn Vfs>, PathBuf);

impl Images {
    /// Opens the images in this directory, which may be new.
    pub fn open(files: Arc<dyn Vfs>, dir: PathBuf) -> Result<Shelved<Self>, StorageError> {
        files.create_dir_all(&dir).map_err(failed("create", &dir))?;
        Shelved::open(Self(files, dir))
    }

    fn sync_names(&self) -> Result<(), Error> {
        self.0.sync_dir(&self.1)
    }
}

impl Shelf for Images {
    fn names(&self) -> Result<Vec<String>, StorageError> {
        self.0.list(&self.1).map_err(failed("list", &self.1))
    }

    fn read(&self, name: &str) -> Result<Bytes, StorageError> {
        let path = self.1.join(name);
        let bytes = self.0.open(&path, Access::Read).and_then(|file| files::contents(&*file));
        bytes.map(Bytes::from).map_err(failed("read", &path))
    }

    fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.1.join(name);
        let written = files::open(&*self.0, &path)
            .and_then(|file| write_all(&*file, bytes, file.len()?).and_then(|()| file.sync_data()));
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
