//! Which requests are refused before they enter the log: the rules and their order are etcd's.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use super::{Refusal, Span};
use crate::api::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::api::etcdserverpb::request_op::Request;
use crate::api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

/// What a request may hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an encoded request that changes something. etcd's default is 1.5 MiB.
    pub request_bytes: usize,
    /// Bytes of an answer, with 64 for each key in it. etcd has no such limit.
    pub response_bytes: usize,
    /// Comparisons, or operations of one branch, of a transaction. Nested ones share what is left.
    pub txn_ops: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { request_bytes: 1536 * 1024, response_bytes: 256 << 20, txn_ops: 128 }
    }
}

/// How deep transactions may nest. Decoders stop at a hundred nested messages, and each level takes two.
pub(crate) const MAX_DEPTH: usize = 32;

/// Checks a read.
///
/// # Errors
/// What is wrong with it.
pub fn check_range(request: &RangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(Refusal::InvalidSort);
    }
    Ok(())
}

/// Checks a put.
///
/// # Errors
/// What is wrong with it.
pub fn check_put(request: &PutRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    if request.lease != 0 {
        return Err(Refusal::LeasesUnsupported);
    }
    Ok(())
}

/// Checks a deletion.
///
/// # Errors
/// What is wrong with it.
pub fn check_delete(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction and all that is nested in it.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_txn(request: &TxnRequest, limits: Limits) -> Result<(), Refusal> {
    check_ops(request, &mut { limits.txn_ops }, MAX_DEPTH)?;
    check_overlaps(&request.success)?;
    check_overlaps(&request.failure)?;
    Ok(())
}

/// All that are nested share what is left: if each had as much, a small request could ask for more than any memory holds.
fn check_ops(request: &TxnRequest, left: &mut usize, depth: usize) -> Result<(), Refusal> {
    let most = request.compare.len().max(request.success.len()).max(request.failure.len());
    *left = left.checked_sub(most).ok_or(Refusal::TooManyOps)?;
    let depth = depth.checked_sub(1).ok_or(Refusal::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(Request::RequestTxn(txn)) => check_ops(txn, left, depth)?,
            None => return Err(Refusal::KeyNotFound),
        }
    }
    Ok(())
}

/// What a list of operations would put and delete, whichever way its comparisons go.
#[derive(Default)]
struct Changes<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Spans<'a>,
}

impl<'a> Changes<'a> {
    fn put(&mut self, key: &'a [u8]) -> Result<(), Refusal> {
        if self.deletes.contains(key) || !self.puts.insert(key) { Err(Refusal::DuplicateKey) } else { Ok(()) }
    }
}

/// Where a span ends: before a key (false) or behind it (true), in this order; `None` is behind all keys.
type End<'a> = Option<(&'a [u8], bool)>;

/// Keys in spans, merged so that no two of them touch: a check takes logarithmic time, whatever a client makes up.
#[derive(Default)]
struct Spans<'a>(BTreeMap<&'a [u8], End<'a>>);

impl<'a> Spans<'a> {
    fn contains(&self, key: &[u8]) -> bool {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.0.range::<[u8], _>(upto).next_back().is_some_and(|(_, end)| end.is_none_or(|end| (key, false) < end))
    }

    fn add(&mut self, span: Span<'a>) {
        match span {
            Span::One(key) => self.insert(key, Some((key, true))),
            Span::Between(first, end) if first < end => self.insert(first, Some((end, false))),
            Span::Between(..) => {}
            Span::From(first) => self.insert(first, None),
        }
    }

    fn insert(&mut self, mut first: &'a [u8], mut end: End<'a>) {
        let within = |start: &[u8], end: End<'_>| end.is_none_or(|end| (start, false) <= end);
        loop {
            let upto = match end {
                Some((key, _)) => Bound::Included(key),
                None => Bound::Unbounded,
            };
            let last = self.0.range::<[u8], _>((Bound::Unbounded, upto)).next_back();
            let Some((&start, &stop)) = last.filter(|(start, stop)| within(start, end) && within(first, **stop)) else {
                break;
            };
            self.0.remove(start);
            first = first.min(start);
            end = end.zip(stop).map(|(one, two)| one.max(two));
        }
        self.0.insert(first, end);
    }

