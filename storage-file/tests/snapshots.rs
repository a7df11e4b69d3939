//! Images: written, resumed, published, replaced, damaged, and cut off by a loss of power at every moment.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raftkv::{LogId, Membership, NodeId, Peer, Snapshot, SnapshotId, SnapshotMeta, StorageError};
use raftkv_storage_file::sim::{Fate, Fault, Moment, SimDisk};
use raftkv_storage_file::{FileSnapshots, Identity};
use support::IDENTITY;

fn meta(id: u64, index: u64) -> SnapshotMeta {
    let membership = Membership::new([Peer::new(1, "a:1"), Peer::new(2, "b:2")]);
    SnapshotMeta { id: SnapshotId(id), last: LogId::new(3, index), membership, membership_at: LogId::new(1, 1) }
}

fn bytes(seed: u64, len: usize) -> Bytes {
    (0..len).map(|n| (n as u64 * 31 + seed * 7 + (n >> 8) as u64).to_le_bytes()[0]).collect::<Vec<u8>>().into()
}

fn open(disk: &SimDisk) -> Result<FileSnapshots, StorageError> {
    FileSnapshots::open_on(Arc::new(disk.clone()), "/images", IDENTITY, false)
}

async fn read_all(store: &FileSnapshots, id: u64, max: usize) -> Result<Vec<u8>, StorageError> {
    let mut out = Vec::new();
    loop {
        let piece = store.read(&SnapshotId(id), out.len() as u64, max).await?;
        assert!(piece.len() <= max);
        if piece.is_empty() {
            return Ok(out);
        }
        out.extend_from_slice(&piece);
    }
}

/// Does not wait: without a thread the future never does.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

async fn publish(store: &FileSnapshots, meta: SnapshotMeta, data: &Bytes, step: usize) -> Result<(), StorageError> {
    let mut writer = store.begin(meta).await?;
    while writer.offset() < data.len() as u64 {
        let from = usize::try_from(writer.offset()).unwrap();
        writer.append(data.slice(from..(from + step).min(data.len()))).await?;
    }
    writer.publish().await
}

#[tokio::test]
async fn an_image_is_read_as_it_was_written_on_real_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileSnapshots::open(dir.path().join("x"), IDENTITY).unwrap();
    assert_eq!(store.latest().await.unwrap().map(|image| image.meta), None);
    let data = bytes(1, 1_000_001);
    publish(&store, meta(7, 50), &data, 300_000).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.latest().await.unwrap().map(|image| image.meta), Some(meta(7, 50)));
    }
    drop(store);
    let store = FileSnapshots::open(dir.path().join("x"), IDENTITY).unwrap();
    assert_eq!(store.latest().await.unwrap().map(|image| image.meta), Some(meta(7, 50)));
    assert!(read_all(&store, 7, 70_000).await.unwrap() == data);
    assert!(read_all(&store, 7, usize::MAX).await.unwrap() == data);
    assert_eq!(store.read(&SnapshotId(7), 999_999, 10).await.unwrap(), data.slice(999_999..));
    assert!(store.read(&SnapshotId(7), 1 << 40, 10).await.unwrap().is_empty());
    assert!(matches!(store.read(&SnapshotId(8), 0, 10).await, Err(StorageError::Misuse(_))));
}

#[test]
fn only_the_newest_image_is_kept() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    for n in 1..4 {
        now(publish(&store, meta(n, n * 10), &bytes(n, 3000), 1000)).unwrap();
        assert_eq!(now(store.latest()).unwrap().map(|image| image.meta), Some(meta(n, n * 10)));
    }
    // One that comes too late is dropped, and so is what was begun for it.
    now(publish(&store, meta(9, 20), &bytes(9, 3000), 1000)).unwrap();
    assert_eq!(now(store.latest()).unwrap().map(|image| image.meta), Some(meta(3, 30)));
    assert_eq!(now(read_all(&store, 3, 999)).unwrap(), bytes(3, 3000));
    assert!(matches!(now(store.read(&SnapshotId(2), 0, 9)), Err(StorageError::Misuse(_))));
    let names: Vec<PathBuf> = disk.files();
    assert_eq!(names, [Path::new("/images/0000000000000003.snap"), Path::new("/images/IDENTITY")]);
}

