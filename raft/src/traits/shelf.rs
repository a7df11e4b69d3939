use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};

use super::{Drafts, Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, Turn};
use crate::error::StorageError;
use crate::types::{LogId, Membership};

/// Bytes under names: a directory, a table, a bucket. [`Shelved`] makes a [`Snapshot`] store of it. Its functions block.
pub trait Shelf: Send + Sync + 'static {
    /// The names of all that is there, in no order.
    ///
    /// # Errors
    /// As the system says.
    fn names(&self) -> Result<Vec<String>, StorageError>;

    /// All bytes under a name.
    ///
    /// # Errors
    /// As the system says.
    fn read(&self, name: &str) -> Result<Bytes, StorageError>;

    /// Adds bytes to those under a name, which may be new. They are durable when this returns; after a loss of power before that any part of them may be there, or garbage in the place of
    /// any part, also of what is next to it: what a disk was writing then is lost as a whole sector.
    ///
    /// # Errors
    /// As the system says.
    fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError>;

    /// Puts what is under a name under another one, in the place of what may be there, in one step that is durable when this returns.
    ///
    /// # Errors
    /// As the system says.
    fn rename(&self, from: &str, to: &str) -> Result<(), StorageError>;

    /// Removes a name and what is under it. Whether that is durable makes no difference.
    ///
    /// # Errors
    /// As the system says.
    fn remove(&self, name: &str) -> Result<(), StorageError>;

    /// Where a name is, for messages about damage.
    fn place(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// A [`Snapshot`] store on a [`Shelf`]: names, drafts, checksums and the order of steps are here. The latest image is held in memory as well, and the shelf is asked
/// where the store is: for images that are too large, or a shelf that is too slow for that, implement [`Snapshot`].
///
/// Names are `TERM-INDEX-ID.draft` until an image is published, then `TERM-INDEX-ID-CHECKSUM.image`. Under each is what the image is, and then its bytes, in the pieces in which they came. Each
/// piece has a checksum: of a draft that a loss of power has left in pieces, those at its beginning that are whole are gone on with, and no others.
#[derive(Clone, Debug)]
pub struct Shelved<S>(Arc<Shared<S>>);

#[derive(Debug)]
struct Shared<S> {
    shelf: S,
    drafts: Drafts,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    latest: Option<(Published, Bytes)>,
    /// What failed first: nobody knows what is on the shelf then, and nothing is written to it any more.
    failed: Option<String>,
}

/// A draft that is being written.
struct Writer<S> {
    shared: Arc<Shared<S>>,
    turn: Turn,
    meta: SnapshotMeta,
    offset: u64,
    checksum: u32,
}

const IMAGE: &str = ".image";
const DRAFT: &str = ".draft";

fn draft(SnapshotMeta { last, id, .. }: &SnapshotMeta) -> String {
    format!("{:016x}-{:016x}-{id}{DRAFT}", last.term.0, last.index.0)
}

/// The checksum of its bytes is a part of an image's name, so a draft becomes an image in one step.
fn image(SnapshotMeta { last, id, .. }: &SnapshotMeta, checksum: u32) -> String {
    format!("{:016x}-{:016x}-{id}-{checksum:08x}{IMAGE}", last.term.0, last.index.0)
}

/// What an image is, with its length before it and its checksum behind it.
fn encode(meta: &SnapshotMeta) -> Vec<u8> {
    let SnapshotMeta { id, last, membership, membership_at } = meta;
    let numbers = [id.0, last.term.0, last.index.0, membership_at.term.0, membership_at.index.0];
    let membership = membership.encode();
    let len = (numbers.len() * 8 + membership.len()) as u64;
    let mut out = [&len.to_be_bytes()[..], &numbers.map(u64::to_be_bytes).concat(), &membership].concat();
    out.extend_from_slice(&crc32c::crc32c(&out).to_be_bytes());
    out
}

/// What an image is, and what follows; none where that is not whole.
fn decode(mut bytes: Bytes) -> Option<(SnapshotMeta, Bytes)> {
    let len = usize::try_from(bytes.clone().try_get_u64().ok()?).ok()?.checked_add(8)?;
    if len.checked_add(4)? > bytes.len() {
        return None;
    }
    let mut head = bytes.split_to(len);
    if bytes.get_u32() != crc32c::crc32c(&head) {
        return None;
    }
    head.advance(8);
    let mut number = || head.try_get_u64().ok();
    let id = SnapshotId(number()?);
    let (last, membership_at) = (LogId::new(number()?, number()?), LogId::new(number()?, number()?));
    let membership = Membership::read(&head).ok()?;
    Some((SnapshotMeta { id, last, membership, membership_at }, bytes))
}

/// A piece of an image, with its length and a checksum of both before it.
fn encode_piece(piece: &[u8]) -> Vec<u8> {
    let len = (piece.len() as u64).to_be_bytes();
    [&len[..], &piece_checksum(len, piece).to_be_bytes(), piece].concat()
}

fn piece_checksum(len: [u8; 8], piece: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&len), piece)
}

