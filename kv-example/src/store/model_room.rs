//! Room for answers: each engine is asked for some.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::keys::{Bounds, Found, Keys};
use super::model::{Change, change};
use super::version::Meta;
use super::*;
use crate::api::etcdserverpb::range_request::SortTarget;
use crate::api::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};

/// Room is asked for while keys are gathered, so that what there is no room for is not.
pub(crate) fn room_is_asked_for_before_an_answer_is_made(
    range: impl Fn(&RangeRequest, Room) -> Result<RangeResponse, Refusal>,
) {
    let (one, all) = (64 + 4 + 10_000, 200 * (64 + 4 + 10_000));
    let asked = Arc::new(AtomicUsize::new(0));
    let room = |most: usize, there: usize| {
        let asked = asked.clone();
        asked.store(0, Ordering::Relaxed);
        Room::held(most, move |bytes| asked.fetch_add(bytes, Ordering::Relaxed) + bytes <= there)
    };
    let everything = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let sorted = RangeRequest { sort_target: SortTarget::Value.into(), ..everything.clone() };
    for request in [&everything, &sorted] {
        assert_eq!(range(request, room(all, all)).unwrap().kvs.len(), 200);
        assert_eq!(asked.load(Ordering::Relaxed), all);
        assert_eq!(range(request, room(all, 20 * one)), Err(Refusal::AnswerTooLarge));
        assert!(asked.load(Ordering::Relaxed) <= 30 * one, "{} bytes were asked for", asked.load(Ordering::Relaxed));
        assert_eq!(range(request, room(all - 1, all)), Err(Refusal::AnswerTooLarge));
        // No more than what is given back.
        let some = RangeRequest { limit: 10, ..request.clone() };
        let answer = range(&some, room(10 * one, 10 * one)).unwrap();
        assert_eq!((answer.kvs.len(), answer.more, answer.count), (10, true, 200));
        assert_eq!(asked.load(Ordering::Relaxed), 10 * one);
        assert_eq!(range(&some, room(10 * one - 1, all)), Err(Refusal::AnswerTooLarge));
    }
    let keys = RangeRequest { keys_only: true, ..everything };
    assert_eq!(range(&keys, room(all, all)).unwrap().kvs.len(), 200);
    assert_eq!(asked.load(Ordering::Relaxed), 200 * (64 + 4));
}

/// What it is asked of: values that take more than room is asked for at a time.
pub(crate) fn many_large() -> Vec<Change> {
    let put = |n| {
        let (key, value) = (format!("k{n:03}").into(), vec![7; 10_000].into());
        Change::Put(PutRequest { key, value, ..Default::default() })
    };
    (0..200).map(put).collect()
}

#[test]
fn room_is_asked_for_in_memory() {
    let mut store = Store::new();
    change(&mut store, &many_large());
    room_is_asked_for_before_an_answer_is_made(|request, room| store.range(request, room));
}

/// Keys of which each that is found holds something, as long as it is kept.
struct Pinning {
    tree: Tree,
    pins: Rc<Pins>,
}

#[derive(Default)]
struct Pins {
    held: Cell<usize>,
    most: Cell<usize>,
}

struct Pinned<F> {
    found: F,
    pins: Rc<Pins>,
}

impl<F> Drop for Pinned<F> {
    fn drop(&mut self) {
        self.pins.held.update(|held| held - 1);
    }
}

impl<F: Found> Found for Pinned<F> {
    fn meta(&self) -> Meta {
        self.found.meta()
    }

    fn value(&self) -> &[u8] {
        self.found.value()
    }

    fn value_bytes(&self) -> Bytes {
        self.found.value_bytes()
    }
}

impl Pinning {
    fn pin<F>(&self, found: F) -> Pinned<F> {
        self.pins.held.update(|held| held + 1);
        self.pins.most.set(self.pins.most.get().max(self.pins.held.get()));
        Pinned { found, pins: self.pins.clone() }
    }
}

impl Keys for Pinning {
    type Name<'a> = <Tree as Keys>::Name<'a>;
    type Found<'a> = Pinned<<Tree as Keys>::Found<'a>>;

    fn at(&self, key: &[u8], revision: i64) -> Option<Self::Found<'_>> {
        self.tree.at(key, revision).map(|found| self.pin(found))
    }

    fn each<'a>(&'a self, bounds: Bounds<'_>, revision: i64, visit: &mut impl FnMut(Self::Name<'a>, Self::Found<'a>)) {
        self.tree.each(bounds, revision, &mut |name, found| visit(name, self.pin(found)));
    }
}

/// 600 keys with values of a few kinds, some of which differ behind their first hundred bytes, and written in another order than their own.
fn pinning() -> Store<Pinning> {
    let mut store = Store::new();
    for n in 0..1000_usize {
        let key = format!("k{:03}", n * 577 % 600).into();
        let value = [vec![b'v'; n % 2 * 100], vec![b'a' + (n * 7 % 5) as u8; n % 3]].concat().into();
        change(&mut store, &[Change::Put(PutRequest { key, value, ..Default::default() })]);
    }
    Store::over(Pinning { tree: store.keys, pins: Rc::default() }, store.head)
}

