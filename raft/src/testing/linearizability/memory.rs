//! What the search remembers: states, sets of used open calls, and situations it was in.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::plan::NONE;

/// A set of slots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bits {
    /// Of at most 64 slots.
    Few(u64),
    /// Of more.
    Many(Box<[u64]>),
}

impl Bits {
    pub(super) fn new(slots: usize) -> Self {
        if slots <= 64 { Self::Few(0) } else { Self::Many(vec![0; slots.div_ceil(64)].into()) }
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        match self {
            Self::Few(word) => word & (1 << slot) != 0,
            Self::Many(words) => words[slot / 64] & (1 << (slot % 64)) != 0,
        }
    }

    pub(super) fn flip(&mut self, slot: usize) {
        match self {
            Self::Few(word) => *word ^= 1 << slot,
            Self::Many(words) => words[slot / 64] ^= 1 << (slot % 64),
        }
    }
}

/// Every state that was met, once, by number.
pub(super) struct States<S> {
    states: Vec<S>,
    /// By hash; one whose place is taken has the next free place.
    numbers: BTreeMap<u64, usize>,
}

impl<S: Eq + Hash> States<S> {
    pub(super) fn new() -> Self {
        Self { states: Vec::new(), numbers: BTreeMap::new() }
    }

    pub(super) fn get(&self, number: usize) -> &S {
        &self.states[number]
    }

    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    pub(super) fn number(&mut self, state: S) -> usize {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        let mut place = hasher.finish();
        while let Some(number) = self.numbers.get(&place) {
            if self.states[*number] == state {
                return *number;
            }
            place = place.wrapping_add(1);
        }
        self.numbers.insert(place, self.states.len());
        self.states.push(state);
        self.states.len() - 1
    }
}

/// What open calls do to states: for each class the state that it leads to from most states, and for each state the exceptions. A
/// blind write has none, and then states are compared at no cost.
#[derive(Default)]
pub(super) struct Rows {
    usual: Vec<usize>,
    rows: Vec<Row>,
    exceptions: usize,
}

#[derive(Default)]
struct Row {
    /// How many classes are known: the first ones.
    known: usize,
    /// Class and state after it, by class.
    exceptions: Vec<(usize, usize)>,
}

impl Row {
    fn exception(&self, class: usize) -> Option<usize> {
        let at = self.exceptions.binary_search_by_key(&class, |(class, _)| *class).ok()?;
        Some(self.exceptions[at].1)
    }
}

impl Rows {
    /// How many classes are known of this state.
    pub(super) fn known(&self, state: usize) -> usize {
        self.rows.get(state).map_or(0, |row| row.known)
    }

    /// Adds the first class of this state that is not known.
    pub(super) fn add(&mut self, state: usize, class: usize, after: usize) {
        if self.rows.len() <= state {
            self.rows.resize_with(state + 1, Row::default);
        }
        if self.usual.len() == class {
            self.usual.push(after);
        }
        let row = &mut self.rows[state];
        if self.usual[class] != after {
            row.exceptions.push((class, after));
            self.exceptions += 1;
        }
        row.known = class + 1;
    }

    /// The state after a call of this class, if it is known.
    pub(super) fn get(&self, state: usize, class: usize) -> Option<usize> {
        let row = self.rows.get(state).filter(|row| class < row.known)?;
        Some(row.exception(class).unwrap_or(self.usual[class]))
    }

    /// The classes, of the first `all`, that lead to other states from one than from the other; all are known of both.
    pub(super) fn different(&self, one: usize, other: usize, all: usize) -> Vec<usize> {
        let exceptions = [one, other].into_iter().flat_map(|state| &self.rows[state].exceptions);
        let mut classes: Vec<_> = exceptions.map(|(class, _)| *class).filter(|class| *class < all).collect();
        classes.sort_unstable();
        classes.dedup();
        classes.retain(|class| self.get(one, *class) != self.get(other, *class));
        classes
    }

    pub(super) fn exceptions(&self) -> usize {
        self.exceptions
    }
}

/// Multisets of classes of open calls. Each is another one and one class more, so that what two have in common is stored once.
pub(super) struct Uses(Vec<Use>);

#[derive(Clone, Copy)]
struct Use {
    class: usize,
    rest: usize,
    len: usize,
}

/// The empty multiset.
pub(super) const NO_USES: usize = 0;

impl Uses {
    pub(super) fn new() -> Self {
        Self(vec![Use { class: NONE, rest: NO_USES, len: 0 }])
    }

    pub(super) fn with(&mut self, rest: usize, class: usize) -> usize {
        let len = self.0[rest].len + 1;
        self.0.push(Use { class, rest, len });
        self.0.len() - 1
    }

    /// Nobody kept this one, which was made last.
    pub(super) fn forget(&mut self, uses: usize) {
        if uses + 1 == self.0.len() {
            self.0.pop();
        }
    }

    /// The classes that `uses` has more than `base`, of which it was made, the last one first.
    pub(super) fn since(&self, base: usize, uses: usize) -> impl Iterator<Item = usize> {
        let chain = std::iter::successors(Some(uses), |at| Some(self.0[*at].rest));
        chain.take_while(move |at| *at != base).map(|at| self.0[at].class)
    }

    /// Whether all of `a` is in `b`.
    fn within(&self, mut a: usize, mut b: usize) -> bool {
        if self.0[a].len > self.0[b].len {
            return false;
        }
        // What both have in common at their roots is in both: only the rest must be compared.
        let (mut only_a, mut only_b) = (Vec::new(), Vec::new());
        while a != b {
            if self.0[b].len >= self.0[a].len {
                only_b.push(self.0[b].class);
                b = self.0[b].rest;
            } else {
                only_a.push(self.0[a].class);
                a = self.0[a].rest;
            }
        }
        only_a.sort_unstable();
        only_b.sort_unstable();
        let mut there = only_b.into_iter();
        only_a.into_iter().all(|class| there.any(|other| other == class))
    }
}

/// The situations that were met.
pub(super) struct Visited {
    /// By place in the history, state, and the placed ones of those under way: the last entry.
    last: BTreeMap<(usize, usize, Bits), usize>,
    entries: Vec<Entry>,
    /// How many of them were compared with new ones: with many open calls that is most of the work.
    compared: u64,
}

struct Entry {
    uses: usize,
    depth: usize,
    before: usize,
}

impl Visited {
    pub(super) fn new() -> Self {
        Self { last: BTreeMap::new(), entries: Vec::new(), compared: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn compared(&self) -> u64 {
        self.compared
    }

    /// Takes a situation in, unless one was met that is as good: at the same place with the same state, and with no
    /// open call used up and no step of the frame gone that this one has left.
    pub(super) fn admit(
        &mut self,
        at: usize,
        state: usize,
        bits: &Bits,
        (uses, depth): (usize, usize),
        all: &Uses,
    ) -> bool {
        let last = self.last.entry((at, state, bits.clone())).or_insert(NONE);
        let mut entry = *last;
        while entry != NONE {
            self.compared += 1;
            let Entry { uses: earlier, depth: earlier_depth, before } = self.entries[entry];
            if earlier_depth <= depth && all.within(earlier, uses) {
                return false;
            }
            entry = before;
        }
        self.entries.push(Entry { uses, depth, before: *last });
        *last = self.entries.len() - 1;
        true
    }
}
