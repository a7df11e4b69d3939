//! Images in one file, which are also held in memory. Each piece of one is a record; with each other step the file is written anew, which costs as much as all that is held.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{
    Draft, HeldImages, ImageStep, Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, StorageError,
};
use raftkv_storage_file::Vfs;
use raftkv_storage_file::parts::{Records, Worker};

use crate::{decode, encode, lock};

/// The images. Clones share them. The first record of the file is what was held when it was begun, and each other one a change since.
#[derive(Clone)]
pub struct Images {
    held: Arc<Mutex<HeldImages>>,
    records: Worker<Records>,
}

struct Writer {
    images: Images,
    draft: Draft,
}

impl Images {
    /// Opens the images in this file, or begins one.
    pub fn open(files: Arc<dyn Vfs>, path: PathBuf) -> Result<Self, StorageError> {
        let (mut records, found) = Records::open(files, path)?;
        let mut held = found.first().map_or(Ok(HeldImages::default()), |first| decode(first))?;
        found.iter().skip(1).try_for_each(|change| held.replay(decode(change)?))?;
        // What was found may be in the page cache alone: where the process before was killed, or a sync of its failed.
        records.replace(&encode(&held))?;
        Ok(Self { held: Arc::new(Mutex::new(held)), records: Worker::new(records) })
    }

    async fn take(&self, draft: Draft, step: ImageStep) -> Result<(), StorageError> {
        let held = self.held.clone();
        let work = move |records: &mut Records| {
            let mut next = lock(&held).clone();
            let change = match next.take(&draft, step) {
                Ok(change) => change,
                // Whose turn is over is told, and stops nobody else.
                misuse => return Ok(misuse.map(drop)),
            };
            if change.is_append() {
                records.push(&encode(&change))?;
            } else {
                records.replace(&encode(&next))?;
            }
            *lock(&held) = next;
            Ok(Ok(()))
        };
        self.records.run(work).await?
    }
}

#[async_trait]
impl Snapshot for Images {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        Ok(lock(&self.held).latest())
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        lock(&self.held).read(id, offset, max)
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let writer = Writer { images: self.clone(), draft: Draft::of(meta) };
        self.take(writer.draft.clone(), ImageStep::Begin).await?;
        Ok(Box::new(writer))
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        lock(&self.images.held).written(&self.draft).0
    }

    fn checksum(&self) -> u32 {
        lock(&self.images.held).written(&self.draft).1
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        self.images.take(self.draft.clone(), ImageStep::Append(chunk)).await
    }

    async fn publish(self: Box<Self>) -> Result<(), StorageError> {
        self.images.take(self.draft.clone(), ImageStep::Publish).await
    }

    async fn discard(self: Box<Self>) -> Result<(), StorageError> {
        self.images.take(self.draft.clone(), ImageStep::Discard).await
    }
}