#[test]
fn an_empty_image_is_an_image() {
    let disk = SimDisk::new();
    let empty = SnapshotMeta { membership: Membership::default(), ..meta(1, 1) };
    now(publish(&open(&disk).unwrap(), empty.clone(), &Bytes::new(), 1)).unwrap();
    let store = open(&disk).unwrap();
    assert_eq!(now(store.latest()).unwrap().map(|image| image.meta), Some(empty));
    assert!(now(store.read(&SnapshotId(1), 0, 10)).unwrap().is_empty());
}

#[test]
fn an_unfinished_image_is_resumed_at_its_durable_offset() {
    let disk = SimDisk::new();
    let data = bytes(4, 5000);
    let store = open(&disk).unwrap();
    let mut writer = now(store.begin(meta(4, 40))).unwrap();
    for at in [0, 1000, 2000] {
        now(writer.append(data.slice(at..at + 1000))).unwrap();
    }
    drop(writer);
    // This process knows what it synced.
    assert_eq!(now(store.begin(meta(4, 40))).unwrap().offset(), 3000);
    // Another image begins anew; an older one, to which this one need not give way.
    let other = SnapshotMeta { last: LogId::new(2, 9), ..meta(5, 40) };
    assert_eq!(now(store.begin(other)).unwrap().offset(), 0);
    drop(store);
    // The next one relies on a piece only if a later one vouches for it.
    let store = open(&disk).unwrap();
    let writer = now(store.begin(meta(4, 40))).unwrap();
    assert_eq!(writer.offset(), 2000);
    drop(writer);
    now(publish(&store, meta(4, 40), &data, 700)).unwrap();
    assert_eq!(now(read_all(&store, 4, 640)).unwrap(), data);
}

/// The numbers of the images that were left unfinished, or are being written.
fn unfinished(disk: &SimDisk) -> Vec<u64> {
    let numbers = disk.files().into_iter().filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_suffix(".part")?.to_owned();
        u64::from_str_radix(&name, 16).ok()
    });
    numbers.collect()
}

/// Each image that a node was offered and then gave up, because its holder was lost or had a newer one, stayed on its disk until a newer image was
/// published there: on a node that gets none for long they filled the disk.
#[test]
fn images_that_were_given_up_are_removed_when_another_is_begun_and_at_the_start() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    let begin = |store: &FileSnapshots, n: u64| {
        let mut writer = now(store.begin(meta(n, n * 10))).unwrap();
        now(writer.append(bytes(n, 700))).unwrap();
        now(writer.append(bytes(n, 700))).unwrap();
        writer
    };
    for n in 1..=5 {
        drop(begin(&store, n));
        assert_eq!(unfinished(&disk), [n], "the newer one takes the place of what is left of the older");
        let after = disk.now().lose_power(|_| Fate::Lost);
        assert_eq!(unfinished(&after), [n], "and the older does not come back with a loss of power");
    }
    drop(begin(&store, 3));
    assert_eq!(unfinished(&disk), [3, 5], "a newer one may be gone on with");
    drop(begin(&store, 4));
    assert_eq!(unfinished(&disk), [4, 5], "but only the newest");
    // Those that somebody writes are left alone, whatever is begun.
    let mut writers = vec![begin(&store, 6), begin(&store, 2)];
    drop(begin(&store, 7));
    assert_eq!(unfinished(&disk), [2, 6, 7]);
    for writer in &mut writers {
        now(writer.append(bytes(9, 700))).unwrap();
    }
    drop(writers);
    drop(store);
    let store = open(&disk).unwrap();
    assert_eq!(unfinished(&disk), [7], "at the start nobody writes");
    let after = disk.now().lose_power(|_| Fate::Lost);
    assert_eq!(unfinished(&after), [7]);
    assert_eq!(now(store.begin(meta(7, 70))).unwrap().offset(), 700, "it is gone on with");
    // What is no newer than the latest image is of no use.
    now(publish(&store, meta(8, 70), &bytes(8, 700), 300)).unwrap();
    assert_eq!(unfinished(&disk), []);
}

