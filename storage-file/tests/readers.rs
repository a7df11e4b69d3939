//! Reads beside compactions.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use raftkv::{Index, LogId, LogStore, StorageError};
use raftkv_storage_file::{Access, FileLog, Options, Vfs};
use support::hooked::Hooked;
use support::{IDENTITY, tiny, write};

/// A read spans several segments, and while it reads the first an image takes the place of the whole log, whose entries it contradicts, although the
/// image ends before the first entry read. The others are gone then: no fault of the disk, which would stop the node. (Found by review.)
#[tokio::test]
async fn a_read_that_an_image_overtakes_is_told_that_the_entries_are_not_held() {
    for upto in [LogId::new(9, 3), LogId::new(1, 30), LogId::new(9, 90)] {
        let disk = Hooked::new();
        let log = Arc::new(FileLog::open_on(Arc::new(disk.clone()), PathBuf::from("/log"), IDENTITY, tiny()).unwrap());
        for index in 1..=40 {
            log.write(write(1, index..index + 1, 300)).await.unwrap();
        }
        let (compacted, done) = (log.clone(), Arc::new(OnceLock::new()));
        let tell = done.clone();
        *disk.hook.lock().unwrap() = Some(Box::new(move || {
            let mut compaction = std::pin::pin!(compacted.compact(upto));
            let polled = compaction.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            let _ = tell.set(polled.is_ready());
        }));
        let read = log.read(Index(10)..Index(39), u64::MAX).await;
        assert_eq!(done.get(), Some(&true), "the compaction came in between");
        assert!(matches!(read, Err(StorageError::Misuse(_))), "{read:?}");
    }
}

/// The room of a segment comes back piece by piece, as whoever syncs on that disk waits for it; but not under a read.
#[tokio::test]
async fn a_segment_that_is_being_read_is_not_cut_when_it_is_removed() {
    let disk = Hooked::new();
    let options = Options { segment_bytes: 18 << 20, background: false, ..Options::default() };
    let log = Arc::new(FileLog::open_on(Arc::new(disk.clone()), PathBuf::from("/log"), IDENTITY, options).unwrap());
    let last = 40;
    for index in 1..=last {
        log.write(write(1, index..index + 1, 1 << 20)).await.unwrap();
    }
    let segment = |id| disk.disk.open(&support::segment(id), Access::Read).unwrap();
    let (first, second) = (segment(1), segment(2));
    let whole = first.len().unwrap();
    let compact = |upto: u64| {
        let log = log.clone();
        move || {
            let mut compaction = std::pin::pin!(log.compact(LogId::new(1, upto)));
            let polled = compaction.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            assert!(polled.is_ready());
        }
    };
    *disk.hook.lock().unwrap() = Some(Box::new(compact(17)));
    let read = log.read(Index(17)..Index(18), u64::MAX).await.unwrap();
    assert_eq!(read, write(1, 17..18, 1 << 20).entries, "it was there when the read began");
    assert_eq!(first.len().unwrap(), whole);
    // It has been read, but nobody reads it any more.
    log.read(Index(19)..Index(20), u64::MAX).await.unwrap();
    compact(last - 1)();
    assert!(second.len().unwrap() < whole, "its room is given back at once");
    assert!(disk.disk.contents(&support::segment(1)).is_none() && disk.disk.contents(&support::segment(2)).is_none());
}

/// For each stretch of 32 KiB that a position is kept for, 256 KiB were read ahead, and thrown away: a leader read seven times what a follower lacked.
#[tokio::test]
async fn a_long_read_reads_little_more_than_it_returns() {
    let disk = Hooked::new();
    let options = Options { segment_bytes: 3 << 20, background: false, ..Options::default() };
    let log = FileLog::open_on(Arc::new(disk.clone()), PathBuf::from("/log"), IDENTITY, options).unwrap();
    let (batches, each) = (200, 100);
    for batch in 0..batches {
        log.write(write(1, batch * each + 1..(batch + 1) * each + 1, 300)).await.unwrap();
    }
    for (from, max_bytes) in [(1, u64::MAX), (5_000, 1 << 20), (15_000, 1 << 20)] {
        disk.read.store(0, Ordering::Relaxed);
        let entries = log.read(Index(from)..Index(batches * each + 1), max_bytes).await.unwrap();
        let upto = from + entries.len() as u64;
        assert!(upto > batches * each || max_bytes < u64::MAX, "all of them, but for their size");
        let (bytes, read) = (entries.iter().map(raftkv::Entry::cost).sum::<u64>(), disk.read.load(Ordering::Relaxed));
        assert!(bytes > 1 << 19 && read < bytes + bytes / 4 + (300 << 10), "{read} bytes were read for {bytes}");
    }
}

/// What is read ahead may not have been written yet: a read ends where the log ended when it began, and the next one sees the rest as it is.
#[tokio::test]
async fn what_is_written_while_a_read_is_ahead_of_it_is_not_judged_by_what_was_there_before() {
    let disk = Hooked::new();
    let options = Options { segment_bytes: 3 << 20, background: false, ..Options::default() };
    let log = Arc::new(FileLog::open_on(Arc::new(disk.clone()), PathBuf::from("/log"), IDENTITY, options).unwrap());
    log.write(write(1, 1..301, 300)).await.unwrap();
    let (written, done) = (log.clone(), Arc::new(OnceLock::new()));
    let tell = done.clone();
    // The first read ahead reaches beyond the end of what is written. Then the rest comes.
    *disk.after.lock().unwrap() = Some(Box::new(move || {
        let mut writing = std::pin::pin!(written.write(write(1, 301..601, 300)));
        let polled = writing.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        let _ = tell.set(polled.is_ready());
    }));
    let read = log.read(Index(1)..Index(601), u64::MAX).await.unwrap();
    assert_eq!(done.get(), Some(&true), "the write came in between");
    assert_eq!(read, write(1, 1..301, 300).entries);
    assert_eq!(log.read(Index(1)..Index(601), u64::MAX).await.unwrap(), write(1, 1..601, 300).entries);
}
