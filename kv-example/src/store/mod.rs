//! A multi-version ordered map: what etcd calls its store.
//!
//! Each change makes a new *revision* of the whole store, and the versions before it stay readable until a compaction.
//! Where the versions are kept is the matter of an engine, below a seam; the rules are the same over each.
//!
//! In memory the map is persistent: `Store::freeze` takes constant time, whatever the size, and the frozen copy shares all that
//! has not changed since. Long reads and images work on frozen copies, while writes go on.
//!
//! | file | what it holds |
//! |---|---|
//! | `key.rs`, `version.rs` | the bytes: keys, versions |
//! | `keys.rs` | the seam: what the rules need of an engine |
//! | `tree.rs`, `history.rs` | the engine in memory: the map, the versions of a key |
//! | `check.rs` | which requests are refused before they enter the log |
//! | `range.rs`, `best.rs` | reads |
//! | `write.rs`, `txn.rs`, `draft.rs` | changes, some of them on trial first |
//! | `compact.rs` | forgetting, and the checksum over what is left |
//! | `members.rs` | what members know of each other |
//! | `auth/` | users, roles, and who may do what |
//! | `image.rs` | the store as a stream of bytes, and back |

pub(crate) mod auth;
mod best;
mod check;
mod compact;
mod draft;
mod history;
mod image;
pub(crate) mod key;
pub(crate) mod keys;
mod members;
mod range;
mod refusal;
mod tree;
mod txn;
pub(crate) mod version;
mod write;

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod model_auth;
#[cfg(test)]
pub(crate) mod model_room;

use std::ops::Bound;
use std::sync::Arc;

pub use auth::Auth;
pub use check::{Limits, check_delete, check_put, check_range, check_txn, is_read_only, is_serializable};
pub(crate) use check::{MAX_DEPTH, most_keys, most_keys_of_txn};
pub use compact::Checksum;
pub(crate) use compact::Sweep;
#[cfg(feature = "testing")]
pub(crate) use image::ImageError;
#[cfg(feature = "testing")]
pub(crate) use image::seal_record;
pub(crate) use image::{Image, Loader};
pub(crate) use keys::KeysMut;
pub use members::{MemberInfo, Members};
pub(crate) use range::Room;
pub use refusal::Refusal;
pub(crate) use tree::Tree;
pub(crate) use txn::{Reads, read_of_delete, read_of_put, reads_of};
pub(crate) use write::Writer;

use keys::{Bounds, Found, Freed, Pushed, Sink, Update};
use version::Version;

/// The store: the rules, over an engine that keeps the keys.
#[derive(Clone, Debug)]
pub(crate) struct Store<K = Tree> {
    pub(crate) keys: K,
    pub(crate) head: Head,
}

/// What a store is beside its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The newest revision.
    pub(crate) revision: i64,
    /// The revision of the last compaction; -1 before the first, as in etcd.
    pub(crate) compacted: i64,
    /// Up to where what compaction made unreachable has really been dropped.
    pub(crate) swept: i64,
    pub(crate) stats: Stats,
    pub(crate) members: Members,
    /// Shared, since each read looks at it.
    pub(crate) auth: Arc<Auth>,
}

/// Sizes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys that exist.
    pub live: u64,
    /// Versions kept, deletions included.
    pub versions: u64,
    /// What keys and versions take, in memory or wherever they are kept, in bytes, estimated.
    pub bytes: u64,
}

impl Default for Head {
    /// As in etcd an empty store's revision is 1, so that 0 can mean "the newest".
    fn default() -> Self {
        Self {
            revision: 1,
            compacted: NEVER_COMPACTED,
            swept: NEVER_COMPACTED,
            stats: Stats::default(),
            members: Members::default(),
            auth: Arc::default(),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store in memory.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::over(Tree::default(), Head::default())
    }

    /// A copy that no later change touches. Takes constant time.
    #[must_use]
    pub(crate) fn freeze(&self) -> Self {
        self.clone()
    }

    /// How many keys the map holds, deleted ones that are not yet forgotten included.
    pub(crate) fn slots(&self) -> usize {
        self.keys.len()
    }
}

impl<K> Store<K> {
    /// The store that these are.
    pub(crate) fn over(keys: K, head: Head) -> Self {
        Self { keys, head }
    }

    /// What it is beside its keys.
    #[must_use]
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }
}

impl<K: Sink> Store<K> {
    /// Adds a version to a key.
    fn push(&mut self, key: &[u8], version: Version) {
        let alive = !version.is_tombstone();
        let pushed = self.keys.push(key, version);
        self.count(alive, pushed);
    }

    /// Counts a version that was added.
    fn count(&mut self, alive: bool, Pushed { added, freed, was_alive }: Pushed) {
        let stats = &mut self.head.stats;
        stats.versions += 1;
        stats.bytes += added;
        stats.live = stats.live + u64::from(alive) - u64::from(was_alive);
        self.forget(freed);
    }

    fn forget(&mut self, freed: Freed) {
        self.head.stats.versions -= freed.versions;
        self.head.stats.bytes -= freed.bytes;
    }
}

impl<K: Update> Store<K> {
    /// Gives a key the value that `make` makes of what it had, unless it refuses.
    fn put(
        &mut self,
        key: &[u8],
        make: impl FnOnce(Option<&dyn Found>) -> Result<Version, Refusal>,
    ) -> Result<(), Refusal> {
        let pushed = self.keys.update(key, make)?;
        self.count(true, pushed);
        Ok(())
    }
}

/// As in etcd: revision 0 can be compacted, once, to no effect.
const NEVER_COMPACTED: i64 = -1;

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

    fn contains(self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Between(first, end) => first <= key && key < end,
            Self::From(first) => first <= key,
        }
    }
}
