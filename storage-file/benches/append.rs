//! How fast a log takes batches, beside a plain file that is written and synced with as many bytes.
//!
//! `cargo bench -p raftkv-storage-file --bench append -- [DIR]`; the directory should be on the disk that is to be measured.
//!
//! Both files are made in advance and filled with zeros. The rounds of the log and of the plain files take turns, so
//! that what else the machine does hits all alike; the medians of the rounds are shown.

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
    println!("batch of   log writes/s   entries/s   plain, same bytes   ratio   plain, payload only   ratio");
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
    let mut same = Plain::new(&dir.join("same"), padded);
    let mut payload = Plain::new(&dir.join("payload"), usize::try_from(count).unwrap() * VALUE);
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        rates[0].push(rate(&mut write));
        rates[1].push(rate(&mut || same.write()));
        rates[2].push(rate(&mut || payload.write()));
    }
    let [log, same, payload] = rates.map(median);
    println!(
        "{count:>8}   {log:>12.0}   {:>9.0}   {same:>17.0}   {:>5.2}   {payload:>19.0}   {:>5.2}",
        log * f64::from(u32::try_from(count).unwrap()),
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

/// A file that is written round and round.
struct Plain {
    file: File,
    data: Vec<u8>,
    offset: u64,
}

impl Plain {
    const SIZE: u64 = 64 << 20;

    fn new(path: &Path, bytes: usize) -> Self {
        let file = File::create(path).unwrap();
        for at in (0..Self::SIZE).step_by(1 << 20) {
            file.write_all_at(&vec![0; 1 << 20], at).unwrap();
        }
        file.sync_all().unwrap();
        Self { file, data: vec![7; bytes], offset: 0 }
    }

    fn write(&mut self) {
        if self.offset + self.data.len() as u64 > Self::SIZE {
            self.offset = 0;
        }
        self.file.write_all_at(&self.data, self.offset).unwrap();
        self.file.sync_data().unwrap();
        self.offset += self.data.len() as u64;
    }
}
