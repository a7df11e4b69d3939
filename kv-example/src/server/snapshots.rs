use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, StorageError};

/// A store that holds no image: the node keeps its whole log, and rebuilds the state from it at each start.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoSnapshots;

#[async_trait]
impl Snapshot for NoSnapshots {
    async fn latest(&self) -> Result<Option<SnapshotMeta>, StorageError> {
        Ok(None)
    }

    async fn read(&self, id: &SnapshotId, _offset: u64, _max: usize) -> Result<Bytes, StorageError> {
        Err(StorageError::Misuse(format!("image {id} was asked of a store that holds none")))
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        Err(StorageError::Misuse(format!("image {} was given to a store that holds none", meta.id)))
    }
}
