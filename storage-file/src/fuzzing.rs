//! The decoders of this crate as functions of bytes; see `raftkv::testing::fuzzing`.
//!
//! Checksums stop nearly all damage at the door. So that fuzzing reaches what lies behind it, the first byte of an input says
//! whether they are computed anew after the damage, as a faulty writer would have done.

#![expect(clippy::expect_used, reason = "it reports by panicking")]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::FutureExt;
use raftkv::testing::Random;
use raftkv::testing::fuzzing::{Target, within};
use raftkv::{
    ClusterId, Entry, EntryKind, GroupId, HardState, Index, LogId, LogWrite, Membership, NodeId, Peer, Published,
    Snapshot, SnapshotId, SnapshotMeta, StorageError, Term,
};

use crate::directory::{IDENTITY, Owner, SYNCED, SyncedNote};
use crate::frame::{BATCH_HEADER, BatchHeader, ENTRY_HEADER, EntryHeader, Identity, Salt, put, round_up, u32_at};
use crate::sim::{Moment, SimDisk};
use crate::vfs::{Access, Vfs};
use crate::{FileSnapshots, Options, Wal, dump_on};

/// The targets of this package.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frame, sample: sample_frame },
    Target { name: "log", run: log, sample: sample_edits },
    Target { name: "meta_files", run: meta_files, sample: sample_meta_files },
    Target { name: "records", run: records, sample: sample_records },
    Target { name: "snapshots", run: snapshots, sample: sample_edits },
];

const OWNER: Identity = Identity { cluster: ClusterId(0xc0ffee), node: NodeId(1), group: GroupId(0) };
const LOG: &str = "/log";
const IMAGES: &str = "/images";

/// Whether this is what a store says of bad bytes.
fn told(error: &StorageError) {
    let is_told = matches!(error, StorageError::Corrupt { .. } | StorageError::Refused { .. });
    assert!(is_told, "damage is reported as: {error}");
}

/// Headers of batches and entries.
fn frame(bytes: &[u8]) {
    let salt = Salt::new(1, 1);
    if let Ok(header) = BatchHeader::decode(bytes, salt, 512) {
        let _ = header.matches(bytes.get(BATCH_HEADER..).unwrap_or_default(), salt, 512);
    }
    let mut sealed = bytes.to_vec();
    seal_batch(&mut sealed, 0, salt, 512);
    let _ = BatchHeader::decode(&sealed, salt, 512);
    for bytes in [bytes, &sealed] {
        if let Ok(header) = EntryHeader::decode(bytes, salt, 512) {
            let _ = (header.size(), header.matches(bytes.get(ENTRY_HEADER..).unwrap_or_default(), salt, 512));
        }
        let _ = EntryHeader::peek(bytes);
    }
}

/// Files of records.
fn records(bytes: &[u8]) {
    let [mode, bytes @ ..] = bytes else { return };
    let parsed = within(64 << 10, || crate::records::fuzz(bytes, mode & 1 == 1));
    if let Err(error) = parsed {
        told(&error);
    }
}

fn sample_records(random: &mut Random) -> Vec<u8> {
    let mut record = || vec![b'x'; usize::try_from(random.below(700)).unwrap_or(0)];
    let (first, second) = (record(), record());
    let mut bytes = vec![u8::from(random.percent(80))];
    bytes.append(&mut crate::records::sample(&first, &second));
    bytes
}

fn sample_frame(random: &mut Random) -> Vec<u8> {
    let write = write(random, LogId::new(random.clone().between(1, 9), random.clone().below(99)));
    let mut bytes = Vec::new();
    let place = crate::frame::Place { offset: 512, salt: Salt::new(1, 1), align: 512 };
    crate::frame::encode(&mut bytes, crate::frame::Content::Write(&write), random.below(1000), place);
    bytes
}

