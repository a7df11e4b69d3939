//! The suite that every state machine passes, on the server's own: the one in memory, and the one over a database.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

mod auth_support;
mod redb_support;

use std::sync::Mutex;

use auth_support::{of_somebody, some_change};
use bytes::Bytes;
use kv_example::api::command::{Command, command};
use kv_example::api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_example::api::etcdserverpb::request_op::Request;
use kv_example::api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use kv_example::backends::redb::{Options, RedbMachine};
use kv_example::machine::KvMachine;
use prost::Message;
use raftkv::testing::Random;
use raftkv::testing::conformance::Fault;
use raftkv::testing::conformance::state_machine::Backend;
use redb_support::Disk;

struct InMemory;

/// Few keys, so that commands meet; one of them is long enough to be kept in another way.
fn key(random: &mut Random) -> Bytes {
    let keys = ["a", "ab", "b", "b\0", "c", "a-key-that-is-longer-than-most-others-are"];
    random.pick(&keys).unwrap().into()
}

/// None, the one that means "all from here on", or a key.
fn range_end(random: &mut Random) -> Bytes {
    match random.below(5) {
        0..3 => Bytes::new(),
        3 => Bytes::from_static(&[0]),
        _ => key(random),
    }
}

fn put(random: &mut Random) -> PutRequest {
    let value = vec![b'v'; usize::try_from(random.below(60)).unwrap()];
    let ignore_value = random.percent(5);
    let value = if ignore_value { Bytes::new() } else { value.into() };
    PutRequest { key: key(random), value, prev_kv: random.percent(30), ignore_value, ..Default::default() }
}

fn delete(random: &mut Random) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key(random), range_end: range_end(random), prev_kv: random.percent(50) }
}

fn range(random: &mut Random) -> RangeRequest {
    let revision = i64::try_from(random.below(60)).unwrap();
    let limit = i64::try_from(random.below(3)).unwrap();
    let revision = if random.percent(80) { 0 } else { revision };
    RangeRequest { key: key(random), range_end: range_end(random), limit, revision, ..Default::default() }
}

fn txn(random: &mut Random, depth: u64) -> TxnRequest {
    let number = i64::try_from(random.below(50)).unwrap();
    let (target, union) = random
        .pick(&[
            (CompareTarget::Version, TargetUnion::Version(number % 4)),
            (CompareTarget::Create, TargetUnion::CreateRevision(number)),
            (CompareTarget::Mod, TargetUnion::ModRevision(number)),
            (CompareTarget::Value, TargetUnion::Value(vec![b'v'; 10].into())),
        ])
        .unwrap();
    let results = [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual];
    let compare = Compare {
        result: random.pick(&results).unwrap() as i32,
        target: target as i32,
        key: key(random),
        range_end: range_end(random),
        target_union: Some(union),
    };
    let mut requests = || -> Vec<RequestOp> {
        (0..random.below(3))
            .map(|_| {
                let request = match random.below(if depth < 2 { 4 } else { 3 }) {
                    0 => Request::RequestPut(put(random)),
                    1 => Request::RequestDeleteRange(delete(random)),
                    2 => Request::RequestRange(range(random)),
                    _ => Request::RequestTxn(txn(random, depth + 1)),
                };
                RequestOp { request: Some(request) }
            })
            .collect()
    };
    let (success, failure) = (requests(), requests());
    TxnRequest { compare: vec![compare], success, failure }
}

fn any_command(random: &mut Random) -> Bytes {
    let body = match random.weighted(&[10, 3, 6, 1, 3]) {
        0 => command::Body::Put(put(random)),
        1 => command::Body::DeleteRange(delete(random)),
        2 => command::Body::Txn(txn(random, 0)),
        3 => {
            let revision = i64::try_from(random.below(300)).unwrap();
            command::Body::Compact(CompactionRequest { revision, physical: random.percent(50) })
        }
        _ => some_change(random),
    };
    of_somebody(random, body)
}

/// Another version knows what it is, and would change its state.
fn is_of_another_version(command: &Bytes) -> bool {
    !command.is_empty() && Command::decode(command.clone()).is_ok_and(|command| command.body.is_none())
}

impl Backend for InMemory {
    type Machine = KvMachine;

    async fn create(&self) -> KvMachine {
        KvMachine::new()
    }

    fn command(&self, random: &mut Random) -> Bytes {
        any_command(random)
    }

    fn stops_at(&self, command: &Bytes) -> bool {
        is_of_another_version(command)
    }
}

/// A machine over a database, on a disk in memory.
struct InDatabase {
    options: Options,
    /// That of the machine that was created last.
    disk: Mutex<Disk>,
}

impl InDatabase {
    fn new(sync_commands: u64) -> Self {
        let options = Options { cache_bytes: 1 << 20, sync_commands, ..Options::default() };
        Self { options, disk: Mutex::new(Disk::new(0)) }
    }

    fn disk(&self) -> Disk {
        self.disk.lock().unwrap().clone()
    }
}

impl Backend for InDatabase {
    type Machine = RedbMachine;

    async fn create(&self) -> RedbMachine {
        let disk = Disk::new(1);
        *self.disk.lock().unwrap() = disk.clone();
        disk.open(self.options).unwrap()
    }

    fn command(&self, random: &mut Random) -> Bytes {
        any_command(random)
    }

    fn stops_at(&self, command: &Bytes) -> bool {
        is_of_another_version(command)
    }

    async fn reopen(&self) -> Option<RedbMachine> {
        Some(self.disk().open(self.options).unwrap())
    }

    fn arm(&self, fault: Fault, after: u64) -> bool {
        // A transaction that is synced takes some dozen of a disk's operations.
        self.disk().arm(fault, after * 4);
        true
    }
}

mod in_memory {
    use super::*;
    raftkv::state_machine_conformance!(InMemory);
}

/// Each batch is synced.
mod in_a_database {
    use super::*;
    raftkv::state_machine_conformance!(InDatabase::new(1));
}

/// Some batches are.
mod in_a_database_that_is_synced_now_and_then {
    use super::*;
    raftkv::state_machine_conformance!(InDatabase::new(3));
}