/// All ways to sort with an order, with and without values and filters.
fn sorted_reads() -> impl Iterator<Item = RangeRequest> {
    let everything = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    (0..5 * 2 * 2 * 2).map(move |way| RangeRequest {
        sort_target: way / 8,
        sort_order: 1 + way / 4 % 2,
        keys_only: way / 2 % 2 == 1,
        max_mod_revision: i64::from(way % 2) * 950,
        ..everything.clone()
    })
}

#[test]
fn a_limit_leaves_the_first_of_what_is_sorted() {
    let store = pinning();
    for all in sorted_reads() {
        let whole = store.range(&all, usize::MAX).unwrap();
        let there = whole.kvs.len();
        assert!((500..=600).contains(&there) && !whole.more);
        for limit in [1, 2, 63, 64, 65, 300, there - 1, there, there + 1] {
            let some = RangeRequest { limit: limit as i64, ..all.clone() };
            let answer = store.range(&some, usize::MAX).unwrap();
            assert!(answer.kvs == whole.kvs[..limit.min(there)], "{some:?}");
            assert_eq!((answer.more, answer.count), (limit < there, 600), "{some:?}");
        }
    }
}

/// Who sorts all by their values and wants their names alone gets them in the same order.
#[test]
fn names_alone_are_sorted_by_values_too() {
    let store = pinning();
    let names = |answer: RangeResponse| answer.kvs.into_iter().map(|kv| kv.key).collect::<Vec<_>>();
    for names_alone in sorted_reads().filter(|read| read.keys_only) {
        let with_values = RangeRequest { keys_only: false, ..names_alone.clone() };
        let [names_alone, with_values] = [names_alone, with_values].map(|read| store.range(&read, usize::MAX).unwrap());
        assert_eq!(names(names_alone), names(with_values));
    }
}

/// A database of many times the memory could not be read otherwise, be it sorted, or measured for a deletion that gives back what it deletes.
#[test]
fn nothing_that_is_found_is_kept_where_it_was_found() {
    let store = pinning();
    let unsorted = sorted_reads().map(|read| RangeRequest { sort_order: 0, sort_target: 0, ..read });
    for read in sorted_reads()
        .chain(unsorted)
        .flat_map(|read| [0, 1, 10, 700].map(|limit| RangeRequest { limit, ..read.clone() }))
    {
        let answer = store.range(&read, usize::MAX).unwrap();
        let bytes: usize = answer.kvs.iter().map(|kv| 64 + kv.key.len() + kv.value.len()).sum();
        assert_eq!(store.answer_bytes(std::slice::from_ref(&read), bytes), Ok(bytes), "{read:?}");
        assert_eq!(
            store.answer_bytes(std::slice::from_ref(&read), bytes - 1),
            Err(Refusal::AnswerTooLarge),
            "{read:?}"
        );
        // Two where values are compared, beside the one that is being visited.
        let most = store.keys.pins.most.replace(0);
        assert!((1..=3).contains(&most), "{most} were held at once by {read:?}");
        assert_eq!(store.keys.pins.held.get(), 0);
    }
}

/// What is kept of keys until it is known which of them are given back takes room as well, and no more of them are kept than there may be in an answer.
#[test]
fn room_is_asked_for_what_is_kept_on_the_way() {
    let mut store = Store::new();
    for n in 0..2000 {
        let (key, value) = (format!("k{n:03}").into(), vec![n as u8; 100].into());
        change(&mut store, &[Change::Put(PutRequest { key, value, ..Default::default() })]);
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let room = |there: usize| {
        let asked = asked.clone();
        asked.store(0, Ordering::Relaxed);
        Room::held(usize::MAX, move |bytes| asked.fetch_add(bytes, Ordering::Relaxed) + bytes <= there)
    };
    for read in sorted_reads().filter(|read| read.sort_target == i32::from(SortTarget::Value) && read.keys_only) {
        let read = RangeRequest { limit: 1900, max_mod_revision: 0, ..read };
        let answer = store.range(&read, room(usize::MAX)).unwrap();
        let bytes: usize = answer.kvs.iter().map(|kv| 64 + kv.key.len()).sum();
        // Heads of values are kept, and not given back.
        assert!(asked.load(Ordering::Relaxed) > bytes, "{} for {bytes}", asked.load(Ordering::Relaxed));
        assert_eq!(store.range(&read, room(bytes)), Err(Refusal::AnswerTooLarge));
        assert_eq!(store.range(&read, 1900 * 64 - 1), Err(Refusal::AnswerTooLarge));
        assert!(store.range(&read, bytes).is_ok());
    }
}