/// What may follow this entry.
fn write(random: &mut Random, last: LogId) -> LogWrite {
    let term = last.term.max(Term(1)).0 + random.below(2);
    let entry = |index| {
        let data = vec![b'x'; usize::try_from(random.below(200)).unwrap_or(0)];
        Entry { id: LogId::new(term, index), kind: EntryKind::Command, data: data.into() }
    };
    let first = last.index.0 + 1;
    let entries = (first..first + 3).map(entry).collect();
    LogWrite { hard_state: Some(HardState { term: Term(term), voted_for: Some(NodeId(2)) }), entries }
}

fn options() -> Options {
    Options { segment_bytes: 3072, direct_from: 1024, background: false, ..Options::default() }
}

fn open_log(disk: &SimDisk) -> Result<Wal, StorageError> {
    Wal::open(Arc::new(disk.clone()), Path::new(LOG), OWNER, options())
}

/// A log of a few segments, with truncations and a compaction.
fn sound_log() -> &'static Moment {
    static MOMENT: OnceLock<Moment> = OnceLock::new();
    MOMENT.get_or_init(|| {
        let (disk, mut random) = (SimDisk::new(), Random::new(1));
        let mut log = open_log(&disk).expect("a new log");
        for n in 0..14_u64 {
            let last = log.state().last;
            let back = if n % 5 == 4 { LogId::new(last.term.0 + 1, last.index.0 - 2) } else { last };
            log.write(&write(&mut random, back)).expect("a write");
            if n == 8 {
                log.compact(LogId::new(last.term.0, last.index.0)).expect("a compaction");
            }
        }
        log.close();
        disk.now()
    })
}

/// Edits of files: which file, where, how many bytes, and the bytes; or a cut.
///
/// # Errors
/// As the disk says.
pub fn edit(disk: &SimDisk, files: &[PathBuf], mut edits: &[u8]) -> io::Result<()> {
    while let [file, low, high, len, rest @ ..] = edits {
        let Some(path) = files.get(usize::from(file & 0x7f) % files.len().max(1)) else { return Ok(()) };
        let length = disk.contents(path).map_or(0, |contents| contents.len());
        let at = usize::from(u16::from_le_bytes([*low, *high])) % length.max(1);
        let bytes = &rest[..rest.len().min(usize::from(*len % 17))];
        let opened = disk.open(path, Access::Write)?;
        if file & 0x80 == 0 {
            opened.write_at(bytes, at as u64)?;
        } else if *len >= 240 {
            opened.set_len(at as u64)?;
        }
        opened.sync_data()?;
        edits = &rest[bytes.len()..];
    }
    Ok(())
}

/// Some edits, for [`edit`], with a byte in front of them that says whether to compute checksums anew.
pub fn sample_edits(random: &mut Random) -> Vec<u8> {
    let mut edits = vec![u8::from(random.percent(80))];
    for _ in 0..random.between(1, 3) {
        edits.push(random.below(8) as u8);
        // Numbers begin at multiples of four, and headers at multiples of 512.
        let at = if random.percent(50) { random.below(64) * 512 + random.below(32) * 4 } else { random.below(1 << 16) };
        edits.extend_from_slice(&(at as u16).to_le_bytes());
        let width = random.pick(&[1_u8, 4, 8]).unwrap_or(1);
        edits.push(width);
        let (any, small) = (random.any(), random.below(100));
        let value = random.pick(&[0, 1, 2, any, u64::MAX, 1 << 62, small, u64::from(u32::MAX)]);
        edits.extend_from_slice(&value.unwrap_or(0).to_le_bytes()[..usize::from(width)]);
    }
    edits
}

/// Damaged logs: opened and used, or refused with a reason.
fn log(bytes: &[u8]) {
    let [mode, edits @ ..] = bytes else { return };
    let disk = sound_log().kill();
    let owner = Owner::read(&disk, Path::new(LOG)).expect("it is there").expect("an owner");
    let segments: Vec<PathBuf> =
        disk.files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "wal")).collect();
    edit(&disk, &segments, edits).expect("edits of a simulated disk");
    if mode & 1 == 1 {
        for path in segments {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let salt = Salt::new(owner.nonce, crate::segment::parse_name(name).unwrap_or(0));
            change(&disk, &path, |bytes| seal_segment(bytes, salt));
        }
    }
    within(64 << 10, || use_log(&disk));
}

