//! Images that are received, and parts of them that are read for peers, beside everything else: one thing at a time, in order.
//!
//! The core bounds what is asked for: parts of one window, and so many reads.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::host::Tasks;
use super::mailbox::Mailbox;
use super::panic_text;
use crate::consensus::{ImageWork, Input, Receipt};
use crate::error::{Fatal, StorageError};
use crate::traits::{Snapshot, SnapshotId, SnapshotWriter};

/// What the core is to hear, or the reason why nothing more can be done.
pub(crate) type Outcome = Result<Input, Fatal>;

pub(crate) struct Images {
    work: Arc<Mailbox<ImageWork>>,
    pub(crate) done: Arc<Mailbox<Outcome>>,
    task: JoinHandle<()>,
}

impl Images {
    pub(crate) fn start(store: Arc<dyn Snapshot>, tasks: &Tasks) -> Self {
        let (work, done) = (Arc::new(Mailbox::new()), Arc::new(Mailbox::new()));
        let task = serve(store, work.clone(), done.clone()).in_current_span();
        Self { work, done, task: tasks.spawn(task) }
    }

    pub(crate) fn push(&self, work: ImageWork) {
        // The task ends before the driver only with an outcome that stops the driver as well.
        let _ = self.work.push(work);
    }

    /// Leaves off what is waiting, and waits for what is being done.
    pub(crate) async fn finish(self) {
        self.work.close_and_drain();
        let _ = self.task.await;
    }
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images").finish_non_exhaustive()
    }
}

/// The image that is being received, while its store takes it.
#[derive(Default)]
struct Desk {
    receiving: Option<(u64, Box<dyn SnapshotWriter>)>,
}

async fn serve(store: Arc<dyn Snapshot>, work: Arc<Mailbox<ImageWork>>, done: Arc<Mailbox<Outcome>>) {
    let (mut desk, mut queued) = (Desk::default(), Vec::new());
    while work.take(&mut queued).await {
        for work in queued.drain(..) {
            let outcome = AssertUnwindSafe(desk.work(&*store, work)).catch_unwind().await;
            let panicked = |text: &str| StorageError::Sticky(format!("the store of snapshots panicked: {text}"));
            let outcome = outcome.unwrap_or_else(|panic| Err(panicked(panic_text(&*panic)).into()));
            let failed = outcome.is_err();
            if let Some(outcome) = outcome.transpose()
                && (done.push(outcome).is_err() || failed)
            {
                return;
            }
        }
    }
}

impl Desk {
    /// Does one thing; what the core is to hear of it.
    async fn work(&mut self, store: &dyn Snapshot, work: ImageWork) -> Result<Option<Input>, Fatal> {
        let (attempt, stored) = match work {
            ImageWork::Read { to, image, offset, max } => {
                let data = read(store, image, offset, max).await?;
                return Ok(Some(Input::ImageRead { to, image, offset, data }));
            }
            ImageWork::Begin { attempt, meta } => {
                self.receiving = None;
                let begun = store.begin(meta).await;
                (attempt, begun.map(|writer| self.receiving = Some((attempt, writer))))
            }
            ImageWork::Append { attempt, data } => match self.writer(attempt) {
                Some(writer) => (attempt, writer.append(data).await),
                None => return Ok(None),
            },
            ImageWork::Publish { attempt } => {
                let Some((_, writer)) = self.receiving.take_if(|(present, _)| *present == attempt) else {
                    return Ok(None);
                };
                let published = accepted(writer.publish().await)?;
                let receipt = if published { Receipt::Published } else { Receipt::Refused };
                return Ok(Some(Input::Receipt { attempt, receipt }));
            }
            ImageWork::Discard { attempt } => {
                if let Some((_, writer)) = self.receiving.take_if(|(present, _)| *present == attempt) {
                    accepted(writer.discard().await)?;
                }
                return Ok(None);
            }
        };
        let accepted = accepted(stored)?;
        let receipt = match self.writer(attempt).filter(|_| accepted) {
            Some(writer) => Receipt::Stored { upto: writer.offset(), checksum: writer.checksum() },
            None => {
                self.receiving = None;
                Receipt::Refused
            }
        };
        Ok(Some(Input::Receipt { attempt, receipt }))
    }

    fn writer(&mut self, attempt: u64) -> Option<&mut Box<dyn SnapshotWriter>> {
        self.receiving.as_mut().filter(|(present, _)| *present == attempt).map(|(_, writer)| writer)
    }
}

/// As many bytes as are wanted, or all up to the end; none when the image is not there any more.
async fn read(store: &dyn Snapshot, image: SnapshotId, offset: u64, max: u64) -> Result<Option<Bytes>, Fatal> {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let mut read = BytesMut::new();
    loop {
        let piece = match store.read(&image, offset + read.len() as u64, max - read.len()).await {
            Ok(piece) => piece,
            Err(StorageError::Misuse(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if read.is_empty() && piece.len() == max {
            return Ok(Some(piece));
        }
        read.extend_from_slice(&piece);
        if piece.is_empty() || read.len() >= max {
            return Ok(Some(read.freeze()).filter(|read| !read.is_empty()));
        }
    }
}

/// A store that takes no more of an image can go on; one that failed can't.
fn accepted(outcome: Result<(), StorageError>) -> Result<bool, Fatal> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error @ StorageError::Misuse(_)) => {
            tracing::warn!(%error, "the snapshot store takes no more of the image that is received");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
