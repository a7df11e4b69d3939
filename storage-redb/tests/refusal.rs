//! What a log refuses, what it does when the disk refuses, and how much room it takes.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use raftkv::testing::Random;
use raftkv::{Index, LogId, LogStore, LogWrite, NodeId, StorageError};
use raftkv_storage_file::sim::{Fate, Fault, SimDisk};
use raftkv_storage_file::{self as plain, FileLog};
use raftkv_storage_redb::{Commit, Identity, Options, RedbLog};
use support::{Call, IDENTITY, Model, file, inline, model_of, now, open, perform, vote, workload, write};

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = RedbLog::open(dir.path(), IDENTITY, Options::default()).unwrap();
    let error = RedbLog::open(dir.path(), IDENTITY, Options::default()).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains(&std::process::id().to_string()), "{error}");
    drop(log);
    RedbLog::open(dir.path(), IDENTITY, Options::default()).unwrap();
}

#[test]
fn anothers_log_is_refused() {
    let disk = SimDisk::new();
    drop(open(&disk).unwrap());
    let other = Identity { node: NodeId(2), ..IDENTITY };
    let opened = RedbLog::open_on(Arc::new(disk.clone()), "/log", other, inline(Commit::OnePhase));
    assert!(matches!(opened, Err(StorageError::Refused { .. })), "{opened:?}");
}

/// Whoever changes the kind of store on a directory would begin with an empty log, and vote anew.
#[test]
fn another_kind_of_store_is_refused() {
    let disk = SimDisk::new();
    let options = plain::Options { background: false, segment_bytes: 4096, ..plain::Options::default() };
    drop(open(&disk).unwrap());
    let opened = FileLog::open_on(Arc::new(disk.clone()), "/log", IDENTITY, options);
    assert!(matches!(&opened, Err(StorageError::Refused { reason, .. }) if reason.contains("redb log")), "{opened:?}");
    drop(FileLog::open_on(Arc::new(disk.clone()), "/plain", IDENTITY, options).unwrap());
    let opened = RedbLog::open_on(Arc::new(disk.clone()), "/plain", IDENTITY, inline(Commit::OnePhase));
    assert!(
        matches!(&opened, Err(StorageError::Refused { reason, .. }) if reason.contains("raftkv log")),
        "{opened:?}"
    );
}

/// A log of some commits and then one that fails at an operation; none when that operation never came.
fn fail_at(start: &SimDisk, operation: u64, fault: Fault) -> Option<(SimDisk, Model, StorageError)> {
    let disk = start.now().kill();
    let log = open(&disk).unwrap();
    let mut model = model_of(&log).unwrap();
    disk.fail_at(disk.operations() + operation, fault);
    for n in 0..3 {
        let last = model.last().index.0;
        let call = Call::Write(LogWrite { hard_state: vote(2 + n, 1).hard_state, ..write(2 + n, last..last + 3, 900) });
        if let Err(error) = perform(&log, &call) {
            assert!(matches!(perform(&log, &call), Err(StorageError::Sticky(_))), "a write was taken after {error}");
            return Some((disk, model, error));
        }
        model.apply(&call);
    }
    None
}

/// A sync that failed leaves data in the page cache that never reaches the disk: the next process reads it, and must not build on it.
#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_not_relied_on() {
    let start = SimDisk::new();
    let log = open(&start).unwrap();
    now(log.write(write(1, 1..5, 300))).unwrap();
    drop(log);
    let mut failures = 0;
    for operation in 0..60 {
        let Some((disk, _, _)) = fail_at(&start, operation, Fault::Forget) else { continue };
        failures += 1;
        assert_nothing_is_built_on_the_page_cache(&disk, &format!("operation {operation}"));
    }
    assert!(failures > 5, "only {failures} syncs failed");
}

