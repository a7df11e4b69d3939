//! Room for answers: each engine is asked for some.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::model::{Change, change};
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
