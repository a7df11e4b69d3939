//! The bytes of a batch and of an entry. FORMAT.md draws them.

use raftkv::mutant;
use raftkv::{ClusterId, Entry, EntryKind, GroupId, HardState, Index, LogId, LogWrite, NodeId, Term};

/// Bytes of a batch header.
pub(crate) const BATCH_HEADER: usize = 64;
/// Bytes of an entry header.
pub(crate) const ENTRY_HEADER: usize = 32;
/// The smallest unit that batches are aligned to, which is also what a disk writes in one piece.
pub(crate) const MIN_ALIGN: u32 = 512;
/// The largest such unit.
pub(crate) const MAX_ALIGN: u32 = 4096;

const BATCH: u8 = b'B';
const ENTRY: u8 = b'E';

const HAS_HARD_STATE: u8 = 1;
const HAS_VOTE: u8 = 2;
const HAS_BASE: u8 = 4;
const EMPTIES: u8 = 8;

const LAST_OF_BATCH: u8 = 1;

/// No log counts this far: whoever wrote such a number was broken, and nobody could count on from it.
pub(crate) const ABSURD: u64 = 1 << 63;

/// What every checksum of a segment starts from: bytes that belong to another log, another segment or another place
/// do not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Salt(u32);

impl Salt {
    /// The salt of a segment of the log with this nonce.
    pub(crate) fn new(nonce: u64, segment: u64) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(&nonce.to_le_bytes()), &segment.to_le_bytes()))
    }

    /// The checksum of bytes that belong to the frame at `offset`.
    pub(crate) fn sum(self, offset: u64, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &offset.to_le_bytes()), bytes)
    }
}

/// Who a log belongs to. It is written into the directory and into every segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The group.
    pub group: GroupId,
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The next multiple of `align` at or above `n`.
pub(crate) fn round_up(n: u64, align: u64) -> u64 {
    n.div_ceil(align) * align
}

/// What a batch does to the log.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    /// A hard state, and entries that replace what is there from the first one's index on.
    Write(&'a LogWrite),
    /// A new base; `empties` says that the log held no entry with that id, and became empty.
    Base { base: LogId, empties: bool },
}

/// The header of a batch: one write, one sync, all or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Counts batches from 1. The batch after it is written only when it is durable.
    pub(crate) sequence: u64,
    /// The hard state, if it changes.
    pub(crate) hard_state: Option<HardState>,
    /// The base, if it moves, and whether that empties the log.
    pub(crate) base: Option<(LogId, bool)>,
    /// The index of the first entry; no meaning without entries.
    pub(crate) first: Index,
    /// How many entries it has.
    pub(crate) count: u32,
    /// Bytes that follow the header, up to where the next batch begins.
    pub(crate) length: u32,
    payload_sum: u32,
}

impl BatchHeader {
    /// Reads a header, if these bytes are one.
    pub(crate) fn decode(bytes: &[u8], salt: Salt, offset: u64) -> Result<Self, &'static str> {
        if bytes.len() < BATCH_HEADER {
            return Err("the file ends within a batch header");
        }
        if bytes[12] != BATCH || u32_at(bytes, 0) != salt.sum(offset, &bytes[4..BATCH_HEADER]) {
            return Err("no valid batch header");
        }
        if [16, 24, 40, 48].iter().any(|at| u64_at(bytes, *at) >= ABSURD) {
            return Err("a batch header with absurd numbers");
        }
        let flags = bytes[13];
        let hard_state = (flags & HAS_HARD_STATE != 0).then(|| HardState {
            term: Term(u64_at(bytes, 24)),
            voted_for: (flags & HAS_VOTE != 0).then(|| NodeId(u64_at(bytes, 32))),
        });
        let index = u64_at(bytes, 40);
        let base = (flags & HAS_BASE != 0).then(|| (LogId::new(u64_at(bytes, 48), index), flags & EMPTIES != 0));
        Ok(Self {
            sequence: u64_at(bytes, 16),
            hard_state,
            base,
            first: Index(index),
            count: u32_at(bytes, 56),
            length: u32_at(bytes, 8),
            payload_sum: u32_at(bytes, 4),
        })
    }

    /// Whether these are the bytes that the header was written with.
    pub(crate) fn matches(&self, payload: &[u8], salt: Salt, offset: u64) -> bool {
        payload.len() == self.length as usize
            && (self.payload_sum == salt.sum(offset, payload) || mutant!("checksums-not-compared"))
    }
}

