//! Images in memory.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;

use super::lock;
use crate::error::StorageError;
use crate::traits::{Draft, HeldImages, ImageStep, Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter};

/// Images in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemSnapshots(Arc<Mutex<HeldImages>>);

impl MemSnapshots {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Snapshot for MemSnapshots {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        Ok(lock(&self.0).latest())
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        lock(&self.0).read(id, offset, max)
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let writer = Writer { images: self.clone(), draft: Draft::of(meta) };
        writer.take(ImageStep::Begin)?;
        Ok(Box::new(writer))
    }
}

struct Writer {
    images: MemSnapshots,
    draft: Draft,
}

impl Writer {
    fn take(&self, step: ImageStep) -> Result<(), StorageError> {
        lock(&self.images.0).take(&self.draft, step).map(drop)
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        lock(&self.images.0).written(&self.draft).0
    }

    fn checksum(&self) -> u32 {
        lock(&self.images.0).written(&self.draft).1
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        self.take(ImageStep::Append(chunk))
    }

    async fn publish(self: Box<Self>) -> Result<(), StorageError> {
        self.take(ImageStep::Publish)
    }

    async fn discard(self: Box<Self>) -> Result<(), StorageError> {
        self.take(ImageStep::Discard)
    }
}