fn decode_piece(bytes: &mut Bytes) -> Option<Bytes> {
    let (len, checksum) = (bytes.try_get_u64().ok()?, bytes.try_get_u32().ok()?);
    let held = usize::try_from(len).ok().filter(|len| *len <= bytes.len())?;
    let piece = bytes.split_to(held);
    (checksum == piece_checksum(len.to_be_bytes(), &piece)).then_some(piece)
}

/// What the whole pieces at the beginning hold, and whether there is nothing else.
fn decode_pieces(mut bytes: Bytes) -> (Bytes, bool) {
    let mut held = BytesMut::new();
    while !bytes.is_empty() {
        let Some(piece) = decode_piece(&mut bytes) else { return (held.freeze(), false) };
        held.extend_from_slice(&piece);
    }
    (held.freeze(), true)
}

/// What the decoders must bear, for fuzzing.
#[cfg(feature = "testing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let (held, _) = decode_pieces(Bytes::copy_from_slice(bytes));
    assert_eq!(decode_pieces(encode_piece(&held).into()), (held, true), "the pieces change when they are encoded");
    if let Some((meta, rest)) = decode(Bytes::copy_from_slice(bytes)) {
        let again = decode([&encode(&meta)[..], &rest].concat().into());
        assert_eq!(again, Some((meta, rest)), "it changes when it is encoded");
    }
}

/// What an image of this begins with, and a byte of it, for fuzzing.
#[cfg(feature = "testing")]
pub(crate) fn sample(meta: &SnapshotMeta) -> Vec<u8> {
    [encode(meta), encode_piece(&[7])].concat()
}

impl<S: Shelf> Shared<S> {
    /// Nothing that holds this lock can leave its data half-changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the shelf, if nothing failed there before.
    fn tried<T>(&self, work: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
        if let Some(reason) = &self.state().failed {
            return Err(StorageError::Sticky(reason.clone()));
        }
        work().inspect_err(|error| self.state().failed = Some(error.to_string()))
    }

    /// The drafts that are there. One that was not begun whole is nothing, and goes.
    fn drafts(&self) -> Result<Vec<(SnapshotMeta, Bytes)>, StorageError> {
        let mut found = Vec::new();
        for name in self.shelf.names()?.into_iter().filter(|name| name.ends_with(DRAFT)) {
            match decode(self.shelf.read(&name)?) {
                Some((meta, bytes)) if draft(&meta) == name => found.push((meta, bytes)),
                Some(_) | None => self.shelf.remove(&name)?,
            }
        }
        Ok(found)
    }

    /// Makes a draft ready to be gone on with, or begins it. Tells what is there of it.
    ///
    /// What is there may be in a page cache alone, where an append was cut off or its sync failed, and no later sync brings that out. So it is written anew, as behind
    /// what is not whole nothing could be added either.
    fn resume(&self, meta: &SnapshotMeta, pieces: Option<Bytes>) -> Result<Bytes, StorageError> {
        let name = draft(meta);
        let held = match pieces {
            Some(pieces) => {
                self.shelf.remove(&name)?;
                decode_pieces(pieces).0
            }
            None => Bytes::new(),
        };
        self.shelf.append(&name, &encode(meta))?;
        if !held.is_empty() {
            self.shelf.append(&name, &encode_piece(&held))?;
        }
        Ok(held)
    }

    /// Makes this draft an image. One at a time: whoever is late finds what is newer, and of two images of one entry the one that was published last stays.
    fn publish(&self, meta: &SnapshotMeta, checksum: u32) -> Result<(), StorageError> {
        let mut state = self.state();
        let published = image(meta, checksum);
        self.shelf.rename(&draft(meta), &published)?;
        self.refresh(&mut state, Some(&published))
    }

