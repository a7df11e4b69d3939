//! The seam below the rules: what they need of whatever keeps the keys.
//!
//! The rules (`range.rs`, `write.rs`, `txn.rs`, `compact.rs`, `image.rs`) are written once, over these traits. [`Tree`](super::Tree) keeps the keys
//! in memory; other engines keep them elsewhere.
//!
//! None of the methods can fail, for in memory none can. An engine that can fail remembers its first failure, finds nothing more and changes
//! nothing more from then on, and whoever runs a request on it asks for the failure before the answer counts for anything.

use std::fmt;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use super::key::Key;
use super::version::{Meta, Version};

pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A version that was found.
pub(crate) trait Found {
    /// What it says, apart from the value.
    fn meta(&self) -> Meta;

    /// The value, to be looked at.
    fn value(&self) -> &[u8];

    /// The value, for an answer.
    fn value_bytes(&self) -> Bytes;
}

/// Reads.
pub(crate) trait Keys {
    /// A key that was found.
    type Name<'a>: AsRef<[u8]>
    where
        Self: 'a;
    /// A version that was found.
    type Found<'a>: Found
    where
        Self: 'a;
    /// The version of a key that is in force at `revision`; a tombstone counts as one.
    fn at(&self, key: &[u8], revision: i64) -> Option<Self::Found<'_>>;

    /// Visits the keys within the bounds, in order, each with the version in force at `revision`, if that is no tombstone.
    fn each<'a>(&'a self, bounds: Bounds<'_>, revision: i64, visit: &mut impl FnMut(Self::Name<'a>, Self::Found<'a>));
}

/// Going through all that is kept, for checksums, images and sweeps.
pub(crate) trait Scan: Keys {
    /// A place between two versions, to go on from.
    type Cursor: Default + fmt::Debug + Send;

    /// Visits all versions that a compaction at `compacted` leaves, by key and then oldest first, from the cursor on. The visitor may break off;
    /// the cursor is behind the last version visited then.
    fn walk(
        &self,
        cursor: &mut Self::Cursor,
        compacted: i64,
        visit: &mut impl FnMut(&[u8], &Self::Found<'_>) -> ControlFlow<()>,
    );

    /// Looks through up to `most` keys behind `after` for what a compaction at `revision` leaves to forget.
    fn look(&self, after: Option<&Key>, most: usize, revision: i64) -> Look;
}

/// Takes versions.
pub(crate) trait Sink {
    /// Adds a version to a key, newer than the others; one of the same revision takes the place of the other.
    fn push(&mut self, key: &[u8], version: Version) -> Pushed;
}

/// Takes versions that depend on what is there.
pub(crate) trait Update: Keys + Sink {
    /// Adds the version that `make` makes of the newest one, a tombstone not counted, unless it refuses.
    fn update<E>(
        &mut self,
        key: &[u8],
        make: impl FnOnce(Option<&dyn Found>) -> Result<Version, E>,
    ) -> Result<Pushed, E> {
        let newest = self.at(key, i64::MAX).filter(|version| !version.meta().is_tombstone());
        let version = make(newest.as_ref().map(|version| version as &dyn Found))?;
        drop(newest);
        Ok(self.push(key, version))
    }
}

/// Changes.
pub(crate) trait KeysMut: Scan + Update {
    /// Forgets of a key what a compaction at `revision` makes unreachable, or a part of it if that is much.
    fn compact(&mut self, key: &Key, revision: i64) -> Compacted;
}

/// What came of a new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// What the version takes, in bytes.
    pub(crate) added: u64,
    /// The one whose place it took.
    pub(crate) freed: Freed,
    /// Whether the key existed.
    pub(crate) was_alive: bool,
}

/// What was forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Freed {
    pub(crate) versions: u64,
    pub(crate) bytes: u64,
}

/// What a compaction did to a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compacted {
    pub(crate) freed: Freed,
    /// Whether there is more to forget.
    pub(crate) more: bool,
}

/// What was seen of some keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// Those that have something to forget.
    pub(crate) garbage: Vec<Key>,
    /// The last one seen; none if there were none.
    pub(crate) last: Option<Key>,
    /// Whether there are no others behind it.
    pub(crate) end: bool,
}
