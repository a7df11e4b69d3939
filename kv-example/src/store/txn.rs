//! Transactions.

use std::cmp::Ordering;

use super::keys::{Found, Keys, KeysMut};
use super::range::answer_bytes;
use super::version::Meta;
use super::{Refusal, Span, Store, Writer, check_range};
use crate::api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::api::etcdserverpb::request_op::Request;
use crate::api::etcdserverpb::response_op::Response;
use crate::api::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse,
};

impl<K: Keys> Store<K> {
    /// Answers a transaction that only reads, with at most `most` bytes.
    ///
    /// # Errors
    /// A read wants a revision that is compacted, or in the future; or the answer would be larger.
    pub(crate) fn read_txn(&self, request: &TxnRequest, most: usize) -> Result<TxnResponse, Refusal> {
        debug_assert!(super::is_read_only(request), "a transaction that writes goes through the log");
        let plan = self.plan(request);
        self.check_ranges(&plan)?;
        let revision = self.head.revision;
        let mut room = most;
        let mut response = plan.run(&mut |request| match request {
            Request::RequestRange(range) => {
                let answer = self.range_at(range, revision, room)?;
                room = room.saturating_sub(answer_bytes(&answer));
                Ok(Some(Response::ResponseRange(answer)))
            }
            // A request that lied about itself changes nothing.
            Request::RequestPut(_) | Request::RequestDeleteRange(_) | Request::RequestTxn(_) => Ok(None),
        })?;
        response.header = Some(ResponseHeader { revision, ..Default::default() });
        Ok(response)
    }

    /// Decides which branches run, before anything is changed.
    fn plan<'r>(&self, request: &'r TxnRequest) -> Plan<'r> {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let branch = if succeeded { &request.success } else { &request.failure };
        let step = |op: &'r RequestOp| match &op.request {
            Some(Request::RequestTxn(nested)) => Step::Nested(self.plan(nested)),
            Some(request) => Step::Single(request),
            None => Step::Nothing,
        };
        Plan { succeeded, steps: branch.iter().map(step).collect() }
    }

    fn check_ranges(&self, plan: &Plan<'_>) -> Result<(), Refusal> {
        plan.each(&mut |request| match request {
            Request::RequestRange(range) => self.check_range(range),
            Request::RequestPut(_) | Request::RequestDeleteRange(_) | Request::RequestTxn(_) => Ok(()),
        })
    }

    fn check_range(&self, range: &RangeRequest) -> Result<(), Refusal> {
        check_range(range)?;
        let revision = range.revision;
        // Revisions below 0 are not "the newest" here: as in etcd.
        if revision > self.head.revision {
            return Err(Refusal::FutureRevision);
        }
        if revision != 0 && revision < self.head.compacted {
            return Err(Refusal::Compacted);
        }
        Ok(())
    }

    /// Whether a comparison holds for every key that it names; a missing key counts as one with zeros all over, and has no
    /// value that could compare.
    fn holds(&self, compare: &Compare) -> bool {
        let (mut seen, mut holds) = (false, true);
        self.each(Span::new(&compare.key, &compare.range_end), i64::MAX, |_, version| {
            seen = true;
            holds = holds && holds_for(compare, version.meta(), version.value());
        });
        let nothing = Meta { modified: 0, created: 0, version: 0 };
        if seen { holds } else { compare.target != CompareTarget::Value as i32 && holds_for(compare, nothing, &[]) }
    }
}

impl<K: KeysMut> Writer<'_, K> {
    /// Runs a transaction, or refuses it as a whole.
    ///
    /// As in etcd, all comparisons, nested ones too, see the store as it was before the transaction, while reads among
    /// the operations see the changes before them.
    pub(crate) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        let plan = self.store.plan(request);
        self.check_puts(&plan)?;
        self.store.check_ranges(&plan)?;
        let mut response = plan.run(&mut |request| self.run_one(request))?;
        // Only the outermost answer says at which revision it took effect: as in etcd.
        response.header = self.header();
        Ok(response)
    }

    fn check_puts(&self, plan: &Plan<'_>) -> Result<(), Refusal> {
        plan.each(&mut |request| match request {
            Request::RequestPut(put) => self.check_put(put),
            Request::RequestRange(_) | Request::RequestDeleteRange(_) | Request::RequestTxn(_) => Ok(()),
        })
    }

    fn run_one(&mut self, request: &Request) -> Result<Option<Response>, Refusal> {
        Ok(Some(match request {
            // Who proposes it sees to it that the answer is not too large: a node must not refuse what another one does.
            Request::RequestRange(range) => {
                Response::ResponseRange(self.store.range_at(range, self.revision(), usize::MAX)?)
            }
            Request::RequestPut(put) => Response::ResponsePut(self.put_checked(put)),
            Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(self.delete_range(delete)),
            Request::RequestTxn(_) => return Ok(None),
        }))
    }
}

