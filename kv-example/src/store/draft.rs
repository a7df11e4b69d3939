//! Changes on trial: a transaction runs on a draft first, so that one whose answer turns out too large has changed nothing.
//!
//! What an answer holds is known only when the reads have been made, and these see the changes before them. Changes can't be taken back where they
//! are made, so they are gathered here meanwhile, and looked at together with what is below them.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Store;
use super::key::Key;
use super::keys::{Bounds, Found, Freed, Keys, Pushed, Sink, Update};
use super::version::{Meta, Version};

/// Keys with some changes of one revision, newer than all that they are made to.
#[derive(Debug)]
pub(super) struct Draft<'u, K> {
    under: &'u K,
    changed: BTreeMap<Key, Version>,
}

impl<K> Store<K> {
    /// A store to try changes on, while this one stays as it is.
    pub(super) fn draft(&self) -> Store<Draft<'_, K>> {
        Store::over(Draft { under: &self.keys, changed: BTreeMap::new() }, self.head.clone())
    }
}

impl<K> Draft<'_, K> {
    /// The newest version of each key that was changed.
    pub(super) fn into_changes(self) -> BTreeMap<Key, Version> {
        self.changed
    }
}

/// A key of a draft.
pub(super) enum Name<'a, N> {
    Under(N),
    Changed(&'a Key),
}

impl<N: AsRef<[u8]>> AsRef<[u8]> for Name<'_, N> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Under(name) => name.as_ref(),
            Self::Changed(key) => key.as_slice(),
        }
    }
}

/// A version of a key of a draft.
pub(super) enum Drafted<'a, F> {
    Under(F),
    Changed(&'a Version),
}

impl<F: Found> Found for Drafted<'_, F> {
    fn meta(&self) -> Meta {
        match self {
            Self::Under(found) => found.meta(),
            Self::Changed(version) => version.meta(),
        }
    }

    fn value(&self) -> &[u8] {
        match self {
            Self::Under(found) => found.value(),
            Self::Changed(version) => version.value(),
        }
    }

    fn value_bytes(&self) -> Bytes {
        match self {
            Self::Under(found) => found.value_bytes(),
            Self::Changed(version) => version.value_bytes(),
        }
    }
}

impl<K: Keys> Keys for Draft<'_, K> {
    type Name<'a>
        = Name<'a, K::Name<'a>>
    where
        Self: 'a;
    type Found<'a>
        = Drafted<'a, K::Found<'a>>
    where
        Self: 'a;

    fn at(&self, key: &[u8], revision: i64) -> Option<Self::Found<'_>> {
        match self.changed.get(key).filter(|version| version.modified() <= revision) {
            Some(version) => Some(Drafted::Changed(version)),
            None => self.under.at(key, revision).map(Drafted::Under),
        }
    }

    fn each<'a>(&'a self, bounds: Bounds<'_>, revision: i64, visit: &mut impl FnMut(Self::Name<'a>, Self::Found<'a>)) {
        let changed = self.changed.range::<[u8], _>(bounds);
        let mut changed = changed.filter(|(_, version)| version.modified() <= revision).peekable();
        let show = |visit: &mut dyn FnMut(Self::Name<'a>, Self::Found<'a>), key, version: &'a Version| {
            if !version.is_tombstone() {
                visit(Name::Changed(key), Drafted::Changed(version));
            }
        };
        self.under.each(bounds, revision, &mut |name, found| {
            while let Some((key, version)) = changed.next_if(|(key, _)| key.as_slice() < name.as_ref()) {
                show(visit, key, version);
            }
            match changed.next_if(|(key, _)| key.as_slice() == name.as_ref()) {
                Some((key, version)) => show(visit, key, version),
                None => visit(Name::Under(name), Drafted::Under(found)),
            }
        });
        for (key, version) in changed {
            show(visit, key, version);
        }
    }
}

impl<K> Sink for Draft<'_, K> {
    /// What a draft takes is nobody's business: it is gone soon.
    fn push(&mut self, key: &[u8], version: Version) -> Pushed {
        let was_alive = !version.is_tombstone();
        self.changed.insert(Key::new(key), version);
        Pushed { added: 0, freed: Freed::default(), was_alive }
    }
}

impl<K: Keys> Update for Draft<'_, K> {}
