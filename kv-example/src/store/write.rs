//! Changes: puts and deletions, alone or in a transaction.

use super::key::Key;
use super::keys::{Found, Update};
use super::range::{Room, bytes_of, full_kv};
use super::version::{Meta, Version};
use super::{Refusal, Span, Store, Tree};
use crate::api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    ResponseHeader,
};

/// One step of the store: all changes made through it share one new revision. Dropped, the step is complete.
pub(crate) struct Writer<'a, K = Tree> {
    pub(super) store: &'a mut Store<K>,
    pub(super) changed: bool,
}

impl<'a, K: Update> Writer<'a, K> {
    pub(crate) fn new(store: &'a mut Store<K>) -> Self {
        Self { store, changed: false }
    }

    /// The newest revision that this step sees: its own once it has changed something.
    pub(super) fn revision(&self) -> i64 {
        self.store.head.revision + i64::from(self.changed)
    }

    pub(super) fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.revision(), ..Default::default() })
    }

    /// Puts one key, if what that gives back takes at most `most` bytes.
    pub(crate) fn put(&mut self, request: &PutRequest, most: usize) -> Result<PutResponse, Refusal> {
        self.check_put(request)?;
        self.put_checked(request, &mut most.into())
    }

    /// Refuses a put that depends on what is not there.
    pub(super) fn check_put(&self, request: &PutRequest) -> Result<(), Refusal> {
        if request.lease != 0 {
            return Err(Refusal::LeasesUnsupported);
        }
        let needs_key = request.ignore_value || request.ignore_lease;
        if needs_key && self.store.get_at(&request.key, i64::MAX).is_none() {
            return Err(Refusal::KeyNotFound);
        }
        Ok(())
    }

    /// Puts one key, if there is room for what that gives back.
    pub(super) fn put_checked(&mut self, request: &PutRequest, room: &mut Room) -> Result<PutResponse, Refusal> {
        let modified = self.store.head.revision + 1;
        let mut prev_kv = None;
        self.store.put(&request.key, |before| {
            prev_kv = before.filter(|_| request.prev_kv).map(|version| full_kv(&request.key, version));
            if let Some(prev_kv) = &prev_kv {
                room.take(bytes_of(prev_kv))?;
            }
            let meta = match before.map(Found::meta) {
                Some(meta) => Meta { modified, created: meta.created, version: meta.version + 1 },
                None => Meta { modified, created: modified, version: 1 },
            };
            let value = match before {
                Some(version) if request.ignore_value => version.value(),
                _ => &request.value,
            };
            Ok(Version::new(meta, value))
        })?;
        self.changed = true;
        Ok(PutResponse { header: self.header(), prev_kv })
    }

    /// Deletes what exists of a range, if there is room for what that gives back.
    pub(crate) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
        room: &mut Room,
    ) -> Result<DeleteRangeResponse, Refusal> {
        let (mut keys, mut prev_kvs) = (Vec::<Key>::new(), Vec::new());
        let mut enough = Ok(());
        self.store.each(Span::new(&request.key, &request.range_end), i64::MAX, |key, version| {
            if request.prev_kv && enough.is_ok() {
                let kv = full_kv(key.as_ref(), &version);
                enough = room.take(bytes_of(&kv));
                prev_kvs.push(kv);
            }
            keys.push(Key::new(key.as_ref()));
        });
        enough?;
        let modified = self.store.head.revision + 1;
        for key in &keys {
            self.store.push(key.as_slice(), Version::tombstone(modified));
        }
        self.changed |= !keys.is_empty();
        Ok(DeleteRangeResponse { header: self.header(), deleted: keys.len() as i64, prev_kvs })
    }

    /// Moves the compaction forward. What it makes unreachable is dropped later, by a sweep.
    pub(crate) fn compact(&mut self, request: &CompactionRequest) -> Result<CompactionResponse, Refusal> {
        if request.revision <= self.store.head.compacted {
            return Err(Refusal::Compacted);
        }
        if request.revision > self.store.head.revision {
            return Err(Refusal::FutureRevision);
        }
        self.store.head.compacted = request.revision;
        Ok(CompactionResponse { header: self.header() })
    }
}

impl<K> Drop for Writer<'_, K> {
    fn drop(&mut self) {
        self.store.head.revision += i64::from(self.changed);
    }
}
