//! What `dump` shows of a sound, a torn, and a damaged log. The lines are read by people, so they are written out here.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::{Arc, Mutex};

use raftkv::{HardState, LogId, LogWrite, NodeId, StorageError, Term};
use raftkv_storage_file::sim::{Fate, Pending, SimDisk};
use raftkv_storage_file::{DumpLine, DumpVerdict, Options, dump, dump_on};
use support::hooked::Hooked;
use support::{dir, model_of, open, open_with, segment, write};

fn lines(disk: &SimDisk) -> (Vec<DumpLine>, String) {
    let mut lines = Vec::new();
    let before = disk.operations();
    dump_on(Arc::new(disk.clone()), dir(), |line| lines.push(line)).unwrap();
    assert_eq!(disk.operations(), before, "a dump changed the disk");
    let text: Vec<String> = lines.iter().map(ToString::to_string).collect();
    (lines, text.join("\n"))
}

fn some_log() -> SimDisk {
    let disk = SimDisk::new();
    let mut wal = open(&disk).unwrap();
    let hard_state = Some(HardState { term: Term(2), voted_for: Some(NodeId(3)) });
    let mut mixed = write(1, 1..4, 300);
    mixed.entries.push(support::entry(2, 4, 10));
    for step in [mixed, LogWrite { hard_state, ..write(2, 4..5, 20) }, write(2, 5..8, 500)] {
        wal.write(&step).unwrap();
        wal.settle();
    }
    wal.compact(LogId::new(1, 2)).unwrap();
    wal.settle();
    disk
}

#[test]
fn a_sound_log_is_shown_line_by_line() {
    let (_, text) = lines(&some_log());
    let expected = "\
log /log: node 1 of cluster 0000000000c0ffee, group 0; synced up to batch 4
segment 00000000000000000001.wal, 3072 bytes: from batch 1; before it term 0, no vote, base 0@0, last 0@0
         512       1536 bytes  batch 1; 4 entries 1@1 to 4@2, 910 bytes, term 2 from 4
        2048        512 bytes  batch 2; term 2, vote for node 3; entry 4@2, 20 bytes
        2560        512 bytes  unused
segment 00000000000000000002.wal, 3072 bytes: from batch 3; before it term 2, vote for node 3, base 0@0, last 4@2; follows segment 1 up to 2560
         512       2048 bytes  batch 3; 3 entries 5@2 to 7@2, 1500 bytes
        2560        512 bytes  batch 4; base 2@1
segment 00000000000000000003.wal, 3072 bytes: made in advance, not used yet
sound: 4 batches; term 2, vote for node 3; base 2@1, last 7@2; terms 1 from 3, 2 from 4, clean end";
    assert_eq!(text, expected);
}

#[test]
fn damage_is_shown_with_its_place_and_what_lies_behind_it() {
    let disk = some_log();
    disk.flip(&segment(1), 700, 1);
    let (found, text) = lines(&disk);
    assert!(
        text.contains("512  DAMAGED: the checksum of a batch does not match; the next whole batch is at 2048"),
        "{text}"
    );
    assert!(text.contains("batch 2; term 2"), "{text}");
    let Some(DumpLine::Verdict(DumpVerdict::Damaged(reason))) = found.last() else { panic!("{text}") };
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }));
    assert_eq!(reason, &error.to_string());
}

#[test]
fn a_torn_end_is_no_damage() {
    let disk = some_log();
    let mut wal = open(&disk).unwrap();
    wal.write(&write(2, 8..9, 10)).unwrap();
    wal.settle();
    let expected = model_of(&wal).unwrap();
    disk.fail_at(disk.operations() + 1, raftkv_storage_file::sim::Fault::Refuse(std::io::ErrorKind::Other));
    assert!(wal.write(&write(2, 9..10, 800)).is_err());
    drop(wal);
    let torn = disk.now().lose_power(|pending| match pending {
        Pending::Sector { sector: 3.., .. } => Fate::Lost,
        Pending::Sector { .. } | Pending::Length { .. } | Pending::Name { .. } => Fate::Kept,
    });
    let (found, text) = lines(&torn);
    assert!(
        matches!(found.last(), Some(DumpLine::Verdict(DumpVerdict::Sound { sequence: 5, torn: 512, .. }))),
        "{text}"
    );
    assert!(text.contains("incomplete: the checksum of a batch does not match"), "{text}");
    assert_eq!(model_of(&open(&torn).unwrap()).unwrap(), expected);
}

#[test]
fn a_directory_without_a_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = dump(dir.path(), |_| {}).unwrap_err().to_string();
    assert!(error.contains("no log here"), "{error}");
}

/// The server removes a segment, and cuts it, while another process goes through it.
#[test]
fn a_segment_that_is_removed_under_a_dump_is_not_called_damaged() {
    let disk = SimDisk::new();
    let options = Options { segment_bytes: 9 << 20, background: false, ..Options::default() };
    let mut wal = open_with(&disk, options).unwrap();
    for index in 1..=20 {
        wal.write(&write(1, index..index + 1, 1 << 20)).unwrap();
    }
    let mut lines = Vec::new();
    dump_on(Arc::new(disk.clone()), dir(), |line| {
        let first = !lines.iter().any(|line| matches!(line, DumpLine::Segment { .. }));
        if first && matches!(line, DumpLine::Segment { .. }) {
            wal.compact(LogId::new(1, 19)).unwrap();
        }
        lines.push(line);
    })
    .unwrap();
    let batches = lines.iter().filter(|line| matches!(line, DumpLine::Batch { .. })).count();
    let text: Vec<String> = lines.iter().map(ToString::to_string).collect();
    assert!(!lines.iter().any(|line| matches!(line, DumpLine::Damage { .. })), "{text:#?}");
    assert!(batches < 20, "nothing was cut: {text:#?}");
    assert!(matches!(lines.last(), Some(DumpLine::Verdict(DumpVerdict::Sound { .. }))), "{text:#?}");
}

/// The server removes segments faster than another process looks for them: as long as there are other segments at each look, none of them is the last.
#[test]
fn a_dump_looks_again_while_segments_go() {
    let disk = Hooked::new();
    let wal = Mutex::new(open(&disk.disk).unwrap());
    let last = 30;
    for index in 1..=last {
        wal.lock().unwrap().write(&write(1, index..index + 1, 2000)).unwrap();
    }
    let mut compacted = 0;
    *disk.listed.lock().unwrap() = Some(Box::new(move || {
        if compacted < last - 2 {
            compacted += 1;
            wal.lock().unwrap().compact(LogId::new(1, compacted)).unwrap();
        }
    }));
    let mut lines = Vec::new();
    dump_on(Arc::new(disk), dir(), |line| lines.push(line)).unwrap();
    let Some(DumpLine::Verdict(DumpVerdict::Sound { state, .. })) = lines.last() else { panic!("{lines:#?}") };
    assert_eq!((state.base.index.0, state.last.index.0), (last - 2, last));
}