/// A file that was cut off in its header says nothing of what it would have been.
#[test]
fn an_unfinished_image_without_a_whole_header_is_removed() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    drop(now(store.begin(meta(4, 40))).unwrap());
    drop(store);
    disk.flip(Path::new("/images/0000000000000004.part"), 20, 1);
    drop(open(&disk).unwrap());
    assert_eq!(unfinished(&disk), []);
}

#[test]
fn a_writer_that_was_replaced_writes_no_more() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    let mut first = now(store.begin(meta(1, 10))).unwrap();
    now(first.append(bytes(1, 100))).unwrap();
    let mut second = now(store.begin(meta(1, 10))).unwrap();
    assert_eq!(second.offset(), 100);
    assert!(matches!(now(first.append(bytes(1, 100))), Err(StorageError::Misuse(_))));
    assert!(matches!(now(first.publish()), Err(StorageError::Misuse(_))));
    now(second.append(bytes(2, 100))).unwrap();
    now(second.publish()).unwrap();
    assert_eq!(now(read_all(&store, 1, 1000)).unwrap(), [bytes(1, 100), bytes(2, 100)].concat());
}

#[test]
fn every_flipped_bit_of_an_image_is_noticed() {
    let disk = SimDisk::new();
    let data = bytes(5, 1500);
    now(publish(&open(&disk).unwrap(), meta(5, 50), &data, 600)).unwrap();
    let clean = disk.now();
    let path = Path::new("/images/0000000000000005.snap");
    for bit in 0..disk.contents(path).unwrap().len() * 8 {
        let disk = clean.kill();
        disk.flip(path, bit / 8, 1 << (bit % 8));
        let read = open(&disk).and_then(|store| now(read_all(&store, 5, 400)));
        assert!(matches!(read, Err(StorageError::Corrupt { .. })), "byte {} bit {}", bit / 8, bit % 8);
    }
}

#[test]
fn anothers_images_are_refused() {
    let disk = SimDisk::new();
    drop(open(&disk).unwrap());
    let other = Identity { node: NodeId(2), ..IDENTITY };
    let error = FileSnapshots::open_on(Arc::new(disk.clone()), "/images", other, false).unwrap_err();
    assert!(matches!(error, StorageError::Refused { .. }));
    let store = open(&disk).unwrap();
    assert!(matches!(open(&disk), Err(StorageError::Refused { .. })));
    drop(store);
    open(&disk).unwrap();
}

#[test]
fn a_failed_write_sticks_and_the_image_before_stays() {
    let reference = SimDisk::new();
    let store = open(&reference).unwrap();
    now(publish(&store, meta(1, 10), &bytes(1, 900), 300)).unwrap();
    let before = reference.now();
    let probe = before.kill();
    now(publish(&open(&probe).unwrap(), meta(2, 20), &bytes(2, 900), 300)).unwrap();
    for operation in 0..probe.operations() {
        for fault in [Fault::Refuse(std::io::ErrorKind::StorageFull), Fault::Forget] {
            let disk = before.kill();
            disk.fail_at(operation, fault);
            let Ok(store) = open(&disk) else {
                // Nothing was done yet, and the next process finds it all.
                assert_eq!(now(read_all(&open(&disk).unwrap(), 1, 1000)).unwrap(), bytes(1, 900));
                continue;
            };
            if now(publish(&store, meta(2, 20), &bytes(2, 900), 300)).is_ok() {
                continue;
            }
            let again = now(store.begin(meta(3, 30)));
            assert!(matches!(again.err(), Some(StorageError::Sticky(_))), "operation {operation}");
            drop(store);
            // The next process goes on with what is there, and then power is lost.
            let store = open(&disk).unwrap();
            let latest = now(store.latest()).unwrap().unwrap().meta;
            assert!(latest == meta(1, 10) || latest == meta(2, 20));
            now(publish(&store, meta(4, 40), &bytes(4, 900), 300)).unwrap();
            now(publish(&store, meta(2, 60), &bytes(2, 900), 300)).unwrap();
            let after = open(&disk.now().lose_power(|_| Fate::Lost)).unwrap();
            assert_eq!(now(after.latest()).unwrap().map(|image| image.meta), Some(meta(2, 60)));
            assert_eq!(now(read_all(&after, 2, 1000)).unwrap(), bytes(2, 900), "operation {operation}");
        }
    }
}

