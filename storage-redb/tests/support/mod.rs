//! What the tests of the log share: a model of a log, ways to open one on a simulated disk, and losses of power.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::testing::Random;
use raftkv::{
    ClusterId, Entry, EntryKind, GroupId, HardState, Index, LogId, LogStore, LogWrite, NodeId, StorageError, Term,
};
use raftkv_storage_file::sim::{Fate, Moment, SimDisk};
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

pub fn entry(term: u64, index: u64, len: usize) -> Entry {
    let data: Vec<u8> = format!("{term}/{index} ").bytes().cycle().take(len).collect();
    Entry { id: LogId::new(term, index), kind: EntryKind::Command, data: data.into() }
}

pub fn write(term: u64, indexes: std::ops::Range<u64>, len: usize) -> LogWrite {
    LogWrite { hard_state: None, entries: indexes.map(|index| entry(term, index, len)).collect() }
}

pub fn vote(term: u64, node: u64) -> LogWrite {
    LogWrite { hard_state: Some(HardState { term: Term(term), voted_for: Some(NodeId(node)) }), entries: Vec::new() }
}

/// What a log holds, as simply as it can be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub hard_state: HardState,
    pub base: LogId,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
pub enum Call {
    Write(LogWrite),
    Compact(LogId),
}

impl Model {
    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    pub fn apply(&mut self, call: &Call) {
        match call {
            Call::Write(write) => {
                self.hard_state = write.hard_state.unwrap_or(self.hard_state);
                if let Some(first) = write.entries.first() {
                    self.entries.retain(|entry| entry.id.index < first.id.index);
                    self.entries.extend(write.entries.iter().cloned());
                }
            }
            Call::Compact(upto) if upto.index > self.base.index => {
                let held = self.entries.iter().any(|entry| entry.id == *upto);
                self.entries.retain(|entry| held && entry.id.index > upto.index);
                self.base = *upto;
            }
            Call::Compact(_) => {}
        }
    }

    /// What a log holds by its own account, all entries read.
    pub fn of(log: &RedbLog) -> Result<Self, StorageError> {
        let state = now(log.load())?;
        let mut entries = Vec::new();
        if state.last.index > state.base.index {
            entries = now(log.read(state.base.index.next()..state.last.index.next(), u64::MAX))?;
        }
        let model = Self { hard_state: state.hard_state, base: state.base, entries };
        assert_eq!(model.last(), state.last, "the bounds contradict the entries");
        for entry in &model.entries {
            let run = state.runs.iter().rev().find(|run| run.first <= entry.id.index).unwrap();
            assert_eq!(run.term, entry.id.term, "the terms contradict the entries");
        }
        assert!(model.entries.iter().zip(1..).all(|(entry, n)| entry.id.index == Index(model.base.index.0 + n)));
        Ok(model)
    }
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

/// Loses power: every sector, length and name meets its fate, in the order in which they were written.
pub fn lose(moment: &Moment, fates: &[Fate]) -> SimDisk {
    let mut fates = fates.iter();
    moment.lose_power(|_| *fates.next().unwrap())
}