    /// Puts the latest image in its own place: a process that was cut off while it published may have left its name in memory alone, and the log is cut up to there now.
    fn publish_anew(&self, (Published { meta, checksum, .. }, bytes): &(Published, Bytes)) -> Result<(), StorageError> {
        let name = draft(meta);
        if self.shelf.names()?.contains(&name) {
            self.shelf.remove(&name)?;
        }
        self.shelf.append(&name, &[encode(meta), encode_piece(bytes)].concat())?;
        self.shelf.rename(&name, &image(meta, *checksum))
    }

    /// Finds the latest image, and removes older ones. Of those of one entry it is the one that was just published; after a crash in between it may be any.
    fn refresh(&self, state: &mut State, published: Option<&str>) -> Result<(), StorageError> {
        let mut images: Vec<(Published, Bytes)> = Vec::new();
        for name in self.shelf.names()?.into_iter().filter(|name| name.ends_with(IMAGE)) {
            let whole = decode(self.shelf.read(&name)?).and_then(|(meta, pieces)| {
                let (bytes, is_whole) = decode_pieces(pieces);
                let checksum = crc32c::crc32c(&bytes);
                let is_right = is_whole && image(&meta, checksum) == name;
                is_right.then(|| (Published { meta, len: bytes.len() as u64, checksum }, bytes))
            });
            images.push(whole.ok_or_else(|| {
                let (path, reason) = (self.shelf.place(&name), "the image does not match its checksum".into());
                StorageError::Corrupt { path, offset: None, index: None, reason }
            })?);
        }
        images.sort_by_key(|(Published { meta, checksum, .. }, _)| {
            (meta.last, published.is_some_and(|published| published == image(meta, *checksum)))
        });
        state.latest = images.pop();
        if let (None, Some(latest)) = (published, &state.latest) {
            // Before older ones go on its account.
            self.publish_anew(latest)?;
        }
        images.iter().try_for_each(|(older, _)| self.shelf.remove(&image(&older.meta, older.checksum)))
    }
}

impl<S: Shelf> Shelved<S> {
    /// Opens what is on a shelf. One store for each shelf, in one process.
    ///
    /// # Errors
    /// It can't be read, an image is damaged, or the latest one can't be written anew, which makes sure that it is on the disk.
    pub fn open(shelf: S) -> Result<Self, StorageError> {
        let shared = Shared { shelf, drafts: Drafts::default(), state: Mutex::default() };
        shared.refresh(&mut shared.state(), None)?;
        Ok(Self(Arc::new(shared)))
    }
}

#[async_trait]
impl<S: Shelf> Snapshot for Shelved<S> {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        Ok(self.0.state().latest.as_ref().map(|(published, _)| published.clone()))
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        let state = self.0.state();
        let image = state.latest.as_ref().filter(|(published, _)| published.meta.id == *id);
        let (_, image) = image.ok_or_else(|| StorageError::Misuse(format!("there is no image {id}")))?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(image.len());
        Ok(image.slice(from..from.saturating_add(max).min(image.len())))
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let shared = self.0.clone();
        let (turn, there) = shared.tried(|| {
            let unfinished = shared.drafts()?;
            let (turn, gone) = shared.drafts.begin(&meta, unfinished.iter().map(|(meta, _)| meta.clone()).collect());
            gone.iter().try_for_each(|other| shared.shelf.remove(&draft(other)))?;
            let there = unfinished.into_iter().find(|(other, _)| *other == meta);
            Ok((turn, shared.resume(&meta, there.map(|(_, pieces)| pieces))?))
        })?;
        let (offset, checksum) = (there.len() as u64, crc32c::crc32c(&there));
        Ok(Box::new(Writer { shared, turn, meta, offset, checksum }))
    }
}

#[async_trait]
impl<S: Shelf> SnapshotWriter for Writer<S> {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn checksum(&self) -> u32 {
        self.checksum
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        self.shared.drafts.check(&self.turn)?;
        self.shared.tried(|| self.shared.shelf.append(&draft(&self.meta), &encode_piece(&chunk)))?;
        self.checksum = crc32c::crc32c_append(self.checksum, &chunk);
        self.offset += chunk.len() as u64;
        Ok(())
    }

    async fn publish(self: Box<Self>) -> Result<(), StorageError> {
        let Self { shared, turn, meta, checksum, .. } = *self;
        shared.drafts.check(&turn)?;
        shared.tried(|| shared.publish(&meta, checksum))
    }

    async fn discard(self: Box<Self>) -> Result<(), StorageError> {
        self.shared.drafts.check(&self.turn)?;
        self.shared.tried(|| self.shared.shelf.remove(&draft(&self.meta)))
    }
}
