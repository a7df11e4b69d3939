//! Records as bytes.

use raftkv::StorageError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What serde makes of the types of `raftkv` may be another in another version of it.
const VERSION: u8 = 1;

pub(crate) fn encode(record: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(&(VERSION, record)).expect("memory is all that it takes")
}

pub(crate) fn decode<T: DeserializeOwned>(record: &[u8]) -> Result<T, StorageError> {
    match postcard::from_bytes(record) {
        Ok((VERSION, record)) => Ok(record),
        _ => Err(StorageError::Misuse("a record is of another version of this store".into())),
    }
}
