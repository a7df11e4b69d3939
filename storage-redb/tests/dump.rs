//! A log told line by line: what is there, and what is wrong with it. Nothing is changed by that.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::Arc;

use raftkv::{HardState, LogId, LogWrite, NodeId, StorageError, Term};
use raftkv_storage_file::DumpVerdict;
use raftkv_storage_file::sim::SimDisk;
use raftkv_storage_redb::{DumpLine, RedbLog, dump_on};
use support::{Call, IDENTITY, file, open, perform, vote, write};

/// A log with votes, a truncation and a compaction.
fn log() -> (SimDisk, RedbLog) {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    let hard_state = Some(HardState { term: Term(2), voted_for: Some(NodeId(3)) });
    let calls = [
        Call::Write(vote(1, 1)),
        Call::Write(write(1, 1..40, 200)),
        Call::Write(LogWrite { hard_state, ..write(2, 31..60, 30) }),
        Call::Compact(LogId::new(1, 12)),
        Call::Write(write(2, 60..61, 10)),
    ];
    calls.iter().for_each(|call| perform(&log, call).unwrap());
    (disk, log)
}

fn try_dump(disk: &SimDisk) -> Result<Vec<DumpLine>, StorageError> {
    let mut lines = Vec::new();
    dump_on(Arc::new(disk.clone()), "/log", |line| lines.push(line)).map(|()| lines)
}

/// The lines as they are printed, and whether the log is sound. What is on the disk is as before.
fn dumped(disk: &SimDisk) -> (Vec<String>, bool) {
    let contents = || {
        let files = disk.files().into_iter().filter(|path| !path.ends_with("LOCK"));
        files.map(|path| (path.clone(), disk.contents(&path))).collect::<Vec<_>>()
    };
    let before = contents();
    let lines = try_dump(disk).unwrap();
    assert!(contents() == before, "something was changed");
    let sound = matches!(lines.last(), Some(DumpLine::Verdict(DumpVerdict::Sound { .. })));
    (lines.iter().map(ToString::to_string).collect(), sound)
}

fn holds(lines: &[String], wanted: &str) {
    assert!(lines.iter().any(|line| line.contains(wanted)), "{wanted:?} is not in {lines:#?}");
}

#[test]
fn a_sound_log_is_told_from_its_owner_to_its_end() {
    let (disk, log) = log();
    drop(log);
    let (lines, sound) = dumped(&disk);
    assert!(sound, "{lines:#?}");
    let cluster = IDENTITY.cluster;
    assert_eq!(lines[0], format!("log /log: node 1 of cluster {cluster}, group 0; synced up to batch 6"));
    assert!(
        lines[1].starts_with("database log.redb, ") && lines[1].ends_with(" bytes: closed in good order"),
        "{}",
        lines[1]
    );
    let rest = [
        "  batch 5; term 2, vote for node 3; base 12@1",
        "  batch 3; 18 entries 13@1 to 30@1, 3600 bytes",
        "  batch 4; 29 entries 31@2 to 59@2, 870 bytes",
        "  batch 6; entry 60@2, 10 bytes",
        "sound: 6 batches; term 2, vote for node 3; base 12@1, last 60@2; terms 1 from 13, 2 from 31, clean end",
    ];
    assert_eq!(lines[2..], rest);
    // The log opens as before.
    drop(open(&disk).unwrap());
}

#[test]
fn a_log_that_is_open_is_refused_and_so_is_what_is_none() {
    let (disk, log) = log();
    let error = try_dump(&disk).unwrap_err();
    assert!(matches!(&error, StorageError::Refused { reason, .. } if reason.contains("in use by")), "{error}");
    drop(log);
    try_dump(&disk).unwrap();
    let error = try_dump(&SimDisk::new()).unwrap_err();
    assert!(matches!(&error, StorageError::Refused { reason, .. } if reason.contains("no log here")), "{error}");
}

#[test]
fn a_log_that_was_not_closed_is_told_as_such_and_left_so() {
    let (disk, log) = log();
    let killed = disk.now().kill();
    drop(log);
    let (lines, sound) = dumped(&killed);
    assert!(sound, "{lines:#?}");
    holds(&lines, "not closed, so the next start writes it anew");
    holds(&lines, "  batch 6; entry 60@2, 10 bytes");
}

/// redb can't tell where the damage is; the entries can.
#[test]
fn a_damaged_entry_is_told_by_its_index_and_the_others_all_the_same() {
    let (disk, log) = log();
    drop(log);
    let bytes = disk.contents(&file()).unwrap();
    let wanted = write(2, 45..46, 30).entries[0].data.clone();
    let places: Vec<_> = (0..bytes.len() - 30).filter(|at| bytes[*at..*at + 30] == wanted).collect();
    assert!(!places.is_empty(), "the entry is not in the file");
    // Pages that are not in use any more may hold it as well.
    places.iter().for_each(|at| disk.flip(&file(), *at + 3, 1));
    let (lines, sound) = dumped(&disk);
    assert!(!sound, "{lines:#?}");
    holds(&lines, "  entry 45  DAMAGED: the checksum of the entry does not match");
    holds(&lines, "  batch 3; 18 entries 13@1 to 30@1");
    holds(&lines, "  batch 4; 14 entries 31@2 to 44@2");
    holds(&lines, "  batch 4; 14 entries 46@2 to 59@2");
    assert!(lines.last().unwrap().starts_with("DAMAGED: "), "{lines:#?}");
    assert!(lines.last().unwrap().contains("log.redb"), "{lines:#?}");
    // Whoever opens it is told as well, and changes nothing.
    let damaged = disk.contents(&file()).unwrap();
    let error = open(&disk).unwrap_err().to_string();
    let words = "/log/log.redb: corrupt at entry 45: the checksum of the entry does not match (redb says: ";
    assert!(error.starts_with(words), "{error}");
    assert!(disk.contents(&file()).unwrap() == damaged, "the file was changed");
}

#[test]
fn a_database_that_is_missing_or_old_is_damage() {
    let (disk, log) = log();
    let early = disk.contents(&file()).unwrap();
    perform(&log, &Call::Write(write(2, 61..70, 10))).unwrap();
    drop(log);
    let old = disk.now().kill();
    old.misdirect(&file(), 0, &early);
    let (lines, sound) = dumped(&old);
    assert!(!sound, "{lines:#?}");
    disk.delete(&file());
    let (lines, sound) = dumped(&disk);
    assert!(!sound, "{lines:#?}");
    holds(&lines, "log.redb is missing, but 7 batches had been synced to it");
}

/// Whatever is flipped: it is told, or does no harm, and nothing is changed.
#[test]
fn no_flipped_bit_is_too_much_for_it() {
    let (disk, log) = log();
    drop(log);
    let (sound_lines, _) = dumped(&disk);
    let len = disk.contents(&file()).unwrap().len();
    let (mut told, mut harmless) = (0, 0);
    for byte in (0..len.min(100_000)).step_by(331) {
        let disk = disk.now().kill();
        disk.flip(&file(), byte, 1 << (byte % 8));
        let (lines, sound) = dumped(&disk);
        assert!(!sound || lines == sound_lines, "byte {byte}: {lines:#?}");
        *(if sound { &mut harmless } else { &mut told }) += 1;
    }
    println!("{told} told, {harmless} harmless");
    assert!(told > 10 && harmless > 10, "{told} told, {harmless} harmless");
}
