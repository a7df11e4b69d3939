//! The store against a naive model: a full copy of the map for each revision. Each engine makes a [`Subject`] of itself.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::prelude::*;

use super::key::Key;
use super::keys::{Found, Scan};
use super::model_auth::{self, Users};
use super::version::Meta;
use super::*;
use crate::api::command::{Author, auth_change};
use crate::api::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, ResponseHeader,
};
use crate::api::mvccpb::KeyValue;

type Map = BTreeMap<Vec<u8>, KeyValue>;

/// A store under test.
pub(crate) trait Subject {
    /// An empty one.
    fn new() -> Self;

    /// All that can be read is what the model says.
    fn compare(&self, model: &Model);

    fn read(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal>;

    /// Reads as somebody.
    fn read_as(&self, author: Option<&Author>, request: &RangeRequest) -> Result<RangeResponse, Refusal>;

    fn change_auth(&mut self, change: &auth_change::Change) -> Result<(), Refusal>;

    /// Makes changes of one revision.
    fn change(&mut self, changes: &[Change]);

    fn compact(&mut self, revision: i64) -> Result<(), Refusal>;

    /// Sweeps this many slices of this many keys.
    fn sweep(&mut self, slices: usize, keys: usize);

    /// A view that no later change touches, to be compared later.
    fn freeze(&self) -> Box<dyn Fn(&Model)>;

    /// Goes on with what an image of it loads, taken in pieces of this many bytes.
    fn reload(&mut self, chunk: usize);
}

/// All states, by revision; the first two are empty.
#[derive(Clone)]
pub(crate) struct Model {
    states: Vec<Map>,
    compacted: i64,
    users: Users,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Changes of one revision.
    Change(Vec<Change>),
    Compact(i64),
    /// Sweeps this many slices of this many keys.
    Sweep(usize, usize),
    Read(RangeRequest),
    /// Reads as a user, by a token that was looked at so many revisions of the users ago.
    ReadAs((String, u64), RangeRequest),
    /// Changes users and roles.
    Auth(Vec<auth_change::Change>),
    /// Freezes the store, to be looked at in the end.
    Freeze,
    /// Writes an image and goes on with what it loads.
    Reload(usize),
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
}

impl Model {
    fn new() -> Self {
        Self { states: vec![Map::new(); 2], compacted: -1, users: Users::new() }
    }

    fn revision(&self) -> i64 {
        self.states.len() as i64 - 1
    }

    fn change(&mut self, changes: &[Change]) {
        let mut map = self.states[self.states.len() - 1].clone();
        let revision = self.revision() + 1;
        let mut changed = false;
        for change in changes {
            match change {
                Change::Put(put) => {
                    let before = map.get(&put.key[..]);
                    if before.is_none() && put.ignore_value {
                        continue;
                    }
                    let kv = KeyValue {
                        key: put.key.clone(),
                        create_revision: before.map_or(revision, |kv| kv.create_revision),
                        mod_revision: revision,
                        version: before.map_or(1, |kv| kv.version + 1),
                        value: before.filter(|_| put.ignore_value).map_or(put.value.clone(), |kv| kv.value.clone()),
                        lease: 0,
                    };
                    map.insert(put.key.to_vec(), kv);
                    changed = true;
                }
                Change::Delete(delete) => {
                    let span = Span::new(&delete.key, &delete.range_end);
                    let before = map.len();
                    map.retain(|key, _| !span.contains(key));
                    changed |= map.len() != before;
                }
            }
        }
        if changed {
            self.states.push(map);
        }
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        let revision = if request.revision <= 0 { self.revision() } else { request.revision };
        if revision > self.revision() {
            return Err(Refusal::FutureRevision);
        }
        if revision < self.compacted {
            return Err(Refusal::Compacted);
        }
        let span = Span::new(&request.key, &request.range_end);
        let all: Vec<&KeyValue> = self.states[revision as usize].values().filter(|kv| span.contains(&kv.key)).collect();
        let count = all.len() as i64;
        let mut kvs: Vec<KeyValue> = all
            .into_iter()
            .filter(|kv| request.min_mod_revision == 0 || kv.mod_revision >= request.min_mod_revision)
            .filter(|kv| request.max_mod_revision == 0 || kv.mod_revision <= request.max_mod_revision)
            .filter(|kv| request.min_create_revision == 0 || kv.create_revision >= request.min_create_revision)
            .filter(|kv| request.max_create_revision == 0 || kv.create_revision <= request.max_create_revision)
            .filter(|_| !request.count_only)
            .cloned()
            .collect();
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        if request.sort_order() == SortOrder::None && filters == [0; 4] && request.limit > 0 {
            kvs.truncate(request.limit as usize + 1);
        }
        match request.sort_target() {
            SortTarget::Key => {}
            SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
            SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => kvs.sort_by_key(|kv| kv.value.clone()),
        }
        if request.sort_order() == SortOrder::Descend {
            // Equals keep the order of their keys, also downwards.
            kvs.reverse();
            let rank = |kv: &KeyValue| match request.sort_target() {
                SortTarget::Key => kv.key.to_vec(),
                SortTarget::Version => kv.version.to_be_bytes().to_vec(),
                SortTarget::Create => kv.create_revision.to_be_bytes().to_vec(),
                SortTarget::Mod => kv.mod_revision.to_be_bytes().to_vec(),
                SortTarget::Value => kv.value.to_vec(),
            };
            kvs.chunk_by_mut(|a, b| rank(a) == rank(b)).for_each(<[KeyValue]>::reverse);
        }
        let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        let header = Some(ResponseHeader { revision: self.revision(), ..Default::default() });
        Ok(RangeResponse { header, kvs, more, count })
    }
}

fn everything(revision: i64) -> RangeRequest {
    RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() }
}

