use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Drafts, Published, SnapshotId, SnapshotMeta, Turn};
use crate::error::StorageError;

/// The images of a [`Snapshot`](super::Snapshot) store that holds them in memory beside the disk, the latest and those that are being written, and what each step of a writer makes
/// of them. How they get to the disk, and back, is the store's: [`HeldLog`](super::HeldLog) is the same for a log.
///
/// A clone shares the bytes. Take a step with a clone, write down what became of it, and put the clone in the place of what was held when that is on the disk: one step at a time. Who writes which image is
/// shared as well, so that of two writers the later one has it from its first step on, whatever becomes of that.
///
/// What serde makes of this and of [`ImageChange`] may be another in another version of this crate: write a version of your own beside it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HeldImages {
    latest: Option<(Published, Bytes)>,
    unfinished: Vec<Unfinished>,
    #[serde(skip)]
    drafts: Arc<Drafts>,
}

/// An image as far as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Unfinished {
    meta: SnapshotMeta,
    pieces: Vec<Bytes>,
    len: u64,
    checksum: u32,
}

/// A writer's image. Over when it is dropped with its clones, or when another begins the same image.
#[derive(Clone, Debug)]
pub struct Draft {
    meta: SnapshotMeta,
    turn: Arc<Turn>,
}

impl Draft {
    /// An image that is about to be begun ([`ImageStep::Begin`]).
    #[must_use]
    pub fn of(meta: SnapshotMeta) -> Self {
        Self { meta, turn: Arc::new(Turn::new()) }
    }
}

/// What a writer does: see [`Snapshot::begin`](super::Snapshot::begin) and [`SnapshotWriter`](super::SnapshotWriter).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageStep {
    /// Begins its image, or goes on with it.
    Begin,
    /// Adds bytes.
    Append(Bytes),
    /// Makes it the latest.
    Publish,
    /// Forgets it.
    Discard,
}

/// A step that was taken, as it is written down for the next process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageChange {
    meta: SnapshotMeta,
    step: ImageStep,
    /// Others, which nobody writes any more.
    gone: Vec<SnapshotMeta>,
}

impl ImageChange {
    /// Whether it does no more than to add bytes to an image, so that it can be written behind what is there: after any other step some of that is needed no more.
    #[must_use]
    pub fn is_append(&self) -> bool {
        matches!(self.step, ImageStep::Append(_))
    }
}

impl HeldImages {
    /// What [`Snapshot::latest`](super::Snapshot::latest) tells.
    #[must_use]
    pub fn latest(&self) -> Option<Published> {
        self.latest.as_ref().map(|(published, _)| published.clone())
    }

    /// Answers [`Snapshot::read`](super::Snapshot::read).
    ///
    /// # Errors
    /// There is no such image ([`StorageError::Misuse`]).
    pub fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        let image = self.latest.as_ref().filter(|(published, _)| published.meta.id == *id);
        let (_, image) = image.ok_or_else(|| StorageError::Misuse(format!("there is no image {id}")))?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(image.len());
        Ok(image.slice(from..from.saturating_add(max).min(image.len())))
    }

    /// How many bytes of this image are held, and the CRC-32C of them.
    #[must_use]
    pub fn written(&self, draft: &Draft) -> (u64, u32) {
        let unfinished = self.unfinished.iter().find(|image| image.meta == draft.meta);
        unfinished.map_or((0, 0), |image| (image.len, image.checksum))
    }

    /// Takes a step.
    ///
    /// # Errors
    /// The image was begun anew by another writer, or was never begun ([`StorageError::Misuse`]); nothing has changed then.
    pub fn take(&mut self, draft: &Draft, step: ImageStep) -> Result<ImageChange, StorageError> {
        let Draft { meta, turn } = draft;
        let unfinished = self.unfinished.iter().map(|image| image.meta.clone());
        let gone = match step {
            ImageStep::Begin => self.drafts.give(turn, meta, unfinished.collect()),
            ImageStep::Append(_) | ImageStep::Discard => {
                self.drafts.check(turn)?;
                Vec::new()
            }
            ImageStep::Publish => {
                self.drafts.check(turn)?;
                // Nobody needs what is no newer.
                self.drafts.left(unfinished.filter(|other| other.last <= meta.last))
            }
        };
        let change = ImageChange { meta: meta.clone(), step, gone };
        self.replay(change.clone())?;
        Ok(change)
    }

    /// Takes a step again, which another process took.
    ///
    /// # Errors
    /// It is none that follows those before it ([`StorageError::Misuse`]).
    pub fn replay(&mut self, ImageChange { meta, step, gone }: ImageChange) -> Result<(), StorageError> {
        self.unfinished.retain(|image| !gone.contains(&image.meta));
        let found = self.unfinished.iter().position(|image| image.meta == meta);
        let at = match found {
            Some(at) => at,
            None if step == ImageStep::Begin => {
                self.unfinished.push(Unfinished { meta, pieces: Vec::new(), len: 0, checksum: 0 });
                return Ok(());
            }
            None => return Err(StorageError::Misuse(format!("image {} is not being written", meta.id))),
        };
        match step {
            ImageStep::Begin => {}
            ImageStep::Append(piece) => {
                let image = &mut self.unfinished[at];
                image.len += piece.len() as u64;
                image.checksum = crc32c::crc32c_append(image.checksum, &piece);
                image.pieces.push(piece);
            }
            ImageStep::Publish => {
                let Unfinished { meta, pieces, len, checksum } = self.unfinished.remove(at);
                // Otherwise it comes too late: a newer one was published meanwhile.
                if self.latest.as_ref().is_none_or(|(latest, _)| latest.meta.last <= meta.last) {
                    self.latest = Some((Published { meta, len, checksum }, whole(pieces)));
                }
            }
            ImageStep::Discard => drop(self.unfinished.remove(at)),
        }
        Ok(())
    }
}

