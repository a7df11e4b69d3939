//! A log, line by line, for people: what is there, and what is wrong with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::{HardState, LogId, LogState, StorageError, TermRun};

use crate::directory::{Owner, SyncedNote};
use crate::frame::Identity;
use crate::recovery::{self, Home};
use crate::segment::{Batch, Head, SegmentHeader, Step, Walk};
use crate::vfs::{Access, OsVfs, Vfs, failed};

/// One line of a [`dump`]. Its `Display` is the line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpLine {
    /// Whose log it is, and the last batch that is noted as synced (0: none).
    Log {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        identity: Identity,
        /// The batch.
        synced: u64,
    },
    /// A segment begins.
    Segment {
        /// Its file.
        path: PathBuf,
        /// The file's length in bytes.
        bytes: u64,
        /// What its header says.
        head: DumpHead,
    },
    /// A batch: one write, one sync.
    Batch {
        /// Where it begins in its segment.
        offset: u64,
        /// How much room it takes, header and padding included.
        bytes: u64,
        /// Its number.
        sequence: u64,
        /// The hard state it sets, if it does.
        hard_state: Option<HardState>,
        /// The base it sets, if it does, and whether that emptied the log.
        base: Option<(LogId, bool)>,
        /// Its entries, if it has some.
        entries: Option<DumpEntries>,
    },
    /// Bytes that are no batch.
    Damage {
        /// Where they begin.
        offset: u64,
        /// What is wrong with them.
        reason: String,
        /// Where the next whole batch begins, if there is one in the segment.
        next: Option<u64>,
    },
    /// The rest of a segment that was never used.
    Unused {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        bytes: u64,
    },
    /// What a node that opens the log would find, or why it would refuse.
    Verdict(DumpVerdict),
}

/// What the header of a segment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpHead {
    /// Made in advance, and not used yet.
    Blank,
    /// There is no valid header.
    Damaged(String),
    /// It follows a segment (0: none) that ends at an offset; batches from this number on; the state before them.
    Valid {
        /// The segment before and where it ends.
        previous: (u64, u64),
        /// The first batch.
        first_sequence: u64,
        /// The hard state before it.
        hard_state: HardState,
        /// The base before it.
        base: LogId,
        /// The last entry before it.
        last: LogId,
    },
}

/// The entries of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpEntries {
    /// The first one.
    pub first: LogId,
    /// The last one.
    pub last: LogId,
    /// Their terms.
    pub runs: Vec<TermRun>,
    /// How many bytes of payload they have.
    pub payload: u64,
}

/// The sum of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpVerdict {
    /// The log is sound.
    Sound {
        /// What it holds.
        state: LogState,
        /// The last batch.
        sequence: u64,
        /// Bytes of a torn batch at the end, which were never acknowledged: opening the log cuts them.
        torn: u64,
    },
    /// The log is damaged: it would not open, for this reason.
    Damaged(String),
}

/// Goes through a log and tells what is there. Changes nothing and takes no lock, so that it works beside a running server;
/// the newest lines may then show a write that is under way.
///
/// # Errors
/// The directory is no log, or can't be read. Damage within is no error: it is told.
pub fn dump(dir: impl AsRef<Path>, each: impl FnMut(DumpLine)) -> Result<(), StorageError> {
    dump_on(Arc::new(OsVfs), dir, each)
}

