//! Forgetting, and the checksum over what is left.

use std::ops::ControlFlow;

use super::key::Key;
use super::keys::{Compacted, Found, KeysMut, Look, Scan};
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
    /// The compaction that is carried out.
    revision: i64,
    look: Look,
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

impl<K: Scan> Store<K> {
    /// Whether a compaction has left something to drop.
    pub(crate) fn needs_sweep(&self) -> bool {
        self.head.swept < self.head.compacted
    }

    /// Starts a sweep for the compaction in force.
    pub(crate) fn start_sweep(&self) -> Sweep {
        Sweep { revision: self.head.compacted, last: None }
    }

    /// Looks through up to `keys` more keys for what can be dropped. Changes nothing, so that readers can go on.
    pub(crate) fn look(&self, sweep: &Sweep, keys: usize) -> Slice {
        Slice { revision: sweep.revision, look: self.keys.look(sweep.last.as_ref(), keys, sweep.revision) }
    }

    /// A checksum over all that can be read at `revision` or before; 0 means the newest. Nodes with the same history, and the
    /// same compaction, have the same checksum, whatever they have really dropped yet.
    ///
    /// # Errors
    /// The revision is compacted, or in the future.
    pub(crate) fn checksum(&self, revision: i64) -> Result<Checksum, Refusal> {
        let compacted = self.head.compacted;
        if revision > 0 && revision <= compacted {
            return Err(Refusal::Compacted);
        }
        if revision > self.head.revision {
            return Err(Refusal::FutureRevision);
        }
        let revision = if revision <= 0 { self.head.revision } else { revision };
        let mut crc = 0;
        self.keys.walk(&mut K::Cursor::default(), compacted, &mut |key, version| {
            let (meta, value) = (version.meta(), version.value());
            if meta.modified > revision {
                return ControlFlow::Continue(());
            }
            for number in [key.len() as i64, value.len() as i64, meta.modified, meta.created, meta.version] {
                crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
            }
            crc = crc32c::crc32c_append(crc, key);
            crc = crc32c::crc32c_append(crc, value);
            ControlFlow::Continue(())
        });
        Ok(Checksum { crc, revision, compacted })
    }
}

impl<K: KeysMut> Store<K> {
    /// Drops what [`Store::look`] found, looking from `sweep` on. Where to look next; none at the end of the sweep.
    pub(crate) fn drop_garbage(&mut self, sweep: &Sweep, slice: Slice) -> Option<Sweep> {
        // An image may have replaced the store since.
        let revision = slice.revision.min(self.head.compacted);
        let mut again = false;
        for key in &slice.look.garbage {
            let Compacted { freed, more } = self.keys.compact(key, revision);
            self.forget(freed);
            again |= more;
        }
        if again {
            return Some(sweep.clone());
        }
        if slice.look.end {
            self.head.swept = self.head.swept.max(revision);
            return None;
        }
        Some(Sweep { revision: sweep.revision, last: slice.look.last })
    }
}
