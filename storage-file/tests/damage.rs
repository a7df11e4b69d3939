//! Damage after the fact: flipped bits, missing files, foreign files. It is noticed, it panics nothing, and what was
//! acknowledged is never changed or lost in silence.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use raftkv::{HardState, LogId, LogWrite, NodeId, StorageError, Term};
use raftkv_storage_file::Wal;
use raftkv_storage_file::sim::SimDisk;
use support::{Call, Model, dir, model_of, open, perform, segment, vote, write};

fn calls() -> Vec<Call> {
    let hard_state = Some(HardState { term: Term(2), voted_for: Some(NodeId(3)) });
    vec![
        Call::Write(vote(1, 1)),
        Call::Write(write(1, 1..5, 200)),
        Call::Write(write(1, 5..6, 900)),
        Call::Write(LogWrite { hard_state, ..write(2, 4..8, 30) }),
        Call::Compact(LogId::new(1, 2)),
        Call::Write(write(2, 8..9, 10)),
    ]
}

/// A small log of three segments, and what it holds.
fn small_log() -> (SimDisk, Model, Wal) {
    let disk = SimDisk::new();
    let mut wal = open(&disk).unwrap();
    let mut model = Model::default();
    for call in calls() {
        perform(&mut wal, &call).unwrap();
        wal.settle();
        model.apply(&call);
    }
    (disk, model, wal)
}

/// Where the last batch of each segment ends: what lies behind was never used.
fn used(bytes: &[u8]) -> usize {
    bytes.chunks(512).rposition(|block| block.iter().any(|byte| *byte != 0)).map_or(0, |n| (n + 1) * 512)
}

fn check_flips(closed: bool, every: usize) {
    let (disk, model, wal) = small_log();
    if closed {
        wal.close();
    } else {
        drop(wal);
    }
    let clean = disk.now();
    let (mut refused, mut harmless) = (0, 0);
    for path in disk.files() {
        let bytes = disk.contents(&path).unwrap();
        let is_segment = path.extension().is_some_and(|extension| extension == "wal");
        for bit in (0..bytes.len() * 8).step_by(every) {
            let disk = clean.kill();
            disk.flip(&path, bit / 8, 1 << (bit % 8));
            let context = || format!("{} byte {} bit {}", path.display(), bit / 8, bit % 8);
            match open(&disk) {
                Err(StorageError::Corrupt { path: named, .. }) => {
                    refused += 1;
                    assert!(
                        named.ends_with(path.file_name().unwrap().to_str().unwrap()),
                        "{}: named {named}",
                        context()
                    );
                    let unchanged = disk.contents(&path).unwrap();
                    let mut expected = bytes.clone();
                    expected[bit / 8] ^= 1 << (bit % 8);
                    assert!(unchanged == expected, "{}: the evidence was changed", context());
                }
                Err(other) => panic!("{}: {other}", context()),
                Ok(wal) => {
                    harmless += 1;
                    assert!(!is_segment || bit / 8 >= used(&bytes), "{}: not noticed", context());
                    assert_eq!(model_of(&wal).unwrap(), model, "{}", context());
                }
            }
        }
    }
    assert!(refused * every > 30_000 && harmless * every > 5_000, "{refused} refused, {harmless} harmless");
}

#[test]
fn every_flipped_bit_is_noticed_after_an_orderly_end() {
    check_flips(true, 1);
}

#[test]
fn flipped_bits_are_noticed_after_a_kill() {
    check_flips(false, 11);
}

/// Reads verify as well: damage that comes while the log is open is not handed out.
#[test]
fn flipped_bits_of_entries_are_noticed_when_they_are_read() {
    let (disk, model, wal) = small_log();
    let expected = model_of(&wal).unwrap();
    assert_eq!(expected, model);
    let mut noticed = 0;
    for path in disk.files() {
        let len = disk.contents(&path).unwrap().len();
        for bit in (0..len * 8).step_by(3) {
            disk.flip(&path, bit / 8, 1 << (bit % 8));
            match model_of(&wal) {
                Ok(read) => assert_eq!(read, expected, "{} bit {bit}", path.display()),
                Err(StorageError::Corrupt { index, .. }) => {
                    assert!(index.is_some());
                    noticed += 1;
                }
                Err(other) => panic!("{} bit {bit}: {other}", path.display()),
            }
            disk.flip(&path, bit / 8, 1 << (bit % 8));
        }
    }
    assert!(noticed > 1000, "only {noticed} noticed");
}

