//! Requests as ready-made gRPC frames, in which only the key's digits change.

use std::ops::Range;

use bytes::Bytes;
use prost::Message;

use crate::api::etcdserverpb::request_op::Request;
use crate::api::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};

/// Pseudo-random numbers (SplitMix64): fast, seeded, and good enough to spread keys.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of many sequences from a seed. They begin far apart: from neighbouring states they would be one sequence, each a step behind the other.
    pub(super) fn nth(seed: u64, n: u64) -> Self {
        Self(Self(Self(seed).next() ^ n).next())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(limit);
        (wide >> 64) as u64
    }

    /// True with this probability.
    pub(super) fn chance(&mut self, share: f64) -> bool {
        ((self.next() >> 11) as f64) < share * (1u64 << 53) as f64
    }
}

/// A value that does not compress.
pub(super) fn value(size: usize, seed: u64) -> Bytes {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

/// A frame with a gap for the number of the key.
#[derive(Clone, Debug)]
pub(super) struct Template {
    frame: Vec<u8>,
    digits: Range<usize>,
}

impl Template {
    pub(super) fn put(prefix: &str, keys: u64, value: Bytes) -> Self {
        let key = first_key(prefix, keys);
        let message = PutRequest { key: key.clone(), value, ..PutRequest::default() };
        Self::new(&message.encode_to_vec(), &key, prefix)
    }

    pub(super) fn get(prefix: &str, keys: u64, serializable: bool) -> Self {
        let key = first_key(prefix, keys);
        let message = RangeRequest { key: key.clone(), serializable, ..RangeRequest::default() };
        Self::new(&message.encode_to_vec(), &key, prefix)
    }

    fn new(message: &[u8], key: &[u8], prefix: &str) -> Self {
        let frame = frame(message);
        // The key is the first field of both messages: a tag, its length as a varint, its bytes.
        let length_of_length = prost::length_delimiter_len(key.len());
        let start = FRAME_HEAD + 1 + length_of_length + prefix.len();
        Self { frame, digits: start..start + key.len() - prefix.len() }
    }

    /// The frame for this key.
    pub(super) fn frame(&mut self, mut key: u64) -> Bytes {
        for digit in self.frame[self.digits.clone()].iter_mut().rev() {
            *digit = b'0' + (key % 10) as u8;
            key /= 10;
        }
        Bytes::copy_from_slice(&self.frame)
    }
}

/// Length of what gRPC puts before each message: a flag and four bytes of length.
pub(super) const FRAME_HEAD: usize = 5;

/// A message with gRPC's head before it.
pub(super) fn frame(message: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEAD + message.len());
    frame.push(0);
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(message);
    frame
}

fn first_key(prefix: &str, keys: u64) -> Bytes {
    key(prefix, keys, 0)
}

/// The name of a key, of so many: as long as every other.
fn key(prefix: &str, keys: u64, key: u64) -> Bytes {
    let width = keys.saturating_sub(1).max(1).ilog10() as usize + 1;
    format!("{prefix}{key:0width$}").into()
}

/// A frame with the transaction that writes these of so many keys.
pub(super) fn puts(prefix: &str, keys: u64, some: Range<u64>, value: &Bytes) -> Vec<u8> {
    let put = |n| {
        let put = PutRequest { key: key(prefix, keys, n), value: value.clone(), ..PutRequest::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    };
    let transaction = TxnRequest { success: some.map(put).collect(), ..TxnRequest::default() };
    frame(&transaction.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_yields_the_request_for_each_key() {
        for prefix in ["", "bench/", &"long".repeat(100)] {
            let mut template = Template::put(prefix, 1000, value(256, 1));
            for key in [0, 7, 999] {
                let frame = template.frame(key);
                let put = PutRequest::decode(&frame[FRAME_HEAD..]).unwrap();
                assert_eq!(put.key, format!("{prefix}{key:03}"));
                assert_eq!(put.value, value(256, 1));
                assert_eq!(frame[..FRAME_HEAD], [&[0][..], &(frame.len() as u32 - 5).to_be_bytes()].concat());
            }
            let mut template = Template::get(prefix, 1001, true);
            let get = RangeRequest::decode(&template.frame(1000)[FRAME_HEAD..]).unwrap();
            assert_eq!((get.key, get.serializable), (format!("{prefix}1000").into(), true));
        }
    }

    #[test]
    fn a_transaction_writes_the_keys_that_are_read_later() {
        let mut template = Template::get("bench/", 1000, false);
        let transaction = TxnRequest::decode(&puts("bench/", 1000, 8..11, &value(16, 1))[FRAME_HEAD..]).unwrap();
        assert!(transaction.compare.is_empty() && transaction.failure.is_empty());
        assert_eq!(transaction.success.len(), 3);
        for (operation, n) in transaction.success.iter().zip(8..) {
            let get = RangeRequest::decode(&template.frame(n)[FRAME_HEAD..]).unwrap();
            let put = PutRequest { key: get.key, value: value(16, 1), ..PutRequest::default() };
            assert_eq!(operation.request, Some(Request::RequestPut(put)));
        }
    }

    #[test]
    fn clients_do_not_follow_each_other_from_key_to_key() {
        let mut clients: Vec<_> = (0..64).map(|n| Random::nth(1, n)).collect();
        let keys: std::collections::HashSet<_> =
            (0..500).flat_map(|_| clients.iter_mut().map(|client| client.below(1 << 40)).collect::<Vec<_>>()).collect();
        assert!(keys.len() > 31_990, "32000 picks are of {} keys", keys.len());
    }

    #[test]
    fn random_numbers_spread() {
        let mut random = Random::new(1);
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[random.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
        let hits = (0..10_000).filter(|_| random.chance(0.9)).count();
        assert!((8800..9200).contains(&hits), "{hits}");
        assert!(!random.chance(0.0) && random.chance(1.0));
    }
}