fn change(disk: &SimDisk, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut contents = disk.contents(path).unwrap_or_default();
    change(&mut contents);
    let file = disk.open(path, Access::Create).expect("a simulated disk");
    file.write_at(&contents, 0).expect("a simulated disk");
    file.sync_data().expect("a simulated disk");
}

fn use_log(disk: &SimDisk) {
    if let Err(error) = dump_on(Arc::new(disk.clone()), LOG, |line| drop(line.to_string())) {
        told(&error);
    }
    let log = match open_log(disk) {
        Ok(log) => log,
        Err(error) => return told(&error),
    };
    let state = log.state();
    if state.last.index > state.base.index
        && let Err(error) = log.read(state.base.index.next()..Index(u64::MAX), u64::MAX)
    {
        told(&error);
    }
    log.close();
    let mut log = open_log(disk).expect("a log that opened opens again");
    assert_eq!(log.state(), state, "a log is another when it is opened again");
    let more = write(&mut Random::new(1), state.last);
    log.write(&more).expect("a log that opened takes writes");
    let first = more.entries.first().map_or(Index(0), |entry| entry.id.index);
    assert_eq!(log.read(first..Index(u64::MAX), u64::MAX).expect("what was just written"), more.entries);
    log.compact(log.state().last).expect("a log that opened can be compacted");
    log.close();
}

fn seal_segment(bytes: &mut [u8], salt: Salt) {
    let align = usize::try_from(u32_at(bytes, 12)).unwrap_or(0);
    if let Some(block) = bytes.get_mut(..align)
        && block.len() >= 512
    {
        let sum = salt.sum(0, &block[12..]);
        put(block, 8, &sum.to_le_bytes());
    }
    let mut at = 512;
    while let Some(next) = seal_batch(bytes, at, salt, at as u64) {
        at = next;
    }
}

/// Computes the checksums of a batch at `at` anew, which is at `offset` of its segment. Tells where the next one begins.
fn seal_batch(bytes: &mut [u8], at: usize, salt: Salt, offset: u64) -> Option<usize> {
    let length = usize::try_from(u32_at(bytes.get(at..at + BATCH_HEADER)?, 8)).ok()?;
    let end = at + BATCH_HEADER + length;
    if let Some(payload) = bytes.get_mut(at + BATCH_HEADER..end) {
        let mut from = 0;
        while let Some(header) = payload.get(from..from + ENTRY_HEADER) {
            let size = usize::try_from(round_up(ENTRY_HEADER as u64 + u64::from(u32_at(header, 8)), 8)).ok()?;
            let place = offset + (BATCH_HEADER + from) as u64;
            let Some(entry) = payload.get_mut(from..from + size) else { break };
            let sum = salt.sum(place, &entry[ENTRY_HEADER..]);
            put(entry, 4, &sum.to_le_bytes());
            let sum = salt.sum(place, &entry[4..ENTRY_HEADER]);
            put(entry, 0, &sum.to_le_bytes());
            from += size;
        }
        let sum = salt.sum(offset, payload);
        put(bytes, at + 4, &sum.to_le_bytes());
    }
    let sum = salt.sum(offset, &bytes[at + 4..at + BATCH_HEADER]);
    put(bytes, at, &sum.to_le_bytes());
    (end <= bytes.len()).then_some(end)
}

/// The identity and the note of what was synced, each replaced by the bytes after the first.
fn meta_files(bytes: &[u8]) {
    let [mode, contents @ ..] = bytes else { return };
    let (disk, sealed) = (sound_log().kill(), mode & 1 == 1);
    let dir = Path::new(LOG);
    if mode & 2 == 0 {
        change(&disk, &dir.join(IDENTITY), |bytes| {
            *bytes = contents.to_vec();
            if sealed {
                let sum = crc32c::crc32c(contents);
                bytes.extend_from_slice(format!("checksum {sum:08x}\n").as_bytes());
            }
        });
    } else {
        let owner = Owner::read(&disk, dir).expect("it is there").expect("an owner");
        change(&disk, &dir.join(SYNCED), |bytes| {
            *bytes = contents.to_vec();
            if sealed {
                SyncedNote::seal(bytes, owner.nonce);
            }
        });
    }
    within(contents.len() + (64 << 10), || use_log(&disk));
}

