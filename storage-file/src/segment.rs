//! One segment file: its header, its making, and the walk over its batches.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::mutant;
use raftkv::{ClusterId, GroupId, HardState, LogId, NodeId, StorageError, Term};

use crate::frame::{
    self, ABSURD, BATCH_HEADER, BatchHeader, EntryHeader, Identity, MAX_ALIGN, MIN_ALIGN, Salt, put, u32_at, u64_at,
};
use crate::index::Summary;
use crate::vfs::{Access, Vfs, VfsFile, Window, failed, write_all};

const MAGIC: &[u8; 7] = b"RAFTKVW";
const VERSION: u8 = b'1';
const HAS_VOTE: u32 = 1;
const READ_AHEAD: usize = 256 << 10;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The file of a segment.
pub(crate) fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:020}.wal"))
}

/// The segment that a file name stands for, if it does.
pub(crate) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// What the first block of a segment tells. It is written together with the segment's first batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) align: u32,
    pub(crate) id: u64,
    pub(crate) identity: Identity,
    /// The segment before this one (0: none), and where its last counted batch ends. Everything before that point was
    /// durable when this header was written; nothing after it counts.
    pub(crate) previous: (u64, u64),
    /// The sequence number of the first batch here.
    pub(crate) first_sequence: u64,
    /// The state of the log before that batch.
    pub(crate) before: Summary,
}

/// What the first block of a segment file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// All zero: made in advance, and never used.
    Blank,
    /// Something, but no header of this segment.
    Bad(String),
    /// A header.
    Valid(SegmentHeader),
}

impl SegmentHeader {
    /// The block, `align` bytes long.
    pub(crate) fn encode(&self, salt: Salt) -> Vec<u8> {
        let mut block = vec![0; self.align as usize];
        put(&mut block, 0, MAGIC);
        block[7] = VERSION;
        put(&mut block, 12, &self.align.to_le_bytes());
        let Summary { hard_state, base, last } = self.before;
        let vote = hard_state.voted_for;
        let numbers = [
            self.id,
            self.identity.cluster.0,
            self.identity.node.0,
            self.identity.group.0,
            self.previous.0,
            self.previous.1,
            self.first_sequence,
            hard_state.term.0,
            vote.map_or(0, |node| node.0),
            base.term.0,
            base.index.0,
            last.term.0,
            last.index.0,
        ];
        for (n, number) in numbers.iter().enumerate() {
            put(&mut block, 16 + 8 * n, &number.to_le_bytes());
        }
        put(&mut block, 120, &(if vote.is_some() { HAS_VOTE } else { 0 }).to_le_bytes());
        let sum = salt.sum(0, &block[12..]);
        put(&mut block, 8, &sum.to_le_bytes());
        block
    }

    fn decode(block: &[u8]) -> Self {
        let number = |n: usize| u64_at(block, 16 + 8 * n);
        let voted_for = (u32_at(block, 120) & HAS_VOTE != 0).then(|| NodeId(number(8)));
        Self {
            align: u32_at(block, 12),
            id: number(0),
            identity: Identity { cluster: ClusterId(number(1)), node: NodeId(number(2)), group: GroupId(number(3)) },
            previous: (number(4), number(5)),
            first_sequence: number(6),
            before: Summary {
                hard_state: HardState { term: Term(number(7)), voted_for },
                base: LogId::new(number(9), number(10)),
                last: LogId::new(number(11), number(12)),
            },
        }
    }

