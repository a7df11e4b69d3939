//! Images in memory.

use std::sync::{Arc, Mutex, Weak};

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
    unfinished: Vec<Unfinished>,
}

/// An image that is being written, or was left off.
#[derive(Debug)]
struct Unfinished {
    meta: SnapshotMeta,
    image: BytesMut,
    /// Held by the writer that began last. Nobody writes once it is dropped.
    turn: Weak<()>,
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
        state.tidy(&meta);
        let turn = Arc::new(());
        let image = match state.unfinished.iter().position(|other| other.meta.id == meta.id) {
            Some(at) => Some(state.unfinished.remove(at)).filter(|other| other.meta == meta).map(|other| other.image),
            None => None,
        };
        let image = image.unwrap_or_default();
        state.unfinished.push(Unfinished { meta, image, turn: Arc::downgrade(&turn) });
        Ok(Box::new(Writer { turn, state: self.0.clone() }))
    }
}

struct Writer {
    turn: Arc<()>,
    state: Arc<Mutex<State>>,
}

impl State {
    /// Of the images that were left unfinished the newest stays, if it is newer than the one that is about to be begun.
    fn tidy(&mut self, begun: &SnapshotMeta) {
        let left = |image: &Unfinished| image.turn.strong_count() == 0 && image.meta.id != begun.id;
        let newest = self.unfinished.iter().filter(|image| left(image)).max_by_key(|image| image.meta.last);
        let stays = newest.filter(|image| image.meta.last > begun.last).map(|image| image.meta.id);
        self.unfinished.retain(|image| !left(image) || Some(image.meta.id) == stays);
    }

    /// Where the image is that this writer writes, unless it was begun anew meanwhile.
    fn of(&self, turn: &Arc<()>) -> Result<usize, StorageError> {
        let found = self.unfinished.iter().position(|image| Weak::ptr_eq(&image.turn, &Arc::downgrade(turn)));
        found.ok_or_else(|| StorageError::Misuse("the image was begun anew meanwhile".into()))
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        let state = lock(&self.state);
        state.of(&self.turn).map_or(0, |at| state.unfinished[at].image.len() as u64)
    }

    fn checksum(&self) -> u32 {
        let state = lock(&self.state);
        state.of(&self.turn).map_or(0, |at| crc32c::crc32c(&state.unfinished[at].image))
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        let at = state.of(&self.turn)?;
        state.unfinished[at].image.extend_from_slice(&chunk);
        Ok(())
    }

    async fn discard(self: Box<Self>) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        let at = state.of(&self.turn)?;
        state.unfinished.remove(at);
        Ok(())
    }

    async fn publish(self: Box<Self>) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        let at = state.of(&self.turn)?;
        let Unfinished { meta, image, .. } = state.unfinished.remove(at);
        // Otherwise it came too late: a newer one has been published meanwhile.
        if state.latest.as_ref().is_none_or(|(latest, _)| latest.meta.last <= meta.last) {
            let published = Published { meta, len: image.len() as u64, checksum: crc32c::crc32c(&image) };
            state.latest = Some((published, image.freeze()));
        }
        Ok(())
    }
}
