//! Notes when something begins to be done to images: a disk that is mended meanwhile still explains that it fails.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::vouched::Memory;
use crate::error::StorageError;
use crate::traits::{Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter};

/// Images whose writes are noted.
pub(super) struct Watched {
    images: Arc<dyn Snapshot>,
    memory: Memory,
    run: u64,
}

impl Watched {
    pub(super) fn new(images: Arc<dyn Snapshot>, memory: Memory, run: u64) -> Self {
        Self { images, memory, run }
    }
}

#[async_trait]
impl Snapshot for Watched {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        self.images.latest().await
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        self.images.read(id, offset, max).await
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let (memory, run) = (self.memory.clone(), self.run);
        let writer = memory.watch(run, self.images.begin(meta)).await?;
        Ok(Box::new(WatchedWriter { writer, memory, run }))
    }
}

struct WatchedWriter {
    writer: Box<dyn SnapshotWriter>,
    memory: Memory,
    run: u64,
}

#[async_trait]
impl SnapshotWriter for WatchedWriter {
    fn offset(&self) -> u64 {
        self.writer.offset()
    }

    fn checksum(&self) -> u32 {
        self.writer.checksum()
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        self.memory.watch(self.run, self.writer.append(chunk)).await
    }

    async fn publish(self: Box<Self>) -> Result<(), StorageError> {
        let Self { writer, memory, run } = *self;
        memory.watch(run, writer.publish()).await
    }

    async fn discard(self: Box<Self>) -> Result<(), StorageError> {
        let Self { writer, memory, run } = *self;
        memory.watch(run, writer.discard()).await
    }
}
