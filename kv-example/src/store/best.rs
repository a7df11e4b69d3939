//! The first of many keys in another order than their own, while no more of them is kept than that takes.
//!
//! Whatever is found may hold a page of a database, and of a sorted read all has to be looked at. So what is kept of a key is its name and what it is sorted
//! by, of those that may still be given back and some more; they are looked up again in the end.

use std::cmp::Ordering;

use super::key::Key;
use super::keys::{Found, Keys};
use super::range::{KV_OVERHEAD, Room, STEP};
use super::{Refusal, Store};
use crate::api::etcdserverpb::range_request::{SortOrder, SortTarget};

/// How much of a value is kept. Values that begin with the same are looked up to be compared.
const HEAD: usize = 64;
/// How many are gathered beyond the limit, at least, before they are sorted and cut.
const SPARE: usize = 64;

/// A key that may be given back.
pub(super) struct Ranked {
    pub(super) key: Key,
    rank: Rank,
}

/// What a key is sorted by.
enum Rank {
    /// Its own name.
    Key,
    Number(i64),
    /// So much of its value.
    Head(Box<[u8]>),
}

impl Ranked {
    fn new(key: &[u8], version: &impl Found, target: SortTarget) -> Self {
        let meta = version.meta();
        let rank = match target {
            SortTarget::Key => Rank::Key,
            SortTarget::Version => Rank::Number(meta.version),
            SortTarget::Create => Rank::Number(meta.created),
            SortTarget::Mod => Rank::Number(meta.modified),
            SortTarget::Value => Rank::Head(version.value().iter().copied().take(HEAD).collect()),
        };
        Self { key: Key::new(key), rank }
    }

    /// What it takes, estimated.
    fn bytes(&self) -> usize {
        let head = match &self.rank {
            Rank::Key | Rank::Number(_) => 0,
            Rank::Head(head) => head.len(),
        };
        // A key that is in memory.
        size_of::<Self>() + self.key.heap_size() as usize + head
    }
}

/// The first of those that were offered.
pub(super) struct Best<'s, K> {
    store: &'s Store<K>,
    revision: i64,
    sort: (SortTarget, SortOrder),
    limit: usize,
    /// In order up to the limit if it was cut, and then as they came.
    kept: Vec<Ranked>,
    /// Whether some were cut off already: what does not come before the last of those that were left is not kept.
    cut: bool,
    bytes: usize,
    asked: usize,
}

impl<'s, K: Keys> Best<'s, K> {
    /// The first `limit` of what `store` held at `revision`.
    pub(super) fn new(store: &'s Store<K>, revision: i64, sort: (SortTarget, SortOrder), limit: usize) -> Self {
        Self { store, revision, sort, limit: limit.max(1), kept: Vec::new(), cut: false, bytes: 0, asked: 0 }
    }

    /// Keeps a key if it may be one of them. They are offered in the order of the keys.
    ///
    /// # Errors
    /// There is no room for so many.
    pub(super) fn offer(&mut self, key: &[u8], version: &impl Found, room: &mut Room) -> Result<(), Refusal> {
        let new = Ranked::new(key, version, self.sort.0);
        let last = if self.cut { self.kept.get(self.limit - 1) } else { None };
        // Equals stay in the order of their keys, so this one comes behind.
        if last.is_some_and(|last| self.compare(&new, Some(version.value()), last) != Ordering::Less) {
            return Ok(());
        }
        self.bytes += new.bytes();
        self.kept.push(new);
        // So many of them will be given back, whichever they are.
        room.check(self.kept.len().min(self.limit).saturating_mul(KV_OVERHEAD))?;
        if self.bytes >= self.asked + STEP {
            room.ask_ahead(self.bytes - self.asked)?;
            self.asked = self.bytes;
        }
        if self.kept.len() >= self.limit.saturating_add(SPARE.max(self.limit / 4)) {
            self.cut();
        }
        Ok(())
    }

    /// Those that were the first, in order.
    pub(super) fn into_ranked(mut self) -> Vec<Ranked> {
        self.cut();
        self.kept
    }

    fn cut(&mut self) {
        let mut kept = std::mem::take(&mut self.kept);
        // Stable: what came later has the greater key.
        kept.sort_by(|a, b| self.compare(a, None, b));
        self.cut |= kept.len() > self.limit;
        kept.truncate(self.limit);
        self.bytes = kept.iter().map(Ranked::bytes).sum();
        self.kept = kept;
    }

    /// Which comes first; `value` is that of `a`, if it is at hand.
    fn compare(&self, a: &Ranked, value: Option<&[u8]>, b: &Ranked) -> Ordering {
        let ascending = match (&a.rank, &b.rank) {
            (Rank::Number(a), Rank::Number(b)) => a.cmp(b),
            (Rank::Head(head), Rank::Head(other)) => match head.cmp(other) {
                Ordering::Equal if head.len() == HEAD => self.compare_values(a, value, b),
                // The shorter one is all of its value.
                different @ (Ordering::Less | Ordering::Equal | Ordering::Greater) => different,
            },
            // All of a read are sorted by the same.
            (Rank::Key | Rank::Number(_) | Rank::Head(_), _) => a.key.cmp(&b.key),
        };
        match self.sort.1 {
            SortOrder::Descend => ascending.reverse(),
            SortOrder::None | SortOrder::Ascend => ascending,
        }
    }

    fn compare_values(&self, a: &Ranked, value: Option<&[u8]>, b: &Ranked) -> Ordering {
        let b = self.store.get_at(b.key.as_slice(), self.revision);
        let b = b.as_ref().map(Found::value);
        match value {
            Some(value) => Some(value).cmp(&b),
            None => self.store.get_at(a.key.as_slice(), self.revision).as_ref().map(Found::value).cmp(&b),
        }
    }
}