    /// Reads the first block of segment `id`.
    pub(crate) fn read(file: &dyn VfsFile, id: u64, salt: Salt) -> io::Result<Head> {
        let mut window = Window::new(file, MAX_ALIGN as usize);
        let block = window.at(0, MAX_ALIGN as usize)?;
        if block.iter().all(|b| *b == 0) {
            return Ok(Head::Blank);
        }
        if block.get(..7) != Some(MAGIC) {
            return Ok(Head::Bad("it does not begin as a segment does".into()));
        }
        let align = u32_at(block, 12);
        let sane = align.is_power_of_two() && (MIN_ALIGN..=MAX_ALIGN).contains(&align);
        let Some(block) = block.get(..align as usize).filter(|_| sane) else {
            return Ok(Head::Bad("the segment header is damaged".into()));
        };
        if u32_at(block, 8) != salt.sum(0, &block[12..]) {
            return Ok(Head::Bad("the checksum of the segment header does not match".into()));
        }
        if block[7] != VERSION {
            return Ok(Head::Bad(format!("format version {:?} is not known: written by a newer release?", block[7])));
        }
        // The numbers from the segment before on; what comes earlier are names.
        if (4..13).any(|n| n != 8 && u64_at(block, 16 + 8 * n) >= ABSURD) {
            return Ok(Head::Bad("the segment header holds absurd numbers".into()));
        }
        let header = Self::decode(block);
        Ok(if header.id == id { Head::Valid(header) } else { Head::Bad("it is another segment's header".into()) })
    }
}

/// How many zeros are written before they are synced. Whoever syncs something else on that disk meanwhile waits for what is under way: a segment's worth of them
/// is a tenth of a second.
const ZEROED_AT_ONCE: u64 = 1 << 20;

/// Makes the file of a segment: room reserved, zeros written so that a later sync has no metadata to write, and all of it
/// durable.
///
/// Not `zeroed`, it only has room reserved, where the file system can do that: it reads as zeros all the same.
pub(crate) fn create(
    vfs: &dyn Vfs,
    dir: &Path,
    id: u64,
    size: u64,
    zeroed: bool,
) -> Result<Arc<dyn VfsFile>, StorageError> {
    let path = path(dir, id);
    let file = vfs.open(&path, Access::Create).map_err(failed("create", &path))?;
    let made = (|| {
        let reserved = file.allocate(size).map_err(failed("allocate", &path))?;
        if zeroed || !reserved {
            let mut at = 0;
            while at < size {
                zero(&*file, at, size.min(at + ZEROED_AT_ONCE)).map_err(failed("write", &path))?;
                at += ZEROED_AT_ONCE;
                if at < size {
                    file.sync_data().map_err(failed("fsync", &path))?;
                }
            }
        }
        file.sync_data().map_err(failed("fsync", &path))?;
        if mutant!("directory-not-synced") {
            return Ok(());
        }
        vfs.sync_dir(dir).map_err(failed("fsync", dir))
    })();
    if made.is_err() {
        // Give the room back. A file of zeros is no harm if this fails as well.
        let _ = vfs.remove(&path);
    }
    made.map(|()| file)
}

/// Writes zeros over a range.
///
/// # Errors
/// As the operating system says.
pub fn zero(file: &dyn VfsFile, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let n = usize::try_from(to - at).unwrap_or(usize::MAX).min(ZEROS.len());
        write_all(file, &ZEROS[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

/// A batch whose checksums hold.
pub(crate) struct Batch<'a> {
    pub(crate) header: BatchHeader,
    pub(crate) offset: u64,
    payload: &'a [u8],
}

/// An entry of such a batch.
pub(crate) struct Found<'a> {
    pub(crate) header: EntryHeader,
    pub(crate) offset: u64,
    pub(crate) data: &'a [u8],
}

impl<'a> Batch<'a> {
    pub(crate) fn end(&self) -> u64 {
        self.offset + BATCH_HEADER as u64 + u64::from(self.header.length)
    }

    /// The entries, up to the first that is none. The batch's checksum covers them, so theirs are not computed again.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Result<Found<'a>, &'static str>> + use<'a> {
        let (payload, count, first) = (self.payload, self.header.count, self.header.first);
        let body = self.offset + BATCH_HEADER as u64;
        let mut at = 0;
        let mut ended = false;
        let entry = move |n: u32| {
            let rest = payload.get(at..).unwrap_or_default();
            let header = EntryHeader::peek(rest)?;
            let size = usize::try_from(header.size()).map_err(|_| "an entry is too large for this machine")?;
            let ends = header.last_of_batch == (n + 1 == count);
            if header.id.index != first.plus(u64::from(n)) || size > rest.len() || !ends {
                return Err("the entries of a batch contradict its header");
            }
            let data = &rest[frame::ENTRY_HEADER..frame::ENTRY_HEADER + header.length as usize];
            let found = Found { header, offset: body + at as u64, data };
            at += size;
            Ok(found)
        };
        // A header that claims four billion entries is not asked for each of them.
        (0..count).map(entry).take_while(move |found| !std::mem::replace(&mut ended, found.is_err()))
    }
}

