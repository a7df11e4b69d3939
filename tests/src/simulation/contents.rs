//! The contents of `kv-example` as the simulation sees them: registers, kept by its state machine in a database ([`RedbMachine`]), or in memory.
//!
//! [`RedbMachine`]: kv_example::backends::redb::RedbMachine

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use kv_example::api::command::{Outcome, command, outcome};
use kv_example::api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_example::api::etcdserverpb::request_op::Request;
use kv_example::api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use kv_example::machine::{KvMachine, KvView, encode_command};
use prost::Message;
use raftkv::testing::Random;
use raftkv::testing::linearizability::{Model, Register, RegisterOp, RegisterRet};
use raftkv::testing::simulation::node::{Disk, Site, Subject};
use raftkv::{Fatal, FatalKind, StateMachine};

use super::engine::Ground;

/// Of so many keys, so that clients meet.
const KEYS: u64 = 5;
/// The most bytes that one value in ten is padded with, and that others are.
const PADDING: (u64, u64) = (900, 40);
/// In so many percent of the nodes the contents are in memory: images go from one kind to the other.
const IN_MEMORY: u64 = 15;

/// A few keys of `kv-example`, which are put, compared and set, deleted, read and compacted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contents;

/// What a client does.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// To one key.
    Key(RegisterOp<u64, u64>),
    /// Drops what was before a revision, which changes no key.
    Compact(i64),
}

/// What is to be seen of the keys. A compaction is no part of it, and has a key of its own.
#[derive(Debug, Default)]
pub struct Keys(Register<u64, u64>);

impl Model for Keys {
    type Op = Op;
    type Ret = RegisterRet<u64>;
    type State = Option<u64>;
    type Key = u64;

    fn key(&self, op: &Op) -> u64 {
        match op {
            Op::Key(op) => self.0.key(op),
            Op::Compact(_) => KEYS,
        }
    }

    fn initial(&self, key: &u64) -> Option<u64> {
        self.0.initial(key)
    }

    fn apply(&self, state: &mut Option<u64>, op: &Op) -> RegisterRet<u64> {
        match op {
            Op::Key(op) => self.0.apply(state, op),
            Op::Compact(_) => RegisterRet::Done,
        }
    }

    fn leaves_state(&self, op: &Op, ret: &RegisterRet<u64>) -> bool {
        match op {
            Op::Key(op) => self.0.leaves_state(op, ret),
            Op::Compact(_) => true,
        }
    }

    fn merge_open(&self, answered: &[(&Op, &RegisterRet<u64>)], open: &mut [Op]) {
        let of_key = |op: &Op| match op {
            Op::Key(op) => Some(op.clone()),
            Op::Compact(_) => None,
        };
        let answered: Vec<_> = answered.iter().filter_map(|(op, ret)| Some((of_key(op)?, *ret))).collect();
        let answered: Vec<_> = answered.iter().map(|(op, ret)| (op, *ret)).collect();
        let mut merged: Vec<_> = open.iter().filter_map(of_key).collect();
        self.0.merge_open(&answered, &mut merged);
        let mut merged = merged.into_iter();
        for op in open.iter_mut().filter(|op| matches!(op, Op::Key(_))) {
            if let Some(new) = merged.next() {
                *op = Op::Key(new);
            }
        }
    }
}

fn name(key: u64) -> Bytes {
    format!("key-{key}").into()
}

/// A value in eight bytes, and padding that the value decides on.
fn encode(value: u64) -> Bytes {
    let mut random = Random::new(value);
    let most = if random.percent(10) { PADDING.0 } else { PADDING.1 };
    let padding = usize::try_from(random.below(most)).unwrap_or(0);
    let mut bytes = BytesMut::with_capacity(8 + padding);
    bytes.put_u64(value);
    bytes.put_bytes(value.to_le_bytes()[0], padding);
    bytes.freeze()
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let value = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
    (encode(value) == bytes).then_some(value)
}

fn put(key: u64, value: u64) -> PutRequest {
    PutRequest { key: name(key), value: encode(value), ..PutRequest::default() }
}

/// A put that is done if this is there.
fn swap(key: u64, expected: Option<u64>, value: u64) -> TxnRequest {
    let (target, union) = match expected {
        Some(expected) => (CompareTarget::Value, TargetUnion::Value(encode(expected))),
        None => (CompareTarget::Version, TargetUnion::Version(0)),
    };
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: name(key),
        target_union: Some(union),
        ..Compare::default()
    };
    let success = RequestOp { request: Some(Request::RequestPut(put(key, value))) };
    TxnRequest { compare: vec![compare], success: vec![success], failure: Vec::new() }
}