/// The header of an entry within a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryHeader {
    pub(crate) id: LogId,
    pub(crate) kind: EntryKind,
    pub(crate) length: u32,
    pub(crate) last_of_batch: bool,
    data_sum: u32,
    /// Whether the header's own checksum holds. Under a batch's checksum it need not be looked at.
    sum: u32,
}

/// Bytes that an entry with so many bytes of payload takes.
pub(crate) fn entry_size(data: usize) -> u64 {
    round_up((ENTRY_HEADER + data) as u64, 8)
}

impl EntryHeader {
    /// Reads a header without checking its sum: for bytes that a batch's checksum has covered.
    pub(crate) fn peek(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() < ENTRY_HEADER {
            return Err("an entry header is cut short");
        }
        if bytes[12] != ENTRY {
            return Err("no entry where one belongs");
        }
        let kind = EntryKind::from_u8(bytes[13]).ok_or("an entry of unknown kind: written by a newer version?")?;
        if [16, 24].iter().any(|at| u64_at(bytes, *at) >= ABSURD) {
            return Err("an entry header with absurd numbers");
        }
        Ok(Self {
            id: LogId::new(u64_at(bytes, 24), u64_at(bytes, 16)),
            kind,
            length: u32_at(bytes, 8),
            last_of_batch: bytes[14] & LAST_OF_BATCH != 0,
            data_sum: u32_at(bytes, 4),
            sum: u32_at(bytes, 0),
        })
    }

    /// Reads a header and checks its sum.
    pub(crate) fn decode(bytes: &[u8], salt: Salt, offset: u64) -> Result<Self, &'static str> {
        let header = Self::peek(bytes)?;
        if header.sum != salt.sum(offset, &bytes[4..ENTRY_HEADER]) {
            return Err("the checksum of an entry header does not match");
        }
        Ok(header)
    }

    /// Bytes from this header to the next.
    pub(crate) fn size(&self) -> u64 {
        entry_size(self.length as usize)
    }

    /// Whether these are the payload and padding that the entry was written with.
    pub(crate) fn matches(&self, data: &[u8], salt: Salt, offset: u64) -> bool {
        self.data_sum == salt.sum(offset, data) || mutant!("checksums-not-compared")
    }
}

/// How many bytes a batch will take, padding included; none when it exceeds what a batch can hold (4 GiB).
pub(crate) fn batch_size(content: Content<'_>, align: u32) -> Option<u64> {
    let entries: u64 = match content {
        Content::Write(write) => write.entries.iter().map(|entry| entry_size(entry.data.len())).sum(),
        Content::Base { .. } => 0,
    };
    let size = round_up(BATCH_HEADER as u64 + entries, u64::from(align));
    (size <= u64::from(u32::MAX)).then_some(size)
}

/// Adds a batch to `buf`. `offset` is where in the segment its first byte will be; [`batch_size`] has been asked.
pub(crate) fn encode(buf: &mut Vec<u8>, content: Content<'_>, sequence: u64, place: Place) {
    let start = buf.len();
    buf.resize(start + BATCH_HEADER, 0);
    let mut header = [0; BATCH_HEADER];
    header[12] = BATCH;
    put(&mut header, 16, &sequence.to_le_bytes());
    match content {
        Content::Write(write) => {
            if let Some(hard_state) = write.hard_state {
                header[13] |= HAS_HARD_STATE;
                put(&mut header, 24, &hard_state.term.0.to_le_bytes());
                if let Some(vote) = hard_state.voted_for {
                    header[13] |= HAS_VOTE;
                    put(&mut header, 32, &vote.0.to_le_bytes());
                }
            }
            if let Some(first) = write.entries.first() {
                put(&mut header, 40, &first.id.index.0.to_le_bytes());
            }
            put(&mut header, 56, &(write.entries.len() as u32).to_le_bytes());
            for (n, entry) in write.entries.iter().enumerate() {
                let at = place.offset + (buf.len() - start) as u64;
                encode_entry(buf, entry, n + 1 == write.entries.len(), place.salt, at);
            }
        }
        Content::Base { base, empties } => {
            header[13] |= HAS_BASE | if empties { EMPTIES } else { 0 };
            put(&mut header, 40, &base.index.0.to_le_bytes());
            put(&mut header, 48, &base.term.0.to_le_bytes());
        }
    }
    let size = round_up((buf.len() - start) as u64, u64::from(place.align));
    buf.resize(start + usize::try_from(size).unwrap_or(usize::MAX), 0);
    let payload = &buf[start + BATCH_HEADER..];
    put(&mut header, 4, &place.salt.sum(place.offset, payload).to_le_bytes());
    put(&mut header, 8, &(payload.len() as u32).to_le_bytes());
    let sum = place.salt.sum(place.offset, &header[4..]);
    put(&mut header, 0, &sum.to_le_bytes());
    put(buf, start, &header);
}

