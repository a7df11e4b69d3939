//! An image that is being written: in memory, until it crosses the line.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, StorageError};

use super::{Store, Unfinished, blocking, locked};

pub(super) struct Writer {
    store: Arc<Store>,
    meta: SnapshotMeta,
    /// Tells this writer from one that began the image anew.
    turn: Arc<()>,
    offset: u64,
    checksum: u32,
    /// Away while something is being done; it stays away when that was cancelled.
    stage: Option<Stage>,
}

enum Stage {
    /// The bytes are with the store.
    Memory,
    File(Box<dyn SnapshotWriter>),
}

impl Writer {
    pub(super) fn in_memory(
        store: Arc<Store>,
        meta: SnapshotMeta,
        turn: Arc<()>,
        (offset, checksum): (u64, u32),
    ) -> Self {
        Self { store, meta, turn, offset, checksum, stage: Some(Stage::Memory) }
    }

    pub(super) fn in_file(store: Arc<Store>, meta: SnapshotMeta, turn: Arc<()>, file: Box<dyn SnapshotWriter>) -> Self {
        let (offset, checksum) = (file.offset(), file.checksum());
        Self { store, meta, turn, offset, checksum, stage: Some(Stage::File(file)) }
    }

    fn take(&mut self) -> Result<Stage, StorageError> {
        let lost = || StorageError::Misuse("an earlier append was cancelled: begin the image again".into());
        self.stage.take().ok_or_else(lost)
    }

    /// What the store has of this image, as long as nobody began it again.
    fn of<'a>(&self, all: &'a mut BTreeMap<SnapshotId, Unfinished>) -> Result<&'a mut Unfinished, StorageError> {
        let id = self.meta.id;
        let ours =
            all.get_mut(&id).filter(|unfinished| std::ptr::eq(unfinished.turn.as_ptr(), Arc::as_ptr(&self.turn)));
        ours.ok_or_else(|| StorageError::Misuse(format!("image {id} was begun again meanwhile, or is published")))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Unfinished) -> T) -> Result<T, StorageError> {
        self.of(&mut locked(&self.store.unfinished)).map(work)
    }

    /// Ends this writer's turn.
    fn finish(&self) -> Result<Option<Vec<u8>>, StorageError> {
        let mut all = locked(&self.store.unfinished);
        let bytes = self.of(&mut all)?.bytes.take();
        all.remove(&self.meta.id);
        Ok(bytes)
    }

    /// Adds bytes in memory, and hands all of them over when there are too many.
    fn add(&self, chunk: &Bytes) -> Result<Option<Vec<u8>>, StorageError> {
        let limit = self.store.options.small_bytes;
        self.with(|unfinished| {
            let bytes = unfinished.bytes.get_or_insert_default();
            bytes.extend_from_slice(chunk);
            if bytes.len() > limit { unfinished.bytes.take() } else { None }
        })
    }
}

/// Moves an image to a file of its own.
async fn move_to_file(
    store: &Store,
    meta: &SnapshotMeta,
    bytes: Vec<u8>,
) -> Result<Box<dyn SnapshotWriter>, StorageError> {
    let mut file = store.files.begin(meta.clone()).await?;
    if file.offset() > 0 {
        // Of a writer that had come this far before, and was begun again.
        file.discard().await?;
        file = store.files.begin(meta.clone()).await?;
    }
    file.append(bytes.into()).await?;
    Ok(file)
}

async fn publish_large(store: Arc<Store>, file: Box<dyn SnapshotWriter>) -> Result<(), StorageError> {
    // If a newer one is published meanwhile, `retire` told of it, or will remove this one.
    file.publish().await?;
    blocking(store.options.background, move || store.drop_superseded()).await
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn checksum(&self) -> u32 {
        self.checksum
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        let (store, meta) = (Arc::clone(&self.store), self.meta.clone());
        store.check_running()?;
        let stage = match self.take()? {
            Stage::Memory => match self.add(&chunk)? {
                None => Stage::Memory,
                Some(bytes) => Stage::File(move_to_file(&store, &meta, bytes).await?),
            },
            Stage::File(mut file) => {
                self.with(|_| ())?;
                file.append(chunk.clone()).await?;
                Stage::File(file)
            }
        };
        self.offset += chunk.len() as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, &chunk);
        self.stage = Some(stage);
        Ok(())
    }

    async fn publish(mut self: Box<Self>) -> Result<(), StorageError> {
        let stage = self.take()?;
        let bytes = self.finish()?.unwrap_or_default();
        let Self { store, meta, offset: len, checksum, .. } = *self;
        match stage {
            Stage::Memory => {
                let image = Published { meta, len, checksum };
                blocking(store.options.background, move || store.publish(image, bytes)).await
            }
            Stage::File(file) => publish_large(store, file).await,
        }
    }

    async fn discard(mut self: Box<Self>) -> Result<(), StorageError> {
        let stage = self.take()?;
        self.finish()?;
        match stage {
            Stage::Memory => Ok(()),
            Stage::File(file) => file.discard().await,
        }
    }
}