/// All that can be read from the store is what the model says; `cost` tells what a key's versions count, given whether it is the key's first.
pub(crate) fn compare<K: Scan>(store: &Store<K>, model: &Model, cost: impl Fn(&[u8], &Version, bool) -> u64) {
    let Head { revision, compacted, stats, auth, .. } = store.head();
    model.users.compare(auth);
    assert_eq!((*revision, *compacted), (model.revision(), model.compacted));
    for revision in 1..=model.revision() + 1 {
        let request = everything(revision);
        assert_eq!(store.range(&request, usize::MAX), model.range(&request));
    }
    let live = model.states[model.revision() as usize].len();
    let (mut versions, mut bytes, mut last) = (0, 0, None);
    store.keys.walk(&mut K::Cursor::default(), i64::MIN, &mut |key, version| {
        let first = last.as_ref().is_none_or(|last: &Vec<u8>| last != key);
        versions += 1;
        bytes += cost(key, &Version::new(version.meta(), version.value()), first);
        last = Some(key.to_vec());
        ControlFlow::Continue(())
    });
    assert_eq!(*stats, Stats { live: live as u64, versions, bytes });
}

/// What a walk visits when it is broken off and taken up again after each version.
pub(crate) fn step_by_step<K: Scan>(store: &Store<K>) -> Vec<(Vec<u8>, Meta, Vec<u8>)> {
    let (mut cursor, mut seen) = (K::Cursor::default(), Vec::new());
    loop {
        let before = seen.len();
        store.keys.walk(&mut cursor, store.head.compacted, &mut |key, version| {
            seen.push((key.to_vec(), version.meta(), version.value().to_vec()));
            ControlFlow::Break(())
        });
        if seen.len() == before {
            return seen;
        }
    }
}

pub(crate) fn in_one_go<K: Scan>(store: &Store<K>) -> Vec<(Vec<u8>, Meta, Vec<u8>)> {
    let mut seen = Vec::new();
    store.keys.walk(&mut K::Cursor::default(), store.head.compacted, &mut |key, version| {
        seen.push((key.to_vec(), version.meta(), version.value().to_vec()));
        ControlFlow::Continue(())
    });
    seen
}

pub(crate) fn change<K: KeysMut>(store: &mut Store<K>, changes: &[Change]) {
    let mut writer = Writer::new(store);
    for change in changes {
        match change {
            Change::Put(put) => _ = writer.put(put, usize::MAX),
            Change::Delete(delete) => _ = writer.delete_range(delete, &mut usize::MAX.into()),
        }
    }
}

pub(crate) fn change_auth<K: KeysMut>(store: &mut Store<K>, change: &auth_change::Change) -> Result<(), Refusal> {
    Writer::new(store).change_auth(change).map(|_| ())
}

