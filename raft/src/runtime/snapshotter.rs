//! Writes a frozen view of the state machine as an image, in the background, while the machine goes on.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::host::Tasks;
use super::mailbox::Mailbox;
use super::panic_text;
use crate::error::{Fatal, StorageError};
use crate::traits::{Chunks, Published, Snapshot, SnapshotId, SnapshotMeta};

/// A view of the state machine.
pub(crate) struct Frozen {
    pub(crate) meta: SnapshotMeta,
    pub(crate) image: Box<dyn Chunks>,
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen").field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) id: SnapshotId,
    /// The image; none when another took its place, or the store refused it.
    pub(crate) image: Result<Option<Published>, Fatal>,
}

pub(crate) struct Snapshotter {
    store: Arc<dyn Snapshot>,
    tasks: Tasks,
    /// In what pieces images are written.
    chunk_bytes: usize,
    pub(crate) written: Arc<Mailbox<Written>>,
    /// Set when the node stops: what is being written is left unfinished.
    stop: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

impl Snapshotter {
    pub(crate) fn new(store: Arc<dyn Snapshot>, tasks: Tasks, chunk_bytes: u64) -> Self {
        let chunk_bytes = usize::try_from(chunk_bytes).unwrap_or(usize::MAX);
        Self { store, tasks, chunk_bytes, written: Arc::new(Mailbox::new()), stop: Arc::default(), task: None }
    }

    /// Begins to write an image. The one before is done: the core asks for one at a time.
    pub(crate) fn start(&mut self, frozen: Frozen) {
        let (store, written, stop, size) =
            (self.store.clone(), self.written.clone(), self.stop.clone(), self.chunk_bytes);
        let task = async move {
            let id = frozen.meta.id;
            let outcome = AssertUnwindSafe(write(&*store, frozen, size, &stop)).catch_unwind().await;
            let image = outcome.unwrap_or_else(|panic| {
                Err(Fatal::state_machine(format!("it panicked while its image was read: {}", panic_text(&*panic))))
            });
            let _ = written.push(Written { id, image });
        };
        self.task = Some(self.tasks.spawn(task.in_current_span()));
    }

    /// Waits for what is being written to be left off.
    pub(crate) async fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl fmt::Debug for Snapshotter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshotter").finish_non_exhaustive()
    }
}

async fn write(
    store: &dyn Snapshot,
    frozen: Frozen,
    size: usize,
    stop: &AtomicBool,
) -> Result<Option<Published>, Fatal> {
    let Frozen { meta, mut image } = frozen;
    tracing::info!(image = %meta.id, last = %meta.last, "writing a snapshot");
    let mut writer = match store.begin(meta.clone()).await {
        Ok(writer) => writer,
        Err(error) => return refused(error),
    };
    let mut waiting = BytesMut::new();
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let chunk = image.next().await?;
        let ended = chunk.is_none();
        waiting.extend_from_slice(&chunk.unwrap_or_default());
        while waiting.len() >= size || (ended && !waiting.is_empty()) {
            let piece = waiting.split_to(size.min(waiting.len())).freeze();
            if let Err(error) = writer.append(piece).await {
                return refused(error);
            }
        }
        if ended {
            break;
        }
        // The machine's tasks come first where they share a thread.
        tokio::task::yield_now().await;
    }
    drop(image);
    let image = Published { meta, len: writer.offset(), checksum: writer.checksum() };
    if let Err(error) = writer.publish().await {
        return refused(error);
    }
    // The store drops it where a newer one was received and published meanwhile.
    let latest = store.latest().await?;
    Ok(Some(image).filter(|image| latest.as_ref() == Some(image)))
}

/// A store that takes no image of this kind can go on; one that failed can't.
fn refused(error: StorageError) -> Result<Option<Published>, Fatal> {
    if matches!(error, StorageError::Misuse(_)) {
        tracing::warn!(%error, "the snapshot was not taken; the log can't be cut, and grows until one is");
        return Ok(None);
    }
    Err(error.into())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::testing::MemSnapshots;
    use crate::types::{LogId, Membership};

    /// Nobody may be offered an image that the store has dropped, and no event may tell of it.
    #[tokio::test]
    async fn an_image_that_a_newer_one_overtook_was_not_taken() {
        let store = MemSnapshots::new();
        for (id, index, taken) in [(1, 20, true), (2, 10, false), (3, 20, true), (4, 30, true)] {
            let last = LogId::new(1, index);
            let meta =
                SnapshotMeta { id: SnapshotId(id), last, membership: Membership::default(), membership_at: last };
            let image = Box::new(vec![Bytes::from_static(b"state")].into_iter());
            let written = write(&store, Frozen { meta, image }, 2, &AtomicBool::new(false)).await;
            let image = written.expect("a store that works");
            assert_eq!(image.is_some(), taken, "image {id} of {last}");
            assert!(image.is_none() || image == store.latest().await.expect("a store that works"));
        }
    }
}