/// Without the note of what was synced nobody knows how the log was left, so the same care is due.
#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_not_relied_on_without_a_note_either() {
    let start = SimDisk::new();
    let log = open(&start).unwrap();
    now(log.write(write(1, 1..5, 300))).unwrap();
    drop(log);
    let synced = Path::new("/log/SYNCED");
    let mut failures = 0;
    for operation in 0..60 {
        for unreadable in [false, true] {
            let Some((disk, _, _)) = fail_at(&start, operation, Fault::Forget) else { continue };
            failures += 1;
            if unreadable {
                let len = disk.contents(synced).unwrap().len();
                disk.misdirect(synced, 0, &vec![7; len]);
            } else {
                disk.delete(synced);
            }
            assert_nothing_is_built_on_the_page_cache(&disk, &format!("operation {operation}, {unreadable}"));
        }
    }
    assert!(failures > 10, "only {failures} syncs failed");
}

/// The next process writes on, and then power is lost: all that it found and acknowledged is there.
fn assert_nothing_is_built_on_the_page_cache(disk: &SimDisk, context: &str) {
    let log = open(disk).unwrap();
    let mut model = model_of(&log).unwrap();
    let call = Call::Write(write(9, model.last().index.0 + 1..model.last().index.0 + 2, 100));
    perform(&log, &call).unwrap();
    model.apply(&call);
    for fate in [Fate::Lost, Fate::Garbage] {
        let after = disk.now().lose_power(|_| fate);
        assert_eq!(model_of(&open(&after).unwrap()).unwrap(), model, "{context}, {fate:?}");
    }
}

#[test]
fn whatever_fails_is_told_sticks_and_costs_nothing() {
    let start = SimDisk::new();
    let log = open(&start).unwrap();
    now(log.write(write(1, 1..5, 300))).unwrap();
    drop(log);
    let mut seen = Vec::new();
    for fault in [Fault::Refuse(ErrorKind::Other), Fault::Refuse(ErrorKind::StorageFull), Fault::Forget] {
        for operation in 0..60 {
            let Some((disk, model, error)) = fail_at(&start, operation, fault) else { continue };
            seen.push(error.to_string());
            let found = model_of(&open(&disk).unwrap()).unwrap();
            // The commit that failed may be there as a whole.
            assert!(
                found == model || found.hard_state.term > model.hard_state.term,
                "operation {operation}: {found:?}"
            );
            assert!(found.last() >= model.last());
        }
    }
    for (text, count) in [("write /log/log.redb", 5), ("fsync /log/log.redb", 3), ("make room, then restart", 3)] {
        assert!(seen.iter().filter(|error| error.contains(text)).count() >= count, "{text}: {seen:#?}");
    }
}

