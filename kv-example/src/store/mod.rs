//! A multi-version ordered map in memory.
//!
//! Each change makes a new *revision* of the whole store, and the versions before it stay readable until a compaction.
//! The map is persistent: [`Store::freeze`] takes constant time, whatever the size, and the frozen copy shares all that
//! has not changed since. Long reads and images work on frozen copies, while writes go on.
//!
//! | file | what it holds |
//! |---|---|
//! | `key.rs`, `version.rs`, `history.rs` | the bytes: keys, versions, the versions of a key |
//! | `check.rs` | which requests are refused before they enter the log |
//! | `range.rs` | reads |
//! | `write.rs`, `txn.rs` | changes |
//! | `compact.rs` | forgetting, and the checksum over what is left |
//! | `members.rs` | what members know of each other |
//! | `image.rs` | the store as a stream of bytes, and back |

mod check;
mod compact;
mod history;
mod image;
mod key;
mod members;
mod range;
mod refusal;
mod txn;
mod version;
mod write;

#[cfg(test)]
mod model;

use std::ops::Bound;

use imbl::OrdMap;

pub use check::{Limits, check_delete, check_put, check_range, check_txn, is_read_only, is_serializable};
pub use compact::Checksum;
pub(crate) use compact::Sweep;
#[cfg(feature = "testing")]
pub(crate) use image::seal_record;
pub use image::{Image, ImageError, Loader};
pub use members::{MemberInfo, Members};
pub use refusal::Refusal;
pub(crate) use write::Writer;

use history::{Freed, History, Keep};
use key::Key;
use version::Version;

/// What one entry of the map takes in the tree's nodes, with the room that nodes leave free.
const NODE_SHARE: u64 = 64;

/// The store. A clone is a frozen copy.
#[derive(Clone, Debug)]
pub struct Store {
    keys: OrdMap<Key, History>,
    revision: i64,
    compacted: i64,
    /// Up to where what compaction made unreachable has really been dropped.
    swept: i64,
    stats: Stats,
    members: Members,
}

/// Sizes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys that exist.
    pub live: u64,
    /// Versions kept, deletions included.
    pub versions: u64,
    /// The memory that keys and versions take, in bytes, estimated.
    pub bytes: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store. As in etcd its revision is 1, so that 0 can mean "the newest".
    #[must_use]
    pub fn new() -> Self {
        Self {
            keys: OrdMap::new(),
            revision: 1,
            compacted: NEVER_COMPACTED,
            swept: NEVER_COMPACTED,
            stats: Stats::default(),
            members: Members::default(),
        }
    }

    /// A copy that no later change touches. Takes constant time.
    #[must_use]
    pub fn freeze(&self) -> Self {
        self.clone()
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The revision of the last compaction; -1 before the first, as in etcd.
    #[must_use]
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Its sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// How many keys the map holds, deleted ones that are not yet forgotten included.
    pub(crate) fn slots(&self) -> usize {
        self.keys.len()
    }

    /// Adds a version to a key.
    fn push(&mut self, key: &[u8], version: Version) {
        let (bytes, alive) = (history::cost(&version), !version.is_tombstone());
        self.stats.versions += 1;
        self.stats.bytes += bytes;
        match self.keys.get_mut(key) {
            Some(history) => {
                let was_alive = !history.newest().is_tombstone();
                let freed = history.push(version);
                self.stats.live = self.stats.live + u64::from(alive) - u64::from(was_alive);
                self.forget(freed);
            }
            None => {
                let key = Key::new(key);
                self.stats.bytes += NODE_SHARE + key.heap_size();
                self.stats.live += u64::from(alive);
                self.keys.insert(key, History::new(version));
            }
        }
    }

    fn forget(&mut self, freed: Freed) {
        self.stats.versions -= freed.versions;
        self.stats.bytes -= freed.bytes;
    }

    /// Compacts one key's history at `revision`.
    fn compact_key(&mut self, key: &Key, revision: i64) {
        let Some(history) = self.keys.get_mut(key) else { return };
        let (freed, keep) = history.compact(revision);
        if keep == Keep::Nothing {
            self.keys.remove(key);
            self.stats.bytes -= NODE_SHARE + key.heap_size();
        }
        self.forget(freed);
    }
}

/// As in etcd: revision 0 can be compacted, once, to no effect.
const NEVER_COMPACTED: i64 = -1;

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys that a request means, by etcd's rules: an empty end means the key alone, and a single zero byte means all keys
/// from the first on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span<'a> {
    /// One key.
    One(&'a [u8]),
    /// Keys from the first, up to the second, which is not included.
    Between(&'a [u8], &'a [u8]),
    /// All keys from this one on.
    From(&'a [u8]),
}

impl<'a> Span<'a> {
    pub(crate) fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::One(key),
            [0] => Self::From(key),
            end => Self::Between(key, end),
        }
    }

    /// The bounds for the map; none when no key can be meant.
    fn bounds(self) -> Option<Bounds<'a>> {
        match self {
            Self::One(key) => Some((Bound::Included(key), Bound::Included(key))),
            Self::Between(key, end) => (key < end).then_some((Bound::Included(key), Bound::Excluded(end))),
            Self::From(key) => Some((Bound::Included(key), Bound::Unbounded)),
        }
    }

    #[cfg(test)]
    fn contains(self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Between(first, end) => first <= key && key < end,
            Self::From(first) => first <= key,
        }
    }
}