fn refused(disk: &SimDisk) -> String {
    match open(disk) {
        Err(error @ StorageError::Corrupt { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_missing_segment_is_noticed() {
    let (disk, _, wal) = small_log();
    wal.close();
    let clean = disk.now();
    let segments: Vec<_> = disk.files().into_iter().filter(|path| path.extension().is_some()).collect();
    assert!(segments.len() >= 3, "{segments:?}");
    for path in &segments {
        let disk = clean.kill();
        if used(&disk.contents(path).unwrap()) == 0 {
            continue;
        }
        disk.delete(path);
        let error = refused(&disk);
        let removed = path.file_name().unwrap().to_str().unwrap();
        assert!(error.contains(removed) || error.contains("had been synced"), "{removed}: {error}");
    }
    let disk = clean.kill();
    for path in &segments {
        disk.delete(path);
    }
    assert!(refused(&disk).contains("missing"));
}

#[test]
fn a_missing_identity_is_noticed() {
    let (disk, _, wal) = small_log();
    wal.close();
    disk.delete(&dir().join("IDENTITY"));
    assert!(refused(&disk).contains("IDENTITY"));
}

/// Without the note of what was synced, the log is as good, but can't vouch for its very last batch.
#[test]
fn a_missing_note_costs_nothing() {
    let (disk, model, wal) = small_log();
    wal.close();
    disk.delete(&dir().join("SYNCED"));
    assert_eq!(model_of(&open(&disk).unwrap()).unwrap(), model);
}

/// Segments swapped, or copied over one another, do not pass for each other.
#[test]
fn a_segment_in_anothers_place_is_noticed() {
    use raftkv_storage_file::{Access, Vfs};
    let (disk, _, wal) = small_log();
    wal.close();
    let first = disk.contents(&segment(1)).unwrap();
    let file = disk.open(&segment(2), Access::Write).unwrap();
    file.write_at(&first, 0).unwrap();
    assert!(refused(&disk).contains("00000000000000000002.wal"));
}

/// After a loss of power the note may be missing. Then later batches tell what had been synced: damage is mistaken for a torn
/// tail in the very last batch only.
#[test]
fn only_the_last_batch_can_pass_for_a_torn_tail_without_the_note() {
    let disk = SimDisk::new();
    let mut wal = open(&disk).unwrap();
    let (mut model, mut before) = (Model::default(), Model::default());
    let mut undamaged = Vec::new();
    for call in calls() {
        undamaged = disk.files().iter().map(|path| (path.clone(), disk.contents(path).unwrap())).collect();
        perform(&mut wal, &call).unwrap();
        wal.settle();
        before = model.clone();
        model.apply(&call);
    }
    drop(wal);
    disk.delete(&dir().join("SYNCED"));
    let clean = disk.now();
    let (mut refused, mut cut) = (0, 0);
    for (path, bytes) in undamaged.iter().filter(|(path, _)| path.extension().is_some()) {
        let now = disk.contents(path).unwrap();
        // The block of the last batch, header and padding included.
        let last = bytes.chunks(512).zip(now.chunks(512)).position(|(was, is)| was != is);
        for bit in (0..used(&now) * 8).step_by(5) {
            let disk = clean.kill();
            disk.flip(path, bit / 8, 1 << (bit % 8));
            match open(&disk) {
                Err(StorageError::Corrupt { .. }) => refused += 1,
                Ok(wal) => {
                    cut += 1;
                    assert_eq!(Some(bit / 8 / 512), last, "{} byte {}", path.display(), bit / 8);
                    assert_eq!(model_of(&wal).unwrap(), before);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(refused > 1000 && cut > 500, "{refused} refused, {cut} cut");
}

/// A torn tail is not only passed over: it is gone from the disk, and later writes take its place.
#[test]
fn a_torn_tail_is_cut_and_writes_go_on_behind_it() {
    use raftkv_storage_file::sim::{Fate, Pending};
    let disk = SimDisk::new();
    let mut wal = open(&disk).unwrap();
    wal.write(&write(1, 1..2, 100)).unwrap();
    wal.settle();
    let operations = disk.operations();
    disk.fail_at(operations + 1, raftkv_storage_file::sim::Fault::Refuse(std::io::ErrorKind::Other));
    assert!(wal.write(&write(1, 2..3, 1200)).is_err());
    // The first sector of the write is lost, the others arrive.
    let torn = disk.now().lose_power(|pending| match pending {
        Pending::Sector { path, sector: 2 } if path == &segment(1) => Fate::Lost,
        Pending::Sector { .. } | Pending::Length { .. } | Pending::Name { .. } => Fate::Kept,
    });
    let dirty = |disk: &SimDisk| disk.contents(&segment(1)).unwrap()[1024..].iter().any(|byte| *byte != 0);
    assert!(dirty(&torn));
    let mut wal = open(&torn).unwrap();
    assert_eq!(wal.state().last, LogId::new(1, 1));
    let cut = torn.now().lose_power(|_| Fate::Lost);
    assert!(!dirty(&cut), "the torn tail is still there");
    wal.write(&write(2, 2..4, 100)).unwrap();
    drop(wal);
    let mut expected = Model::default();
    expected.apply(&Call::Write(write(1, 1..2, 100)));
    expected.apply(&Call::Write(write(2, 2..4, 100)));
    for _ in 0..3 {
        assert_eq!(model_of(&open(&torn).unwrap()).unwrap(), expected);
    }
}
