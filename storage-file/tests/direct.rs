//! Large batches, which are written past the page cache.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};

use raftkv::{Index, LogStore};
use raftkv_storage_file::sim::{Fate, SimDisk};
use raftkv_storage_file::{Access, FileLog, Options, OsVfs, Vfs, Wal};
use support::{Call, IDENTITY, Model, model_of, open_with, perform, write};

const LARGE: usize = 200_000;
/// Batches of so many bytes and more are large.
const FROM: u64 = 128 << 10;

fn options() -> Options {
    Options { segment_bytes: 1 << 20, direct_from: FROM, background: false, ..Default::default() }
}

/// Batches of one entry each, of these lengths.
fn fill(wal: &mut Wal, model: &mut Model, lengths: &[usize]) {
    for len in lengths {
        let next = model.last().index.0 + 1;
        let call = Call::Write(write(1, next..next + 1, *len));
        perform(wal, &call).unwrap();
        wal.settle();
        model.apply(&call);
    }
}

#[test]
fn large_batches_go_past_the_cache_and_small_ones_do_not() {
    let disk = SimDisk::new();
    let mut wal = open_with(&disk, options()).unwrap();
    let mut model = Model::default();
    fill(&mut wal, &mut model, &[LARGE, 10, 100_000, LARGE, LARGE]);
    assert_eq!(disk.direct_writes(), 3);
    // Larger than a segment.
    fill(&mut wal, &mut model, &[3 << 20, 10]);
    assert_eq!(disk.direct_writes(), 4);
    assert_eq!(model_of(&wal).unwrap(), model);
    drop(wal);
    let mut wal = open_with(&disk, options()).unwrap();
    fill(&mut wal, &mut model, &[LARGE]);
    assert_eq!((disk.direct_writes(), model_of(&wal).unwrap()), (5, model.clone()));
    let never = Options { direct_from: u64::MAX, ..options() };
    drop(wal);
    let before = disk.direct_writes();
    fill(&mut open_with(&disk, never).unwrap(), &mut model, &[LARGE]);
    assert_eq!(disk.direct_writes(), before);
}

#[test]
fn where_there_is_no_way_past_the_cache_large_batches_are_written_as_small_ones_are() {
    for block in [None, Some(4096)] {
        let disk = SimDisk::new();
        disk.set_direct_block(block);
        let mut wal = open_with(&disk, options()).unwrap();
        let mut model = Model::default();
        fill(&mut wal, &mut model, &[10, LARGE, 10, LARGE, LARGE, LARGE, LARGE, LARGE, LARGE]);
        // With its header the first batch of the second segment is a multiple of 4096 bytes.
        assert_eq!(disk.direct_writes(), u64::from(block.is_some()));
        assert_eq!(model_of(&wal).unwrap(), model, "blocks of {block:?}");
        let after = disk.now().lose_power(|_| Fate::Lost);
        assert_eq!(model_of(&open_with(&after, options()).unwrap()).unwrap(), model, "blocks of {block:?}");
    }
}

/// On a file system that writes a part, and then says that it can't go on from there.
#[test]
fn a_large_batch_that_was_cut_short_is_written_again_as_a_whole() {
    let disk = SimDisk::new();
    let mut wal = open_with(&disk, options()).unwrap();
    let mut model = Model::default();
    disk.set_write_limit(Some(70_000));
    fill(&mut wal, &mut model, &[LARGE, 10, LARGE]);
    assert_eq!(disk.direct_writes(), 1);
    assert_eq!(model_of(&wal).unwrap(), model);
    let after = disk.now().lose_power(|_| Fate::Lost);
    assert_eq!(model_of(&open_with(&after, options()).unwrap()).unwrap(), model);
}

/// Whether it is done at all: what can't be written past the cache is written through it, and no other test would notice.
#[test]
fn another_handle_of_a_real_file_writes_past_the_cache() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = OsVfs.open(&place.path().join("file"), Access::Create).unwrap();
    file.write_at(&[1; 8192], 0).unwrap();
    let mut found = [0; 8192];
    file.read_at(&mut found, 0).unwrap();
    let direct = match file.direct() {
        Ok(direct) => direct,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            eprintln!("this file system has no such way, so there is nothing to test");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let memory = [2; 3 * 4096];
    let aligned = &memory[memory.as_ptr().align_offset(4096)..];
    assert_eq!(direct.write_at(&aligned[..100], 0).unwrap_err().kind(), ErrorKind::InvalidInput);
    direct.write_at(&aligned[..4096], 4096).unwrap();
    file.sync_data().unwrap();
    file.read_at(&mut found, 0).unwrap();
    assert!(found == [[1; 4096], [2; 4096]].as_flattened());
}

/// The cache has pages that small batches and readers brought there, in the middle of which a large one begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_and_large_batches_of_one_file_are_read_as_they_were_written() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = Options { direct_from: FROM, ..Options::default() };
    let open = || FileLog::open(place.path().join("log"), IDENTITY, options).unwrap();
    let lengths: Vec<usize> = (0..60).map(|n| [10, LARGE, 700, 3000, LARGE + 700 * n, 1][n % 6]).collect();
    let expected = |index: u64| write(1, index..index + 1, lengths[usize::try_from(index - 1).unwrap()]);
    let count = lengths.len() as u64;
    let log = open();
    let written = AtomicU64::new(0);
    let read_back = async {
        let mut last = 0;
        while last < count {
            last = written.load(Ordering::Acquire);
            for index in last.saturating_sub(4).max(1)..=last {
                let read = log.read(Index(index)..Index(index + 1), u64::MAX).await.unwrap();
                assert_eq!(read, expected(index).entries, "entry {index}");
            }
            tokio::task::yield_now().await;
        }
    };
    let write = async {
        for index in 1..=count {
            log.write(expected(index)).await.unwrap();
            written.store(index, Ordering::Release);
        }
    };
    tokio::join!(read_back, write);
    drop(log);
    let entries = open().read(Index(1)..Index(count + 1), u64::MAX).await.unwrap();
    assert!((1..=count).flat_map(|index| expected(index).entries).eq(entries));
}