pub(crate) fn compact<K: KeysMut>(store: &mut Store<K>, revision: i64) -> Result<(), Refusal> {
    Writer::new(store).compact(&CompactionRequest { revision, physical: false }).map(|_| ())
}

/// The image of a store, as bytes.
pub(crate) fn image<K: Scan>(store: Store<K>) -> Vec<u8> {
    let mut image = Image::new(store);
    std::iter::from_fn(|| image.next_record()).flatten().collect()
}

fn load(image: &[u8], chunk: usize) -> Store {
    let mut loader = Loader::default();
    image.chunks(chunk).for_each(|bytes| loader.push(bytes).expect("a good image"));
    loader.finish().expect("a whole image")
}

fn reload(store: &Store, chunk: usize) -> Store {
    let loaded = load(&image(store.freeze()), chunk);
    assert_eq!(loaded.checksum(0), store.checksum(0));
    loaded
}

fn cost_in_memory(key: &[u8], version: &Version, first: bool) -> u64 {
    let share = if first { tree::NODE_SHARE + Key::new(key).heap_size() } else { 0 };
    share + history::cost(version)
}

impl Subject for Store {
    fn new() -> Self {
        Self::new()
    }

    fn compare(&self, model: &Model) {
        compare(self, model, cost_in_memory);
        assert_eq!(step_by_step(self), in_one_go(self));
    }

    fn read(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        self.range(request, usize::MAX)
    }

    fn read_as(&self, author: Option<&Author>, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        self.range_as(author, request, usize::MAX)
    }

    fn change_auth(&mut self, change: &auth_change::Change) -> Result<(), Refusal> {
        change_auth(self, change)
    }

    fn change(&mut self, changes: &[Change]) {
        change(self, changes);
    }

    fn compact(&mut self, revision: i64) -> Result<(), Refusal> {
        compact(self, revision)
    }

    fn sweep(&mut self, slices: usize, keys: usize) {
        let mut sweep = self.start_sweep();
        for _ in 0..slices {
            let slice = self.look(&sweep, keys);
            let Some(next) = self.drop_garbage(&sweep, slice) else {
                assert!(!self.needs_sweep());
                return;
            };
            sweep = next;
        }
    }

    fn freeze(&self) -> Box<dyn Fn(&Model)> {
        let frozen = Store::freeze(self);
        Box::new(move |model| frozen.compare(model))
    }

    fn reload(&mut self, chunk: usize) {
        *self = reload(self, chunk);
    }
}

pub(crate) fn run<S: Subject>(steps: Vec<Step>) {
    let (mut store, mut model) = (S::new(), Model::new());
    let mut frozen = Vec::new();
    for step in steps {
        match step {
            Step::Change(changes) => {
                store.change(&changes);
                model.change(&changes);
            }
            Step::Compact(back) => {
                let revision = model.revision() - back;
                let result = store.compact(revision);
                if revision <= model.compacted {
                    assert_eq!(result, Err(Refusal::Compacted));
                } else if revision > model.revision() {
                    assert_eq!(result, Err(Refusal::FutureRevision));
                } else {
                    assert!(result.is_ok());
                    model.compacted = revision;
                }
            }
            Step::Sweep(slices, keys) => store.sweep(slices, keys),
            Step::Read(request) => assert_eq!(store.read(&request), model.range(&request), "{request:?}"),
            Step::ReadAs(who, request) => {
                let author = model.users.author(&who);
                let permitted = model.users.may_read(author.as_ref(), &request);
                let wanted = permitted.and_then(|()| model.range(&request));
                assert_eq!(store.read_as(author.as_ref(), &request), wanted, "{author:?} {request:?}");
            }
            Step::Auth(changes) => {
                for change in changes {
                    assert_eq!(store.change_auth(&change), model.users.change(&change), "{change:?}");
                }
            }
            Step::Freeze => frozen.push((store.freeze(), model.clone())),
            Step::Reload(chunk) => store.reload(chunk),
        }
        store.compare(&model);
    }
    for (compare, model) in frozen {
        compare(&model);
    }
}

