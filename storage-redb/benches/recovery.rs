//! How long a log takes to open, after an orderly end and after a kill, and to be compacted.
//!
//! `cargo bench -p raftkv-storage-redb --bench recovery -- [DIR]`; the directory should be on the disk that is to be measured.
//!
//! Entries have 256 bytes and come in batches of 256. A kill is the directory of an open log, copied. The page cache is warm.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use raftkv::{ClusterId, Entry, EntryKind, GroupId, LogId, LogStore, LogWrite, NodeId};
use raftkv_storage_redb::{Identity, Options, RedbLog};
use tokio::runtime::Runtime;

const VALUE: usize = 256;
const BATCH: u64 = 256;
const IDENTITY: Identity = Identity { cluster: ClusterId(1), node: NodeId(1), group: GroupId(0) };

fn main() {
    // Cargo passes `--bench` along.
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let dir = tempfile::tempdir_in(dir.map_or_else(std::env::temp_dir, PathBuf::from)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    println!(
        "entries     file, MiB   entries, MiB  open after close   open after a kill   compact all but 10 000   file then, MiB"
    );
    for count in [100_000, 400_000, 1_600_000] {
        measure(&runtime, &dir.path().join(count.to_string()), count);
    }
}

fn measure(runtime: &Runtime, dir: &Path, count: u64) {
    let (home, killed) = (dir.join("home"), dir.join("killed"));
    let open = |dir: &Path| RedbLog::open(dir, IDENTITY, Options::default()).unwrap();
    let log = open(&home);
    fill(runtime, &log, count);
    let stats = log.stats().unwrap();
    std::fs::create_dir_all(&killed).unwrap();
    for file in ["IDENTITY", "SYNCED", "log.redb"] {
        std::fs::copy(home.join(file), killed.join(file)).unwrap();
    }
    drop(log);
    let (after_close, log) = timed(|| open(&home));
    let (after_kill, _) = timed(|| drop(open(&killed)));
    let upto = LogId::new(1, count - 10_000);
    let (compacted, ()) = timed(|| runtime.block_on(log.compact(upto)).unwrap());
    drop(log);
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{count:>9}   {:>9}   {:>11}   {:>13.2} s   {:>14.2} s   {:>19.2} s   {:>14}",
        mib(stats.file_bytes),
        mib(stats.entry_bytes),
        after_close.as_secs_f64(),
        after_kill.as_secs_f64(),
        compacted.as_secs_f64(),
        mib(std::fs::metadata(home.join("log.redb")).unwrap().len())
    );
}

fn fill(runtime: &Runtime, log: &RedbLog, count: u64) {
    for first in (1..=count).step_by(usize::try_from(BATCH).unwrap()) {
        let entries = (first..(first + BATCH).min(count + 1)).map(|index| Entry {
            id: LogId::new(1, index),
            kind: EntryKind::Command,
            data: vec![index.to_le_bytes()[0]; VALUE].into(),
        });
        let write = LogWrite { hard_state: None, entries: entries.collect() };
        runtime.block_on(log.write(write)).unwrap();
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed(), done)
}
