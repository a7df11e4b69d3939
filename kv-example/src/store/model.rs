//! The store against a naive model: a full copy of the map for each revision.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::api::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, ResponseHeader,
};
use crate::api::mvccpb::KeyValue;

type Map = BTreeMap<Vec<u8>, KeyValue>;

/// All states, by revision; the first two are empty.
#[derive(Clone)]
struct Model {
    states: Vec<Map>,
    compacted: i64,
}

#[derive(Clone, Debug)]
enum Step {
    /// Changes of one revision.
    Change(Vec<Change>),
    Compact(i64),
    /// Sweeps this many slices of this many keys.
    Sweep(usize, usize),
    Read(RangeRequest),
    /// Freezes the store, to be looked at in the end.
    Freeze,
    /// Writes an image and goes on with what it loads.
    Reload(usize),
}

#[derive(Clone, Debug)]
enum Change {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
}

impl Model {
    fn new() -> Self {
        Self { states: vec![Map::new(); 2], compacted: -1 }
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

/// All that can be read from the store is what the model says.
fn compare(store: &Store, model: &Model) {
    let stats = store.head().stats;
    assert_eq!((store.head().revision, store.head().compacted), (model.revision(), model.compacted));
    for revision in 1..=model.revision() + 1 {
        let request = everything(revision);
        assert_eq!(store.range(&request), model.range(&request));
    }
    let live = model.states[model.revision() as usize].len();
    assert_eq!(stats.live, live as u64);
    let versions: usize = store.keys.0.values().map(|history| history.reachable(i64::MIN).len()).sum();
    assert_eq!(stats.versions, versions as u64);
    let bytes: u64 = store
        .keys
        .0
        .iter()
        .map(|(key, history)| {
            let versions: u64 = history.reachable(i64::MIN).into_iter().map(history::cost).sum();
            tree::NODE_SHARE + key.heap_size() + versions
        })
        .sum();
    assert_eq!(stats.bytes, bytes);
}

fn change(store: &mut Store, changes: &[Change]) {
    let mut writer = Writer::new(store);
    for change in changes {
        match change {
            Change::Put(put) => _ = writer.put(put),
            Change::Delete(delete) => _ = writer.delete_range(delete),
        }
    }
}

fn sweep(store: &mut Store, slices: usize, keys: usize) {
    let mut sweep = store.start_sweep();
    for _ in 0..slices {
        let slice = store.look(&sweep, keys);
        let Some(next) = store.drop_garbage(&sweep, slice) else {
            assert!(!store.needs_sweep());
            return;
        };
        sweep = next;
    }
}

fn reload(store: &Store, chunk: usize) -> Store {
    let mut image = Image::new(store.freeze());
    let mut loader = Loader::default();
    while let Some(record) = image.next_record() {
        for bytes in record.chunks(chunk) {
            loader.push(bytes).expect("a good image");
        }
    }
    let loaded = loader.finish().expect("a whole image");
    assert_eq!(loaded.checksum(0), store.checksum(0));
    loaded
}

fn run(steps: Vec<Step>) {
    let (mut store, mut model) = (Store::new(), Model::new());
    let mut frozen = Vec::new();
    for step in steps {
        match step {
            Step::Change(changes) => {
                change(&mut store, &changes);
                model.change(&changes);
            }
            Step::Compact(back) => {
                let revision = model.revision() - back;
                let result = Writer::new(&mut store).compact(&CompactionRequest { revision, physical: false });
                if revision <= model.compacted {
                    assert_eq!(result, Err(Refusal::Compacted));
                } else if revision > model.revision() {
                    assert_eq!(result, Err(Refusal::FutureRevision));
                } else {
                    assert!(result.is_ok());
                    model.compacted = revision;
                }
            }
            Step::Sweep(slices, keys) => sweep(&mut store, slices, keys),
            Step::Read(request) => assert_eq!(store.range(&request), model.range(&request), "{request:?}"),
            Step::Freeze => frozen.push((store.freeze(), model.clone())),
            Step::Reload(chunk) => store = reload(&store, chunk),
        }
        compare(&store, &model);
    }
    for (store, model) in frozen {
        compare(&store, &model);
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        (b'a'..=b'f').prop_map(|c| vec![c].into()),
        (b'a'..=b'c', b'a'..=b'c').prop_map(|(a, b)| vec![a, b].into()),
        (b'a'..=b'c').prop_map(|c| vec![c; 30].into()),
    ]
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => Just(Bytes::new()), 1 => Just(Bytes::from_static(&[0])), 3 => key()]
}

fn a_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (key(), "[xyz]{0,2}", prop::bool::weighted(0.2)).prop_map(|(key, value, ignore_value)| {
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

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(a_change(), 1..4).prop_map(Step::Change),
        1 => (-1i64..8).prop_map(Step::Compact),
        2 => (1usize..5, 1usize..5).prop_map(|(slices, keys)| Step::Sweep(slices, keys)),
        6 => read().prop_map(Step::Read),
        1 => Just(Step::Freeze),
        1 => (1usize..300).prop_map(Step::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_what_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        run(steps);
    }
}

#[test]
fn an_image_with_a_flipped_bit_is_refused() {
    let mut store = Store::new();
    for n in 0..5u8 {
        let put = PutRequest { key: vec![b'k', n].into(), value: vec![n; 3].into(), ..Default::default() };
        change(&mut store, &[Change::Put(put)]);
    }
    let mut image = Image::new(store.freeze());
    let bytes: Vec<u8> = std::iter::from_fn(|| image.next_record()).flatten().collect();
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
    assert_eq!(loaded.range(&everything(1500)), store.range(&everything(1500)));
}
