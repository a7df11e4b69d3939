//! Files of records, one behind the other, each with its checksum.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crc::{CRC_32_ISCSI, Crc};
use raftkv::StorageError;
use serde::Serialize;
use serde::de::DeserializeOwned;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Opens a file of records, or makes one. One that was not written to its end is cut off: nobody was told that it is
/// there. Each is durable before the next one is written, so that whole records behind it mean damage.
pub(crate) fn open<T: DeserializeOwned>(path: &Path) -> Result<(File, Vec<T>), StorageError> {
    let mut options = File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(StorageError::io("open", path))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(StorageError::io("read", path))?;
    let (mut records, mut at) = (Vec::new(), 0);
    while let Some((record, len)) = decode(&bytes[at..]) {
        at += len;
        records.push(record);
    }
    if (at + 1..bytes.len()).any(|behind| decode::<T>(&bytes[behind..]).is_some()) {
        let reason = "a record does not match its checksum, and others follow it".into();
        let (path, offset) = (path.display().to_string(), Some(at as u64));
        return Err(StorageError::Corrupt { path, offset, index: None, reason });
    }
    let cut = file.set_len(at as u64).and_then(|()| file.seek(SeekFrom::End(0))).and_then(|_| file.sync_all());
    cut.map_err(StorageError::io("cut", path))?;
    Ok((file, records))
}

/// The record at the beginning, if it is whole, and how long it is.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
    let (record, rest) = postcard::take_from_bytes_crc32(bytes, CRC.digest()).ok()?;
    Some((record, bytes.len() - rest.len()))
}

/// Adds a record, which is durable when this returns.
pub(crate) fn push(file: &mut File, path: &Path, record: &impl Serialize) -> Result<(), StorageError> {
    let bytes = postcard::to_stdvec_crc32(record, CRC.digest()).map_err(|e| StorageError::Misuse(e.to_string()))?;
    file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(StorageError::io("write", path))
}

/// Makes durable which names are in a directory.
pub(crate) fn sync_names(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StorageError::io("sync", dir))
}
