//! Writes a frozen view of the state machine as an image, in the background, while the machine goes on.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument;

use super::host::Tasks;
use super::mailbox::Mailbox;
use super::panic_text;
use crate::config::Config;
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
    pace: Pace,
    pub(crate) written: Arc<Mailbox<Written>>,
    /// When the node stops, what is being written is left unfinished.
    orders: Arc<Orders>,
    task: Option<JoinHandle<()>>,
}

/// How an image is written.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// In what pieces.
    chunk_bytes: usize,
    /// How much of the time, in percent. In the rest the disk and the processor are left to what clients wait for.
    busy_percent: u32,
}

/// The longest pause. What took longer than its part was no work: a disk hung, which is over now, and meanwhile the log grows that the image is to take the place of.
const MAX_PAUSE: Duration = Duration::from_secs(1);

impl Pace {
    /// How long to pause after that much work.
    fn pause(self, worked: Duration) -> Duration {
        let pause = worked.saturating_mul(100 - self.busy_percent.min(100)) / self.busy_percent.max(1);
        pause.min(MAX_PAUSE)
    }
}

/// Tells the writer of an image to go on without pauses, or to leave it off.
#[derive(Debug, Default)]
struct Orders {
    stopped: AtomicBool,
    /// Somebody waits for it, or the log grows too long.
    hurried: AtomicBool,
    told: Notify,
}

