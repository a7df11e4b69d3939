//! Images in memory.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use super::lock;
use crate::error::StorageError;
use crate::traits::{Drafts, Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, Turn};

/// Images in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemSnapshots(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    latest: Option<(Published, Bytes)>,
    drafts: Drafts,
    unfinished: Vec<(SnapshotMeta, BytesMut)>,
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
        let unfinished = state.unfinished.iter().map(|(meta, _)| meta.clone()).collect();
        let (turn, gone) = state.drafts.begin(&meta, unfinished);
        state.unfinished.retain(|(other, _)| !gone.contains(other));
        if !state.unfinished.iter().any(|(other, _)| *other == meta) {
            state.unfinished.push((meta.clone(), BytesMut::new()));
        }
        Ok(Box::new(Writer { meta, turn, state: self.0.clone() }))
    }
}

struct Writer {
    meta: SnapshotMeta,
    turn: Turn,
    state: Arc<Mutex<State>>,
}

impl State {
    /// Where the image is that this writer writes, unless it was begun anew meanwhile.
    fn of(&self, meta: &SnapshotMeta, turn: &Turn) -> Result<usize, StorageError> {
        self.drafts.check(turn)?;
        let found = self.unfinished.iter().position(|(other, _)| other == meta);
        found.ok_or_else(|| StorageError::Misuse("the image is not there any more".into()))
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        let state = lock(&self.state);
        state.of(&self.meta, &self.turn).map_or(0, |at| state.unfinished[at].1.len() as u64)
    }

    fn checksum(&self) -> u32 {
        let state = lock(&self.state);
        state.of(&self.meta, &self.turn).map_or(0, |at| crc32c::crc32c(&state.unfinished[at].1))
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        let at = state.of(&self.meta, &self.turn)?;
        state.unfinished[at].1.extend_from_slice(&chunk);
        Ok(())
    }

    async fn discard(self: Box<Self>) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        let at = state.of(&self.meta, &self.turn)?;
        state.unfinished.remove(at);
        Ok(())
    }

    async fn publish(self: Box<Self>) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        let at = state.of(&self.meta, &self.turn)?;
        let (meta, image) = state.unfinished.remove(at);
        // Otherwise it came too late: a newer one has been published meanwhile.
        if state.latest.as_ref().is_none_or(|(latest, _)| latest.meta.last <= meta.last) {
            let published = Published { meta, len: image.len() as u64, checksum: crc32c::crc32c(&image) };
            state.latest = Some((published, image.freeze()));
        }
        Ok(())
    }
}
