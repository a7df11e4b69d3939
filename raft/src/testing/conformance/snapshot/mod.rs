//! What every [`Snapshot`] store must do.
//!
//! Say how your store is opened ([`Backend`]), and expand [`snapshot_conformance!`](crate::snapshot_conformance) in a test file:
//!
//! ```
//! use raftkv::StorageError;
//! use raftkv::testing::MemSnapshots;
//! use raftkv::testing::conformance::snapshot::Backend;
//!
//! struct Memory(MemSnapshots);
//!
//! impl Backend for Memory {
//!     type Store = MemSnapshots;
//!
//!     async fn open(&self) -> Result<MemSnapshots, StorageError> {
//!         Ok(self.0.clone())
//!     }
//! }
//!
//! raftkv::snapshot_conformance!(Memory(MemSnapshots::new()));
//! # fn main() {}
//! ```
//!
//! # What is tested
//!
//! * An image comes back byte by byte, with its id, its log id, its configuration, its length and its checksum, from any offset, and after reopening.
//! * Nothing is seen of an image before it is published; then it is the latest, in one step.
//! * An unfinished image is resumed at an offset that is durable; one of another meta begins anew. Of several the newest at most is kept.
//! * Two images are written side by side.
//! * A newer image replaces an older one, and never the other way round, also when both are published at the same time; readers beside that get
//!   right bytes or an error. Of two images of one entry the one that was published later stays.
//! * With [`Backend::arm`]: at whatever operation the process is killed, or power is lost, the latest image is whole afterwards, and
//!   is the one that was published last; an error sticks. With [`Backend::arm_opening`]: also when power is lost while the next process opens the store.
//! * With [`Backend::damage`]: what is read of a damaged image is right, or an error.

#![expect(clippy::expect_used, reason = "a suite of tests: it reports by panicking")]

mod faults;
mod images;
mod publishing;

pub use faults::*;
pub use images::*;
pub use publishing::*;

use bytes::{Bytes, BytesMut};

use super::{Fault, not_tested};
use crate::testing::Random;
use crate::{LogId, Membership, Peer, Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, StorageError};

/// Makes stores for the suite.
pub trait Backend: Send + Sync {
    /// The store under test.
    type Store: Snapshot;

    /// Opens the store on this backend's data: the first time on none, later on what was left, by a crash if one was armed. The one
    /// before has been dropped. Ends whatever was armed.
    ///
    /// # Errors
    /// As the store says; right only after [`Backend::damage`], and with a fault of [`Backend::arm_opening`].
    fn open(&self) -> impl Future<Output = Result<Self::Store, StorageError>> + Send;

    /// Lets `after` further operations of the open store on its medium pass (a write to a file, a sync, a rename, as you count
    /// them), and has the next one meet with `fault`. After a kill or a loss of power, all that follow fail as well. False if you
    /// offer no such seam.
    fn arm(&self, fault: Fault, after: u64) -> bool {
        let _ = (fault, after);
        false
    }

    /// The same for the next process, whose operations count from the first of its opening on: what was armed for the store that is open happens before.
    /// False if you offer no such seam, or if opening leaves the medium as it is.
    fn arm_opening(&self, fault: Fault, after: u64) -> bool {
        let _ = (fault, after);
        false
    }

    /// Flips a bit of what the store keeps of its latest image, somewhere: the same bit for the same `place`, so that a second call
    /// mends it. False if you offer no such seam.
    fn damage(&self, place: u64) -> bool {
        let _ = place;
        false
    }
}

