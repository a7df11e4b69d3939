//! Images on either side of the line: where they are, that they replace each other, and that a loss of power at any moment leaves a whole one.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raftkv::testing::Random;
use raftkv::{LogId, Membership, NodeId, Peer, Snapshot, SnapshotId, SnapshotMeta, StorageError};
use raftkv_storage_file::sim::{Fate, Fault, SimDisk, patterns};
use raftkv_storage_redb::{Commit, Identity, RedbSnapshots, SnapshotOptions};
use support::{IDENTITY, now};

/// The line in these tests.
const LINE: usize = 1000;

fn meta(id: u64, index: u64) -> SnapshotMeta {
    let membership = Membership::new([Peer::new(1, "a:1"), Peer::new(2, "b:2")]);
    SnapshotMeta { id: SnapshotId(id), last: LogId::new(3, index), membership, membership_at: LogId::new(1, 1) }
}

fn bytes(seed: u64, len: usize) -> Bytes {
    (0..len).map(|n| (n as u64 * 31 + seed * 7 + (n >> 8) as u64).to_le_bytes()[0]).collect::<Vec<u8>>().into()
}

fn open(disk: &SimDisk) -> Result<RedbSnapshots, StorageError> {
    open_as(disk, IDENTITY)
}

fn open_as(disk: &SimDisk, identity: Identity) -> Result<RedbSnapshots, StorageError> {
    let options = SnapshotOptions { small_bytes: LINE, commit: Commit::OnePhase, background: false };
    RedbSnapshots::open_on(Arc::new(disk.clone()), "/images", identity, options)
}

async fn publish(store: &RedbSnapshots, meta: SnapshotMeta, data: &Bytes) -> Result<(), StorageError> {
    let mut writer = store.begin(meta).await?;
    while writer.offset() < data.len() as u64 {
        let from = usize::try_from(writer.offset()).unwrap();
        writer.append(data.slice(from..(from + 300).min(data.len()))).await?;
    }
    writer.publish().await
}

fn latest(store: &RedbSnapshots) -> Option<SnapshotMeta> {
    now(store.latest()).unwrap().map(|image| image.meta)
}

fn read_all(store: &RedbSnapshots, id: u64) -> Result<Vec<u8>, StorageError> {
    let mut out = Vec::new();
    loop {
        let piece = now(store.read(&SnapshotId(id), out.len() as u64, 333))?;
        if piece.is_empty() {
            return Ok(out);
        }
        out.extend_from_slice(&piece);
    }
}

/// The numbers of the images that are in files, published or not.
fn files(disk: &SimDisk) -> Vec<(u64, String)> {
    let images = disk.files().into_iter().filter(|path| path.parent() == Some(Path::new("/images/files")));
    let numbers = images.filter_map(|path: PathBuf| {
        let extension = path.extension()?.to_str()?.to_owned();
        Some((u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok()?, extension))
    });
    numbers.collect()
}

/// redb uses the pages of images before again.
#[test]
fn the_database_does_not_grow_with_how_many_images_it_has_held() {
    const LARGEST: usize = 64 << 10;
    let disk = SimDisk::new();
    let open = || {
        let options = SnapshotOptions { small_bytes: LARGEST, commit: Commit::OnePhase, background: false };
        RedbSnapshots::open_on(Arc::new(disk.clone()), "/images", IDENTITY, options).unwrap()
    };
    let length = || disk.contents(Path::new("/images/images.redb")).unwrap().len();
    let mut store = open();
    let (mut largest, mut written) = (0, 0);
    for n in 1..=300 {
        let image = bytes(n, LARGEST - usize::try_from(n * 7919).unwrap() % (LARGEST / 2));
        now(publish(&store, meta(n, n), &image)).unwrap();
        (largest, written) = (largest.max(length()), written + image.len());
        if n % 60 == 0 {
            drop(store);
            store = open();
            assert_eq!(read_all(&store, n).unwrap(), image);
        }
    }
    assert!(written > 200 * LARGEST, "{written} bytes went through it");
    println!("{largest} bytes for images of {LARGEST} at most, {written} in all");
    assert!(largest < 8 * LARGEST, "{largest} bytes for images of {LARGEST} at most");
}

#[test]
fn small_images_are_in_the_database_and_large_ones_beside_it() {
    let disk = SimDisk::new();
    let mut store = open(&disk).unwrap();
    let lengths = [LINE, LINE + 1, 5000, 0, 1, 7000, 300];
    for (n, length) in (1..).zip(lengths) {
        now(publish(&store, meta(n, n * 10), &bytes(n, length))).unwrap();
        let expected = if length > LINE { vec![(n, "snap".to_owned())] } else { Vec::new() };
        assert_eq!(files(&disk), expected, "after an image of {length} bytes");
        for _ in 0..2 {
            assert_eq!(latest(&store), Some(meta(n, n * 10)));
            assert_eq!(read_all(&store, n).unwrap(), bytes(n, length));
            assert!(matches!(now(store.read(&SnapshotId(n - 1), 0, 10)), Err(StorageError::Misuse(_))));
            drop(store);
            store = open(&disk).unwrap();
        }
    }
}

#[test]
fn an_image_that_comes_too_late_is_dropped_on_either_side_of_the_line() {
    for newer in [500, 5000] {
        for older in [400, 4000] {
            let disk = SimDisk::new();
            let store = open(&disk).unwrap();
            now(publish(&store, meta(5, 50), &bytes(5, newer))).unwrap();
            now(publish(&store, meta(4, 40), &bytes(4, older))).unwrap();
            assert_eq!(latest(&store), Some(meta(5, 50)));
            assert_eq!(read_all(&store, 5).unwrap(), bytes(5, newer));
            assert_eq!(files(&disk).len(), usize::from(newer > LINE));
            // The same place in the log again, from another leader.
            now(publish(&store, meta(6, 50), &bytes(6, older))).unwrap();
            assert_eq!(latest(&store), Some(meta(6, 50)));
            drop(store);
            assert_eq!(latest(&open(&disk).unwrap()), Some(meta(6, 50)));
        }
    }
}

