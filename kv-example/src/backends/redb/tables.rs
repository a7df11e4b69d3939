//! The store's keys in two tables.
//!
//! | table | key | value |
//! |---|---|---|
//! | `newest` | the key | its newest version |
//! | `older` | the key, and a version's revision | that version |
//!
//! What most reads want, and what keys that were written once need, is in `newest` alone. A version is the same bytes as in memory. Keys of which
//! `older` has a version are in `newest` as well.

use std::cell::OnceCell;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use redb::{AccessGuard, ReadableTable, Table};

use crate::store::key::Key;
use crate::store::keys::{Bounds, Compacted, Found, Freed, Keys, KeysMut, Look, Pushed, Scan, Sink, Update};
use crate::store::version::{Meta, Version};

pub(super) type NewestKey = &'static [u8];
pub(super) type OlderKey = (&'static [u8], i64);
pub(super) type Value = &'static [u8];

/// How many versions are dropped in one step, so that a key with a long past holds up nobody.
const DROP: usize = 4096;

/// The first thing that went wrong. From then on nothing is found, and what was decided since counts for nothing.
#[derive(Debug, Default)]
pub(super) struct Failure(OnceCell<redb::StorageError>);

impl Failure {
    fn ok<T>(&self, result: Result<T, redb::StorageError>) -> Option<T> {
        result.map_err(|error| _ = self.0.set(error)).ok()
    }

    fn damage(&self, reason: String) {
        _ = self.0.set(redb::StorageError::Corrupted(reason));
    }

    pub(super) fn happened(&self) -> bool {
        self.0.get().is_some()
    }

    pub(super) fn take(self) -> Result<(), redb::StorageError> {
        self.0.into_inner().map_or(Ok(()), Err)
    }
}

/// Two tables, of one transaction.
pub(super) trait Pair {
    type Newest: ReadableTable<NewestKey, Value>;
    type Older: ReadableTable<OlderKey, Value>;

    fn newest(&self) -> &Self::Newest;
    fn older(&self) -> &Self::Older;
    fn failure(&self) -> &Failure;
}

/// The keys that a pair of tables holds.
#[derive(Debug)]
pub(super) struct Tables<P>(pub(super) P);

/// The tables of a transaction that writes.
pub(super) struct Writing<'t> {
    pub(super) newest: Table<'t, NewestKey, Value>,
    pub(super) older: Table<'t, OlderKey, Value>,
    pub(super) failure: Failure,
}

impl<'t> Pair for Writing<'t> {
    type Newest = Table<'t, NewestKey, Value>;
    type Older = Table<'t, OlderKey, Value>;

    fn newest(&self) -> &Self::Newest {
        &self.newest
    }

    fn older(&self) -> &Self::Older {
        &self.older
    }

    fn failure(&self) -> &Failure {
        &self.failure
    }
}

/// The name of a key: as it was asked for, or as it was found.
pub(super) enum Name<'a> {
    Asked(Key),
    Found(AccessGuard<'a, NewestKey>),
}

impl AsRef<[u8]> for Name<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Asked(key) => key.as_ref(),
            Self::Found(guard) => guard.value(),
        }
    }
}

/// A version, where it lies.
pub(super) struct Stored<'a> {
    guard: AccessGuard<'a, Value>,
    meta: Meta,
    /// Where the value begins.
    at: usize,
}

impl Found for Stored<'_> {
    fn meta(&self) -> Meta {
        self.meta
    }

    fn value(&self) -> &[u8] {
        &self.guard.value()[self.at..]
    }

    fn value_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.value())
    }
}

/// What a version takes, estimated: itself, its key, and what pages need to find it.
pub(super) fn cost(key: &[u8], version: &[u8]) -> u64 {
    (key.len() + version.len() + 16) as u64
}

/// As [`Version::parts`], of bytes that come from a disk.
fn parse(bytes: &[u8]) -> Option<(Meta, usize)> {
    let mut at = 0;
    let mut number = || {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *bytes.get(at)?;
            at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return i64::try_from(number).ok();
            }
        }
        None
    };
    let (modified, back, version) = (number()?, number()?, number()?);
    let created = modified.checked_sub(back)?;
    Some((Meta { modified, created, version }, at))
}

impl<P: Pair> Tables<P> {
    /// What is wrong with a database in which something can't be is told with the key.
    fn damaged(&self, key: &[u8], what: &str) {
        self.0.failure().damage(format!("key \"{}\": {what}", key.escape_ascii()));
    }

    fn ok<T>(&self, result: Result<T, redb::StorageError>) -> Option<T> {
        self.0.failure().ok(result)
    }

