//! The store as a stream of bytes, and back.
//!
//! An image is a run of records: a head, the users and roles where there is something to say of them, the keys in order with their versions, and an end
//! that counts them. A record is
//! its length and its CRC-32C (four bytes each, little-endian), then a protobuf message (`ImageRecord` in
//! `proto/raftkv/command.proto`). Two stores with the same contents have the same image, and what a compaction has made
//! unreachable is not in it, even if it is still kept. So nodes with different engines take each other's images.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::key::Key;
use super::keys::{Found, Scan, Sink};
use super::version::{Meta, Version};
use super::{Auth, Head, Members, Store, Tree};
use crate::api::command::image_record::Body;
use crate::api::command::{ImageEnd, ImageHead, ImageKey, ImageKeys, ImageRecord, ImageVersion};

/// Without users and roles, as all images were before there were any.
const FORMAT: u32 = 1;
/// With them: a server that knows nothing of them must not take it, for it would let everybody do everything.
const FORMAT_WITH_AUTH: u32 = 2;
/// Where a record is closed.
const RECORD_BYTES: usize = 128 << 10;
/// What a reader takes for one record at most. The longest value and the longest key fit several times.
const MAX_RECORD_BYTES: usize = 64 << 20;
const HEADER: usize = 8;
/// No store counts this far, and from further on nobody could count on.
const MAX_REVISION: i64 = 1 << 62;

/// Why an image can't be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image is damaged at byte {at}: {reason}; fetch it again, or restore the node from another one")]
pub(crate) struct ImageError {
    at: u64,
    reason: String,
}

/// An image of a frozen store, made piece by piece.
#[derive(Debug)]
pub(crate) struct Image<K: Scan = Tree> {
    pub(crate) store: Store<K>,
    state: State<K::Cursor>,
    versions: u64,
}

#[derive(Debug)]
enum State<C> {
    Head,
    Auth,
    /// The place behind the last version that is in a record.
    Keys(C),
    Done,
}

impl<K: Scan> Image<K> {
    /// An image of this store.
    #[must_use]
    pub(crate) fn new(store: Store<K>) -> Self {
        Self { store, state: State::Head, versions: 0 }
    }

    /// The next record; none at the end.
    pub(crate) fn next_record(&mut self) -> Option<Bytes> {
        let body = match std::mem::replace(&mut self.state, State::Done) {
            State::Done => return None,
            State::Head => {
                let head = &self.store.head;
                let with_auth = *head.auth != Auth::default();
                self.state = if with_auth { State::Auth } else { State::Keys(K::Cursor::default()) };
                let (highest_member, members) = head.members.to_image();
                Body::Head(ImageHead {
                    format: if with_auth { FORMAT_WITH_AUTH } else { FORMAT },
                    revision: head.revision,
                    compact_revision: head.compacted,
                    highest_member,
                    members,
                })
            }
            State::Auth => {
                self.state = State::Keys(K::Cursor::default());
                Body::Auth(self.store.head.auth.to_image())
            }
            State::Keys(place) => self.next_keys(place),
        };
        Some(frame(&ImageRecord { body: Some(body) }))
    }

