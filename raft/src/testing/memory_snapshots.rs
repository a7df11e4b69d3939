//! Images in memory.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use super::lock;
use crate::error::StorageError;
use crate::traits::{Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter};

/// Images in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemSnapshots(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    latest: Option<(SnapshotMeta, Bytes)>,
    unfinished: Option<(SnapshotMeta, BytesMut)>,
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
    async fn latest(&self) -> Result<Option<SnapshotMeta>, StorageError> {
        Ok(lock(&self.0).latest.as_ref().map(|(meta, _)| meta.clone()))
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        match &lock(&self.0).latest {
            Some((meta, image)) if meta.id == *id => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(image.len());
                Ok(image.slice(from..from.saturating_add(max).min(image.len())))
            }
            Some(_) | None => Err(StorageError::Misuse(format!("there is no image {id}"))),
        }
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let mut state = lock(&self.0);
        if state.unfinished.as_ref().is_none_or(|(unfinished, _)| *unfinished != meta) {
            state.unfinished = Some((meta.clone(), BytesMut::new()));
        }
        Ok(Box::new(Writer { meta, state: self.0.clone() }))
    }
}

struct Writer {
    meta: SnapshotMeta,
    state: Arc<Mutex<State>>,
}

impl Writer {
    /// Works on the image, unless another was begun meanwhile.
    fn with<T>(&self, work: impl FnOnce(&mut BytesMut) -> T) -> Result<T, StorageError> {
        match &mut lock(&self.state).unfinished {
            Some((meta, image)) if *meta == self.meta => Ok(work(image)),
            Some(_) | None => Err(StorageError::Misuse("another image was begun meanwhile".into())),
        }
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        self.with(|image| image.len() as u64).unwrap_or(0)
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        self.with(|image| image.extend_from_slice(&chunk))
    }

    async fn publish(self: Box<Self>) -> Result<(), StorageError> {
        let image = self.with(|image| std::mem::take(image).freeze())?;
        let mut state = lock(&self.state);
        state.unfinished = None;
        state.latest = Some((self.meta.clone(), image));
        Ok(())
    }
}
