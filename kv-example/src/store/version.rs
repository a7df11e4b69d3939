//! One version of a key, in one allocation.

use std::sync::Arc;

use bytes::Bytes;

/// Values above this are handed out by reference; copying a shorter one costs less than counting references to it.
const SHARE_ABOVE: usize = 1024;
/// Three numbers of at most ten bytes each.
const MAX_HEAD: usize = 30;

/// What a version says about its key, apart from the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The revision of this version.
    pub(crate) modified: i64,
    /// The revision at which the key came to exist.
    pub(crate) created: i64,
    /// How many versions the key has had since; 0 for a deletion.
    pub(crate) version: i64,
}

impl Meta {
    pub(crate) fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}

/// One version: three variable-length numbers, then the value, in one shared allocation. Old versions are kept until a
/// compaction, so what a version takes beyond its value is most of what the store takes beyond its data.
#[derive(Clone, Debug)]
pub(crate) struct Version(Arc<[u8]>);

impl Version {
    pub(crate) fn new(meta: Meta, value: &[u8]) -> Self {
        let mut head = [0; MAX_HEAD];
        let mut len = 0;
        for number in [meta.modified, meta.modified - meta.created, meta.version] {
            write_number(&mut head, &mut len, number as u64);
        }
        Self(join(&head[..len], value))
    }

    pub(crate) fn tombstone(modified: i64) -> Self {
        Self::new(Meta { modified, created: modified, version: 0 }, &[])
    }

    /// All of it, as it may be kept elsewhere.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn modified(&self) -> i64 {
        read_number(&self.0, &mut 0) as i64
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.meta().is_tombstone()
    }

    pub(crate) fn meta(&self) -> Meta {
        self.parts().0
    }

    pub(crate) fn value(&self) -> &[u8] {
        let (_, at) = self.parts();
        &self.0[at..]
    }

    /// The value for an answer: a copy of a short one, a reference to a long one.
    pub(crate) fn value_bytes(&self) -> Bytes {
        let (_, at) = self.parts();
        if self.0.len() - at <= SHARE_ABOVE {
            Bytes::copy_from_slice(&self.as_bytes()[at..])
        } else {
            Bytes::from_owner(Arc::clone(&self.0)).slice(at..)
        }
    }

    /// What the version takes, estimated.
    pub(crate) fn heap_size(&self) -> u64 {
        allocation(self.0.len())
    }

    fn parts(&self) -> (Meta, usize) {
        let mut at = 0;
        let modified = read_number(&self.0, &mut at) as i64;
        let created = modified - read_number(&self.0, &mut at) as i64;
        let version = read_number(&self.0, &mut at) as i64;
        (Meta { modified, created, version }, at)
    }
}

/// What `Arc<[u8]>` of this length takes: two counters, the bytes, and the allocator's own word, rounded up.
pub(crate) fn allocation(len: usize) -> u64 {
    ((16 + len + 8).next_multiple_of(16)) as u64
}

fn join(head: &[u8], value: &[u8]) -> Arc<[u8]> {
    const SMALL: usize = 512;
    let len = head.len() + value.len();
    if len <= SMALL {
        let mut both = [0; SMALL];
        both[..head.len()].copy_from_slice(head);
        both[head.len()..len].copy_from_slice(value);
        return Arc::from(&both[..len]);
    }
    // Where it is to stay, and nowhere else before: large values are most of what a node copies.
    let mut both: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
    if let Some(room) = Arc::get_mut(&mut both) {
        room[..head.len()].copy_from_slice(head);
        room[head.len()..].copy_from_slice(value);
    }
    both
}

fn write_number(out: &mut [u8; MAX_HEAD], at: &mut usize, mut number: u64) {
    while number >= 0x80 {
        out[*at] = (number as u8) | 0x80;
        *at += 1;
        number >>= 7;
    }
    out[*at] = number as u8;
    *at += 1;
}

fn read_number(bytes: &[u8], at: &mut usize) -> u64 {
    let mut number = 0;
    let mut shift = 0;
    loop {
        let byte = bytes[*at];
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return number;
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_keeps_what_it_was_given() {
        for value in [&b""[..], b"v", &[3; 511], &[4; 5000]] {
            for (modified, created, version) in [(2, 2, 1), (i64::MAX, 1, i64::MAX), (1 << 40, 1 << 39, 300)] {
                let meta = Meta { modified, created, version };
                let one = Version::new(meta, value);
                assert_eq!(one.meta(), meta);
                assert_eq!(one.modified(), modified);
                assert_eq!(one.value(), value);
                assert_eq!(one.value_bytes(), value);
                assert!(!one.is_tombstone());
            }
        }
        assert!(Version::tombstone(9).is_tombstone());
        assert_eq!(Version::tombstone(9).modified(), 9);
    }
}
