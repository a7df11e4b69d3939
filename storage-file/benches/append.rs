//! How fast a log takes batches, beside plain files that are written and synced with as many bytes.
//!
//! `cargo bench -p raftkv-storage-file --bench append -- [DIR]`; the directory should be on the disk that is to be measured.
//!
//! One plain file is appended to, as whoever needs a log at once would do it: it becomes longer with each write, and each sync has that to write as well. The
//! others are made in advance, filled with zeros, and written round and round, which is the most that a disk gives: a log that did that would keep nothing. The rounds
//! of the log and of the plain files take turns, so that what else the machine does hits all alike; the medians of the rounds are shown.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use raftkv::{ClusterId, Entry, EntryKind, GroupId, LogId, LogStore, LogWrite, NodeId};
use raftkv_storage_file::{DumpLine, FileLog, Identity, Options, dump};

const VALUE: usize = 256;
const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(400);

fn main() {
    // Cargo passes `--bench` along.
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let dir = tempfile::tempdir_in(dir.map_or_else(std::env::temp_dir, PathBuf::from)).unwrap();
    println!(
        "batch of   log writes/s   entries/s   appended file   ratio   file made in advance   ratio   payload only   ratio"
    );
    for count in [1, 16, 256] {
        measure(&dir.path().join(count.to_string()), count);
    }
}

fn measure(dir: &Path, count: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let identity = Identity { cluster: ClusterId(1), node: NodeId(1), group: GroupId(0) };
    let log = FileLog::open(dir, identity, Options::default()).unwrap();
    let mut next = 1;
    let mut write = || {
        let entries = (next..next + count).map(|index| Entry {
            id: LogId::new(1, index),
            kind: EntryKind::Command,
            data: vec![index.to_le_bytes()[0]; VALUE].into(),
        });
        next += count;
        let write = LogWrite { hard_state: None, entries: entries.collect() };
        runtime.block_on(log.write(write)).unwrap();
    };
    write();
    let padded = batch_bytes(dir);
    let mut same = Plain::filled(&dir.join("same"), padded);
    let mut payload = Plain::filled(&dir.join("payload"), usize::try_from(count).unwrap() * VALUE);
    let mut rates = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        rates[0].push(rate(&mut write));
        let mut appended = Plain::empty(&dir.join("appended"), padded);
        rates[1].push(rate(&mut || appended.write()));
        rates[2].push(rate(&mut || same.write()));
        rates[3].push(rate(&mut || payload.write()));
    }
    let [log, appended, same, payload] = rates.map(median);
    println!(
        "{count:>8}   {log:>12.0}   {:>9.0}   {appended:>13.0}   {:>5.2}   {same:>20.0}   {:>5.2}   {payload:>12.0}   {:>5.2}",
        log * f64::from(u32::try_from(count).unwrap()),
        log / appended,
        log / same,
        log / payload
    );
}

/// What a batch takes in the log.
fn batch_bytes(dir: &Path) -> usize {
    let mut found = 0;
    dump(dir, |line| {
        if let DumpLine::Batch { bytes, .. } = line {
            found = bytes;
        }
    })
    .unwrap();
    usize::try_from(found).unwrap()
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

/// A file that is written from its beginning on, up to its limit, and then again.
struct Plain {
    file: File,
    data: Vec<u8>,
    offset: u64,
    limit: u64,
}

impl Plain {
    const SIZE: u64 = 64 << 20;

    /// One that grows with each write.
    fn empty(path: &Path, bytes: usize) -> Self {
        Self { file: File::create(path).unwrap(), data: vec![7; bytes], offset: 0, limit: u64::MAX }
    }

    fn filled(path: &Path, bytes: usize) -> Self {
        let plain = Self { limit: Self::SIZE, ..Self::empty(path, bytes) };
        for at in (0..Self::SIZE).step_by(1 << 20) {
            plain.file.write_all_at(&vec![0; 1 << 20], at).unwrap();
        }
        plain.file.sync_all().unwrap();
        plain
    }

    fn write(&mut self) {
        if self.offset + self.data.len() as u64 > self.limit {
            self.offset = 0;
        }
        self.file.write_all_at(&self.data, self.offset).unwrap();
        self.file.sync_data().unwrap();
        self.offset += self.data.len() as u64;
    }
}
