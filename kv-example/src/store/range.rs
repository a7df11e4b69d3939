//! Reads.

use std::cmp::Ordering;

use super::keys::{Found, Keys};
use super::version::Meta;
use super::{Refusal, Span, Store};
use crate::api::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::api::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use crate::api::mvccpb::KeyValue;

impl<K: Keys> Store<K> {
    /// Answers a read, with at most `most` bytes. The header holds the revision alone.
    ///
    /// # Errors
    /// The revision is compacted, or in the future; the sort option is unknown; or the answer would be larger.
    pub(crate) fn range(&self, request: &RangeRequest, most: usize) -> Result<RangeResponse, Refusal> {
        self.range_at(request, self.head.revision, most)
    }

    /// How many bytes the answers to these reads take together, as they are counted for limits. What is refused takes none.
    ///
    /// # Errors
    /// More than `most`.
    pub(crate) fn answer_bytes(&self, reads: &[RangeRequest], most: usize) -> Result<usize, Refusal> {
        let mut bytes = 0;
        for read in reads {
            match self.range(read, most - bytes) {
                Ok(answer) => bytes += answer_bytes(&answer),
                Err(Refusal::AnswerTooLarge) => return Err(Refusal::AnswerTooLarge),
                Err(_) => {}
            }
        }
        Ok(bytes)
    }

    /// Answers a read, where `newest` is the newest revision that the reader may see: inside of a transaction that has
    /// changed something, its own.
    pub(super) fn range_at(&self, request: &RangeRequest, newest: i64, most: usize) -> Result<RangeResponse, Refusal> {
        let revision = if request.revision <= 0 { newest } else { request.revision };
        if revision > newest {
            return Err(Refusal::FutureRevision);
        }
        if revision < self.head.compacted {
            return Err(Refusal::Compacted);
        }
        let options = Options::new(request)?;
        let mut found = self.find(Span::new(&request.key, &request.range_end), revision, &options);
        options.sort(&mut found.items);
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let more = found.items.len() > limit;
        found.items.truncate(limit);
        let mut room = most;
        let take = |item: &Item<'_, K>| {
            let kv = item.to_kv(request.keys_only);
            room = room.checked_sub(bytes_of(&kv)).ok_or(Refusal::AnswerTooLarge)?;
            Ok(kv)
        };
        Ok(RangeResponse {
            header: Some(ResponseHeader { revision: newest, ..Default::default() }),
            kvs: found.items.iter().map(take).collect::<Result<_, Refusal>>()?,
            more,
            count: found.count,
        })
    }

    /// What `span` held at `revision`, in the order of the keys.
    fn find<'a>(&'a self, span: Span<'_>, revision: i64, options: &Options) -> Selected<'a, K> {
        let mut found = Selected { items: Vec::new(), count: 0 };
        self.each(span, revision, |key, version| {
            found.count += 1;
            if found.items.len() < options.fetch {
                let item = Item { meta: version.meta(), key, version };
                if options.wants(&item.meta) {
                    found.items.push(item);
                }
            }
        });
        found
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

/// What an answer takes, estimated: for limits.
pub(super) fn answer_bytes(answer: &RangeResponse) -> usize {
    answer.kvs.iter().map(bytes_of).sum()
}

struct Selected<'a, K: Keys + 'a> {
    items: Vec<Item<'a, K>>,
    /// How many keys the span holds, whatever the filters and the limit say: as in etcd.
    count: i64,
}

struct Item<'a, K: Keys + 'a> {
    key: K::Name<'a>,
    version: K::Found<'a>,
    meta: Meta,
}

impl<K: Keys> Item<'_, K> {
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
        Ok(Self {
            fetch,
            modified: (lower(request.min_mod_revision), upper(request.max_mod_revision)),
            created: (lower(request.min_create_revision), upper(request.max_create_revision)),
            sort,
        })
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