/// Makes a `#[test]` of each case of the [`Snapshot`](crate::Snapshot) suite. The argument is an expression that gives a new
/// [`Backend`](crate::testing::conformance::snapshot::Backend), with no data.
#[macro_export]
macro_rules! snapshot_conformance {
    ($backend:expr) => {
        $crate::snapshot_conformance!(
            @cases $backend;
            an_empty_store_has_no_image
            an_image_comes_back_as_it_was_written
            an_image_survives_reopening
            an_empty_image_is_an_image
            ids_and_configurations_come_back
            a_large_image_comes_back
            reading_an_image_that_is_not_there_is_misuse
            an_unfinished_image_is_never_visible
            an_unfinished_image_is_resumed
            an_unfinished_image_is_resumed_after_reopening
            another_meta_begins_anew
            a_discarded_image_begins_anew
            of_unfinished_images_the_newest_is_kept
            two_images_are_written_side_by_side
            a_newer_image_replaces_an_older_one
            an_older_image_does_not_replace_a_newer_one
            of_two_images_of_one_entry_the_later_one_stays
            of_two_images_published_at_once_the_newer_one_stays
            two_images_may_be_written_in_quick_succession
            a_writer_that_was_replaced_writes_no_more
            readers_run_beside_a_writer
            a_kill_at_any_point_leaves_a_whole_image
            a_loss_of_power_at_any_point_leaves_a_whole_image
            an_error_at_any_point_sticks_and_leaves_a_whole_image
            a_loss_of_power_while_the_store_is_opened_after_a_kill_leaves_an_image
            an_image_that_a_kill_or_an_error_cut_off_outlasts_a_loss_of_power_once_it_is_published
            damage_is_noticed
        );
    };
    (@cases $backend:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::testing::conformance::run(
                    $crate::testing::conformance::snapshot::$case(&$backend)
                );
            }
        )*
    };
}

/// The meta of image `n`; larger numbers are newer.
fn meta(n: u64) -> SnapshotMeta {
    let membership = Membership::new((1..=n % 4).map(|id| Peer::new(id, format!("host-{id}:{n}"))));
    SnapshotMeta {
        id: SnapshotId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        last: LogId::new(1 + n / 3, n * 10),
        membership,
        membership_at: LogId::new(1 + n / 4, n * 9),
    }
}

/// The bytes of image `n`, which differ from those of all others, and from place to place.
fn image(n: u64, len: usize) -> Bytes {
    let mut random = Random::new(n);
    let mut bytes = BytesMut::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.any().to_le_bytes());
    }
    bytes.truncate(len);
    bytes.freeze()
}

async fn open<B: Backend>(backend: &B) -> B::Store {
    backend.open().await.expect("an open store")
}

async fn latest(store: &impl Snapshot) -> Option<SnapshotMeta> {
    store.latest().await.expect("the latest image's meta").map(|published| published.meta)
}

/// An image from its first byte to its end, in pieces of up to `max` bytes.
async fn read(store: &impl Snapshot, id: SnapshotId, max: usize) -> Result<Bytes, StorageError> {
    let mut bytes = BytesMut::new();
    loop {
        let piece = store.read(&id, bytes.len() as u64, max).await?;
        assert!(piece.len() <= max, "{} bytes were read where {max} were asked for", piece.len());
        if piece.is_empty() {
            return Ok(bytes.freeze());
        }
        bytes.extend_from_slice(&piece);
    }
}

/// Writes what is missing of an image, in pieces.
async fn write(writer: &mut Box<dyn SnapshotWriter>, image: &Bytes, piece: usize) -> Result<(), StorageError> {
    loop {
        let from = usize::try_from(writer.offset()).unwrap_or(usize::MAX);
        assert!(from <= image.len(), "the writer is at {from}, beyond the {} bytes that it was given", image.len());
        if from == image.len() {
            return Ok(());
        }
        let to = (from + piece).min(image.len());
        writer.append(image.slice(from..to)).await?;
        assert_eq!(writer.offset(), to as u64, "after an append");
        assert_eq!(writer.checksum(), crc32c::crc32c(&image[..to]), "the checksum of the first {to} bytes");
    }
}

async fn publish(store: &impl Snapshot, n: u64, image: &Bytes) -> Result<(), StorageError> {
    let mut writer = store.begin(meta(n)).await?;
    write(&mut writer, image, 1000).await?;
    writer.publish().await
}

/// The latest image is number `n`, and whole.
async fn assert_latest(store: &impl Snapshot, n: u64, image: &Bytes) {
    let published = store.latest().await.expect("the latest image");
    let expected = Published { meta: meta(n), len: image.len() as u64, checksum: crc32c::crc32c(image) };
    assert_eq!(published, Some(expected));
    let got = read(store, meta(n).id, 777).await.expect("a read of the latest image");
    assert!(got == *image, "the bytes of image {n} changed");
}