    fn stored<'a>(&self, key: &[u8], guard: AccessGuard<'a, Value>) -> Option<Stored<'a>> {
        let Some((meta, at)) = parse(guard.value()) else {
            self.damaged(key, "a version of it can't be read");
            return None;
        };
        Some(Stored { guard, meta, at })
    }

    fn newest_of(&self, key: &[u8]) -> Option<Stored<'_>> {
        if self.0.failure().happened() {
            return None;
        }
        let guard = self.ok(self.0.newest().get(key))??;
        self.stored(key, guard)
    }

    /// The last superseded version of a key from one revision to another, both included.
    fn last_older(&self, key: &[u8], from: i64, upto: i64) -> Option<Stored<'_>> {
        let mut range = self.ok(self.0.older().range::<(&[u8], i64)>((key, from)..=(key, upto)))?;
        let (_, guard) = self.ok(range.next_back()?)?;
        self.stored(key, guard)
    }

    /// Whether a compaction at `revision` leaves something to forget of a key.
    fn has_garbage(&self, key: &[u8], newest: &Stored<'_>, revision: i64) -> bool {
        if newest.meta.modified <= revision {
            return newest.meta.is_tombstone() || self.last_older(key, i64::MIN, i64::MAX).is_some();
        }
        let Some(in_force) = self.last_older(key, i64::MIN, revision) else { return false };
        in_force.meta.is_tombstone() || self.last_older(key, i64::MIN, in_force.meta.modified - 1).is_some()
    }
}

/// A place behind a version of this key and revision.
type Place = Option<(Key, i64)>;

impl<P: Pair> Keys for Tables<P> {
    type Name<'a>
        = Name<'a>
    where
        P: 'a;
    type Found<'a>
        = Stored<'a>
    where
        P: 'a;

    fn at(&self, key: &[u8], revision: i64) -> Option<Stored<'_>> {
        let newest = self.newest_of(key)?;
        if newest.meta.modified <= revision { Some(newest) } else { self.last_older(key, i64::MIN, revision) }
    }

    fn each<'a>(&'a self, bounds: Bounds<'_>, revision: i64, visit: &mut impl FnMut(Name<'a>, Stored<'a>)) {
        if let (Bound::Included(one), Bound::Included(same)) = bounds
            && one == same
        {
            if let Some(version) = self.at(one, revision).filter(|version| !version.meta.is_tombstone()) {
                visit(Name::Asked(Key::new(one)), version);
            }
            return;
        }
        let Some(range) = self.ok(self.0.newest().range::<&[u8]>(bounds)) else { return };
        for entry in range {
            let Some((name, guard)) = self.ok(entry) else { return };
            let Some(newest) = self.stored(name.value(), guard) else { return };
            let version = if newest.meta.modified <= revision {
                Some(newest)
            } else {
                self.last_older(name.value(), i64::MIN, revision)
            };
            if self.0.failure().happened() {
                return;
            }
            if let Some(version) = version.filter(|version| !version.meta.is_tombstone()) {
                visit(Name::Found(name), version);
            }
        }
    }
}

impl<P: Pair> Scan for Tables<P> {
    type Cursor = Place;

    fn walk(&self, cursor: &mut Place, compacted: i64, visit: &mut impl FnMut(&[u8], &Stored<'_>) -> ControlFlow<()>) {
        let begun = cursor.clone();
        if self.merge(begun.as_ref(), compacted, cursor, visit).is_some()
            && let Some(Some((name, _))) = self.ok(self.0.newest().last())
        {
            // Behind all keys, should anybody ask again.
            *cursor = Some((Key::new(name.value()), i64::MAX));
        }
    }

    fn look(&self, after: Option<&Key>, most: usize, revision: i64) -> Look {
        let after = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_ref()));
        let mut look = Look { end: true, ..Look::default() };
        let Some(range) = self.ok(self.0.newest().range::<&[u8]>((after, Bound::Unbounded))) else { return look };
        for (seen, entry) in range.enumerate() {
            if seen == most {
                look.end = false;
                break;
            }
            let Some((name, guard)) = self.ok(entry) else { break };
            let Some(newest) = self.stored(name.value(), guard) else { break };
            let key = Key::new(name.value());
            if self.has_garbage(name.value(), &newest, revision) {
                look.garbage.push(key.clone());
            }
            look.last = Some(key);
        }
        look
    }
}

