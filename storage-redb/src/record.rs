//! The values that the log keeps in redb's tables, each with its checksum. Numbers are little-endian.
//!
//! ```text
//! table "entries": index of the entry -> its value           table "state": 0 -> the state, 56 bytes
//!
//! byte 0    CRC-32C of nonce, index and the bytes after it    byte 0    CRC-32C of the bytes after it
//! byte 4    kind                                              byte 4    format (1), two bytes
//! byte 5    term                                              byte 6    1: there is a vote
//! byte 13   number of the commit that wrote it                byte 8    nonce of the directory
//! byte 21   payload                                           byte 16   number of the commit that wrote it
//!                                                             byte 24   term
//!                                                             byte 32   vote
//!                                                             byte 40   base: term, index
//! ```
//!
//! A commit that only adds entries leaves the state alone: the number of the last commit is the larger one of the state's and the last
//! entry's.
//!
//! redb has checksums of its own, for pages, and verifies them when a database is opened; what is read later is believed. So entries have
//! theirs, which are verified whenever one is read. The nonce keeps entries of other logs from passing, the index those of other places.

use bytes::Bytes;
use raftkv::{Entry, EntryKind, HardState, Index, LogId, NodeId, Term};
use redb::TableDefinition;

pub(crate) const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
pub(crate) const STATE: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("state");

/// What an entry has in front of its payload.
pub(crate) const ENTRY_HEADER: usize = 21;
const STATE_LEN: usize = 56;
const FORMAT: u16 = 1;
/// The most bytes that redb takes for a key and its value are 3 GiB and some.
pub(crate) const MAX_PAYLOAD: usize = (3 << 30) - 64;

/// No log counts this far: whoever wrote such a number was broken, and nobody could count on from it.
pub(crate) const ABSURD: u64 = 1 << 62;

/// What the checksums of a log's entries start from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Salt(u32);

impl Salt {
    pub(crate) fn new(nonce: u64) -> Self {
        Self(crc32c::crc32c(&nonce.to_le_bytes()))
    }

    fn sum(self, index: u64, rest: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &index.to_le_bytes()), rest)
    }
}

/// Writes the value of an entry to `out`, which is as long as its payload and [`ENTRY_HEADER`] together.
pub(crate) fn encode_entry(out: &mut [u8], entry: &Entry, sequence: u64, salt: Salt) {
    out[4] = entry.kind as u8;
    out[5..13].copy_from_slice(&entry.id.term.0.to_le_bytes());
    out[13..ENTRY_HEADER].copy_from_slice(&sequence.to_le_bytes());
    out[ENTRY_HEADER..].copy_from_slice(&entry.data);
    let sum = salt.sum(entry.id.index.0, &out[4..]);
    out[..4].copy_from_slice(&sum.to_le_bytes());
}

/// What the value of an entry says, verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked<'a> {
    pub(crate) kind: EntryKind,
    pub(crate) term: Term,
    /// The commit that wrote it.
    pub(crate) sequence: u64,
    pub(crate) data: &'a [u8],
}

impl<'a> Checked<'a> {
    pub(crate) fn new(index: u64, value: &'a [u8], salt: Salt) -> Result<Self, &'static str> {
        let (Some((sum, rest)), Some(term), Some(sequence)) =
            (value.split_first_chunk(), number(value, 5), number(value, 13))
        else {
            return Err("the entry is cut off");
        };
        if u32::from_le_bytes(*sum) != salt.sum(index, rest) {
            return Err("the checksum of the entry does not match");
        }
        if term >= ABSURD || sequence >= ABSURD {
            return Err("the entry has absurd numbers");
        }
        let kind = EntryKind::from_u8(value[4]).ok_or("the entry is of a kind that this release does not know")?;
        Ok(Self { kind, term: Term(term), sequence, data: &value[ENTRY_HEADER..] })
    }

    pub(crate) fn entry(&self, index: u64) -> Entry {
        let id = LogId { term: self.term, index: Index(index) };
        Entry { id, kind: self.kind, data: Bytes::copy_from_slice(self.data) }
    }
}

/// Computes the checksum of an entry's value anew, for fuzzing.
#[cfg(feature = "testing")]
pub(crate) fn seal_entry(value: &mut [u8], index: u64, salt: Salt) {
    if let Some((sum, rest)) = value.split_first_chunk_mut() {
        *sum = salt.sum(index, rest).to_le_bytes();
    }
}

/// What the log knows besides its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// The commit that wrote it. They count from 1.
    pub(crate) sequence: u64,
    pub(crate) hard_state: HardState,
    pub(crate) base: LogId,
}

