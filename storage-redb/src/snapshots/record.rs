//! What the database of images holds. Numbers are little-endian.
//!
//! ```text
//! table "state": 0 -> which image there is          table "image": 0 -> its bytes
//!
//! byte 0    CRC-32C of the bytes after it
//! byte 4    format (1), two bytes
//! byte 6    1: there is an image
//! byte 8    nonce of the directory
//! byte 16   number of the commit
//! byte 24   of the image: id; last entry: term, index; entry of its configuration: term, index;
//!           length; CRC-32C of all its bytes
//! byte 80   its configuration
//! ```

use raftkv::{LogId, Membership, Published, SnapshotId, SnapshotMeta};
use redb::TableDefinition;

pub(crate) const STATE: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("state");
pub(crate) const IMAGE: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("image");

const HEADER: usize = 80;
const FORMAT: u16 = 1;

/// Which image the database holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Counts commits, from 1.
    pub(crate) sequence: u64,
    pub(crate) image: Option<Published>,
}

impl State {
    pub(crate) fn encode(&self, nonce: u64) -> Vec<u8> {
        let mut numbers = [nonce, self.sequence, 0, 0, 0, 0, 0, 0, 0];
        let mut membership = Vec::new();
        if let Some(Published { meta, len, checksum }) = &self.image {
            let (last, at) = (meta.last, meta.membership_at);
            let of_image = [meta.id.0, last.term.0, last.index.0, at.term.0, at.index.0, *len, u64::from(*checksum)];
            numbers[2..].copy_from_slice(&of_image);
            membership = meta.membership.encode().to_vec();
        }
        let mut out = vec![0; 8];
        out[4..6].copy_from_slice(&FORMAT.to_le_bytes());
        out[6] = u8::from(self.image.is_some());
        numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out.extend_from_slice(&membership);
        let sum = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the state of the images in the directory with this nonce.
    pub(crate) fn decode(bytes: &[u8], nonce: u64) -> Result<Self, String> {
        let (Some((sum, rest)), Some(header)) = (bytes.split_first_chunk(), bytes.get(..HEADER)) else {
            return Err("the state of the images is cut off".into());
        };
        if u32::from_le_bytes(*sum) != crc32c::crc32c(rest) {
            return Err("the checksum of the images' state does not match".into());
        }
        if header[4..6] != FORMAT.to_le_bytes() {
            return Err("the images have a format that this release does not know".into());
        }
        let at = |n: usize| {
            let bytes = header.get(8 + 8 * n..16 + 8 * n).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        if at(0) != nonce {
            return Err("it is the database of another directory".into());
        }
        let image = if header[6] == 1 {
            let membership = &bytes[HEADER..];
            let membership = match Membership::decode(membership) {
                // An image of a log without a configuration has none either.
                Err(_) if membership.is_empty() => Membership::default(),
                decoded => decoded.map_err(|reason| format!("the image's membership can't be read: {reason}"))?,
            };
            let (last, membership_at) = (LogId::new(at(3), at(4)), LogId::new(at(5), at(6)));
            let meta = SnapshotMeta { id: SnapshotId(at(2)), last, membership, membership_at };
            let checksum = u32::try_from(at(8)).map_err(|_| "the image's checksum is absurd")?;
            Some(Published { meta, len: at(7), checksum })
        } else {
            None
        };
        Ok(Self { sequence: at(1), image })
    }
}

#[cfg(test)]
mod tests {
    use raftkv::Peer;

    use super::*;

    #[test]
    fn every_flipped_bit_of_the_state_is_noticed() {
        let membership = Membership::new([Peer::new(1, "a:1"), Peer::new(2, "b:2")]);
        let meta =
            SnapshotMeta { id: SnapshotId(9), last: LogId::new(3, 8), membership, membership_at: LogId::new(1, 2) };
        let state = State { sequence: 4, image: Some(Published { meta, len: 100, checksum: 77 }) };
        let bytes = state.encode(5);
        assert_eq!(State::decode(&bytes, 5), Ok(state));
        assert_eq!(State::decode(&State::default().encode(5), 5), Ok(State::default()));
        assert!(State::decode(&bytes, 6).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(State::decode(&bytes, 5).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(State::decode(&bytes[..len], 5).is_err(), "cut off at {len}");
        }
    }
}
