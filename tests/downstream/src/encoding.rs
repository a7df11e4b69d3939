//! Records as bytes.

use raftkv::StorageError;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) fn encode(record: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(record).expect("memory is all that it takes")
}

pub(crate) fn decode<T: DeserializeOwned>(record: &[u8]) -> Result<T, StorageError> {
    postcard::from_bytes(record).map_err(|error| StorageError::Misuse(format!("not a record of this store: {error}")))
}