/// The reads that the answer to a transaction comes from, whichever way its comparisons go, as far as they see what is there now: those of one
/// branch, and those of the other.
pub(crate) fn reads_of(request: &TxnRequest) -> [Vec<RangeRequest>; 2] {
    [&request.success, &request.failure].map(|branch| {
        let mut reads = Vec::new();
        collect_reads(branch, &mut reads);
        reads
    })
}

fn collect_reads(ops: &[RequestOp], reads: &mut Vec<RangeRequest>) {
    for op in ops {
        match &op.request {
            Some(Request::RequestRange(range)) => reads.push(range.clone()),
            Some(Request::RequestPut(put)) => reads.extend(read_of_put(put)),
            Some(Request::RequestDeleteRange(delete)) => reads.extend(read_of_delete(delete)),
            Some(Request::RequestTxn(nested)) => {
                collect_reads(&nested.success, reads);
                collect_reads(&nested.failure, reads);
            }
            None => {}
        }
    }
}

/// What a put gives back.
pub(crate) fn read_of_put(put: &PutRequest) -> Option<RangeRequest> {
    put.prev_kv.then(|| RangeRequest { key: put.key.clone(), ..Default::default() })
}

/// What a deletion gives back.
pub(crate) fn read_of_delete(delete: &DeleteRangeRequest) -> Option<RangeRequest> {
    let read = || RangeRequest { key: delete.key.clone(), range_end: delete.range_end.clone(), ..Default::default() };
    delete.prev_kv.then(read)
}

/// A transaction whose comparisons are decided.
struct Plan<'r> {
    succeeded: bool,
    steps: Vec<Step<'r>>,
}

enum Step<'r> {
    Single(&'r Request),
    Nested(Plan<'r>),
    Nothing,
}

impl<'r> Plan<'r> {
    fn each(&self, check: &mut impl FnMut(&'r Request) -> Result<(), Refusal>) -> Result<(), Refusal> {
        for step in &self.steps {
            match step {
                Step::Single(request) => check(request)?,
                Step::Nested(nested) => nested.each(check)?,
                Step::Nothing => {}
            }
        }
        Ok(())
    }

    /// Runs what the checks found good. They leave no way to fail, or else changes made until then would stay.
    fn run(
        &self,
        one: &mut impl FnMut(&'r Request) -> Result<Option<Response>, Refusal>,
    ) -> Result<TxnResponse, Refusal> {
        let mut responses = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let response = match step {
                Step::Nested(nested) => Some(Response::ResponseTxn(nested.run(one)?)),
                Step::Single(request) => one(request)?,
                Step::Nothing => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded: self.succeeded, responses })
    }
}

/// Compares one key's version. A given side of another kind than the target counts as zero, or as empty: as in etcd.
fn holds_for(compare: &Compare, meta: Meta, value: &[u8]) -> bool {
    let ordering = match (CompareTarget::try_from(compare.target), &compare.target_union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(given))) => meta.version.cmp(given),
        (Ok(CompareTarget::Version), _) => meta.version.cmp(&0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(given))) => meta.created.cmp(given),
        (Ok(CompareTarget::Create), _) => meta.created.cmp(&0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(given))) => meta.modified.cmp(given),
        (Ok(CompareTarget::Mod), _) => meta.modified.cmp(&0),
        (Ok(CompareTarget::Value), given) => {
            let given = if let Some(TargetUnion::Value(given)) = given { &given[..] } else { &[] };
            value.cmp(given)
        }
        // No key has a lease.
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(given))) => 0.cmp(given),
        (Ok(CompareTarget::Lease), _) | (Err(_), _) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        // As in etcd.
        Err(_) => true,
    }
}
