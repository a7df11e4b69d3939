//! What a log refuses, with the words that it finds: a directory in use, another's directory, a disk that fails or is full.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::ErrorKind;
use std::sync::Arc;

use raftkv::{ClusterId, GroupId, Index, LogStore, LogWrite, NodeId, StorageError};
use raftkv_storage_file::sim::{Fate, Fault, SimDisk};
use raftkv_storage_file::{FileLog, Identity, Options, Wal};
use support::{IDENTITY, Model, dir, model_of, open, open_with, tiny, vote, write};

fn small() -> Options {
    Options { segment_bytes: 64 << 10, ..Options::default() }
}

#[test]
fn a_directory_in_use_is_refused_and_free_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let first = FileLog::open(dir.path(), IDENTITY, small()).unwrap();
    let error = FileLog::open(dir.path(), IDENTITY, small()).unwrap_err();
    assert!(matches!(error, StorageError::Refused { .. }));
    let expected = format!("in use by process {}", std::process::id());
    assert!(error.to_string().contains(&expected), "{error}");
    drop(first);
    FileLog::open(dir.path(), IDENTITY, small()).unwrap();
}

#[test]
fn anothers_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(FileLog::open(dir.path(), IDENTITY, small()).unwrap());
    let others = [
        Identity { cluster: ClusterId(1), ..IDENTITY },
        Identity { node: NodeId(2), ..IDENTITY },
        Identity { group: GroupId(3), ..IDENTITY },
    ];
    for other in others {
        let error = FileLog::open(dir.path(), other, small()).unwrap_err();
        assert!(matches!(error, StorageError::Refused { .. }));
        assert!(
            error.to_string().contains("this is the log of node 1 of cluster 0000000000c0ffee (group 0)"),
            "{error}"
        );
    }
    FileLog::open(dir.path(), IDENTITY, small()).unwrap();
}

#[test]
fn impossible_options_are_refused_with_what_is_possible() {
    let dir = tempfile::tempdir().unwrap();
    for (options, word) in [
        (Options { align: 100, ..small() }, "512"),
        (Options { align: 8192, ..small() }, "4096"),
        (Options { segment_bytes: 512, ..small() }, "twice"),
        (Options { segment_bytes: 5000, ..small() }, "multiple"),
    ] {
        let error = FileLog::open(dir.path(), IDENTITY, options).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// Each operation of a write fails in turn. The failure is told with what was tried on what, it sticks, reads go on, and
/// a new process finds what was acknowledged.
#[test]
fn a_failed_write_or_sync_sticks() {
    let mut seen = Vec::new();
    for fault in [Fault::Refuse(ErrorKind::Other), Fault::Refuse(ErrorKind::StorageFull), Fault::Forget] {
        for operation in 0..2 {
            let disk = SimDisk::new();
            let mut wal = open(&disk).unwrap();
            wal.write(&write(1, 1..3, 50)).unwrap();
            wal.settle();
            disk.fail_at(disk.operations() + operation, fault);
            let error = wal.write(&write(1, 3..4, 50)).unwrap_err();
            assert!(matches!(error, StorageError::Io { .. } | StorageError::Full { .. }), "{error}");
            seen.push(error.to_string());
            for _ in 0..2 {
                let again = wal.write(&vote(9, 1)).unwrap_err();
                assert!(matches!(&again, StorageError::Sticky(reason) if reason == &error.to_string()), "{again}");
            }
            wal.settle();
            assert_eq!(wal.read(Index(1)..Index(9), u64::MAX).unwrap(), write(1, 1..3, 50).entries);
            assert!(wal.read(Index(3)..Index(9), u64::MAX).is_err(), "an unacknowledged entry is visible");
            drop(wal);
            let found = model_of(&open(&disk).unwrap()).unwrap();
            assert_eq!(found.entries[..2], write(1, 1..3, 50).entries);
        }
    }
    for (text, count) in [("write /log/0000", 2), ("fsync /log/0000", 2), ("make room, then restart", 2)] {
        assert!(seen.iter().filter(|error| error.contains(text)).count() >= count, "{text}: {seen:?}");
    }
}

#[test]
fn a_full_disk_is_told_loses_nothing_and_serves_again_with_room() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(20_000));
    let mut wal = open(&disk).unwrap();
    let mut model = Model::default();
    let error = loop {
        let next = write(1, model.last().index.0 + 1..model.last().index.0 + 3, 400);
        match wal.write(&next) {
            Ok(()) => model.apply(&support::Call::Write(next)),
            Err(error) => break error,
        }
        wal.settle();
    };
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    assert!(model.entries.len() > 10, "the disk was full after {} entries", model.entries.len());
    drop(wal);
    // The room that was reserved in advance makes it possible to start even now.
    disk.set_capacity(Some(30_000));
    let mut wal = open(&disk).unwrap();
    assert_eq!(model_of(&wal).unwrap(), model);
    let next = write(2, model.last().index.0 + 1..model.last().index.0 + 2, 400);
    wal.write(&next).unwrap();
    model.apply(&support::Call::Write(next));
    drop(wal);
    assert_eq!(model_of(&open(&disk).unwrap()).unwrap(), model);
}

/// A disk with less room than a whole segment takes a smaller one.
#[test]
fn a_nearly_full_disk_gets_a_smaller_segment() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(300 << 10));
    let mut wal =
        open_with(&disk, Options { segment_bytes: 1 << 20, background: false, ..Options::default() }).unwrap();
    wal.write(&write(1, 1..5, 1000)).unwrap();
    let largest = disk.files().iter().map(|path| disk.contents(path).unwrap().len()).max().unwrap();
    assert_eq!(largest, 256 << 10);
}