    fn next_keys(&mut self, mut place: K::Cursor) -> Body {
        let mut keys: Vec<ImageKey> = Vec::new();
        let mut bytes = 0;
        self.store.keys.walk(&mut place, self.store.head.compacted, &mut |key, version| {
            let (meta, value) = (version.meta(), version.value_bytes());
            bytes += key.len() + value.len() + 32;
            self.versions += 1;
            let Meta { modified, created, version } = meta;
            let version = ImageVersion { mod_revision: modified, create_revision: created, version, value };
            match keys.last_mut() {
                Some(last) if last.key == key => last.versions.push(version),
                Some(_) | None => {
                    keys.push(ImageKey { key: Bytes::copy_from_slice(key), versions: vec![version] });
                }
            }
            if bytes < RECORD_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if keys.is_empty() {
            return Body::End(ImageEnd { versions: self.versions });
        }
        self.state = State::Keys(place);
        Body::Keys(ImageKeys { keys })
    }
}

fn frame(record: &ImageRecord) -> Bytes {
    seal_record(&record.encode_to_vec())
}

/// A record's length and checksum, and the record.
pub(crate) fn seal_record(body: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(HEADER + body.len());
    // A record is far below 4 GiB: it is closed at 128 KiB, and a value is at most some MiB.
    framed.put_u32_le(body.len() as u32);
    framed.put_u32_le(crc32c::crc32c(body));
    framed.put_slice(body);
    framed.freeze()
}

/// Builds a store from the bytes of an image, however they are cut.
#[derive(Debug)]
pub(crate) struct Loader<K = Tree> {
    pub(crate) store: Store<K>,
    buffer: BytesMut,
    /// How many bytes are behind.
    at: u64,
    stage: Stage,
    versions: u64,
    /// The last key, and its last version's revision.
    last: Option<(Key, i64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Head,
    Auth,
    Keys,
    Done,
}

impl Default for Loader {
    fn default() -> Self {
        Self::into(Tree::default())
    }
}

impl<K: Sink> Loader<K> {
    /// Loads an image into these keys: there must be none yet.
    pub(crate) fn into(keys: K) -> Self {
        Self {
            store: Store::over(keys, Head::default()),
            buffer: BytesMut::new(),
            at: 0,
            stage: Stage::default(),
            versions: 0,
            last: None,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// They are no image, or a damaged one.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.buffer.extend_from_slice(bytes);
        while let Some(record) = self.next_record()? {
            let size = (HEADER + record.encoded_len()) as u64;
            self.load(record)?;
            self.at += size;
        }
        Ok(())
    }

    /// The store, complete.
    ///
    /// # Errors
    /// The image ends too early.
    pub(crate) fn finish(self) -> Result<Store<K>, ImageError> {
        if self.stage != Stage::Done || !self.buffer.is_empty() {
            return Err(self.error("it ends before its end record"));
        }
        Ok(self.store)
    }

    fn error(&self, reason: impl Into<String>) -> ImageError {
        ImageError { at: self.at, reason: reason.into() }
    }

    fn next_record(&mut self) -> Result<Option<ImageRecord>, ImageError> {
        let Some(mut header) = self.buffer.get(..HEADER) else { return Ok(None) };
        let (len, crc) = (header.get_u32_le() as usize, header.get_u32_le());
        if len > MAX_RECORD_BYTES {
            return Err(self.error(format!("a record claims {len} bytes")));
        }
        if self.buffer.len() < HEADER + len {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let body = self.buffer.split_to(len);
        if crc32c::crc32c(&body) != crc {
            return Err(self.error("a record does not match its checksum"));
        }
        match ImageRecord::decode(body.freeze()) {
            Ok(record) => Ok(Some(record)),
            Err(error) => Err(self.error(format!("a record can't be decoded: {error}"))),
        }
    }

    fn load(&mut self, record: ImageRecord) -> Result<(), ImageError> {
        match (self.stage, record.body) {
            (Stage::Head, Some(Body::Head(head))) => {
                let after = match head.format {
                    FORMAT => Stage::Keys,
                    FORMAT_WITH_AUTH => Stage::Auth,
                    other => {
                        let known = format!("this server reads {FORMAT} and {FORMAT_WITH_AUTH}");
                        return Err(self.error(format!("its format is {other}, and {known}")));
                    }
                };
                let compacted = super::NEVER_COMPACTED..=head.revision;
                if !(1..MAX_REVISION).contains(&head.revision) || !compacted.contains(&head.compact_revision) {
                    let (revision, compacted) = (head.revision, head.compact_revision);
                    return Err(self.error(format!("no store is at revision {revision}, compacted at {compacted}")));
                }
                let members = Members::from_image(head.highest_member, head.members);
                self.store.head.members = members.map_err(|reason| self.error(reason))?;
                self.store.head.revision = head.revision;
                self.store.head.compacted = head.compact_revision;
                self.store.head.swept = head.compact_revision;
                self.stage = after;
                Ok(())
            }
            (Stage::Auth, Some(Body::Auth(image))) => {
                let auth = Auth::from_image(image).map_err(|reason| self.error(reason))?;
                self.store.head.auth = Arc::new(auth);
                self.stage = Stage::Keys;
                Ok(())
            }
            (Stage::Keys, Some(Body::Keys(keys))) => keys.keys.into_iter().try_for_each(|key| self.load_key(key)),
            (Stage::Keys, Some(Body::End(end))) if end.versions == self.versions => {
                self.stage = Stage::Done;
                Ok(())
            }
            (Stage::Keys, Some(Body::End(end))) => {
                Err(self.error(format!("it holds {} versions instead of {}", self.versions, end.versions)))
            }
            (Stage::Head | Stage::Auth | Stage::Keys | Stage::Done, _) => Err(self.error("a record is out of place")),
        }
    }

    fn load_key(&mut self, image: ImageKey) -> Result<(), ImageError> {
        let key = Key::new(&image.key);
        if self.last.as_ref().is_some_and(|(last, _)| *last > key) {
            return Err(self.error("its keys are out of order"));
        }
        let mut before = self.last.take_if(|(last, _)| *last == key).map_or(0, |(_, modified)| modified);
        for version in image.versions {
            let good = before < version.mod_revision
                && version.mod_revision <= self.store.head.revision
                && (0..=version.mod_revision).contains(&version.create_revision)
                // A key that one step puts several times counts on within one revision.
                && (0..MAX_REVISION).contains(&version.version);
            if !good {
                return Err(self.error(format!("the revisions of key {key:?} are out of order")));
            }
            let meta =
                Meta { modified: version.mod_revision, created: version.create_revision, version: version.version };
            self.store.push(&image.key, Version::new(meta, &version.value));
            self.versions += 1;
            before = version.mod_revision;
        }
        self.last = Some((key, before));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(records: &[Body]) -> Result<Store, ImageError> {
        let mut loader = Loader::default();
        for body in records {
            loader.push(&frame(&ImageRecord { body: Some(body.clone()) }))?;
        }
        loader.finish()
    }

    /// Found by fuzzing: the next put overflowed.
    #[test]
    fn an_image_with_numbers_that_no_store_has_is_refused() {
        let image = |revision, compact_revision, version| {
            let head = Body::Head(ImageHead { format: FORMAT, revision, compact_revision, ..Default::default() });
            let versions = vec![ImageVersion { mod_revision: 2, create_revision: 2, version, value: Bytes::new() }];
            let keys = Body::Keys(ImageKeys { keys: vec![ImageKey { key: "k".into(), versions }] });
            load(&[head, keys, Body::End(ImageEnd { versions: 1 })])
        };
        assert_eq!(image(2, -1, 1).unwrap().head().revision, 2);
        let strange =
            [(i64::MAX, -1, 1), (0, -1, 1), (-5, -7, 1), (2, 3, 1), (2, i64::MIN, 1), (2, -1, i64::MAX), (2, -1, -1)];
        for (revision, compacted, version) in strange {
            let refused = image(revision, compacted, version).unwrap_err().to_string();
            assert!(refused.contains("the image is damaged at byte"), "{refused}");
        }
    }
}