#[test]
fn a_full_disk_is_told_loses_nothing_and_serves_again_with_room() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(3 << 20));
    let log = open(&disk).unwrap();
    let mut model = Model::default();
    let error = loop {
        let next = Call::Write(write(1, model.last().index.0 + 1..model.last().index.0 + 20, 4000));
        match perform(&log, &next) {
            Ok(()) => model.apply(&next),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    assert!(model.entries.len() > 100, "the disk was full after {} entries", model.entries.len());
    drop(log);
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    disk.set_capacity(Some(20 << 20));
    let log = open(&disk).unwrap();
    assert_eq!(model_of(&log).unwrap(), model);
    let next = Call::Write(write(2, model.last().index.0 + 1..model.last().index.0 + 2, 400));
    perform(&log, &next).unwrap();
    model.apply(&next);
    drop(log);
    assert_eq!(model_of(&open(&disk).unwrap()).unwrap(), model);
}

/// Whatever fails while a log is opened is told, and the next open finds everything.
#[test]
fn a_failure_at_any_step_of_opening_costs_nothing() {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    for first in (1..30).step_by(3) {
        now(log.write(write(1, first..first + 3, 200))).unwrap();
    }
    let expected = model_of(&log).unwrap();
    // Not closed, so that opening has the most to do.
    let start = disk.now();
    drop(log);
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

/// The thread of a log ends with it, and what was handed over before is done.
#[tokio::test]
async fn a_write_that_nobody_waits_for_is_still_done() {
    let dir = tempfile::tempdir().unwrap();
    let log = RedbLog::open(dir.path(), IDENTITY, Options::default()).unwrap();
    let abandoned = tokio::time::timeout(std::time::Duration::ZERO, log.write(write(1, 1..4, 100))).await;
    drop(abandoned);
    log.write(write(1, 4..5, 100)).await.unwrap();
    drop(log);
    let log = RedbLog::open(dir.path(), IDENTITY, Options::default()).unwrap();
    assert_eq!(log.load().await.unwrap().last, LogId::new(1, 4));
}

/// A log that is compacted as it grows takes the room of what it holds, and some; when it is closed, the file is cut.
#[test]
fn the_file_does_not_grow_with_what_was_compacted() {
    const KEPT: u64 = 500;
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    let (mut next, mut largest) = (1, 0);
    for round in 0..400 {
        now(log.write(write(1, next..next + 25, 1000))).unwrap();
        next += 25;
        if round % 10 == 9 && next > KEPT {
            now(log.compact(LogId::new(1, next - KEPT))).unwrap();
        }
        largest = largest.max(disk.contents(&file()).unwrap().len());
    }
    let stats = log.stats().unwrap();
    assert_eq!(stats.file_bytes, disk.contents(&file()).unwrap().len() as u64);
    assert!(stats.entry_bytes > KEPT * 1000 && stats.entry_bytes < (KEPT + 300) * 1100, "{stats:?}");
    // 10 MB went through it.
    assert!(largest < 4 << 20, "{largest} bytes for 750 entries of 1000 bytes; {stats:?}");
    now(log.compact(LogId::new(1, next - 1))).unwrap();
    drop(log);
    let closed = disk.contents(&file()).unwrap().len();
    assert!(closed < 200_000, "{closed} bytes for an empty log");
    let log = open(&disk).unwrap();
    assert!(matches!(now(log.read(Index(1)..Index(2), 100)), Err(StorageError::Misuse(_))));
}

/// What is counted as the log changes is what an open counts that reads all of it.
#[test]
fn the_bytes_of_entries_are_those_that_are_held() {
    let disk = SimDisk::new();
    let mut random = Random::new(31);
    let mut log = open(&disk).unwrap();
    assert_eq!(log.stats().unwrap().entry_bytes, 0);
    let mut seen = 0;
    for (n, call) in workload(&mut random, 120).iter().enumerate() {
        perform(&log, call).unwrap();
        let counted = log.stats().unwrap().entry_bytes;
        let payload: u64 = model_of(&log).unwrap().entries.iter().map(|entry| entry.data.len() as u64).sum();
        assert!(counted >= payload, "{counted} bytes with {payload} of payload, after {call:?}");
        seen = seen.max(payload);
        if n % 10 == 9 {
            drop(log);
            log = open(&disk).unwrap();
            assert_eq!(log.stats().unwrap().entry_bytes, counted, "after call {n}: {call:?}");
        }
    }
    assert!(seen > 10_000, "{seen} bytes at most");
    now(log.compact(LogId::new(1000, 100_000))).unwrap();
    assert_eq!(log.stats().unwrap().entry_bytes, 0);
}

/// What is left of a large log may lie at the end of its file, where redb can't cut it: the next open moves it.
#[test]
fn a_file_that_is_mostly_free_shrinks_when_it_is_opened() {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    for first in (1..2001).step_by(100) {
        now(log.write(write(1, first..first + 100, 2000))).unwrap();
    }
    now(log.compact(LogId::new(1, 1990))).unwrap();
    let expected = model_of(&log).unwrap();
    drop(log);
    let before = disk.contents(&file()).unwrap().len();
    assert!(before > 2 << 20, "{before} bytes");
    let killed = disk.now();
    for disk in [disk, killed.kill()] {
        let log = open(&disk).unwrap();
        assert_eq!(model_of(&log).unwrap(), expected);
        let after = disk.contents(&file()).unwrap().len();
        assert!(after < 300_000, "{after} bytes of {before} for ten entries of 2000 bytes");
    }
}

/// What is refused when it is read must not be acknowledged when it is written.
#[test]
fn a_term_that_no_log_counts_to_is_refused_when_it_is_written() {
    let log = open(&SimDisk::new()).unwrap();
    let error = now(log.write(vote(1 << 63, 1))).unwrap_err();
    assert!(matches!(&error, StorageError::Misuse(reason) if reason.contains("no log counts this far")), "{error}");
}