/// Copied also where it is one piece, which may be a small part of what was allocated for it.
fn whole(pieces: Vec<Bytes>) -> Bytes {
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogId, Membership};

    fn meta(id: u64) -> SnapshotMeta {
        let membership = Membership::default();
        SnapshotMeta { id: SnapshotId(id), last: LogId::new(1, id), membership, membership_at: LogId::ZERO }
    }

    fn piece(byte: u8) -> ImageStep {
        ImageStep::Append(vec![byte; 3].into())
    }

    /// What a process holds that reads what was written down: all steps, from the beginning.
    fn replayed(changes: &[ImageChange]) -> HeldImages {
        let mut held = HeldImages::default();
        changes.iter().for_each(|change| held.replay(change.clone()).unwrap());
        held
    }

    fn same(one: &HeldImages, other: &HeldImages) -> bool {
        one.latest == other.latest && one.unfinished == other.unfinished
    }

    #[test]
    fn the_next_process_holds_what_this_one_did_after_each_step() {
        let mut held = HeldImages::default();
        let (one, two, three) = (Draft::of(meta(1)), Draft::of(meta(2)), Draft::of(meta(3)));
        let mut changes = Vec::new();
        for (draft, step) in [
            (&two, ImageStep::Begin),
            (&one, ImageStep::Begin),
            (&one, piece(1)),
            (&two, piece(2)),
            (&two, piece(3)),
            (&three, ImageStep::Begin),
            (&three, piece(4)),
            (&two, ImageStep::Publish),
            (&one, ImageStep::Publish),
            (&three, ImageStep::Discard),
        ] {
            let adds = matches!(step, ImageStep::Append(_));
            changes.push(held.take(draft, step).unwrap());
            assert_eq!(changes.last().unwrap().is_append(), adds);
            assert!(same(&replayed(&changes), &held), "after {:?}", changes.last());
        }
        assert_eq!(held.latest().unwrap().meta, meta(2), "the older one came too late");
        assert_eq!(held.read(&SnapshotId(2), 2, 3).unwrap(), [2, 3, 3][..]);
        assert_eq!(held.latest().unwrap().checksum, crc32c::crc32c(&[2, 2, 2, 3, 3, 3]));
        assert!(held.unfinished.is_empty());
    }

    /// That nobody writes an image any more is not seen by whoever reads what was written down: it has to be told there.
    #[test]
    fn what_nobody_wrote_any_more_is_gone_for_the_next_process_as_well_and_nothing_else() {
        let mut held = HeldImages::default();
        let (one, two, three) = (Draft::of(meta(1)), Draft::of(meta(2)), Draft::of(meta(3)));
        let mut changes = Vec::new();
        for draft in [&one, &two] {
            changes.push(held.take(draft, ImageStep::Begin).unwrap());
            changes.push(held.take(draft, piece(7)).unwrap());
        }
        drop(one);
        changes.push(held.take(&three, ImageStep::Begin).unwrap());
        let left: Vec<_> = held.unfinished.iter().map(|image| image.meta.id.0).collect();
        assert_eq!(left, [2, 3], "the first was left off");
        assert!(same(&replayed(&changes), &held));
    }

    #[test]
    fn what_was_left_off_is_gone_when_something_newer_is_published() {
        let mut held = HeldImages::default();
        let (one, two, four) = (Draft::of(meta(1)), Draft::of(meta(2)), Draft::of(meta(4)));
        let mut changes = Vec::new();
        for draft in [&four, &one, &two] {
            changes.push(held.take(draft, ImageStep::Begin).unwrap());
        }
        let three = Draft::of(meta(3));
        changes.push(held.take(&three, ImageStep::Begin).unwrap());
        drop((one, four));
        changes.push(held.take(&three, ImageStep::Publish).unwrap());
        let left: Vec<_> = held.unfinished.iter().map(|image| image.meta.id.0).collect();
        assert_eq!(left, [4, 2], "the newer one may be gone on with, and the second is being written");
        assert!(same(&replayed(&changes), &held));
        held.take(&two, ImageStep::Publish).unwrap();
        assert_eq!(held.latest().unwrap().meta, meta(3));
    }

    #[test]
    fn a_writer_that_was_replaced_takes_no_step() {
        let mut held = HeldImages::default();
        let (first, second) = (Draft::of(meta(1)), Draft::of(meta(1)));
        assert!(matches!(held.take(&first, piece(1)), Err(StorageError::Misuse(_))), "it was not begun");
        held.take(&first, ImageStep::Begin).unwrap();
        held.take(&first, piece(1)).unwrap();
        held.take(&second, ImageStep::Begin).unwrap();
        let before = held.clone();
        for step in [piece(2), ImageStep::Publish, ImageStep::Discard] {
            assert!(matches!(held.take(&first, step), Err(StorageError::Misuse(_))));
        }
        assert!(same(&held, &before));
        assert_eq!(held.written(&second), (3, crc32c::crc32c(&[1; 3])));
    }
}
