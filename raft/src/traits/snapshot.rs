use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::StorageError;
use crate::types::{LogId, Membership};

/// Names an image: the same on every node that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What an image holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// Its name.
    pub id: SnapshotId,
    /// The last entry reflected in it.
    pub last: LogId,
    /// The configuration in force at that entry.
    pub membership: Membership,
    /// The entry that brought it; zero where no entry did.
    pub membership_at: LogId,
}

/// A complete image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Published {
    /// What it holds.
    pub meta: SnapshotMeta,
    /// Its length in bytes.
    pub len: u64,
    /// The CRC-32C of all of its bytes.
    pub checksum: u32,
}

/// Where images of the state machine rest.
///
/// [`Shelved`](super::Shelved) is one for whatever keeps bytes under names ([`Shelf`](super::Shelf)), and the way to write one in a few lines: which of the images that are written, left
/// off, gone on with and overtaken counts, also after a crash, is settled there. Implement this trait where the disk must not be waited for, with [`HeldImages`](super::HeldImages) for that bookkeeping, or
/// with [`Drafts`](super::Drafts) for images that are too large to be held in memory.
#[async_trait]
pub trait Snapshot: Send + Sync + 'static {
    /// The newest complete image, verified when it was published.
    ///
    /// # Errors
    /// The store can't be read, or is damaged.
    async fn latest(&self) -> Result<Option<Published>, StorageError>;

    /// Up to `max` bytes of an image from `offset` on; empty at its end. What is returned has been verified.
    ///
    /// # Errors
    /// There is no such image, or it can't be read or is damaged.
    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError>;

    /// Starts to write an image, or resumes one with this very meta that was left unfinished. A writer that is still writing it
    /// can't any more; writers of other images go on.
    ///
    /// What is left unfinished must not pile up: of the images that nobody writes a store keeps one at most to be resumed, the newest, and only
    /// while it is newer than the latest image. When a newer one is begun it may go as well. [`Drafts`](super::Drafts) keeps these books.
    ///
    /// # Errors
    /// The store can't be written to.
    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError>;
}

/// An image that is being written. Dropped unfinished, it can be resumed, unless others are begun meanwhile: see [`Snapshot::begin`].
#[async_trait]
pub trait SnapshotWriter: Send + 'static {
    /// How many bytes are durable: where to go on.
    fn offset(&self) -> u64;

    /// The CRC-32C of all bytes up to [`SnapshotWriter::offset`], those that an earlier run wrote among them.
    fn checksum(&self) -> u32;

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// The store can't be written to.
    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError>;

    /// Makes the image durable, and then the latest, in one atomic step. Older images may go. An image that is
    /// older than the latest, because a newer one was published meanwhile, is dropped.
    ///
    /// # Errors
    /// The store can't be written to; the latest image is then the one before.
    async fn publish(self: Box<Self>) -> Result<(), StorageError>;

    /// Forgets what was written of the image, which turned out to be damaged, or is needed no more: whoever begins it again starts at its beginning.
    ///
    /// # Errors
    /// The store can't be written to.
    async fn discard(self: Box<Self>) -> Result<(), StorageError>;
}

#[async_trait]
impl<T: Snapshot + ?Sized> Snapshot for Arc<T> {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        (**self).latest().await
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        (**self).read(id, offset, max).await
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        (**self).begin(meta).await
    }
}
