//! How fast a log of 1 GiB opens, beside `dd` reading the same files.
//!
//! `cargo bench -p raftkv-storage-file --bench recovery -- [DIR]`; the directory should be on the disk that is to be measured.
//!
//! Both read with a warm page cache, and after the kernel was asked to drop these files from it. The best of five is shown.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use raftkv::{ClusterId, Entry, EntryKind, GroupId, LogId, LogWrite, NodeId};
use raftkv_storage_file::{FileLog, Identity, Options, OsVfs, Wal};

const SIZE: u64 = 1 << 30;
const ROUNDS: usize = 5;
const IDENTITY: Identity = Identity { cluster: ClusterId(1), node: NodeId(1), group: GroupId(0) };

fn main() {
    // Cargo passes `--bench` along.
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let dir = tempfile::tempdir_in(dir.map_or_else(std::env::temp_dir, PathBuf::from)).unwrap();
    println!("value   batch   cache     open        dd          ratio   index");
    for (value, count) in [(256, 1024), (256, 16), (4096, 64)] {
        let dir = dir.path().join(format!("{value}-{count}"));
        fill(&dir, value, count);
        for warm in [true, false] {
            let (mut open, mut dd, mut memory) = (Duration::MAX, Duration::MAX, 0);
            for _ in 0..ROUNDS {
                prepare(&dir, warm);
                let start = Instant::now();
                let log = FileLog::open(&dir, IDENTITY, Options::default()).unwrap();
                open = open.min(start.elapsed());
                memory = log.index_memory();
                drop(log);
                prepare(&dir, warm);
                dd = dd.min(run_dd(&dir));
            }
            let speed = |time: Duration| SIZE as f64 / time.as_secs_f64() / f64::from(1 << 20);
            println!(
                "{value:>5}   {count:>5}   {}   {:>5.0} MiB/s {:>5.0} MiB/s   {:>5.2}   {} KiB",
                if warm { "warm" } else { "cold" },
                speed(open),
                speed(dd),
                dd.as_secs_f64() / open.as_secs_f64(),
                memory >> 10
            );
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

fn fill(dir: &Path, value: usize, count: u64) {
    let mut wal = Wal::open(std::sync::Arc::new(OsVfs), dir, IDENTITY, Options::default()).unwrap();
    let mut next = 1;
    while segments(dir).iter().map(|path| path.metadata().unwrap().len()).sum::<u64>() <= SIZE {
        for _ in 0..64 {
            let entries = (next..next + count).map(|index| Entry {
                id: LogId::new(1 + index / 100_000, index),
                kind: EntryKind::Command,
                data: vec![index.to_le_bytes()[0]; value].into(),
            });
            next += count;
            wal.write(&LogWrite { hard_state: None, entries: entries.collect() }).unwrap();
            wal.settle();
        }
    }
    wal.close();
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "wal")).collect()
}

fn prepare(dir: &Path, warm: bool) {
    for path in segments(dir) {
        if warm {
            std::io::copy(&mut File::open(path).unwrap(), &mut std::io::sink()).unwrap();
        } else {
            let file = File::open(path).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
}

fn run_dd(dir: &Path) -> Duration {
    let start = Instant::now();
    for path in segments(dir) {
        let input = format!("if={}", path.display());
        let done = Command::new("dd").args([&input, "of=/dev/null", "bs=1M", "status=none"]).status().unwrap();
        assert!(done.success());
    }
    start.elapsed()
}
