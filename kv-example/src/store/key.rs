//! Keys, short ones without an allocation of their own.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

const INLINE: usize = 22;

/// A key of the map. Most keys are short: up to 22 bytes lie in the tree's own nodes, which saves an allocation and a
/// cache miss at each comparison on the way down.
#[derive(Clone)]
pub(crate) struct Key(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE] },
    Heap(Arc<[u8]>),
}

impl Key {
    pub(crate) fn new(key: &[u8]) -> Self {
        let mut bytes = [0; INLINE];
        match bytes.get_mut(..key.len()) {
            Some(room) => {
                room.copy_from_slice(key);
                // At most 22, so it fits.
                Self(Repr::Inline { len: key.len() as u8, bytes })
            }
            None => Self(Repr::Heap(Arc::from(key))),
        }
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Heap(bytes) => bytes,
        }
    }

    /// What the key takes outside of the tree's nodes, estimated.
    pub(crate) fn heap_size(&self) -> u64 {
        match &self.0 {
            Repr::Inline { .. } => 0,
            Repr::Heap(bytes) => super::version::allocation(bytes.len()),
        }
    }
}

impl AsRef<[u8]> for Key {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Borrow<[u8]> for Key {
    #[inline]
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_slice().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_keys_keep_their_bytes_and_their_order() {
        let keys: Vec<Vec<u8>> = (0..=2 * INLINE).map(|len| vec![7; len]).collect();
        for pair in keys.windows(2) {
            assert_eq!(Key::new(&pair[0]).as_slice(), pair[0]);
            assert!(Key::new(&pair[0]) < Key::new(&pair[1]));
        }
        assert!(Key::new(&[9; 1]) > Key::new(&[7; 40]));
    }

    #[test]
    fn a_key_takes_three_words() {
        assert_eq!(size_of::<Key>(), 24);
    }
}
