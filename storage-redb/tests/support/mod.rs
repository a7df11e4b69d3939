//! What the tests of the log share: ways to open one on a simulated disk, what it holds, workloads, and losses of power.

#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::testing::Random;
use raftkv::{ClusterId, GroupId, HardState, LogId, LogStore, LogWrite, NodeId, StorageError, Term};
use raftkv_storage_file::sim::SimDisk;
pub use raftkv_storage_file::sim::log_model::{Call, LogModel as Model, vote, write};
use raftkv_storage_redb::{Commit, Identity, Options, RedbLog};

pub const IDENTITY: Identity = Identity { cluster: ClusterId(0xc0ffee), node: NodeId(1), group: GroupId(0) };

pub fn file() -> PathBuf {
    PathBuf::from("/log/log.redb")
}

pub fn inline(commit: Commit) -> Options {
    Options { commit, cache_bytes: 1 << 20, background: false }
}

pub fn open(disk: &SimDisk) -> Result<RedbLog, StorageError> {
    open_with(disk, inline(Commit::OnePhase))
}

pub fn open_with(disk: &SimDisk, options: Options) -> Result<RedbLog, StorageError> {
    RedbLog::open_on(Arc::new(disk.clone()), Path::new("/log"), IDENTITY, options)
}

/// Does not wait: without a thread the future never does.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

/// What a log holds by its own account.
pub fn model_of(log: &RedbLog) -> Result<Model, StorageError> {
    Model::read(&now(log.load())?, |range| now(log.read(range, u64::MAX)))
}

pub fn perform(log: &RedbLog, call: &Call) -> Result<(), StorageError> {
    match call {
        Call::Write(write) => now(log.write(write.clone())),
        Call::Compact(upto) => now(log.compact(*upto)),
    }
}

/// Appends, truncations, votes and compactions, in terms that only grow.
pub fn workload(random: &mut Random, calls: usize) -> Vec<Call> {
    let mut model = Model::default();
    let mut term = 1;
    let mut out = Vec::new();
    for _ in 0..calls {
        let (last, base) = (model.last().index.0, model.base.index.0);
        let len = random.pick(&[0, 40, 300, 3000, 9000]).unwrap();
        let call = match random.below(10) {
            0 => {
                term += 1;
                Call::Write(vote(term, random.between(1, 3)))
            }
            1 | 2 if last > base => {
                term += 1;
                let first = random.between(base + 1, last);
                let hard_state = Some(HardState { term: Term(term), voted_for: None });
                Call::Write(LogWrite { hard_state, ..write(term, first..first + random.between(1, 3), len) })
            }
            3 if last > base => Call::Compact(random.pick(&model.entries).unwrap().id),
            4 if random.percent(25) => Call::Compact(LogId::new(term, last + random.below(3))),
            _ => Call::Write(write(term, last + 1..last + 1 + random.between(1, 30), len)),
        };
        model.apply(&call);
        out.push(call);
    }
    out
}
