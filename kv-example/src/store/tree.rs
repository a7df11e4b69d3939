//! The keys in memory: a persistent map, of which a frozen copy takes constant time.

use std::convert::Infallible;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use imbl::OrdMap;

use super::history::{self, History, Keep};
use super::key::Key;
use super::keys::{Bounds, Compacted, Found, Freed, Keys, KeysMut, Look, Pushed, Scan, Sink, Update};
use super::version::{Meta, Version};

/// What one entry of the map takes in the tree's nodes, with the room that nodes leave free.
pub(super) const NODE_SHARE: u64 = 64;

/// Keys with their histories. A clone is a frozen copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree(pub(super) OrdMap<Key, History>);

/// A key that was begun, and its versions that are yet to come, newest first.
type Cursor = Option<(Key, Vec<Version>)>;

impl Found for &Version {
    fn meta(&self) -> Meta {
        Version::meta(self)
    }

    fn value(&self) -> &[u8] {
        Version::value(self)
    }

    fn value_bytes(&self) -> Bytes {
        Version::value_bytes(self)
    }
}

impl Tree {
    /// How many keys there are, deleted ones that are not yet forgotten included.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Keys for Tree {
    type Name<'a> = &'a Key;
    type Found<'a> = &'a Version;

    fn at(&self, key: &[u8], revision: i64) -> Option<&Version> {
        self.0.get(key).and_then(|history| history.at(revision))
    }

    fn each<'a>(&'a self, bounds: Bounds<'_>, revision: i64, visit: &mut impl FnMut(&'a Key, &'a Version)) {
        let mut visit_alive = |key: &'a Key, history: &'a History| {
            if let Some(version) = history.at(revision).filter(|version| !version.is_tombstone()) {
                visit(key, version);
            }
        };
        match bounds {
            (Bound::Included(one), Bound::Included(same)) if one == same => {
                self.0.get_key_value(one).into_iter().for_each(|(key, history)| visit_alive(key, history));
            }
            bounds => self.0.range::<_, [u8]>(bounds).for_each(|(key, history)| visit_alive(key, history)),
        }
    }
}

impl Scan for Tree {
    type Cursor = Cursor;

    fn walk(&self, cursor: &mut Cursor, compacted: i64, visit: &mut impl FnMut(&[u8], &&Version) -> ControlFlow<()>) {
        if let Some((key, rest)) = cursor {
            while let Some(version) = rest.pop() {
                if visit(key.as_slice(), &&version).is_break() {
                    return;
                }
            }
        }
        let begun = cursor.take();
        let after = begun.as_ref().map_or(Bound::Unbounded, |(key, _)| Bound::Excluded(key.as_slice()));
        for (key, history) in self.0.range::<_, [u8]>((after, Bound::Unbounded)) {
            let versions = history.reachable(compacted);
            let visited = versions.iter().position(|version| visit(key.as_slice(), version).is_break());
            if let Some(last) = visited {
                let rest = versions[last + 1..].iter().rev().map(|version| Version::clone(version)).collect();
                *cursor = Some((key.clone(), rest));
                return;
            }
        }
        // Behind all keys, should anybody ask again.
        *cursor = self.0.get_max().map(|(key, _)| (key.clone(), Vec::new()));
    }

    fn look(&self, after: Option<&Key>, most: usize, revision: i64) -> Look {
        let after = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_slice()));
        let mut look = Look { end: true, ..Look::default() };
        for (seen, (key, history)) in self.0.range::<_, [u8]>((after, Bound::Unbounded)).enumerate() {
            if seen == most {
                look.end = false;
                break;
            }
            look.last = Some(key.clone());
            if history.has_garbage(revision) {
                look.garbage.push(key.clone());
            }
        }
        look
    }
}

impl Sink for Tree {
    fn push(&mut self, key: &[u8], version: Version) -> Pushed {
        let Ok(pushed) = self.update(key, |_| Ok::<_, Infallible>(version));
        pushed
    }
}

impl Update for Tree {
    /// A key that is there is looked for once: to find it is a good part of what a put takes.
    fn update<E>(
        &mut self,
        key: &[u8],
        make: impl FnOnce(Option<&dyn Found>) -> Result<Version, E>,
    ) -> Result<Pushed, E> {
        let Some(history) = self.0.get_mut(key) else {
            let (version, key) = (make(None)?, Key::new(key));
            let added = history::cost(&version) + NODE_SHARE + key.heap_size();
            self.0.insert(key, History::new(version));
            return Ok(Pushed { added, freed: Freed::default(), was_alive: false });
        };
        let newest = history.newest();
        let was_alive = !newest.is_tombstone();
        let version = make(was_alive.then_some(&newest as &dyn Found))?;
        Ok(Pushed { added: history::cost(&version), freed: history.push(version), was_alive })
    }
}

impl KeysMut for Tree {
    fn compact(&mut self, key: &Key, revision: i64) -> Compacted {
        let Some(history) = self.0.get_mut(key) else { return Compacted::default() };
        let (mut freed, keep) = history.compact(revision);
        if keep == Keep::Nothing {
            self.0.remove(key);
            freed.bytes += NODE_SHARE + key.heap_size();
        }
        Compacted { freed, more: false }
    }
}
