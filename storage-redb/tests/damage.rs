//! Damage after the fact: flipped bits, missing and foreign files. It is noticed, it panics nothing, and what was acknowledged is never changed or
//! lost in silence.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::{HardState, LogId, LogStore, LogWrite, NodeId, StorageError, Term};
use raftkv_storage_file::sim::SimDisk;
use raftkv_storage_redb::{Commit, Identity, Options, RedbLog};
use support::{Call, IDENTITY, Model, file, inline, model_of, now, open, open_with, perform, vote, write};

const PAGE: usize = 4096;

fn calls() -> Vec<Call> {
    let hard_state = Some(HardState { term: Term(2), voted_for: Some(NodeId(3)) });
    vec![
        Call::Write(vote(1, 1)),
        Call::Write(write(1, 1..40, 200)),
        Call::Write(write(1, 40..42, 9000)),
        Call::Write(LogWrite { hard_state, ..write(2, 41..60, 30) }),
        Call::Compact(LogId::new(1, 12)),
        Call::Write(write(2, 60..61, 10)),
    ]
}

/// A small log, and what it holds.
fn small_log() -> (SimDisk, Model, RedbLog) {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    let mut model = Model::default();
    for call in calls() {
        perform(&log, &call).unwrap();
        model.apply(&call);
    }
    (disk, model, log)
}

/// Bits of a file's pages that were ever written: all of the first sectors, where the header is, and every so many of the others.
fn bits(bytes: &[u8], every: usize) -> Vec<usize> {
    let written = bytes.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    let of_pages =
        written.flat_map(|(n, page)| (n * PAGE * 8..(n * PAGE + page.len()) * 8).filter(|bit| bit % every == 0));
    let header = (0..3 * 512 * 8).step_by(every.div_ceil(4));
    header.chain(of_pages.filter(|bit| *bit >= 3 * 512 * 8)).collect()
}

/// Flips bits of a log that is not open, and opens it.
fn check_flips(closed: bool, every: usize, least: usize) {
    let (disk, model, log) = small_log();
    let moment = if closed {
        drop(log);
        disk.now()
    } else {
        disk.now()
    };
    let (mut refused, mut harmless) = (0, 0);
    for path in disk.files() {
        let bytes = moment.kill().contents(&path).unwrap();
        let all = if path == file() { bits(&bytes, every) } else { (0..bytes.len() * 8).step_by(every / 8).collect() };
        for bit in all {
            let disk = moment.kill();
            disk.flip(&path, bit / 8, 1 << (bit % 8));
            let context = || format!("{} byte {} bit {}", path.display(), bit / 8, bit % 8);
            match open(&disk) {
                Err(StorageError::Corrupt { path: named, .. }) => {
                    refused += 1;
                    assert!(named.ends_with(path.file_name().unwrap().to_str().unwrap()), "{}: {named}", context());
                    // The next one finds the same.
                    assert!(open(&disk).is_err(), "{}: taken the second time", context());
                    let left: Vec<_> = disk.files().into_iter().filter(|path| path.ends_with("log.redb.new")).collect();
                    assert!(left.is_empty(), "{}: a copy stays behind: {left:?}", context());
                }
                Err(other) => panic!("{}: {other}", context()),
                Ok(log) => {
                    harmless += 1;
                    assert_eq!(model_of(&log).unwrap(), model, "{}", context());
                    now(log.write(write(3, 61..63, 100))).unwrap_or_else(|e| panic!("{}: {e}", context()));
                }
            }
        }
    }
    println!("{refused} refused, {harmless} harmless");
    assert!(refused >= least && harmless >= least, "{refused} refused, {harmless} harmless");
}

#[test]
fn flipped_bits_are_noticed_after_an_orderly_end() {
    check_flips(true, 331, 100);
}

/// The very last commit as well: without a note of what was synced, redb would take it for one that was interrupted.
#[test]
fn flipped_bits_are_noticed_after_a_kill() {
    check_flips(false, 331, 100);
}

