//! Images in a directory, a file each. What is a draft, what an image, and what is left of either after a crash is `raftkv`'s part (`Shelved`); files are ours.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use raftkv::{Shelf, Shelved, StorageError};

use crate::records;

/// The directory.
pub struct Images(PathBuf);

impl Images {
    /// Opens the images in this directory, which may be new.
    pub fn open(dir: PathBuf) -> Result<Shelved<Self>, StorageError> {
        fs::create_dir_all(&dir).map_err(StorageError::io("create", &dir))?;
        Shelved::open(Self(dir))
    }
}

impl Shelf for Images {
    fn names(&self) -> Result<Vec<String>, StorageError> {
        let files = fs::read_dir(&self.0).and_then(|files| files.collect::<Result<Vec<_>, _>>());
        let files = files.map_err(StorageError::io("list", &self.0))?;
        Ok(files.iter().map(|file| file.file_name().to_string_lossy().into_owned()).collect())
    }

    fn read(&self, name: &str) -> Result<Bytes, StorageError> {
        let path = self.0.join(name);
        fs::read(&path).map(Bytes::from).map_err(StorageError::io("read", &path))
    }

    fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.0.join(name);
        let file = File::options().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_data()));
        written.map_err(StorageError::io("write", &path))?;
        records::sync_names(&self.0)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StorageError> {
        let path = self.0.join(to);
        fs::rename(self.0.join(from), &path).map_err(StorageError::io("rename", &path))?;
        records::sync_names(&self.0)
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        let path = self.0.join(name);
        fs::remove_file(&path).map_err(StorageError::io("remove", &path))
    }

    fn place(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}