impl Orders {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.told.notify_one();
    }

    fn hurry(&self, hurried: bool) {
        if self.hurried.swap(hurried, Ordering::Relaxed) != hurried {
            self.told.notify_one();
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends early when it is time to stop, or to hurry.
    async fn pause(&self, time: Duration) {
        let over = async {
            // What was told before the pause may be no order any more.
            while !self.is_stopped() && !self.hurried.load(Ordering::Relaxed) {
                self.told.notified().await;
            }
        };
        if !time.is_zero() {
            let _ = tokio::time::timeout(time, over).await;
        }
    }
}

impl Snapshotter {
    pub(crate) fn new(store: Arc<dyn Snapshot>, tasks: Tasks, config: &Config) -> Self {
        let chunk_bytes = usize::try_from(config.snapshot_chunk_bytes).unwrap_or(usize::MAX);
        let pace = Pace { chunk_bytes, busy_percent: config.snapshot_busy_percent };
        Self { store, tasks, pace, written: Arc::new(Mailbox::new()), orders: Arc::default(), task: None }
    }

    /// Begins to write an image. The one before is done: the core asks for one at a time.
    pub(crate) fn start(&mut self, frozen: Frozen) {
        let (store, written, orders, pace) = (self.store.clone(), self.written.clone(), self.orders.clone(), self.pace);
        let task = async move {
            let id = frozen.meta.id;
            let outcome = AssertUnwindSafe(write(&*store, frozen, pace, &orders)).catch_unwind().await;
            let image = outcome.unwrap_or_else(|panic| {
                Err(Fatal::state_machine(format!("it panicked while its image was read: {}", panic_text(&*panic))))
            });
            let _ = written.push(Written { id, image });
        };
        self.task = Some(self.tasks.spawn(task.in_current_span()));
    }

    /// Whether what is being written is waited for: then there are no pauses.
    pub(crate) fn hurry(&self, hurried: bool) {
        self.orders.hurry(hurried);
    }

    /// Waits for what is being written to be left off.
    pub(crate) async fn finish(mut self) {
        self.orders.stop();
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

async fn write(store: &dyn Snapshot, frozen: Frozen, pace: Pace, orders: &Orders) -> Result<Option<Published>, Fatal> {
    let Frozen { meta, mut image } = frozen;
    tracing::info!(image = %meta.id, last = %meta.last, "writing a snapshot");
    let mut writer = match store.begin(meta.clone()).await {
        Ok(writer) => writer,
        Err(error) => return refused(error),
    };
    let mut waiting = BytesMut::new();
    let mut began = Instant::now();
    loop {
        if orders.is_stopped() {
            return Ok(None);
        }
        let chunk = image.next().await?;
        let ended = chunk.is_none();
        waiting.extend_from_slice(&chunk.unwrap_or_default());
        let size = pace.chunk_bytes;
        let enough = waiting.len() >= size;
        while waiting.len() >= size || (ended && !waiting.is_empty()) {
            let piece = waiting.split_to(size.min(waiting.len())).freeze();
            if let Err(error) = writer.append(piece).await {
                return refused(error);
            }
        }
        if ended {
            break;
        }
        if enough {
            orders.pause(pace.pause(began.elapsed())).await;
            began = Instant::now();
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

    const PACE: Pace = Pace { chunk_bytes: 2, busy_percent: 100 };

    fn meta(id: u64, index: u64) -> SnapshotMeta {
        let last = LogId::new(1, index);
        SnapshotMeta { id: SnapshotId(id), last, membership: Membership::default(), membership_at: last }
    }

    /// An image of so many pieces, each of which takes so long to be read.
    struct Slow(u32, Duration);

    #[async_trait::async_trait]
    impl Chunks for Slow {
        async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
            tokio::time::sleep(self.1).await;
            let left = self.0.checked_sub(1);
            self.0 = left.unwrap_or_default();
            Ok(left.map(|_| Bytes::from_static(b"12")))
        }
    }

    /// Clients wait for the same disk and processor.
    #[tokio::test(start_paused = true)]
    async fn an_image_takes_its_part_of_the_time_and_no_more() {
        for (busy_percent, least, most) in [(100, 500, 510), (50, 900, 1000), (10, 4100, 4600)] {
            let frozen = Frozen { meta: meta(1, 20), image: Box::new(Slow(4, Duration::from_millis(100))) };
            let pace = Pace { busy_percent, ..PACE };
            let began = Instant::now();
            let image = write(&MemSnapshots::new(), frozen, pace, &Orders::default()).await;
            assert_eq!(image.expect("a store that works").expect("no other image").len, 8);
            let took = began.elapsed().as_millis();
            assert!((least..=most).contains(&took), "at {busy_percent} percent it took {took} ms");
        }
    }

    /// An image whose pieces take as long as each is said to.
    struct Paced(Vec<Duration>);

    #[async_trait::async_trait]
    impl Chunks for Paced {
        async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
            let Some(time) = self.0.pop() else { return Ok(None) };
            tokio::time::sleep(time).await;
            Ok(Some(Bytes::from_static(b"12")))
        }
    }

    /// The pause was four times as long as the disk had hung. Until its end the log grew, and whoever had asked for an image waited.
    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_once_is_not_spared_for_as_long() {
        let mut pieces = vec![Duration::from_millis(10); 20];
        pieces.push(Duration::from_secs(60));
        let frozen = Frozen { meta: meta(1, 20), image: Box::new(Paced(pieces)) };
        let began = Instant::now();
        let image = write(&MemSnapshots::new(), frozen, Pace { busy_percent: 20, ..PACE }, &Orders::default()).await;
        assert_eq!(image.expect("a store that works").expect("no other image").len, 42);
        let took = began.elapsed().as_millis();
        assert!((61_000..=63_000).contains(&took), "it took {took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_that_somebody_waits_for_is_written_without_pauses() {
        let (orders, store) = (Orders::default(), MemSnapshots::new());
        let frozen = Frozen { meta: meta(1, 20), image: Box::new(Slow(20, Duration::from_millis(100))) };
        let writing = write(&store, frozen, Pace { busy_percent: 10, ..PACE }, &orders);
        let asking = async {
            // In the pause after the third piece: two and a bit of them, and as many pauses.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            orders.hurry(true);
            Instant::now()
        };
        let (image, asked) = futures_util::future::join(writing, asking).await;
        assert_eq!(image.expect("a store that works").expect("no other image").len, 40);
        let took = asked.elapsed().as_millis();
        assert!((1700..=1900).contains(&took), "it took {took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stops_waits_for_no_pause() {
        let mut snapshotter = Snapshotter::new(
            Arc::new(MemSnapshots::new()),
            Tasks::default(),
            &Config { snapshot_chunk_bytes: 2, snapshot_busy_percent: 1, ..Config::default() },
        );
        snapshotter.start(Frozen { meta: meta(1, 20), image: Box::new(Slow(4, Duration::from_secs(10))) });
        tokio::time::sleep(Duration::from_millis(10_100)).await;
        let began = Instant::now();
        let written = snapshotter.written.clone();
        snapshotter.finish().await;
        assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
        let mut outcome = Vec::new();
        written.take(&mut outcome).await;
        assert!(matches!(outcome[..], [Written { image: Ok(None), .. }]), "it was left unfinished: {outcome:?}");
    }

    /// Nobody may be offered an image that the store has dropped, and no event may tell of it.
    #[tokio::test]
    async fn an_image_that_a_newer_one_overtook_was_not_taken() {
        let store = MemSnapshots::new();
        for (id, index, taken) in [(1, 20, true), (2, 10, false), (3, 20, true), (4, 30, true)] {
            let meta = meta(id, index);
            let last = meta.last;
            let image = Box::new(vec![Bytes::from_static(b"state")].into_iter());
            let written = write(&store, Frozen { meta, image }, PACE, &Orders::default()).await;
            let image = written.expect("a store that works");
            assert_eq!(image.is_some(), taken, "image {id} of {last}");
            assert!(image.is_none() || image == store.latest().await.expect("a store that works"));
        }
    }
}
