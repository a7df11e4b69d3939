//! A file of records, one behind the other, each with its checksum.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc::{CRC_32_ISCSI, Crc};
use raftkv::StorageError;
use raftkv_storage_file::parts::{failed, write_all};
use raftkv_storage_file::{Access, Vfs, VfsFile};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files;

/// Each record begins with one: what a disk is writing when power is lost may come to nothing as a whole, and nobody's record but the last may be in it.
const SECTOR: usize = 512;
static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The file, and where the next record goes.
pub(crate) struct Records {
    files: Arc<dyn Vfs>,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    end: u64,
}

impl Records {
    /// Opens a file, or makes one, and reads its records. One that was not written to its end is cut off: nobody was told that it is
    /// there. Each is durable before the next one is written, so that whole records behind it mean damage.
    pub(crate) fn open<T: DeserializeOwned>(
        files: Arc<dyn Vfs>,
        path: PathBuf,
    ) -> Result<(Self, Vec<T>), StorageError> {
        let file = files::open(&*files, &path).map_err(failed("open", &path))?;
        let bytes = files::contents(&*file).map_err(failed("read", &path))?;
        let (mut records, mut at) = (Vec::new(), 0);
        while let Some((record, len)) = bytes.get(at..).and_then(decode) {
            at = (at + len).next_multiple_of(SECTOR);
            records.push(record);
        }
        if (at..bytes.len()).step_by(SECTOR).skip(1).any(|behind| decode::<T>(&bytes[behind..]).is_some()) {
            let reason = "a record does not match its checksum, and others follow it".into();
            let (path, offset) = (path.display().to_string(), Some(at as u64));
            return Err(StorageError::Corrupt { path, offset, index: None, reason });
        }
        let this = Self { files, path, file, end: at as u64 };
        this.file.set_len(this.end).and_then(|()| this.file.sync_data()).map_err(failed("cut", &this.path))?;
        this.sync_name()?;
        Ok((this, records))
    }

    /// Adds a record, which is durable when this returns.
    pub(crate) fn push(&mut self, record: &impl Serialize) -> Result<(), StorageError> {
        let bytes = postcard::to_stdvec_crc32(record, CRC.digest()).map_err(|e| StorageError::Misuse(e.to_string()))?;
        let written = write_all(&*self.file, &bytes, self.end).and_then(|()| self.file.sync_data());
        self.end = (self.end + bytes.len() as u64).next_multiple_of(SECTOR as u64);
        written.map_err(failed("write", &self.path))
    }

    /// Puts a file with this record alone in the place of this one, in one step that is durable when this returns.
    pub(crate) fn replace(&mut self, record: &impl Serialize) -> Result<(), StorageError> {
        let path = self.path.with_extension("new");
        let file = self.files.open(&path, Access::Create).map_err(failed("create", &path))?;
        let mut new = Self { files: self.files.clone(), path, file, end: 0 };
        new.push(record)?;
        self.files.rename(&new.path, &self.path).map_err(failed("rename", &new.path))?;
        (self.file, self.end) = (new.file, new.end);
        self.sync_name()
    }

    fn sync_name(&self) -> Result<(), StorageError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        self.files.sync_dir(dir).map_err(failed("sync", dir))
    }
}

/// The record at the beginning, if it is whole, and how long it is.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
    let (record, rest) = postcard::take_from_bytes_crc32(bytes, CRC.digest()).ok()?;
    Some((record, bytes.len() - rest.len()))
}
