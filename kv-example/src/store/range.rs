//! Reads.

use std::cmp::Ordering;
use std::sync::Arc;

use super::keys::{Found, Keys};
use super::version::Meta;
use super::{Refusal, Span, Store};
use crate::api::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::api::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use crate::api::mvccpb::KeyValue;

/// Room for an answer: how many bytes it may take, and where to ask for them before it is made. Clones share nothing.
#[derive(Clone)]
pub(crate) struct Room {
    left: usize,
    hold: Option<Arc<dyn Fn(usize) -> bool + Send + Sync>>,
}

impl Room {
    /// At most so many bytes, for which `hold` makes room, or does not.
    pub(crate) fn held(most: usize, hold: impl Fn(usize) -> bool + Send + Sync + 'static) -> Self {
        Self { left: most, hold: Some(Arc::new(hold)) }
    }

    /// Takes so many bytes of it.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.left = self.left.checked_sub(bytes).ok_or(Refusal::AnswerTooLarge)?;
        match &self.hold {
            Some(hold) if bytes > 0 && !hold(bytes) => Err(Refusal::AnswerTooLarge),
            Some(_) | None => Ok(()),
        }
    }
}

impl From<usize> for Room {
    /// Nobody needs to be asked.
    fn from(most: usize) -> Self {
        Self { left: most, hold: None }
    }
}

impl<K: Keys> Store<K> {
    /// Answers a read, if there is room for what it finds. The header holds the revision alone.
    ///
    /// # Errors
    /// The revision is compacted, or in the future; the sort option is unknown; or there is not so much room.
    pub(crate) fn range(&self, request: &RangeRequest, room: impl Into<Room>) -> Result<RangeResponse, Refusal> {
        self.range_at(request, self.head.revision, &mut room.into())
    }

    /// How many bytes the answers to these reads take together, as they are counted for limits. What is refused takes none.
    ///
    /// # Errors
    /// More than `most`.
    pub(crate) fn answer_bytes(&self, reads: &[RangeRequest], most: usize) -> Result<usize, Refusal> {
        let mut room = Room::from(most);
        for read in reads {
            if let Err(Refusal::AnswerTooLarge) = self.select(read, self.head.revision, &mut room) {
                return Err(Refusal::AnswerTooLarge);
            }
        }
        Ok(most - room.left)
    }

    /// Answers a read, where `newest` is the newest revision that the reader may see: inside of a transaction that has
    /// changed something, its own.
    pub(super) fn range_at(
        &self,
        request: &RangeRequest,
        newest: i64,
        room: &mut Room,
    ) -> Result<RangeResponse, Refusal> {
        let found = self.select(request, newest, room)?;
        Ok(RangeResponse {
            header: Some(ResponseHeader { revision: newest, ..Default::default() }),
            kvs: found.items.iter().map(|item| item.to_kv(request.keys_only)).collect(),
            more: found.more,
            count: found.count,
        })
    }

    /// What an answer is made of. There is room for all of it.
    fn select(&self, request: &RangeRequest, newest: i64, room: &mut Room) -> Result<Selected<'_, K>, Refusal> {
        let revision = if request.revision <= 0 { newest } else { request.revision };
        if revision > newest {
            return Err(Refusal::FutureRevision);
        }
        if revision < self.head.compacted {
            return Err(Refusal::Compacted);
        }
        let options = Options::new(request)?;
        let mut found = self.find(Span::new(&request.key, &request.range_end), revision, &options, room)?;
        found.more = found.items.len() > options.limit;
        options.sort(&mut found.items);
        found.items.truncate(options.limit);
        if !options.gives_back_what_it_finds() {
            room.take(found.items.iter().map(|item| item.bytes(&options)).sum())?;
        }
        Ok(found)
    }

    /// What `span` held at `revision`, in the order of the keys. Where all of it is given back there is room for it, and no more is gathered than that: a
    /// key that was found may hold a page of a database.
    fn find<'a>(
        &'a self,
        span: Span<'_>,
        revision: i64,
        options: &Options,
        room: &mut Room,
    ) -> Result<Selected<'a, K>, Refusal> {
        let mut found = Selected { items: Vec::new(), count: 0, more: false };
        let mut untaken = 0;
        let mut enough = Ok(());
        self.each(span, revision, |key, version| {
            found.count += 1;
            if found.items.len() >= options.fetch || enough.is_err() {
                return;
            }
            let item = Item { meta: version.meta(), key, version };
            if !options.wants(&item.meta) {
                return;
            }
            if options.gives_back_what_it_finds() && found.items.len() < options.limit {
                untaken += item.bytes(options);
                if untaken >= STEP {
                    enough = room.take(std::mem::take(&mut untaken));
                }
            }
            found.items.push(item);
        });
        enough?;
        room.take(untaken)?;
        Ok(found)
    }

    /// Calls `visit` with each key of `span` that existed at `revision`, in order.
    pub(super) fn each<'a>(&'a self, span: Span<'_>, revision: i64, mut visit: impl FnMut(K::Name<'a>, K::Found<'a>)) {
        if let Some(bounds) = span.bounds() {
            self.keys.each(bounds, revision, &mut visit);
        }
    }

    /// A key as it was at `revision`.
    pub(super) fn get_at(&self, key: &[u8], revision: i64) -> Option<K::Found<'_>> {
        self.keys.at(key, revision).filter(|version| !version.meta().is_tombstone())
    }
}