/// What is there at once: machines and views of the simulation have no threads to wait for.
pub(super) fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

impl Subject for Contents {
    type Machine = Box<dyn StateMachine>;
    type View = KvView;
    type Model = Keys;

    fn model(&self) -> Keys {
        Keys::default()
    }

    fn start(&self) -> (Self::Machine, KvView) {
        let machine = KvMachine::new();
        let view = machine.view();
        (Box::new(machine), view)
    }

    fn start_on(&self, site: &Site, disk: Option<Disk>) -> Result<(Self::Machine, KvView), Fatal> {
        let ground = disk.and_then(|disk| disk.downcast::<Ground>().ok());
        match ground.filter(|_| !Random::new(site.seed ^ 0x656e_6769_6e65).percent(IN_MEMORY)) {
            Some(ground) => ground.open(site),
            None => Ok(self.start()),
        }
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn is_damage(&self, fatal: &Fatal) -> bool {
        let told = fatal.to_string();
        matches!(fatal.kind(), FatalKind::StateMachine(_))
            && told.contains("is damaged")
            && told.contains("move the file away")
    }

    fn random_op(&self, random: &mut Random) -> Op {
        let key = random.below(KEYS);
        // Values are told apart, so that a read shows which write it saw; a few are equal, so that comparisons succeed.
        let value = |random: &mut Random| if random.percent(20) { random.below(3) } else { random.below(1 << 40) };
        Op::Key(match random.below(20) {
            0..=6 => RegisterOp::Get(key),
            7..=13 => RegisterOp::Put(key, value(random)),
            14 | 15 => {
                let expected = random.percent(70).then(|| random.below(3));
                RegisterOp::Cas(key, expected, value(random))
            }
            16 | 17 => RegisterOp::Delete(key),
            // Most of them are refused, since it lies behind or ahead.
            _ => return Op::Compact(i64::try_from(random.between(1, 300)).unwrap_or(1)),
        })
    }

    fn command(&self, op: &Op) -> Option<Bytes> {
        Some(encode_command(match op {
            Op::Key(RegisterOp::Get(_)) => return None,
            Op::Key(RegisterOp::Put(key, value)) => command::Body::Put(put(*key, *value)),
            Op::Key(RegisterOp::Cas(key, expected, value)) => command::Body::Txn(swap(*key, *expected, *value)),
            Op::Key(RegisterOp::Delete(key)) => {
                command::Body::DeleteRange(DeleteRangeRequest { key: name(*key), ..DeleteRangeRequest::default() })
            }
            Op::Compact(revision) => command::Body::Compact(CompactionRequest { revision: *revision, physical: false }),
        }))
    }

    fn answer(&self, op: &Op, answer: &Bytes) -> RegisterRet<u64> {
        match (op, Outcome::decode(answer.clone()).ok().and_then(|outcome| outcome.body)) {
            (Op::Key(RegisterOp::Cas(..)), Some(outcome::Body::Txn(done))) => RegisterRet::Swapped(done.succeeded),
            (Op::Key(RegisterOp::Put(..)), Some(outcome::Body::Put(_)))
            | (Op::Key(RegisterOp::Delete(_)), Some(outcome::Body::DeleteRange(_)))
            | (Op::Compact(_), Some(outcome::Body::Compact(_) | outcome::Body::Refusal(_))) => RegisterRet::Done,
            // No answer to this operation: the model has none like it.
            (Op::Key(_) | Op::Compact(_), _) => RegisterRet::Value(Some(u64::MAX)),
        }
    }

    fn look(&self, view: &KvView, op: &Op) -> RegisterRet<u64> {
        self.try_look(view, op).unwrap_or(RegisterRet::Value(Some(u64::MAX)))
    }

    fn try_look(&self, view: &KvView, op: &Op) -> Option<RegisterRet<u64>> {
        let Op::Key(RegisterOp::Get(key)) = op else { return Some(RegisterRet::Done) };
        let found = now(view.range(RangeRequest { key: name(*key), ..RangeRequest::default() }))?.ok()?;
        // What was never written is no answer of the model's.
        Some(RegisterRet::Value(found.kvs.first().map(|found| decode(&found.value).unwrap_or(u64::MAX))))
    }

    fn fingerprint(&self, view: &KvView) -> Option<u64> {
        let checksum = now(view.checksum(0))?.ok()?;
        let mut all = u64::from(checksum.crc);
        for number in [checksum.revision, checksum.compacted] {
            all = Random::new(all ^ number.cast_unsigned()).any();
        }
        Some(all)
    }
}