impl<P: Pair> Tables<P> {
    /// Goes through both tables side by side, from a place on; none if it ended early: the visitor broke off, then `cursor` is behind the last version
    /// visited, or something is wrong.
    fn merge(
        &self,
        begun: Option<&(Key, i64)>,
        compacted: i64,
        cursor: &mut Place,
        visit: &mut impl FnMut(&[u8], &Stored<'_>) -> ControlFlow<()>,
    ) -> Option<()> {
        let mut visit = |key: &[u8], version: &Stored<'_>| -> Option<()> {
            if visit(key, version).is_break() {
                *cursor = Some((Key::new(key), version.meta.modified));
                return None;
            }
            Some(())
        };
        let first = begun.map_or(Bound::Unbounded, |(key, _)| Bound::Included(key.as_ref()));
        let newest = self.ok(self.0.newest().range::<&[u8]>((first, Bound::Unbounded)))?;
        let first = begun.map_or(Bound::Unbounded, |(key, revision)| Bound::Excluded((key.as_ref(), *revision)));
        let mut older = self.ok(self.0.older().range::<(&[u8], i64)>((first, Bound::Unbounded)))?;
        let mut superseded = older.next();
        for entry in newest {
            let (name, guard) = self.ok(entry)?;
            let key = name.value();
            let newest = self.stored(key, guard)?;
            // Of those that the compaction makes unreachable, the last one is in force.
            let mut in_force: Option<Stored<'_>> = None;
            while let Some(next) = superseded.take() {
                let (place, guard) = self.ok(next)?;
                let (of, _) = place.value();
                if of != key {
                    if of < key {
                        return self.0.failure().ok(Err(orphan(of)));
                    }
                    superseded = Some(Ok((place, guard)));
                    break;
                }
                let version = self.stored(key, guard)?;
                if version.meta.modified <= compacted {
                    in_force = Some(version);
                } else {
                    if let Some(in_force) = in_force.take().filter(|version| !version.meta.is_tombstone()) {
                        visit(key, &in_force)?;
                    }
                    visit(key, &version)?;
                }
                superseded = older.next();
            }
            let last = newest.meta.modified <= compacted;
            if let Some(in_force) = in_force.filter(|version| !last && !version.meta.is_tombstone()) {
                visit(key, &in_force)?;
            }
            let seen = begun.is_some_and(|(begun, at)| begun.as_ref() == key && newest.meta.modified <= *at);
            if !(seen || last && newest.meta.is_tombstone()) {
                visit(key, &newest)?;
            }
        }
        if let Some(left) = superseded {
            let (place, _) = self.ok(left)?;
            return self.0.failure().ok(Err(orphan(place.value().0)));
        }
        Some(())
    }
}

fn orphan(key: &[u8]) -> redb::StorageError {
    redb::StorageError::Corrupted(format!("key \"{}\": it has old versions, but no newest one", key.escape_ascii()))
}

impl Writing<'_> {
    fn try_push(&mut self, key: &[u8], version: &Version) -> Result<Pushed, redb::StorageError> {
        let added = cost(key, version.as_bytes());
        let Some(before) = self.newest.insert(key, version.as_bytes())? else {
            return Ok(Pushed { added, freed: Freed::default(), was_alive: false });
        };
        let bytes = before.value();
        let Some((meta, _)) = parse(bytes) else {
            let what = format!("key \"{}\": its newest version can't be read", key.escape_ascii());
            return Err(redb::StorageError::Corrupted(what));
        };
        let was_alive = !meta.is_tombstone();
        if meta.modified == version.modified() {
            return Ok(Pushed { added, freed: Freed { versions: 1, bytes: cost(key, bytes) }, was_alive });
        }
        self.older.insert((key, meta.modified), bytes)?;
        Ok(Pushed { added, freed: Freed::default(), was_alive })
    }
}

impl Sink for Tables<Writing<'_>> {
    fn push(&mut self, key: &[u8], version: Version) -> Pushed {
        let nothing = Pushed { added: 0, freed: Freed::default(), was_alive: true };
        if self.0.failure.happened() {
            return nothing;
        }
        let pushed = self.0.try_push(key, &version);
        self.ok(pushed).unwrap_or(nothing)
    }
}

impl Update for Tables<Writing<'_>> {}

impl KeysMut for Tables<Writing<'_>> {
    fn compact(&mut self, key: &Key, revision: i64) -> Compacted {
        let (name, mut compacted) = (key.as_ref(), Compacted::default());
        let Some(newest) = self.newest_of(name) else { return compacted };
        let (last, dead) = (newest.meta.modified <= revision, newest.meta.is_tombstone());
        drop(newest);
        let upto = if last {
            i64::MAX
        } else {
            match self.last_older(name, i64::MIN, revision) {
                Some(in_force) if in_force.meta.is_tombstone() => in_force.meta.modified,
                Some(in_force) => in_force.meta.modified - 1,
                None => return compacted,
            }
        };
        let dropped = self.0.drop_older(name, upto, &mut compacted);
        if self.ok(dropped).is_none() || compacted.more || !(last && dead) {
            return compacted;
        }
        let removed = self.0.newest.remove(name).map(|guard| guard.map_or(0, |guard| cost(name, guard.value())));
        if let Some(bytes) = self.ok(removed) {
            compacted.freed.versions += 1;
            compacted.freed.bytes += bytes;
        }
        compacted
    }
}

impl Writing<'_> {
    /// Drops superseded versions of a key up to a revision, so many at most.
    fn drop_older(&mut self, key: &[u8], upto: i64, compacted: &mut Compacted) -> Result<(), redb::StorageError> {
        let range = (key, i64::MIN)..=(key, upto);
        let mut dropped = self.older.extract_from_if::<(&[u8], i64), _>(range, |_, _| true)?;
        for entry in dropped.by_ref().take(DROP) {
            let (_, guard) = entry?;
            compacted.freed.versions += 1;
            compacted.freed.bytes += cost(key, guard.value());
        }
        dropped.close()?;
        compacted.more = compacted.freed.versions >= DROP as u64;
        Ok(())
    }
}