/// Why a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) offset: u64,
    pub(crate) reason: &'static str,
    /// Nothing was ever written there, as far as the eye can see.
    pub(crate) blank: bool,
    /// The sequence number in the batch header, where the header is whole and only what follows it is damaged.
    pub(crate) sequence: Option<u64>,
}

/// One step of a walk.
pub(crate) enum Step<'a> {
    Batch(Batch<'a>),
    Stop(Stop),
}

/// What lies behind the end of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    /// The highest sequence number of a batch header found, and where.
    pub(crate) batch: Option<(u64, u64)>,
    /// Where the last bytes end that are not zero, rounded up to a block; 0 when all are.
    pub(crate) dirty_end: u64,
}

/// Walks over the batches of a segment, and checks every byte of them.
pub(crate) struct Walk<'a> {
    window: Window<'a>,
    salt: Salt,
    pub(crate) len: u64,
    align: u32,
    pub(crate) offset: u64,
}

impl<'a> Walk<'a> {
    /// A walk over a segment whose header has been read.
    pub(crate) fn new(file: &'a dyn VfsFile, salt: Salt, align: u32) -> io::Result<Self> {
        let len = file.len()?;
        let ahead = usize::try_from(len).unwrap_or(READ_AHEAD).min(READ_AHEAD);
        Ok(Self { window: Window::new(file, ahead), salt, len, align, offset: u64::from(align) })
    }

