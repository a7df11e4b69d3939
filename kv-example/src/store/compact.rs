//! Forgetting, and the checksum over what is left.

use std::ops::Bound;

use super::key::Key;
use super::{Refusal, Store};

/// Where a sweep through the keys has got to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sweep {
    /// The compaction that it carries out.
    revision: i64,
    /// The last key seen.
    last: Option<Key>,
}

/// One step of a sweep: what the keys seen have to forget.
pub(crate) struct Slice {
    pub(crate) sweep: Sweep,
    garbage: Vec<Key>,
    end: bool,
}

/// A checksum over the versions of a store, to compare nodes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// CRC-32C over all keys and versions that can be read.
    pub crc: u32,
    /// The newest revision that it covers.
    pub revision: i64,
    /// The compaction in force.
    pub compacted: i64,
}

impl Store {
    /// Whether a compaction has left something to drop.
    pub(crate) fn needs_sweep(&self) -> bool {
        self.swept < self.compacted
    }

    /// The compaction whose garbage is gone.
    pub(crate) fn swept(&self) -> i64 {
        self.swept
    }

    /// Starts a sweep for the compaction in force.
    pub(crate) fn start_sweep(&self) -> Sweep {
        Sweep { revision: self.compacted, last: None }
    }

    /// Looks through up to `keys` more keys for what can be dropped. Changes nothing, so that readers can go on.
    pub(crate) fn look(&self, sweep: &Sweep, keys: usize) -> Slice {
        let after = sweep.last.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_slice()));
        let mut slice = Slice { sweep: sweep.clone(), garbage: Vec::new(), end: true };
        for (seen, (key, history)) in self.keys.range::<_, [u8]>((after, Bound::Unbounded)).enumerate() {
            if seen == keys {
                slice.end = false;
                break;
            }
            slice.sweep.last = Some(key.clone());
            if history.has_garbage(sweep.revision) {
                slice.garbage.push(key.clone());
            }
        }
        slice
    }

    /// Drops what [`Store::look`] found. True at the end of the sweep.
    pub(crate) fn drop_garbage(&mut self, slice: &Slice) -> bool {
        // An image may have replaced the store since.
        let revision = slice.sweep.revision.min(self.compacted);
        for key in &slice.garbage {
            self.compact_key(key, revision);
        }
        if slice.end {
            self.swept = self.swept.max(revision);
        }
        slice.end
    }

    /// A checksum over all that can be read at `revision` or before; 0 means the newest. Nodes with the same history, and the
    /// same compaction, have the same checksum, whatever they have really dropped yet.
    ///
    /// # Errors
    /// The revision is compacted, or in the future.
    pub fn checksum(&self, revision: i64) -> Result<Checksum, Refusal> {
        if revision > 0 && revision <= self.compacted {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        let revision = if revision <= 0 { self.revision } else { revision };
        let mut crc = 0;
        for (key, history) in &self.keys {
            for version in history.reachable(self.compacted) {
                let meta = version.meta();
                if meta.modified > revision {
                    break;
                }
                let lengths = [key.as_slice().len() as i64, version.value().len() as i64];
                for number in [lengths[0], lengths[1], meta.modified, meta.created, meta.version] {
                    crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
                }
                crc = crc32c::crc32c_append(crc, key.as_slice());
                crc = crc32c::crc32c_append(crc, version.value());
            }
        }
        Ok(Checksum { crc, revision, compacted: self.compacted })
    }
}
