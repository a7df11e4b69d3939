//! The decoders of this crate as functions of bytes; see `raftkv::testing::fuzzing`.
//!
//! Checksums stop nearly all damage at the door. So that fuzzing reaches what lies behind it, they are also computed anew after the damage, as a
//! faulty writer would have done.

#![expect(clippy::expect_used, reason = "it reports by panicking")]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use raftkv::testing::Random;
use raftkv::testing::fuzzing::{Target, within};
use raftkv::{
    ClusterId, Entry, EntryKind, GroupId, HardState, LogId, LogWrite, Membership, NodeId, Peer, Published, SnapshotId,
    SnapshotMeta, StorageError, Term,
};
use raftkv_storage_file::fuzzing::{edit, sample_edits};
use raftkv_storage_file::sim::{Moment, SimDisk};

use crate::record::{Checked, ENTRY_HEADER, Salt, State, encode_entry};
use crate::store::Store;
use crate::{Commit, Identity, Options, backend, snapshots};

/// The targets of this package.
pub const TARGETS: &[Target] = &[
    Target { name: "records", run: records, sample: sample_records },
    Target { name: "log", run: log, sample: sample_edits },
];

const OWNER: Identity = Identity { cluster: ClusterId(0xc0ffee), node: NodeId(1), group: GroupId(0) };
const NONCE: u64 = 5;

/// The values of entries, and the states of a log and of images.
fn records(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    if let Some((sum, rest)) = sealed.split_first_chunk_mut() {
        *sum = crc32c::crc32c(rest).to_le_bytes();
    }
    let mut entry = bytes.to_vec();
    crate::record::seal_entry(&mut entry, 7, Salt::new(NONCE));
    for bytes in [bytes, &sealed, &entry] {
        within(bytes.len(), || {
            let _ = Checked::new(7, bytes, Salt::new(NONCE)).map(|checked| checked.entry(7));
            if let Ok(state) = State::decode(bytes, NONCE) {
                assert_eq!(State::decode(&state.encode(NONCE), NONCE), Ok(state));
            }
            if let Ok(state) = snapshots::record::State::decode(bytes, NONCE) {
                assert_eq!(snapshots::record::State::decode(&state.encode(NONCE), NONCE), Ok(state));
            }
        });
    }
}

fn sample_records(random: &mut Random) -> Vec<u8> {
    let base = LogId::new(random.below(9), random.below(99));
    let last = LogId::new(base.term.0 + random.below(9), base.index.0 + random.below(99));
    match random.below(3) {
        0 => {
            let data = vec![b'x'; usize::try_from(random.below(200)).unwrap_or(0)];
            let entry = Entry { id: LogId::new(3, 7), kind: EntryKind::Command, data: data.into() };
            let mut value = vec![0; ENTRY_HEADER + entry.data.len()];
            encode_entry(&mut value, &entry, 1 + random.below(99), Salt::new(NONCE));
            value
        }
        1 => {
            let hard_state = HardState { term: Term(20), voted_for: random.percent(50).then_some(NodeId(3)) };
            State { sequence: 1 + random.below(99), hard_state, base }.encode(NONCE).to_vec()
        }
        _ => {
            let membership = Membership::new((1..=random.below(4)).map(|id| Peer::new(id, format!("node-{id}"))));
            let meta = SnapshotMeta { id: SnapshotId(random.any()), last, membership, membership_at: base };
            let image = random.percent(80).then(|| Published { meta, len: random.below(999), checksum: 77 });
            snapshots::record::State { sequence: 1 + random.below(99), image }.encode(NONCE)
        }
    }
}

fn open(disk: &SimDisk) -> Result<Store, StorageError> {
    let options = Options { commit: Commit::OnePhase, cache_bytes: 1 << 20, background: false };
    Store::open(&(Arc::new(disk.clone()) as _), "/log".as_ref(), OWNER, options)
}

/// A small log, with a truncation and a compaction.
fn sound_log() -> &'static Moment {
    static MOMENT: OnceLock<Moment> = OnceLock::new();
    MOMENT.get_or_init(|| {
        let disk = SimDisk::new();
        let log = open(&disk).expect("a new log");
        for (term, first) in [(1, 1), (1, 4), (2, 5), (2, 8)] {
            let entry =
                |index| Entry { id: LogId::new(term, index), kind: EntryKind::Command, data: vec![b'x'; 300].into() };
            let hard_state = Some(HardState { term: Term(term), voted_for: Some(NodeId(2)) });
            log.write(&LogWrite { hard_state, entries: (first..first + 3).map(entry).collect() }).expect("a write");
        }
        log.compact(LogId::new(1, 2)).expect("a compaction");
        log.close();
        disk.now()
    })
}

/// Damaged logs: opened and used, or refused with a reason.
fn log(bytes: &[u8]) {
    let [mode, edits @ ..] = bytes else { return };
    let disk = sound_log().kill();
    let files: Vec<PathBuf> = disk.files().into_iter().filter(|path| !path.ends_with("LOCK")).collect();
    edit(&disk, &files, edits).expect("edits of a simulated disk");
    if mode & 1 == 1 {
        backend::seal_header(&disk, "/log/log.redb".as_ref());
    }
    let mut sound = false;
    let dumped = within(256 << 10, || {
        crate::dump_on(Arc::new(disk.clone()), "/log", |line| {
            _ = line.to_string();
            sound = matches!(line, crate::DumpLine::Verdict(raftkv_storage_file::DumpVerdict::Sound { .. }));
        })
    });
    let told = matches!(&dumped, Ok(()) | Err(StorageError::Corrupt { .. } | StorageError::Refused { .. }));
    assert!(told, "damage is told as: {dumped:?}");
    let opened = within(256 << 10, || open(&disk));
    if dumped.is_ok() {
        assert_eq!(sound, opened.is_ok(), "a dump and whoever opens the log do not find the same: {opened:?}");
    }
    let used = opened.and_then(|log| {
        let last = log.state().last;
        let entry =
            Entry { id: LogId { index: last.index.next(), ..last }, kind: EntryKind::Noop, data: Default::default() };
        log.write(&LogWrite { hard_state: None, entries: vec![entry] })
    });
    if let Err(error) = used {
        let told = matches!(error, StorageError::Corrupt { .. } | StorageError::Refused { .. });
        assert!(told, "damage is reported as: {error}");
    }
}