/// What must hold after a loss of power: a whole image, none older than `least`, and one that is begun again becomes whole.
fn check(moment: &Moment, fates: &mut dyn FnMut() -> Fate, least: u64) {
    let disk = moment.lose_power(|_| fates());
    let store = open(&disk).unwrap();
    let latest = now(store.latest()).unwrap().map(|image| image.meta);
    let have = latest.as_ref().map_or(0, |meta| meta.id.0);
    assert!(have >= least, "image {have} where {least} was published");
    if have > 0 {
        assert_eq!(now(read_all(&store, have, 333)).unwrap(), bytes(have, 1300));
    }
    now(publish(&store, meta(have + 1, (have + 1) * 10), &bytes(have + 1, 1300), 500)).unwrap();
    drop(store);
    let store = open(&disk.now().lose_power(|_| Fate::Lost)).unwrap();
    assert_eq!(now(read_all(&store, have + 1, 333)).unwrap(), bytes(have + 1, 1300));
}

#[test]
fn a_loss_of_power_at_any_moment_leaves_a_whole_image() {
    let disk = SimDisk::new();
    disk.record();
    let store = open(&disk).unwrap();
    let mut published = vec![];
    for n in 1..4 {
        now(publish(&store, meta(n, n * 10), &bytes(n, 1300), 500)).unwrap();
        published.push((disk.operations(), n));
    }
    let mut states = 0;
    for (operation, moment) in disk.take_recording().iter().enumerate() {
        let least = published.iter().rev().find(|(at, _)| *at <= operation as u64).map_or(0, |(_, n)| *n);
        let n = moment.pending().len();
        for all in [Fate::Lost, Fate::Kept, Fate::Garbage, Fate::Early] {
            check(moment, &mut || all, least);
            for one in [Fate::Lost, Fate::Kept, Fate::Garbage] {
                for at in 0..n {
                    let mut asked = 0;
                    let mut fates = || {
                        asked += 1;
                        if asked == at + 1 { one } else { all }
                    };
                    check(moment, &mut fates, least);
                    states += 1;
                }
            }
        }
    }
    assert!(states > 300, "only {states} states");
}

/// Whoever opens images after a kill cuts his log up to the one that he finds.
#[test]
fn the_first_image_that_a_killed_process_has_named_outlasts_a_loss_of_power_once_it_was_found() {
    let disk = SimDisk::new();
    disk.record();
    now(publish(&open(&disk).unwrap(), meta(1, 10), &bytes(1, 1300), 500)).unwrap();
    let mut found = 0;
    for moment in disk.take_recording() {
        let killed = moment.kill();
        let Ok(store) = open(&killed) else { continue };
        if now(store.latest()).unwrap().is_some() {
            found += 1;
            let store = open(&killed.now().lose_power(|_| Fate::Lost)).unwrap();
            assert_eq!(now(read_all(&store, 1, 333)).unwrap(), bytes(1, 1300));
        }
    }
    assert!(found > 0, "no process is killed between the name and what makes it durable");
}

/// The same of the second: the first must not go before that one's name is durable.
#[test]
fn a_loss_of_power_while_images_are_opened_after_a_kill_leaves_one() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    now(publish(&store, meta(1, 10), &bytes(1, 900), 300)).unwrap();
    disk.record();
    now(publish(&store, meta(2, 20), &bytes(2, 900), 300)).unwrap();
    for (at, moment) in disk.take_recording().iter().enumerate() {
        for after in 0..12 {
            let killed = moment.kill();
            killed.die_at(killed.operations() + after);
            drop(open(&killed));
            let then = killed.now();
            for one in 0..=then.pending().len() {
                for (all, other) in [(Fate::Kept, Fate::Lost), (Fate::Lost, Fate::Kept)] {
                    let mut asked = 0;
                    let left = then.lose_power(|_| {
                        asked += 1;
                        if asked == one { other } else { all }
                    });
                    let latest = now(open(&left).unwrap().latest()).unwrap();
                    assert!(latest.is_some(), "killed at {at}, {after} operations later no image was left");
                }
            }
        }
    }
}