fn sample_meta_files(random: &mut Random) -> Vec<u8> {
    let (sealed, disk) = (u8::from(random.percent(70)), sound_log().kill());
    let (mode, name) = if random.percent(50) { (sealed, IDENTITY) } else { (2 | sealed, SYNCED) };
    let mut contents = disk.contents(&Path::new(LOG).join(name)).unwrap_or_default();
    if mode == 1 {
        // The checksum's line is added again.
        contents.truncate(contents.len().saturating_sub("checksum 00000000\n".len()));
    }
    [vec![mode], contents].concat()
}

fn meta(n: u64) -> SnapshotMeta {
    let membership = Membership::new([Peer::new(1, "a:1"), Peer::new(2, "b:2")]);
    SnapshotMeta { id: SnapshotId(n), last: LogId::new(3, n * 10), membership, membership_at: LogId::new(1, 1) }
}

fn open_images(disk: &SimDisk) -> Result<FileSnapshots, StorageError> {
    FileSnapshots::open_on(Arc::new(disk.clone()), IMAGES, OWNER, false)
}

/// Without a thread nothing waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("nothing to wait for")
}

/// A published image, and an unfinished one.
fn sound_images() -> &'static Moment {
    static MOMENT: OnceLock<Moment> = OnceLock::new();
    MOMENT.get_or_init(|| {
        let disk = SimDisk::new();
        let store = open_images(&disk).expect("a new store");
        for n in [1, 2] {
            let mut writer = now(store.begin(meta(n))).expect("a writer");
            for piece in 0..3 {
                now(writer.append(Bytes::from(vec![piece; 300]))).expect("a piece");
            }
            if n == 1 {
                now(writer.publish()).expect("a published image");
            }
        }
        drop(store);
        disk.now()
    })
}

/// Damaged images: read rightly, or refused with a reason; unfinished ones are gone on with, or begun anew.
fn snapshots(bytes: &[u8]) {
    let [mode, edits @ ..] = bytes else { return };
    let disk = sound_images().kill();
    let owner = Owner::read(&disk, Path::new(IMAGES)).expect("it is there").expect("an owner");
    let files = [1, 2].map(|n| {
        let suffix = if n == 1 { "snap" } else { "part" };
        Path::new(IMAGES).join(format!("{}.{suffix}", SnapshotId(n)))
    });
    edit(&disk, &files, edits).expect("edits of a simulated disk");
    if mode & 1 == 1 {
        for (n, path) in (1..).zip(&files) {
            change(&disk, path, |bytes| crate::snapshots::seal(bytes, Salt::new(owner.nonce, n)));
        }
    }
    within(64 << 10, || use_images(&disk));
}

fn use_images(disk: &SimDisk) {
    let store = match open_images(disk) {
        Ok(store) => store,
        Err(error) => return told(&error),
    };
    if let Some(Published { meta, .. }) = now(store.latest()).expect("the latest") {
        let mut at = 0;
        loop {
            match now(store.read(&meta.id, at, 100)) {
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => at += piece.len() as u64,
                Err(error) => {
                    told(&error);
                    break;
                }
            }
        }
    }
    let mut writer = now(store.begin(meta(2))).expect("an image can be begun, or gone on with");
    now(writer.append(Bytes::from_static(b"more"))).expect("a piece");
    let whole = writer.offset();
    now(writer.publish()).expect("it can be published");
    if now(store.latest()).expect("the latest").is_some_and(|latest| latest.meta == meta(2)) {
        let last = now(store.read(&SnapshotId(2), whole - 4, 100)).expect("what was just written");
        assert_eq!(last, &b"more"[..]);
    }
}