/// Goes through a log on a file system of your own; see [`dump`].
///
/// # Errors
/// As there.
pub fn dump_on(vfs: Arc<dyn Vfs>, dir: impl AsRef<Path>, mut each: impl FnMut(DumpLine)) -> Result<(), StorageError> {
    let dir = dir.as_ref().to_owned();
    let Some(owner) = Owner::read(&*vfs, &dir)? else {
        let reason = "there is no log here (no IDENTITY file): name the directory that a node keeps its log in".into();
        return Err(StorageError::Refused { path: dir.display().to_string(), reason });
    };
    let synced = SyncedNote::peek(&*vfs, &dir, owner.nonce);
    let home = Home { vfs, dir, owner };
    each(DumpLine::Log { dir: home.dir.clone(), identity: owner.identity, synced });
    for id in recovery::list(&*home.vfs, &home.dir)? {
        match segment(&home, id, &mut each) {
            // Compacted meanwhile.
            Err(StorageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    each(DumpLine::Verdict(verdict(&home)?));
    Ok(())
}

fn segment(home: &Home, id: u64, each: &mut impl FnMut(DumpLine)) -> Result<(), StorageError> {
    let (path, salt) = (home.path(id), home.salt(id));
    let io = || failed("read", &path);
    let file = home.open(id, Access::Read)?;
    let head = SegmentHeader::read(&*file, id, salt).map_err(io())?;
    let align = match &head {
        Head::Valid(header) => header.align,
        Head::Blank | Head::Bad(_) => crate::frame::MIN_ALIGN,
    };
    let mut walk = Walk::new(&*file, salt, align).map_err(io())?;
    let blank = head == Head::Blank;
    each(DumpLine::Segment { path: path.clone(), bytes: walk.len, head: head.into() });
    loop {
        let stop = match walk.next().map_err(io())? {
            Step::Batch(batch) => {
                each(line(&batch));
                continue;
            }
            Step::Stop(stop) => stop,
        };
        if file.is_nameless().map_err(io())? {
            // Compacted meanwhile, and cut.
            return Ok(());
        }
        let (offset, rest) = (walk.offset, walk.len.saturating_sub(walk.offset));
        if walk.skip().map_err(io())? {
            each(DumpLine::Damage { offset, reason: stop.reason.into(), next: Some(walk.offset) });
            continue;
        }
        if walk.behind().map_err(io())?.dirty_end > offset {
            each(DumpLine::Damage { offset, reason: stop.reason.into(), next: None });
        } else if rest > 0 && !blank {
            each(DumpLine::Unused { offset, bytes: rest });
        }
        return Ok(());
    }
}

fn line(batch: &Batch<'_>) -> DumpLine {
    let mut entries: Option<DumpEntries> = None;
    // The checksum of the batch holds, so its entries are as they were written.
    for entry in batch.entries().flatten() {
        let id = entry.header.id;
        let all = entries.get_or_insert_with(|| DumpEntries { first: id, last: id, runs: Vec::new(), payload: 0 });
        all.last = id;
        all.payload += entry.data.len() as u64;
        if all.runs.last().is_none_or(|run| run.term != id.term) {
            all.runs.push(TermRun { term: id.term, first: id.index });
        }
    }
    DumpLine::Batch {
        offset: batch.offset,
        bytes: batch.end() - batch.offset,
        sequence: batch.header.sequence,
        hard_state: batch.header.hard_state,
        base: batch.header.base,
        entries,
    }
}

/// What opening the log would find. Beside a running server, a look in between two of its writes can mislead: then another
/// look follows.
pub(crate) fn verdict(home: &Home) -> Result<DumpVerdict, StorageError> {
    let mut looks = 0;
    loop {
        looks += 1;
        // The note first: whatever is noted by now is there when the segments are read.
        let noted = SyncedNote::peek(&*home.vfs, &home.dir, home.owner.nonce);
        let ids = recovery::list(&*home.vfs, &home.dir)?;
        match recovery::recover(home, &ids, noted) {
            Ok(found) => {
                let torn = found.top.map_or(0, |top| top.dirty_end.saturating_sub(top.end));
                return Ok(DumpVerdict::Sound { state: found.index.state(), sequence: found.sequence, torn });
            }
            // Segments that were read have been removed meanwhile.
            Err(_) if looks < 100 && recovery::list(&*home.vfs, &home.dir)? != ids => {}
            Err(_) if looks < 3 => {}
            Err(error @ StorageError::Corrupt { .. }) => return Ok(DumpVerdict::Damaged(error.to_string())),
            Err(error) => return Err(error),
        }
    }
}

impl From<Head> for DumpHead {
    fn from(head: Head) -> Self {
        match head {
            Head::Blank => Self::Blank,
            Head::Bad(reason) => Self::Damaged(reason),
            Head::Valid(SegmentHeader { previous, first_sequence, before, .. }) => Self::Valid {
                previous,
                first_sequence,
                hard_state: before.hard_state,
                base: before.base,
                last: before.last,
            },
        }
    }
}

impl fmt::Display for DumpLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log { dir, identity: Identity { cluster, node, group }, synced } => {
                let dir = dir.display();
                write!(
                    f,
                    "log {dir}: node {} of cluster {cluster}, group {}; synced up to batch {synced}",
                    node.0, group.0
                )
            }
            Self::Segment { path, bytes, head } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                write!(f, "segment {name}, {bytes} bytes: {head}")
            }
            Self::Batch { offset, bytes, sequence, hard_state, base, entries } => {
                write!(f, "  {offset:>10}  {bytes:>9} bytes  batch {sequence}")?;
                if let Some(hard_state) = hard_state {
                    write!(f, "; {hard_state}")?;
                }
                match base {
                    Some((base, true)) => write!(f, "; base {base}, log emptied")?,
                    Some((base, false)) => write!(f, "; base {base}")?,
                    None => {}
                }
                entries.as_ref().map_or(Ok(()), |entries| write!(f, "; {entries}"))
            }
            Self::Damage { offset, reason, next: Some(next) } => {
                write!(f, "  {offset:>10}  DAMAGED: {reason}; the next whole batch is at {next}")
            }
            Self::Damage { offset, reason, next: None } => {
                write!(f, "  {offset:>10}  incomplete: {reason}; no whole batch follows in this segment")
            }
            Self::Unused { offset, bytes } => write!(f, "  {offset:>10}  {bytes:>9} bytes  unused"),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}

impl fmt::Display for DumpHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => write!(f, "made in advance, not used yet"),
            Self::Damaged(reason) => write!(f, "DAMAGED: {reason}"),
            Self::Valid { previous, first_sequence, hard_state, base, last } => {
                write!(f, "from batch {first_sequence}; before it {hard_state}, base {base}, last {last}")?;
                match previous.0 {
                    0 => Ok(()),
                    id => write!(f, "; follows segment {id} up to {}", previous.1),
                }
            }
        }
    }
}

impl fmt::Display for DumpEntries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.last.index.since(self.first.index) + 1;
        match count {
            1 => write!(f, "entry {}, {} bytes", self.first, self.payload)?,
            _ => write!(f, "{count} entries {} to {}, {} bytes", self.first, self.last, self.payload)?,
        }
        for run in self.runs.iter().skip(1) {
            write!(f, ", term {} from {}", run.term.0, run.first.0)?;
        }
        Ok(())
    }
}

impl fmt::Display for DumpVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sound { state, sequence, torn } => {
                let LogState { hard_state, base, last, runs } = state;
                write!(f, "sound: {sequence} batches; {hard_state}; base {base}, last {last}; terms")?;
                for run in runs {
                    write!(f, " {} from {},", run.term.0, run.first.0)?;
                }
                if runs.is_empty() {
                    write!(f, " none,")?;
                }
                match torn {
                    0 => write!(f, " clean end"),
                    torn => write!(f, " a torn end of {torn} bytes that were never acknowledged"),
                }
            }
            Self::Damaged(reason) => write!(f, "DAMAGED: {reason}"),
        }
    }
}
