//! A table from numbers to numbers that holds tens of millions: 16 bytes a slot, and no order that differs from run to run.

/// Open addressing with linear probing. The keys are hashes, so that their low bits are as good as any.
#[derive(Debug)]
pub(super) struct Table {
    /// Key and value; key 0 is a free slot.
    slots: Vec<(u64, u64)>,
    len: usize,
}

/// Spreads all bits of a number over all bits of the result, one to one.
pub(super) fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl Table {
    pub(super) fn new() -> Self {
        Self { slots: vec![(0, 0); 1 << 10], len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The slot of a key, or the free one where it belongs.
    fn slot(slots: &[(u64, u64)], key: u64) -> usize {
        let mask = slots.len() - 1;
        let mut at = usize::try_from(key & mask as u64).unwrap_or_default();
        while slots[at].0 != key && slots[at].0 != 0 {
            at = (at + 1) & mask;
        }
        at
    }

    pub(super) fn get(&self, key: u64) -> Option<u64> {
        let key = key.max(1);
        let (found, value) = self.slots[Self::slot(&self.slots, key)];
        (found == key).then_some(value)
    }

    /// Adds a key, unless it is there. Tells whether it is new.
    pub(super) fn insert(&mut self, key: u64, value: u64) -> bool {
        let key = key.max(1);
        let at = Self::slot(&self.slots, key);
        if self.slots[at].0 == key {
            return false;
        }
        self.slots[at] = (key, value);
        self.len += 1;
        if self.len > self.slots.len() / 8 * 7 {
            self.grow();
        }
        true
    }

    fn grow(&mut self) {
        let mut slots = vec![(0, 0); self.slots.len() * 2];
        for (key, value) in self.slots.iter().filter(|(key, _)| *key != 0) {
            let at = Self::slot(&slots, *key);
            slots[at] = (*key, *value);
        }
        self.slots = slots;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_keeps_what_came_first_and_grows() {
        let mut table = Table::new();
        for n in 0..10_000 {
            assert!(table.insert(mix(n), n));
            assert!(!table.insert(mix(n), 7));
        }
        assert_eq!(table.len(), 10_000);
        assert!((0..10_000).all(|n| table.get(mix(n)) == Some(n)));
        assert_eq!(table.get(mix(10_000)), None);
    }
}