    /// The next batch, or why there is none.
    pub(crate) fn next(&mut self) -> io::Result<Step<'_>> {
        let offset = self.offset;
        let stop = |reason, blank, sequence| Ok(Step::Stop(Stop { offset, reason, blank, sequence }));
        let bytes = self.window.at(offset, BATCH_HEADER)?;
        let header = match BatchHeader::decode(bytes, self.salt, offset) {
            Ok(header) => header,
            Err(reason) => return stop(reason, bytes.iter().all(|b| *b == 0), None),
        };
        let (length, size) = (u64::from(header.length), BATCH_HEADER + header.length as usize);
        if offset + BATCH_HEADER as u64 + length > self.len {
            return stop("the file ends within a batch", false, Some(header.sequence));
        }
        if !(BATCH_HEADER as u64 + length).is_multiple_of(u64::from(self.align)) {
            return stop("a batch of an impossible length", false, Some(header.sequence));
        }
        let bytes = self.window.at(offset, size)?;
        let payload = bytes.get(BATCH_HEADER..).unwrap_or_default();
        if !header.matches(payload, self.salt, offset) {
            return stop("the checksum of a batch does not match", false, Some(header.sequence));
        }
        self.offset = offset + size as u64;
        Ok(Step::Batch(Batch { header, offset, payload }))
    }

    /// Moves on to the next batch header that is whole, if there is one: to look at what lies behind damage.
    pub(crate) fn skip(&mut self) -> io::Result<bool> {
        let mut at = self.offset + u64::from(MIN_ALIGN);
        while at < self.len {
            let bytes = self.window.at(at, BATCH_HEADER)?;
            if BatchHeader::decode(bytes, self.salt, at).is_ok() {
                self.offset = at;
                return Ok(true);
            }
            at += u64::from(MIN_ALIGN);
        }
        Ok(false)
    }

    /// Looks at everything from the present offset to the end of the file for headers of later batches: sectors of one
    /// write reach the disk in any order, but a batch is only written after the one before it is durable.
    pub(crate) fn behind(&mut self) -> io::Result<Behind> {
        let block = MIN_ALIGN as usize;
        let mut found = Behind::default();
        let mut at = self.offset;
        while at < self.len {
            let bytes = self.window.at(at, READ_AHEAD.min(usize::try_from(self.len - at).unwrap_or(READ_AHEAD)))?;
            if bytes.is_empty() {
                break;
            }
            for (n, piece) in bytes.chunks(block).enumerate() {
                let offset = at + (n * block) as u64;
                if piece == &ZEROS[..piece.len()] {
                    continue;
                }
                found.dirty_end = (offset + block as u64).min(self.len);
                if let Ok(header) = BatchHeader::decode(piece, self.salt, offset)
                    && found.batch.is_none_or(|(sequence, _)| sequence < header.sequence)
                {
                    found.batch = Some((header.sequence, offset));
                }
            }
            at += bytes.len() as u64;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftkv::Index;

    #[test]
    fn names_are_read_as_they_are_written() {
        let path = path(Path::new("/x"), 42);
        assert_eq!(parse_name(path.file_name().unwrap().to_str().unwrap()), Some(42));
        for name in ["42.wal", "0000000000000000004x.wal", "00000000000000000042.tmp", "+0000000000000000042.wal"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }

    /// Puts waited a tenth of a second whenever a segment was made beside them.
    #[cfg(feature = "testing")]
    #[test]
    fn no_more_zeros_wait_for_the_disk_than_a_piece() {
        let disk = crate::sim::SimDisk::new();
        let (dir, size) = (Path::new("/log"), 3 * ZEROED_AT_ONCE + 5000);
        disk.create_dir_all(dir).unwrap();
        disk.record();
        create(&disk, dir, 1, size, true).unwrap();
        let moments = disk.take_recording();
        let most = moments.iter().map(|moment| moment.pending().len()).max().unwrap();
        let piece = usize::try_from(ZEROED_AT_ONCE).unwrap() / crate::sim::SECTOR;
        // The name and the length beside them.
        assert!((piece..=piece + 2).contains(&most), "{most} changes of a file wait, of {piece} in a piece");
        let after = disk.now().lose_power(|_| crate::sim::Fate::Lost);
        assert_eq!(after.contents(&path(dir, 1)).map(|bytes| bytes.len() as u64), Some(size));
    }

    /// Found by fuzzing: with four billion in the header's place for them, a dump took minutes.
    #[test]
    fn a_batch_that_claims_more_entries_than_it_holds_is_not_asked_for_all_of_them() {
        let write = raftkv::LogWrite {
            hard_state: None,
            entries: vec![raftkv::Entry {
                id: LogId::new(1, 1),
                kind: raftkv::EntryKind::Command,
                data: b"x".as_slice().into(),
            }],
        };
        let (mut bytes, salt) = (Vec::new(), Salt::new(1, 1));
        let place = frame::Place { offset: 512, salt, align: 512 };
        frame::encode(&mut bytes, frame::Content::Write(&write), 1, place);
        let mut header = BatchHeader::decode(&bytes, salt, 512).unwrap();
        header.count = u32::MAX;
        let batch = Batch { header, offset: 512, payload: &bytes[BATCH_HEADER..] };
        let found: Vec<bool> = batch.entries().map(|entry| entry.is_ok()).collect();
        assert_eq!(found, [false]);
    }

    #[test]
    fn a_header_survives_its_encoding() {
        let header = SegmentHeader {
            align: 512,
            id: 3,
            identity: Identity { cluster: ClusterId(1), node: NodeId(2), group: GroupId(3) },
            previous: (2, 4096),
            first_sequence: 17,
            before: Summary {
                hard_state: HardState { term: Term(5), voted_for: Some(NodeId(6)) },
                base: LogId::new(1, 2),
                last: LogId { term: Term(5), index: Index(9) },
            },
        };
        let block = header.encode(Salt::new(1, 3));
        assert_eq!(block.len(), 512);
        assert_eq!(SegmentHeader::decode(&block), header);
    }
}