/// Reads verify as well: damage that comes while the log is open is not handed out. redb, which verifies pages only when it opens a file, may
/// panic: that is an error like any other.
#[test]
fn flipped_bits_are_noticed_when_they_are_read() {
    let (disk, model, log) = small_log();
    drop(log);
    let moment = disk.now();
    let bytes = disk.contents(&file()).unwrap();
    let mut noticed = 0;
    for bit in bits(&bytes, 467) {
        let disk = moment.kill();
        let log = open_with(&disk, Options { cache_bytes: 0, ..inline(Commit::OnePhase) }).unwrap();
        disk.flip(&file(), bit / 8, 1 << (bit % 8));
        match model_of(&log) {
            Ok(read) => assert_eq!(read, model, "bit {bit}"),
            Err(StorageError::Corrupt { .. }) => noticed += 1,
            Err(other) => panic!("bit {bit}: {other}"),
        }
        // Whatever becomes of a write, it ends.
        let _ = now(log.write(write(3, 61..62, 100)));
    }
    println!("{noticed} noticed");
    assert!(noticed > 50, "only {noticed} noticed");
}

fn refused(disk: &SimDisk) -> String {
    match open(disk) {
        Err(error @ StorageError::Corrupt { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_missing_database_is_noticed() {
    let (disk, _, log) = small_log();
    drop(log);
    disk.delete(&file());
    let error = refused(&disk);
    assert!(error.contains("log.redb") && error.contains("missing"), "{error}");
}

#[test]
fn a_missing_identity_is_noticed() {
    let (disk, _, log) = small_log();
    drop(log);
    disk.delete(Path::new("/log/IDENTITY"));
    assert!(refused(&disk).contains("IDENTITY"));
}

/// Without the note of what was synced, nobody knows whether the log was closed: it is written anew, which costs time and room and nothing else. It
/// can't vouch for its very last commit then.
#[test]
fn a_missing_note_counts_as_an_unclean_stop() {
    let (disk, model, log) = small_log();
    drop(log);
    let operations = |disk: &SimDisk| {
        let before = disk.operations();
        assert_eq!(model_of(&open(disk).unwrap()).unwrap(), model);
        disk.operations() - before
    };
    let (closed, killed) = (disk.now().kill(), disk.now().kill());
    killed.delete(Path::new("/log/SYNCED"));
    let (closed, without) = (operations(&closed), operations(&killed));
    // A copy is written, synced and renamed; the note itself takes some.
    assert!(without > closed + 6, "{without} operations without a note, {closed} with one");
    assert!(!killed.files().iter().any(|path| path.ends_with("log.redb.new")));
}

/// An old copy of the database would forget what was acknowledged since; another node's was never ours.
#[test]
fn an_old_copy_and_a_foreign_file_are_noticed() {
    use raftkv_storage_file::{Access, Vfs};
    let (disk, _, log) = small_log();
    drop(log);
    let old = disk.contents(&file()).unwrap();
    let log = open(&disk).unwrap();
    now(log.write(write(3, 61..62, 100))).unwrap();
    drop(log);
    let put = |path: &Path, bytes: &[u8]| {
        disk.open(path, Access::Create).unwrap().write_at(bytes, 0).unwrap();
    };
    put(&file(), &old);
    let error = refused(&disk);
    assert!(error.contains("had been synced"), "{error}");
    let other = Identity { node: NodeId(2), ..IDENTITY };
    let log = RedbLog::open_on(Arc::new(disk.clone()), "/other", other, inline(Commit::OnePhase)).unwrap();
    drop(log);
    put(&file(), &disk.contents(&PathBuf::from("/other/log.redb")).unwrap());
    let error = refused(&disk);
    assert!(error.contains("another directory"), "{error}");
    put(&file(), b"no database");
    let error = refused(&disk);
    assert!(error.contains("neither the header"), "{error}");
}