    fn extend(&mut self, other: Self) {
        for (first, end) in other.0 {
            self.insert(first, end);
        }
    }
}

/// Refuses operations that put a key twice, or put and delete it. The two branches of a nested transaction exclude each
/// other, so both may put the same key.
///
/// One rule is stricter than etcd 3.4, where a deletion of all keys from one on (a `range_end` of one zero byte) escapes
/// the check, and where a later read of the previous value then stops the server.
fn check_overlaps(ops: &[RequestOp]) -> Result<Changes<'_>, Refusal> {
    let mut changes = Changes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            changes.deletes.add(Span::new(&delete.key, &delete.range_end));
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(txn)) = &op.request else { continue };
        let success = check_overlaps(&txn.success)?;
        let failure = check_overlaps(&txn.failure)?;
        for key in &success.puts {
            changes.put(key)?;
        }
        for key in &failure.puts {
            if !success.puts.contains(key) {
                changes.put(key)?;
            }
        }
        changes.deletes.extend(success.deletes);
        changes.deletes.extend(failure.deletes);
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request {
            changes.put(&put.key)?;
        }
    }
    Ok(changes)
}

/// Whether a transaction can only read. As in etcd, one with a nested transaction counts as a change.
#[must_use]
pub fn is_read_only(request: &TxnRequest) -> bool {
    operations(request).all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether all reads of a transaction may be answered from what this node has. Comparisons are reads as well, and
/// no option makes them serializable: a transaction that only compares is linearizable.
#[must_use]
pub fn is_serializable(request: &TxnRequest) -> bool {
    operations(request).next().is_some()
        && operations(request).all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

/// How many keys the answer to a read may hold.
pub(crate) fn most_keys(request: &RangeRequest) -> u64 {
    match u64::try_from(request.limit) {
        _ if request.count_only => 0,
        _ if request.range_end.is_empty() => 1,
        Ok(limit) if limit > 0 => limit,
        _ => u64::MAX,
    }
}

/// The same of what a transaction reads, whichever branch it takes.
pub(crate) fn most_keys_of_txn(request: &TxnRequest) -> u64 {
    let of_branch = |branch: &[RequestOp]| {
        let of_each = branch.iter().map(|op| match &op.request {
            Some(Request::RequestRange(range)) => most_keys(range),
            Some(Request::RequestTxn(txn)) => most_keys_of_txn(txn),
            Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => 0,
        });
        of_each.fold(0, u64::saturating_add)
    };
    of_branch(&request.success).max(of_branch(&request.failure))
}

fn operations(request: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    request.success.iter().chain(&request.failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(key: &str) -> RequestOp {
        let put = PutRequest { key: key.to_owned().into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    fn delete(key: &str, range_end: &str) -> RequestOp {
        let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
        RequestOp { request: Some(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false })) }
    }

    fn txn(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp { request: Some(Request::RequestTxn(TxnRequest { compare: vec![], success, failure })) }
    }

    #[test]
    fn a_transaction_that_only_compares_is_not_answered_from_the_past() {
        let compare = vec![crate::api::etcdserverpb::Compare::default()];
        assert!(!is_serializable(&TxnRequest { compare, ..Default::default() }));
    }

    fn check(success: Vec<RequestOp>) -> Result<(), Refusal> {
        check_txn(&TxnRequest { success, ..Default::default() }, Limits::default())
    }

    #[test]
    fn a_transaction_may_change_a_key_once() {
        assert_eq!(check(vec![put("a"), put("b"), delete("c", "")]), Ok(()));
        assert_eq!(check(vec![put("a"), put("a")]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![put("a"), delete("a", "")]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![delete("a", "c"), put("b")]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![delete("a", "c"), put("c")]), Ok(()));
        assert_eq!(check(vec![delete("b", "\0"), put("x")]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![delete("b", "\0"), put("a")]), Ok(()));
        assert_eq!(check(vec![delete("c", "a"), put("b")]), Ok(()));
        assert_eq!(check(vec![delete("a", ""), delete("a", "z")]), Ok(()));
    }

    #[test]
    fn nested_branches_exclude_each_other_but_not_their_surroundings() {
        assert_eq!(check(vec![txn(vec![put("a")], vec![put("a")])]), Ok(()));
        assert_eq!(check(vec![txn(vec![put("a")], vec![]), put("a")]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![txn(vec![put("a")], vec![]), txn(vec![], vec![put("a")])]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![txn(vec![], vec![delete("a", "c")]), put("b")]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![txn(vec![], vec![put("b"), put("b")])]), Err(Refusal::DuplicateKey));
    }

    #[test]
    fn operations_are_limited_in_number_and_depth() {
        let puts = |n: usize| (0..n).map(|i| put(&format!("{i}"))).collect::<Vec<_>>();
        assert_eq!(check(puts(128)), Ok(()));
        assert_eq!(check(puts(129)), Err(Refusal::TooManyOps));
        assert_eq!(check(vec![txn(puts(127), vec![])]), Ok(()));
        assert_eq!(check(vec![txn(puts(128), vec![])]), Err(Refusal::TooManyOps));
        // Each by itself would pass: with some levels of this a small request asked for 74 000 answers.
        let others = |n: usize| (0..n).map(|i| put(&format!("other {i}"))).collect::<Vec<_>>();
        assert_eq!(check(vec![txn(puts(63), vec![]), txn(vec![], others(63))]), Ok(()));
        assert_eq!(check(vec![txn(puts(63), vec![]), txn(vec![], others(64))]), Err(Refusal::TooManyOps));
        let nested = |depth| (0..depth).fold(vec![put("a")], |ops, _| vec![txn(ops, vec![])]);
        assert_eq!(check(nested(MAX_DEPTH - 1)), Ok(()));
        assert_eq!(check(nested(MAX_DEPTH)), Err(Refusal::TooManyOps));
    }

    #[test]
    fn an_operation_without_a_key_or_without_content_is_refused() {
        assert_eq!(check(vec![put("")]), Err(Refusal::EmptyKey));
        assert_eq!(check(vec![delete("", "")]), Err(Refusal::EmptyKey));
        assert_eq!(check(vec![RequestOp { request: None }]), Err(Refusal::KeyNotFound));
    }

    #[test]
    fn a_transaction_may_give_as_many_keys_as_its_larger_branch() {
        let range = |range_end: &str, limit, count_only| RangeRequest {
            key: "a".into(),
            range_end: range_end.to_owned().into(),
            limit,
            count_only,
            ..Default::default()
        };
        let (one, ten, all) = (range("", 0, false), range("z", 10, false), range("z", 0, false));
        assert_eq!([&one, &ten, &all].map(most_keys), [1, 10, u64::MAX]);
        assert_eq!([range("z", -1, false), range("z", 0, true)].map(|range| most_keys(&range)), [u64::MAX, 0]);
        let read = |range: &RangeRequest| RequestOp { request: Some(Request::RequestRange(range.clone())) };
        let keys = |success: Vec<RequestOp>, failure: Vec<RequestOp>| {
            most_keys_of_txn(&TxnRequest { compare: vec![], success, failure })
        };
        assert_eq!(keys(vec![read(&one), read(&ten), put("x")], vec![read(&one)]), 11);
        assert_eq!(keys(vec![read(&one)], vec![txn(vec![read(&ten)], vec![]), read(&ten)]), 20, "one within another");
        assert_eq!(keys(vec![read(&all), read(&all)], vec![]), u64::MAX);
    }

    proptest! {
        #[test]
        fn merged_spans_hold_what_the_single_ones_hold(spans in prop::collection::vec((0u8..20, 0u8..22), 0..12)) {
            let bounds: Vec<([u8; 1], Vec<u8>)> = spans
                .iter()
                .map(|&(first, end)| ([first + 1], match end { 0 => vec![], 21 => vec![0], end => vec![end] }))
                .collect();
            let mut merged = Spans::default();
            let single: Vec<Span<'_>> = bounds.iter().map(|(first, end)| Span::new(first, end)).collect();
            single.iter().for_each(|span| merged.add(*span));
            for key in 0..24 {
                for key in [&[key][..], &[key, 0]] {
                    prop_assert_eq!(merged.contains(key), single.iter().any(|span| span.contains(key)), "{:?}", key);
                }
            }
        }
    }
}
