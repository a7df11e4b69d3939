//! Reads.

use std::sync::Arc;

use super::best::{Best, Ranked};
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
    /// What was asked for and not yet taken.
    ahead: usize,
    hold: Option<Arc<dyn Fn(usize) -> bool + Send + Sync>>,
}

impl Room {
    /// At most so many bytes, for which `hold` makes room, or does not.
    pub(crate) fn held(most: usize, hold: impl Fn(usize) -> bool + Send + Sync + 'static) -> Self {
        Self { left: most, ahead: 0, hold: Some(Arc::new(hold)) }
    }

    /// Takes so many bytes of it.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.left = self.left.checked_sub(bytes).ok_or(Refusal::AnswerTooLarge)?;
        let asked = bytes.min(self.ahead);
        self.ahead -= asked;
        self.ask(bytes - asked)
    }

    /// Asks for so many bytes that are needed on the way to the answer, and for the answer afterwards.
    pub(super) fn ask_ahead(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.ask(bytes)?;
        self.ahead += bytes;
        Ok(())
    }

    /// Refuses an answer that will take so many bytes, if it may not.
    pub(super) fn check(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes <= self.left { Ok(()) } else { Err(Refusal::AnswerTooLarge) }
    }

    fn ask(&self, bytes: usize) -> Result<(), Refusal> {
        match &self.hold {
            Some(hold) if bytes > 0 && !hold(bytes) => Err(Refusal::AnswerTooLarge),
            Some(_) | None => Ok(()),
        }
    }
}

impl From<usize> for Room {
    /// Nobody needs to be asked.
    fn from(most: usize) -> Self {
        Self { left: most, ahead: 0, hold: None }
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

    /// How many bytes the answers to these reads take together, as they are counted for limits. What is refused takes none. No answer is made.
    ///
    /// # Errors
    /// More than `most`.
    pub(crate) fn answer_bytes(&self, reads: &[RangeRequest], most: usize) -> Result<usize, Refusal> {
        let mut room = Room::from(most);
        for read in reads {
            let Ok((revision, options)) = self.options(read, self.head.revision) else { continue };
            self.select(read, revision, &options, &mut room, &mut |_, _| ())?;
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
        let (revision, options) = self.options(request, newest)?;
        let mut kvs = Vec::new();
        // Copies: what was found may hold a page of a database that is much larger.
        let found = self.select(request, revision, &options, room, &mut |key, version| {
            kvs.push(if options.keys_only { kv(key, version.meta()) } else { full_kv(key, version) });
        })?;
        options.sort(&mut kvs);
        let header = Some(ResponseHeader { revision: newest, ..Default::default() });
        Ok(RangeResponse { header, kvs, more: found.more, count: found.count })
    }

    /// At which revision to read, and how.
    fn options(&self, request: &RangeRequest, newest: i64) -> Result<(i64, Options), Refusal> {
        let revision = if request.revision <= 0 { newest } else { request.revision };
        if revision > newest {
            return Err(Refusal::FutureRevision);
        }
        if revision < self.head.compacted {
            return Err(Refusal::Compacted);
        }
        Ok((revision, Options::new(request)?))
    }

    /// Calls `keep` with what an answer is made of, for which room is taken on the way; in the order of the answer, where that is not all that there is.
    fn select(
        &self,
        request: &RangeRequest,
        revision: i64,
        options: &Options,
        room: &mut Room,
        keep: &mut impl FnMut(&[u8], &K::Found<'_>),
    ) -> Result<Selected, Refusal> {
        let span = Span::new(&request.key, &request.range_end);
        let mut untaken = 0;
        let mut give = |room: &mut Room, key: &[u8], version: &K::Found<'_>| {
            untaken += kv_bytes(key, if options.keys_only { &[] } else { version.value() });
            if untaken >= STEP {
                room.take(std::mem::take(&mut untaken))?;
            }
            keep(key, version);
            Ok(())
        };
        let found = match options.sort_first() {
            None => {
                let mut left = options.limit;
                self.find(span, revision, options, |key, version| {
                    if left == 0 {
                        return Ok(());
                    }
                    left -= 1;
                    give(room, key, version)
                })?
            }
            Some(sort) => {
                let mut best = Best::new(self, revision, sort, options.limit);
                let found = self.find(span, revision, options, |key, version| best.offer(key, version, room))?;
                for Ranked { key, .. } in best.into_ranked() {
                    // It is there, unless the engine has failed meanwhile.
                    if let Some(version) = self.get_at(key.as_slice(), revision) {
                        give(room, key.as_slice(), &version)?;
                    }
                }
                found
            }
        };
        room.take(untaken)?;
        Ok(found)
    }

    /// Calls `visit` with what `span` held at `revision` and the filters let through, in the order of the keys, until enough was found or it fails.
    fn find(
        &self,
        span: Span<'_>,
        revision: i64,
        options: &Options,
        mut visit: impl FnMut(&[u8], &K::Found<'_>) -> Result<(), Refusal>,
    ) -> Result<Selected, Refusal> {
        let (mut count, mut wanted) = (0, 0);
        let mut visited = Ok(());
        self.each(span, revision, |key, version| {
            count += 1;
            if wanted < options.fetch && visited.is_ok() && options.wants(&version.meta()) {
                wanted += 1;
                visited = visit(key.as_ref(), &version);
            }
        });
        visited?;
        Ok(Selected { more: wanted > options.limit, count })
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
pub(super) const KV_OVERHEAD: usize = 64;

pub(super) fn bytes_of(kv: &KeyValue) -> usize {
    kv_bytes(&kv.key, &kv.value)
}

/// What a key and its value take in an answer, estimated.
pub(super) fn kv_bytes(key: &[u8], value: &[u8]) -> usize {
    KV_OVERHEAD + key.len() + value.len()
}

/// For how many bytes room is asked at a time, while keys are gathered.
pub(super) const STEP: usize = 64 << 10;

/// What an answer says of what was found.
struct Selected {
    /// Whether there were others beyond the limit.
    more: bool,
    /// How many keys the span holds, whatever the filters and the limit say: as in etcd.
    count: i64,
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
pub(super) fn full_kv(key: &[u8], version: &(impl Found + ?Sized)) -> KeyValue {
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

    /// How to sort before it is known what is given back. Not needed where that is what is found first, or all of it, which can be sorted afterwards.
    fn sort_first(&self) -> Option<(SortTarget, SortOrder)> {
        let all = self.limit == usize::MAX;
        self.sort.filter(|(target, _)| !all || (*target == SortTarget::Value && self.keys_only))
    }

    fn wants(&self, meta: &Meta) -> bool {
        let within = |(low, high): (i64, i64), revision: i64| low <= revision && revision <= high;
        within(self.modified, meta.modified) && within(self.created, meta.created)
    }

    /// Sorts what was not sorted first. Equals stay in the order of their keys.
    fn sort(&self, kvs: &mut [KeyValue]) {
        let Some((target, order)) = self.sort.filter(|_| self.sort_first().is_none()) else { return };
        let compare = |a: &KeyValue, b: &KeyValue| match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        kvs.sort_by(|a, b| match order {
            SortOrder::Descend => compare(b, a),
            SortOrder::None | SortOrder::Ascend => compare(a, b),
        });
    }
}
