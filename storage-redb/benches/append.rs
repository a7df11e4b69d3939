//! How many batches a second a log takes, beside bare commits of redb with the same entries.
//!
//! `cargo bench -p raftkv-storage-redb --bench append -- [DIR]`; the directory should be on the disk that is to be measured.
//!
//! Bare redb has one table from the index to the payload, and nothing else: no term, no checksum, no hard state, no thread to hand the
//! batch to. Short rounds of both take turns, so that what else the machine does hits both alike; after each both forget what is older than
//! 20 000 entries, as a node does. The rates are medians of the rounds, the ratio is the median of the ratios of a round to the one beside it.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use raftkv::{ClusterId, Entry, EntryKind, GroupId, LogId, LogStore, LogWrite, NodeId};
use raftkv_storage_redb::{Commit, Identity, Options, RedbLog};
use redb::{Database, TableDefinition};
use tokio::runtime::Runtime;

const VALUE: usize = 256;
const ROUNDS: usize = 150;
const ROUND: Duration = Duration::from_millis(50);
const KEPT: u64 = 20_000;

fn main() {
    // Cargo passes `--bench` along.
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let dir = tempfile::tempdir_in(dir.map_or_else(std::env::temp_dir, PathBuf::from)).unwrap();
    println!("commit      batch of   log writes/s   entries/s   bare redb, commits/s   ratio");
    for commit in [Commit::OnePhase, Commit::TwoPhase] {
        for count in [1, 16, 256] {
            measure(&dir.path().join(format!("{commit:?}-{count}")), commit, count);
        }
    }
}

fn measure(dir: &Path, commit: Commit, count: u64) {
    let mut log = Log::open(dir, commit);
    let mut bare = Bare::open(&dir.with_extension("bare"), commit);
    let (mut rates, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..ROUNDS {
        let (ours, theirs) = (rate(&mut || log.write(count)), rate(&mut || bare.write(count)));
        rates[0].push(ours);
        rates[1].push(theirs);
        ratios.push(ours / theirs);
        log.compact();
        bare.compact();
    }
    let ([log, bare], ratio) = (rates.map(median), median(ratios));
    println!(
        "{:<8}   {count:>8}   {log:>12.0}   {:>9.0}   {bare:>20.0}   {:>5.2}",
        format!("{commit:?}"),
        log * f64::from(u32::try_from(count).unwrap()),
        ratio
    );
}

struct Log {
    runtime: Runtime,
    log: RedbLog,
    next: u64,
}

impl Log {
    fn open(dir: &Path, commit: Commit) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let identity = Identity { cluster: ClusterId(1), node: NodeId(1), group: GroupId(0) };
        let log = RedbLog::open(dir, identity, Options { commit, ..Options::default() }).unwrap();
        Self { runtime, log, next: 1 }
    }

    fn write(&mut self, count: u64) {
        let entries = (self.next..self.next + count).map(|index| Entry {
            id: LogId::new(1, index),
            kind: EntryKind::Command,
            data: vec![index.to_le_bytes()[0]; VALUE].into(),
        });
        let write = LogWrite { hard_state: None, entries: entries.collect() };
        self.runtime.block_on(self.log.write(write)).unwrap();
        self.next += count;
    }

    fn compact(&mut self) {
        let upto = LogId::new(1, self.next.saturating_sub(KEPT));
        self.runtime.block_on(self.log.compact(upto)).unwrap();
    }
}

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");

struct Bare {
    database: Database,
    commit: Commit,
    next: u64,
}

impl Bare {
    fn open(path: &Path, commit: Commit) -> Self {
        let cache = Options::default().cache_bytes;
        let database = Database::builder().set_cache_size(cache).create(path).unwrap();
        Self { database, commit, next: 1 }
    }

    fn write(&mut self, count: u64) {
        let mut transaction = self.database.begin_write().unwrap();
        transaction.set_two_phase_commit(self.commit == Commit::TwoPhase);
        let mut table = transaction.open_table(TABLE).unwrap();
        for index in self.next..self.next + count {
            let data = vec![index.to_le_bytes()[0]; VALUE];
            table.insert(index, data.as_slice()).unwrap();
        }
        drop(table);
        transaction.commit().unwrap();
        self.next += count;
    }

    fn compact(&mut self) {
        let transaction = self.database.begin_write().unwrap();
        let mut table = transaction.open_table(TABLE).unwrap();
        table.retain_in(..=self.next.saturating_sub(KEPT), |_, _| false).unwrap();
        drop(table);
        transaction.commit().unwrap();
    }
}

fn rate(once: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < ROUND {
        once();
        done += 1;
    }
    f64::from(done) / start.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