/// What a key takes in an answer beside its bytes, estimated.
const KV_OVERHEAD: usize = 64;

pub(super) fn bytes_of(kv: &KeyValue) -> usize {
    kv_bytes(&kv.key, &kv.value)
}

/// What a key and its value take in an answer, estimated.
pub(super) fn kv_bytes(key: &[u8], value: &[u8]) -> usize {
    KV_OVERHEAD + key.len() + value.len()
}

/// For how many bytes room is asked at a time, while keys are gathered.
const STEP: usize = 64 << 10;

struct Selected<'a, K: Keys + 'a> {
    items: Vec<Item<'a, K>>,
    /// Whether there were others beyond the limit.
    more: bool,
    /// How many keys the span holds, whatever the filters and the limit say: as in etcd.
    count: i64,
}

struct Item<'a, K: Keys + 'a> {
    key: K::Name<'a>,
    version: K::Found<'a>,
    meta: Meta,
}

impl<K: Keys> Item<'_, K> {
    /// What it takes in an answer.
    fn bytes(&self, options: &Options) -> usize {
        kv_bytes(self.key.as_ref(), if options.keys_only { &[] } else { self.version.value() })
    }

    fn to_kv(&self, keys_only: bool) -> KeyValue {
        let mut kv = kv(self.key.as_ref(), self.meta);
        if !keys_only {
            kv.value = self.version.value_bytes();
        }
        kv
    }
}

/// A key and what its version says, without the value.
fn kv(key: &[u8], meta: Meta) -> KeyValue {
    KeyValue {
        key: bytes::Bytes::copy_from_slice(key),
        create_revision: meta.created,
        mod_revision: meta.modified,
        version: meta.version,
        value: bytes::Bytes::new(),
        lease: 0,
    }
}

/// A key with its value, for an answer.
pub(super) fn full_kv(key: &[u8], version: &impl Found) -> KeyValue {
    KeyValue { value: version.value_bytes(), ..kv(key, version.meta()) }
}

/// How to choose and to order.
struct Options {
    /// How many to collect.
    fetch: usize,
    /// How many to give back.
    limit: usize,
    keys_only: bool,
    modified: (i64, i64),
    created: (i64, i64),
    sort: Option<(SortTarget, SortOrder)>,
}

impl Options {
    fn new(request: &RangeRequest) -> Result<Self, Refusal> {
        let order = SortOrder::try_from(request.sort_order).map_err(|_| Refusal::InvalidSort)?;
        let target = SortTarget::try_from(request.sort_target).map_err(|_| Refusal::InvalidSort)?;
        let sort = match (target, order) {
            // The map's own order.
            (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => None,
            // As in etcd: whoever names a property wants it sorted.
            (target, SortOrder::None) => Some((target, SortOrder::Ascend)),
            both => Some(both),
        };
        // As in etcd: 0 means no filter, on either side.
        let upper = |max: i64| if max == 0 { i64::MAX } else { max };
        let lower = |min: i64| if min == 0 { i64::MIN } else { min };
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let filtered = filters.iter().any(|revision| *revision != 0);
        let fetch = match usize::try_from(request.limit) {
            _ if request.count_only => 0,
            // One more tells whether there is more. As in etcd, a property without an order sorts only these.
            Ok(limit) if limit > 0 && (sort.is_none() || (order == SortOrder::None && !filtered)) => {
                limit.saturating_add(1)
            }
            _ => usize::MAX,
        };
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        Ok(Self {
            fetch,
            limit,
            keys_only: request.keys_only,
            modified: (lower(request.min_mod_revision), upper(request.max_mod_revision)),
            created: (lower(request.min_create_revision), upper(request.max_create_revision)),
            sort,
        })
    }

    /// Whether the first that are found are those that are given back, up to the limit.
    fn gives_back_what_it_finds(&self) -> bool {
        self.sort.is_none() || self.limit == usize::MAX
    }

    fn wants(&self, meta: &Meta) -> bool {
        let within = |(low, high): (i64, i64), revision: i64| low <= revision && revision <= high;
        within(self.modified, meta.modified) && within(self.created, meta.created)
    }

    /// Sorts. Equals stay in the order of their keys.
    fn sort<K: Keys>(&self, items: &mut [Item<'_, K>]) {
        let Some((target, order)) = self.sort else { return };
        let compare = |a: &Item<'_, K>, b: &Item<'_, K>| match target {
            SortTarget::Key => a.key.as_ref().cmp(b.key.as_ref()),
            SortTarget::Version => a.meta.version.cmp(&b.meta.version),
            SortTarget::Create => a.meta.created.cmp(&b.meta.created),
            SortTarget::Mod => a.meta.modified.cmp(&b.meta.modified),
            SortTarget::Value => a.version.value().cmp(b.version.value()),
        };
        let directed = |a: &Item<'_, K>, b: &Item<'_, K>| match order {
            SortOrder::Descend => compare(b, a),
            SortOrder::None | SortOrder::Ascend => compare(a, b),
        };
        items.sort_by(|a, b| -> Ordering { directed(a, b) });
    }
}