/// Where a batch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) salt: Salt,
    pub(crate) align: u32,
}

fn encode_entry(buf: &mut Vec<u8>, entry: &Entry, last: bool, salt: Salt, offset: u64) {
    let start = buf.len();
    buf.resize(start + ENTRY_HEADER, 0);
    buf.extend_from_slice(&entry.data);
    let size = usize::try_from(entry_size(entry.data.len())).unwrap_or(usize::MAX);
    buf.resize(start + size, 0);
    let data_sum = salt.sum(offset, &buf[start + ENTRY_HEADER..]);
    let header = &mut buf[start..start + ENTRY_HEADER];
    put(header, 4, &data_sum.to_le_bytes());
    put(header, 8, &(entry.data.len() as u32).to_le_bytes());
    header[12] = ENTRY;
    header[13] = entry.kind as u8;
    header[14] = if last { LAST_OF_BATCH } else { 0 };
    put(header, 16, &entry.id.index.0.to_le_bytes());
    put(header, 24, &entry.id.term.0.to_le_bytes());
    let sum = salt.sum(offset, &header[4..]);
    put(header, 0, &sum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn batch() -> (LogWrite, Vec<u8>, Place) {
        let entries = vec![
            Entry { id: LogId::new(3, 7), kind: EntryKind::Command, data: Bytes::from_static(b"hello") },
            Entry { id: LogId::new(3, 8), kind: EntryKind::Noop, data: Bytes::new() },
        ];
        let hard_state = Some(HardState { term: Term(3), voted_for: Some(NodeId(2)) });
        let write = LogWrite { hard_state, entries };
        let place = Place { offset: 1024, salt: Salt::new(9, 1), align: 512 };
        let mut buf = vec![0; 8];
        encode(&mut buf, Content::Write(&write), 5, place);
        (write, buf.split_off(8), place)
    }

    #[test]
    fn a_batch_survives_its_encoding() {
        let (write, bytes, place) = batch();
        assert_eq!(bytes.len() as u64, batch_size(Content::Write(&write), 512).unwrap());
        let header = BatchHeader::decode(&bytes, place.salt, 1024).unwrap();
        assert_eq!((header.sequence, header.first, header.count), (5, Index(7), 2));
        assert_eq!(header.hard_state, write.hard_state);
        assert!(header.matches(&bytes[64..], place.salt, 1024));
        let entry = EntryHeader::decode(&bytes[64..], place.salt, 1024 + 64).unwrap();
        assert_eq!((entry.id, entry.length, entry.last_of_batch), (LogId::new(3, 7), 5, false));
        assert!(entry.matches(&bytes[96..104], place.salt, 1024 + 64));
        assert!(EntryHeader::decode(&bytes[104..], place.salt, 1024 + 104).unwrap().last_of_batch);
    }

    #[test]
    fn a_batch_from_another_place_or_segment_does_not_pass() {
        let (_, bytes, place) = batch();
        assert!(BatchHeader::decode(&bytes, place.salt, 512).is_err());
        assert!(BatchHeader::decode(&bytes, Salt::new(9, 2), 1024).is_err());
        assert!(BatchHeader::decode(&bytes, Salt::new(8, 1), 1024).is_err());
        let header = BatchHeader::decode(&bytes, place.salt, 1024).unwrap();
        assert!(!header.matches(&bytes[64..], place.salt, 512));
        assert!(EntryHeader::decode(&bytes[64..], place.salt, 1024).is_err());
    }
}