pub(super) fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        (b'a'..=b'f').prop_map(|c| vec![c].into()),
        (b'a'..=b'c', b'a'..=b'c').prop_map(|(a, b)| vec![a, b].into()),
        (b'a'..=b'c').prop_map(|c| vec![c; 30].into()),
    ]
}

pub(super) fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => Just(Bytes::new()), 1 => Just(Bytes::from_static(&[0])), 3 => key()]
}

/// Some begin with the same, and a lot of it.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[xyz]{0,2}", 1 => "[xyz]{0,2}".prop_map(|end| format!("{}{end}", "x".repeat(80)))]
}

fn a_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (key(), value(), prop::bool::weighted(0.2)).prop_map(|(key, value, ignore_value)| {
            let value = if ignore_value { Bytes::new() } else { value.into() };
            Change::Put(PutRequest { key, value, ignore_value, ..Default::default() })
        }),
        1 => (key(), range_end())
            .prop_map(|(key, range_end)| Change::Delete(DeleteRangeRequest { key, range_end, prev_kv: false })),
    ]
}

fn read() -> impl Strategy<Value = RangeRequest> {
    let filters = (0i64..12, 0i64..12, 0i64..12, 0i64..12);
    let flags = (any::<bool>(), prop::bool::weighted(0.2));
    (key(), range_end(), -1i64..6, -1i64..30, 0i32..3, 0i32..5, filters, flags).prop_map(
        |(key, range_end, limit, revision, sort_order, sort_target, filters, (keys_only, count_only))| RangeRequest {
            key,
            range_end,
            limit,
            revision,
            sort_order,
            sort_target,
            serializable: false,
            keys_only,
            count_only,
            min_mod_revision: filters.0 - 6,
            max_mod_revision: filters.1,
            min_create_revision: filters.2 - 6,
            max_create_revision: filters.3,
        },
    )
}

/// What is done to a store, one after the other.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let steps = prop::collection::vec(step(), 1..60);
    (model_auth::beginning(), steps).prop_map(|(first, steps)| [vec![Step::Auth(first)], steps].concat())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(a_change(), 1..4).prop_map(Step::Change),
        1 => (-1i64..8).prop_map(Step::Compact),
        2 => (1usize..5, 1usize..5).prop_map(|(slices, keys)| Step::Sweep(slices, keys)),
        6 => read().prop_map(Step::Read),
        5 => (model_auth::author(), read()).prop_map(|(who, request)| Step::ReadAs(who, request)),
        4 => prop::collection::vec(model_auth::a_change(), 1..4).prop_map(Step::Auth),
        1 => Just(Step::Freeze),
        1 => (1usize..300).prop_map(Step::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_what_the_model_says(steps in steps()) {
        run::<Store>(steps);
    }
}

#[test]
fn an_image_with_a_flipped_bit_is_refused() {
    let mut store = Store::new();
    for n in 0..5u8 {
        let put = PutRequest { key: vec![b'k', n].into(), value: vec![n; 3].into(), ..Default::default() };
        change(&mut store, &[Change::Put(put)]);
    }
    let bytes = image(store.freeze());
    let load = |bytes: &[u8]| {
        let mut loader = Loader::default();
        loader.push(bytes).and_then(|()| loader.finish())
    };
    assert_eq!(load(&bytes).expect("a good image").checksum(0), store.checksum(0));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(load(&flipped).is_err(), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(load(&bytes[..len]).is_err(), "cut at {len}");
    }
    let twice = [&bytes[..], &bytes[..]].concat();
    assert!(load(&twice).is_err());
}

#[test]
fn a_key_with_many_versions_spans_records() {
    let mut store = Store::new();
    for n in 0..3000u32 {
        let put = PutRequest { key: "hot".into(), value: vec![n as u8; 400].into(), ..Default::default() };
        change(&mut store, &[Change::Put(put)]);
    }
    let mut image = Image::new(store.freeze());
    let records: Vec<Bytes> = std::iter::from_fn(|| image.next_record()).collect();
    assert!(records.len() > 8 && records.iter().all(|record| record.len() < 256 << 10));
    let loaded = reload(&store, 100_000);
    assert_eq!(loaded.head().stats, store.head().stats);
    assert_eq!(loaded.range(&everything(1500), usize::MAX), store.range(&everything(1500), usize::MAX));
}
