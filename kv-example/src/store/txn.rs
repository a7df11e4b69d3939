//! Transactions.

use std::cmp::Ordering;

use super::keys::{Found, Keys, Update};
use super::range::{Room, kv_bytes};
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
    /// Answers a transaction that only reads, if there is room for what it finds.
    ///
    /// # Errors
    /// A read wants a revision that is compacted, or in the future; or there is not so much room.
    pub(crate) fn read_txn(&self, request: &TxnRequest, mut room: Room) -> Result<TxnResponse, Refusal> {
        debug_assert!(super::is_read_only(request), "a transaction that writes goes through the log");
        let plan = self.plan(request);
        self.check_ranges(&plan)?;
        let revision = self.head.revision;
        let mut response = plan.run(&mut |request| match request {
            Request::RequestRange(range) => {
                Ok(Some(Response::ResponseRange(self.range_at(range, revision, &mut room)?)))
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

impl<K: Update> Writer<'_, K> {
    /// Runs a transaction, or refuses it as a whole: also where its answer would take more than `most` bytes, all that is nested in it together.
    ///
    /// As in etcd, all comparisons, nested ones too, see the store as it was before the transaction, while reads among
    /// the operations see the changes before them.
    pub(crate) fn txn(&mut self, request: &TxnRequest, most: usize) -> Result<TxnResponse, Refusal> {
        let plan = self.store.plan(request);
        self.check_puts(&plan)?;
        self.store.check_ranges(&plan)?;
        if !plan.gives_back() {
            return self.run(&plan, usize::MAX.into());
        }
        // Whether the answer is too large shows only when it is there, and then nothing must have been changed.
        let mut draft = self.store.draft();
        let response = Writer::new(&mut draft).run(&plan, most.into())?;
        for (key, version) in draft.keys.into_changes() {
            self.store.push(key.as_slice(), version);
            self.changed = true;
        }
        Ok(response)
    }

    fn check_puts(&self, plan: &Plan<'_>) -> Result<(), Refusal> {
        plan.each(&mut |request| match request {
            Request::RequestPut(put) => self.check_put(put),
            Request::RequestRange(_) | Request::RequestDeleteRange(_) | Request::RequestTxn(_) => Ok(()),
        })
    }

    fn run(&mut self, plan: &Plan<'_>, mut room: Room) -> Result<TxnResponse, Refusal> {
        let mut response = plan.run(&mut |request| self.run_one(request, &mut room))?;
        // Only the outermost answer says at which revision it took effect: as in etcd.
        response.header = self.header();
        Ok(response)
    }

    fn run_one(&mut self, request: &Request, room: &mut Room) -> Result<Option<Response>, Refusal> {
        Ok(Some(match request {
            Request::RequestRange(range) => {
                Response::ResponseRange(self.store.range_at(range, self.revision(), room)?)
            }
            Request::RequestPut(put) => Response::ResponsePut(self.put_checked(put, room)?),
            Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(self.delete_range(delete, room)?),
            Request::RequestTxn(_) => return Ok(None),
        }))
    }
}

/// What the answer to a write comes from.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// What is read of what is there now.
    pub(crate) reads: Vec<RangeRequest>,
    /// How many bytes more it may be, since reads of a transaction see its own puts.
    pub(crate) own_bytes: usize,
}

impl Reads {
    pub(crate) fn all(reads: impl IntoIterator<Item = RangeRequest>) -> Self {
        Self { reads: reads.into_iter().collect(), own_bytes: 0 }
    }
}

/// The reads that the answer to a transaction comes from, whichever way its comparisons go: those of one branch, and those of the other.
pub(crate) fn reads_of(request: &TxnRequest) -> [Reads; 2] {
    [&request.success, &request.failure].map(|branch| {
        let mut single = Vec::new();
        collect_single(branch, &mut single);
        let (mut reads, mut own_bytes) = (Vec::new(), 0);
        for request in &single {
            match request {
                Request::RequestRange(range) => {
                    own_bytes += own_bytes_of(range, &single);
                    reads.push(range.clone());
                }
                Request::RequestPut(put) => reads.extend(read_of_put(put)),
                Request::RequestDeleteRange(delete) => reads.extend(read_of_delete(delete)),
                Request::RequestTxn(_) => {}
            }
        }
        Reads { reads, own_bytes }
    })
}

/// All operations, those of nested transactions in their place.
fn collect_single<'r>(ops: &'r [RequestOp], single: &mut Vec<&'r Request>) {
    for op in ops {
        match &op.request {
            Some(Request::RequestTxn(nested)) => {
                collect_single(&nested.success, single);
                collect_single(&nested.failure, single);
            }
            request => single.extend(request),
        }
    }
}

/// What a read finds at most of the puts among these.
fn own_bytes_of(range: &RangeRequest, single: &[&Request]) -> usize {
    if range.revision > 0 || range.count_only {
        return 0;
    }
    let span = Span::new(&range.key, &range.range_end);
    let put = |request: &&Request| match request {
        Request::RequestPut(put) if span.contains(&put.key) => {
            kv_bytes(&put.key, if range.keys_only { &[] } else { &put.value })
        }
        Request::RequestPut(_) | Request::RequestRange(_) | Request::RequestDeleteRange(_) | Request::RequestTxn(_) => {
            0
        }
    };
    single.iter().map(put).sum()
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

    /// Whether the answer holds keys.
    fn gives_back(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Single(Request::RequestRange(_)) => true,
            Step::Single(Request::RequestPut(put)) => put.prev_kv,
            Step::Single(Request::RequestDeleteRange(delete)) => delete.prev_kv,
            Step::Nested(nested) => nested.gives_back(),
            Step::Single(Request::RequestTxn(_)) | Step::Nothing => false,
        })
    }

    /// Runs what the checks found good. They leave no way to fail but an answer that is too large: whoever runs what has such a one runs it on a draft.
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
