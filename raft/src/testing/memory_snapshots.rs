//! Images in memory.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use super::lock;
use crate::error::StorageError;
use crate::traits::{Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter};

/// Images in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemSnapshots(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    latest: Option<(Published, Bytes)>,
    unfinished: Option<(SnapshotMeta, BytesMut)>,
    /// Counts writers: only the last one that began may write.
    writers: u64,
}

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
        Ok(lock(&self.0).latest.as_ref().map(|(published, _)| published.clone()))
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        match &lock(&self.0).latest {
            Some((published, image)) if published.meta.id == *id => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(image.len());
                Ok(image.slice(from..from.saturating_add(max).min(image.len())))
            }
            Some(_) | None => Err(StorageError::Misuse(format!("there is no image {id}"))),
        }
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let mut state = lock(&self.0);
        if state.unfinished.as_ref().is_none_or(|(unfinished, _)| *unfinished != meta) {
            state.unfinished = Some((meta, BytesMut::new()));
        }
        state.writers += 1;
        let writer = state.writers;
        Ok(Box::new(Writer { writer, state: self.0.clone() }))
    }
}

struct Writer {
    writer: u64,
    state: Arc<Mutex<State>>,
}

impl State {
    /// The image that this writer writes, unless another was begun meanwhile.
    fn of(&mut self, writer: u64) -> Result<&mut (SnapshotMeta, BytesMut), StorageError> {
        let unfinished = self.unfinished.as_mut().filter(|_| writer == self.writers);
        unfinished.ok_or_else(|| StorageError::Misuse("an image was begun anew meanwhile".into()))
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        lock(&self.state).of(self.writer).map_or(0, |(_, image)| image.len() as u64)
    }

    fn checksum(&self) -> u32 {
        lock(&self.state).of(self.writer).map_or(0, |(_, image)| crc32c::crc32c(image))
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        lock(&self.state).of(self.writer)?.1.extend_from_slice(&chunk);
        Ok(())
    }

    async fn discard(self: Box<Self>) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        state.of(self.writer)?;
        state.unfinished = None;
        Ok(())
    }

    async fn publish(self: Box<Self>) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        state.of(self.writer)?;
        if let Some((meta, image)) = state.unfinished.take()
            // Otherwise it came too late: a newer one has been published meanwhile.
            && state.latest.as_ref().is_none_or(|(latest, _)| latest.meta.last <= meta.last)
        {
            let published = Published { meta, len: image.len() as u64, checksum: crc32c::crc32c(&image) };
            state.latest = Some((published, image.freeze()));
        }
        Ok(())
    }
}