/// What was given up stays neither in memory nor on the disk.
#[test]
fn of_images_that_are_left_off_the_newest_large_one_is_kept() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    let begin = |n: u64, length: usize| {
        let mut writer = now(store.begin(meta(n, n * 10))).unwrap();
        let there = usize::try_from(writer.offset()).unwrap();
        now(writer.append(bytes(n, length).slice(there..))).unwrap();
        writer
    };
    drop(begin(1, 600));
    assert_eq!(now(store.begin(meta(1, 10))).unwrap().offset(), 600, "this process has it");
    drop(begin(2, 3000));
    drop(begin(3, 4000));
    assert_eq!(files(&disk), [(3, "part".to_owned())]);
    assert_eq!(now(store.begin(meta(1, 10))).unwrap().offset(), 0, "it was small enough to be begun anew");
    assert_eq!(now(store.begin(meta(3, 30))).unwrap().offset(), 4000);
    // A newer small one takes the place of all.
    now(publish(&store, meta(4, 40), &bytes(4, 700))).unwrap();
    assert_eq!(files(&disk), []);
    drop(store);
    let store = open(&disk).unwrap();
    assert_eq!(now(store.begin(meta(3, 30))).unwrap().offset(), 0);
}

/// A writer that moved to a file is replaced like any other.
#[test]
fn a_writer_that_was_replaced_writes_no_more() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    for length in [200, 2000] {
        let mut first = now(store.begin(meta(1, 10))).unwrap();
        now(first.append(bytes(1, length))).unwrap();
        let second = now(store.begin(meta(1, 10))).unwrap();
        assert_eq!(second.offset(), length as u64);
        assert!(matches!(now(first.append(bytes(1, 900))), Err(StorageError::Misuse(_))));
        assert!(matches!(now(first.publish()), Err(StorageError::Misuse(_))));
        now(second.discard()).unwrap();
        assert_eq!(latest(&store), None);
    }
}

#[test]
fn anothers_images_are_refused() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    assert!(matches!(open(&disk), Err(StorageError::Refused { .. })));
    drop(store);
    let error = open_as(&disk, Identity { node: NodeId(2), ..IDENTITY }).unwrap_err();
    assert!(matches!(error, StorageError::Refused { .. }));
    open(&disk).unwrap();
}

#[test]
fn a_failed_write_sticks_and_the_image_before_stays() {
    let start = SimDisk::new();
    now(publish(&open(&start).unwrap(), meta(1, 10), &bytes(1, 900))).unwrap();
    let before = start.now();
    let mut failures = 0;
    for length in [800, 3000] {
        for fault in [Fault::Refuse(std::io::ErrorKind::StorageFull), Fault::Forget] {
            for operation in 0..40 {
                let disk = before.kill();
                let store = open(&disk).unwrap();
                disk.fail_at(disk.operations() + operation, fault);
                let Err(error) = now(publish(&store, meta(2, 20), &bytes(2, length))) else { continue };
                failures += 1;
                assert!(now(store.begin(meta(3, 30))).is_err(), "an image was begun after {error}");
                drop(store);
                // The next process goes on with what is there, and then power is lost.
                let store = open(&disk).unwrap();
                let found = latest(&store).unwrap();
                assert!(found == meta(1, 10) || found == meta(2, 20));
                now(publish(&store, meta(4, 40), &bytes(4, length))).unwrap();
                let after = open(&disk.now().lose_power(|_| Fate::Lost)).unwrap();
                assert_eq!(latest(&after), Some(meta(4, 40)));
                assert_eq!(read_all(&after, 4).unwrap(), bytes(4, length), "operation {operation}");
            }
        }
    }
    assert!(failures > 20, "only {failures}");
}

#[test]
fn a_loss_of_power_at_any_moment_leaves_a_whole_image() {
    let mut random = Random::new(5);
    let disk = SimDisk::new();
    disk.record();
    let store = open(&disk).unwrap();
    let lengths = [0, 700, 2500, 800, 900, 1800, 2700];
    let mut published = vec![(0, 0)];
    for (n, length) in lengths.iter().enumerate().skip(1) {
        now(publish(&store, meta(n as u64, n as u64 * 10), &bytes(n as u64, *length))).unwrap();
        published.push((disk.operations(), n));
    }
    drop(store);
    let mut states = 0;
    for (operation, moment) in disk.take_recording().iter().enumerate() {
        let least = published.iter().rev().find(|(at, _)| *at <= operation as u64).map_or(0, |(_, n)| *n);
        let n = moment.pending().len();
        for fates in patterns(n, &mut random, 4, Some(0)) {
            let context = || format!("operation {operation}, {fates:?}");
            let store = open(&moment.suffer(&fates)).unwrap_or_else(|e| panic!("{}: {e}", context()));
            let have = latest(&store).map_or(0, |meta| usize::try_from(meta.id.0).unwrap());
            assert!((least..=least + 1).contains(&have), "{}: image {have} where {least} was published", context());
            if have > 0 {
                assert_eq!(read_all(&store, have as u64).unwrap(), bytes(have as u64, lengths[have]));
            }
            states += 1;
        }
    }
    assert!(states > 500, "only {states} states");
}
