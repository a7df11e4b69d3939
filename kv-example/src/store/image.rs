//! The store as a stream of bytes, and back.
//!
//! An image is a run of records: a head, the keys in order with their versions, and an end that counts them. A record is
//! its length and its CRC-32C (four bytes each, little-endian), then a protobuf message (`ImageRecord` in
//! `proto/raftkv/command.proto`). Two stores with the same contents have the same image, and what a compaction has made
//! unreachable is not in it, even if it is still in memory.

use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::key::Key;
use super::version::{Meta, Version};
use super::{Members, Store};
use crate::api::command::image_record::Body;
use crate::api::command::{ImageEnd, ImageHead, ImageKey, ImageKeys, ImageRecord, ImageVersion};

const FORMAT: u32 = 1;
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
pub struct ImageError {
    at: u64,
    reason: String,
}

/// An image of a frozen store, made piece by piece.
#[derive(Debug)]
pub struct Image {
    store: Store,
    state: State,
    versions: u64,
}

#[derive(Debug)]
enum State {
    Head,
    /// The last key that was begun, and its versions that are yet to come, newest first.
    Keys(Option<(Key, Vec<Version>)>),
    Done,
}

impl Image {
    /// An image of this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, state: State::Head, versions: 0 }
    }

    /// The next record; none at the end.
    pub fn next_record(&mut self) -> Option<Bytes> {
        let body = match std::mem::replace(&mut self.state, State::Done) {
            State::Done => return None,
            State::Head => {
                self.state = State::Keys(None);
                let (highest_member, members) = self.store.members.to_image();
                Body::Head(ImageHead {
                    format: FORMAT,
                    revision: self.store.revision,
                    compact_revision: self.store.compacted,
                    highest_member,
                    members,
                })
            }
            State::Keys(last) => self.next_keys(last),
        };
        Some(frame(&ImageRecord { body: Some(body) }))
    }

    fn next_keys(&mut self, last: Option<(Key, Vec<Version>)>) -> Body {
        let mut keys = Vec::new();
        let mut bytes = 0;
        let mut open = last;
        if let Some((key, rest)) = &mut open {
            self.take(key, rest, &mut keys, &mut bytes);
        }
        while bytes < RECORD_BYTES {
            let after = open.as_ref().map_or(Bound::Unbounded, |(key, _)| Bound::Excluded(key.as_slice()));
            let next = self.store.keys.range::<_, [u8]>((after, Bound::Unbounded)).next();
            let Some((key, history)) = next else { break };
            let key = key.clone();
            let mut rest: Vec<Version> = history.reachable(self.store.compacted).into_iter().rev().cloned().collect();
            self.take(&key, &mut rest, &mut keys, &mut bytes);
            open = Some((key, rest));
        }
        if keys.is_empty() && bytes < RECORD_BYTES {
            return Body::End(ImageEnd { versions: self.versions });
        }
        self.state = State::Keys(open);
        Body::Keys(ImageKeys { keys })
    }

    /// Moves versions of a key into a record, until the record is full.
    fn take(&mut self, key: &Key, rest: &mut Vec<Version>, keys: &mut Vec<ImageKey>, bytes: &mut usize) {
        let mut versions = Vec::new();
        while *bytes < RECORD_BYTES
            && let Some(version) = rest.pop()
        {
            let meta = version.meta();
            let value = version.value_bytes();
            *bytes += key.as_slice().len() + value.len() + 32;
            versions.push(ImageVersion {
                mod_revision: meta.modified,
                create_revision: meta.created,
                version: meta.version,
                value,
            });
        }
        if !versions.is_empty() {
            self.versions += versions.len() as u64;
            keys.push(ImageKey { key: key.to_bytes(), versions });
        }
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
#[derive(Debug, Default)]
pub struct Loader {
    store: Store,
    buffer: BytesMut,
    /// How many bytes are behind.
    at: u64,
    stage: Stage,
    versions: u64,
    last: Option<Key>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Head,
    Keys,
    Done,
}

impl Loader {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// They are no image, or a damaged one.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
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
    pub fn finish(self) -> Result<Store, ImageError> {
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
                if head.format != FORMAT {
                    return Err(self.error(format!("its format is {}, and this server reads {FORMAT}", head.format)));
                }
                let compacted = super::NEVER_COMPACTED..=head.revision;
                if !(1..MAX_REVISION).contains(&head.revision) || !compacted.contains(&head.compact_revision) {
                    let (revision, compacted) = (head.revision, head.compact_revision);
                    return Err(self.error(format!("no store is at revision {revision}, compacted at {compacted}")));
                }
                let members = Members::from_image(head.highest_member, head.members);
                self.store.members = members.map_err(|reason| self.error(reason))?;
                self.store.revision = head.revision;
                self.store.compacted = head.compact_revision;
                self.store.swept = head.compact_revision;
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
            (Stage::Head | Stage::Keys | Stage::Done, _) => Err(self.error("a record is out of place")),
        }
    }

    fn load_key(&mut self, image: ImageKey) -> Result<(), ImageError> {
        let key = Key::new(&image.key);
        if self.last.as_ref().is_some_and(|last| *last > key) {
            return Err(self.error("its keys are out of order"));
        }
        for version in image.versions {
            let before = self.store.keys.get(&image.key[..]).map_or(0, |history| history.newest().modified());
            let good = before < version.mod_revision
                && version.mod_revision <= self.store.revision
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
        }
        self.last = Some(key);
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
        assert_eq!(image(2, -1, 1).unwrap().revision(), 2);
        let strange =
            [(i64::MAX, -1, 1), (0, -1, 1), (-5, -7, 1), (2, 3, 1), (2, i64::MIN, 1), (2, -1, i64::MAX), (2, -1, -1)];
        for (revision, compacted, version) in strange {
            let refused = image(revision, compacted, version).unwrap_err().to_string();
            assert!(refused.contains("the image is damaged at byte"), "{refused}");
        }
    }
}