impl State {
    pub(crate) fn encode(&self, nonce: u64) -> [u8; STATE_LEN] {
        let mut out = [0; STATE_LEN];
        out[4..6].copy_from_slice(&FORMAT.to_le_bytes());
        out[6] = u8::from(self.hard_state.voted_for.is_some());
        let numbers = [
            nonce,
            self.sequence,
            self.hard_state.term.0,
            self.hard_state.voted_for.map_or(0, |node| node.0),
            self.base.term.0,
            self.base.index.0,
        ];
        for (at, number) in out[8..].chunks_exact_mut(8).zip(numbers) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        let sum = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the state of the log in the directory with this nonce.
    pub(crate) fn decode(bytes: &[u8], nonce: u64) -> Result<Self, &'static str> {
        let (Some((sum, rest)), true) = (bytes.split_first_chunk(), bytes.len() == STATE_LEN) else {
            return Err("the state of the log is cut off");
        };
        if u32::from_le_bytes(*sum) != crc32c::crc32c(rest) {
            return Err("the checksum of the log's state does not match");
        }
        if bytes[4..6] != FORMAT.to_le_bytes() {
            return Err("the log has a format that this release does not know");
        }
        let at = |n: usize| number(bytes, 8 + 8 * n).unwrap_or_default();
        if at(0) != nonce {
            return Err("it is the database of another directory");
        }
        if [1, 2, 4, 5].into_iter().any(|n| at(n) >= ABSURD) || bytes[6] > 1 {
            return Err("the state of the log has absurd numbers");
        }
        let voted_for = (bytes[6] == 1).then(|| NodeId(at(3)));
        Ok(Self {
            sequence: at(1),
            hard_state: HardState { term: Term(at(2)), voted_for },
            base: LogId::new(at(4), at(5)),
        })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_value_is_noticed() {
        let entry = Entry { id: LogId::new(7, 9), kind: EntryKind::Session, data: Bytes::from_static(b"some bytes") };
        let mut value = vec![0; ENTRY_HEADER + entry.data.len()];
        encode_entry(&mut value, &entry, 4, Salt::new(5));
        let checked = Checked::new(9, &value, Salt::new(5)).unwrap();
        assert_eq!((checked.entry(9), checked.sequence), (entry, 4));
        assert!(Checked::new(8, &value, Salt::new(5)).is_err(), "in another place");
        assert!(Checked::new(9, &value, Salt::new(6)).is_err(), "of another log");
        let hard_state = HardState { term: Term(7), voted_for: Some(NodeId(0)) };
        let state = State { sequence: 3, hard_state, base: LogId::new(1, 2) };
        let bytes = state.encode(5);
        assert_eq!(State::decode(&bytes, 5), Ok(state));
        assert!(State::decode(&bytes, 6).is_err_and(|reason| reason.contains("another directory")));
        for (bytes, decodes) in [
            (value, (&|bytes: &[u8]| Checked::new(9, bytes, Salt::new(5)).is_ok()) as &dyn Fn(&[u8]) -> bool),
            (bytes.to_vec(), &|bytes: &[u8]| State::decode(bytes, 5).is_ok()),
        ] {
            for bit in 0..bytes.len() * 8 {
                let mut bytes = bytes.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!decodes(&bytes), "bit {bit}");
            }
            for len in 0..bytes.len() {
                assert!(!decodes(&bytes[..len]), "cut off at {len}");
            }
        }
    }
}