/// Whatever fails while a log is opened is told, and the next open finds everything.
#[test]
fn a_failure_at_any_step_of_opening_costs_nothing() {
    let disk = SimDisk::new();
    let mut wal = open(&disk).unwrap();
    for first in (1..30).step_by(3) {
        wal.write(&write(1, first..first + 3, 200)).unwrap();
    }
    let expected = model_of(&wal).unwrap();
    drop(wal);
    // Nothing was noted, so that opening has the most to do.
    disk.delete(&dir().join("SYNCED"));
    let start = disk.now();
    let mut failures = 0;
    for operation in 0.. {
        let disk = start.kill();
        disk.fail_at(operation, Fault::Refuse(ErrorKind::Other));
        match open(&disk) {
            Ok(_) if disk.operations() <= operation => break,
            Ok(_) => {}
            Err(StorageError::Io { .. }) => failures += 1,
            Err(other) => panic!("{other}"),
        }
        assert_eq!(model_of(&open(&disk).unwrap()).unwrap(), expected, "after a failure at {operation}");
    }
    assert!(failures > 5, "only {failures} steps can fail");
}

/// The threads of a log end with it, and what was handed over before is done.
#[tokio::test]
async fn a_write_that_nobody_waits_for_is_still_done() {
    let dir = tempfile::tempdir().unwrap();
    let log = FileLog::open(dir.path(), IDENTITY, small()).unwrap();
    let abandoned = tokio::time::timeout(std::time::Duration::ZERO, log.write(write(1, 1..4, 100))).await;
    drop(abandoned);
    log.write(write(1, 4..5, 100)).await.unwrap();
    drop(log);
    let log = FileLog::open(dir.path(), IDENTITY, small()).unwrap();
    assert_eq!(log.load().await.unwrap().last, raftkv::LogId::new(1, 4));
}

#[tokio::test]
async fn a_log_rolls_and_compacts_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let log = FileLog::open(dir.path(), IDENTITY, small()).unwrap();
    let segments = || std::fs::read_dir(dir.path()).unwrap().filter(|f| is_segment(f.as_ref().unwrap())).count();
    for first in (1..400).step_by(4) {
        log.write(write(1, first..first + 4, 1000)).await.unwrap();
    }
    assert!(segments() >= 6, "{} segments", segments());
    assert!(log.index_memory() < 4096, "{} bytes", log.index_memory());
    log.compact(raftkv::LogId::new(1, 390)).await.unwrap();
    assert_eq!(log.read(Index(391)..Index(500), u64::MAX).await.unwrap(), write(1, 391..401, 1000).entries);
    drop(log);
    assert!(segments() <= 3, "{} segments", segments());
    let log: Arc<dyn LogStore> = Arc::new(FileLog::open(dir.path(), IDENTITY, small()).unwrap());
    log.write(LogWrite::default()).await.unwrap();
    assert_eq!(log.read(Index(391)..Index(500), u64::MAX).await.unwrap(), write(1, 391..401, 1000).entries);
}

fn is_segment(file: &std::fs::DirEntry) -> bool {
    file.path().extension().is_some_and(|extension| extension == "wal")
}

/// A simulated disk holds one lock for each directory, as a real one does.
#[test]
fn a_simulated_directory_in_use_is_refused() {
    let disk = SimDisk::new();
    let wal: Wal = open_with(&disk, tiny()).unwrap();
    assert!(matches!(open(&disk), Err(StorageError::Refused { .. })));
    drop(wal);
    open(&disk).unwrap();
}

/// What is refused when it is read must not be acknowledged when it is written.
#[test]
fn a_term_that_no_log_counts_to_is_refused_when_it_is_written() {
    let mut wal = open_with(&SimDisk::new(), tiny()).unwrap();
    let error = wal.write(&vote(1 << 63, 1)).unwrap_err();
    assert!(matches!(&error, StorageError::Misuse(reason) if reason.contains("no log counts this far")), "{error}");
}

/// What a log of large batches costs the disk is not twice what is in them: its segments are not filled with zeros first. And what small batches follow is.
#[test]
fn segments_after_large_batches_are_not_written_twice() {
    let disk = SimDisk::new();
    let options = Options { segment_bytes: 4 << 20, background: false, ..Options::default() };
    let mut wal = open_with(&disk, options).unwrap();
    let mut steps = |entries: u64, bytes: usize, writes: u64| {
        let before = disk.operations();
        for _ in 0..writes {
            let next = wal.state().last.index.0 + 1;
            wal.write(&write(1, next..next + entries, bytes)).unwrap();
            wal.settle();
        }
        disk.operations() - before
    };
    let large = steps(1, 1 << 20, 8);
    assert!(large < 64, "a segment of zeros was written: {large} operations for 8 batches");
    // The next one was prepared after large batches, the one after it was not.
    let small = steps(256, 1000, 32);
    assert!(small > 64, "no segment of zeros was written: {small} operations for 32 batches of a quarter of a MiB");
    let held = wal.state();
    drop(wal);
    let after = open_with(&disk.now().lose_power(|_| Fate::Lost), options).unwrap();
    assert_eq!(after.state(), held);
    assert_eq!(after.read(Index(1)..held.last.index.next(), u64::MAX).unwrap().len() as u64, held.last.index.0);
}
