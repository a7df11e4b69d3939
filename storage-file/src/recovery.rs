//! Finding out what the log holds after a stop of any kind, without changing a byte.
//!
//! The one rule: **a batch is only written after the batch before it is durable.** So wherever a header with sequence
//! number `s` is found whole, be it a batch's or a segment's, every batch below `s` had been synced. The note of the last synced
//! batch says the same of its successor. Let `n` be the last batch up to which the log reads without a fault:
//!
//! * Something proves that `n + 1` had been synced: it is damaged. The log is corrupt, and open refuses.
//! * Nothing proves it: `n + 1`, or what is left of it, was never acknowledged. It is a torn tail, and is cut.
//! * Nothing proves that `n` itself had been synced: it may be in the page cache only. It is written anew, elsewhere, before
//!   anyone relies on it.
//!
//! The one case that can't be told: `n + 1` was synced and acknowledged, then power was lost before the note reached the disk,
//! *and* that very batch is damaged. It looks like a torn tail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::mutant;
use raftkv::{Index, StorageError};

use crate::directory::Owner;
use crate::frame::{MIN_ALIGN, Salt};
use crate::index::{LogIndex, Summary};
use crate::segment::{self, Batch, Head, SegmentHeader, Step, Stop, Walk};
use crate::vfs::{Access, Vfs, VfsFile, failed};

/// Where a log lives.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) owner: Owner,
}

impl Home {
    pub(crate) fn path(&self, id: u64) -> PathBuf {
        segment::path(&self.dir, id)
    }

    pub(crate) fn salt(&self, id: u64) -> Salt {
        Salt::new(self.owner.nonce, id)
    }

    pub(crate) fn open(&self, id: u64, access: Access) -> Result<Arc<dyn VfsFile>, StorageError> {
        let path = self.path(id);
        self.vfs.open(&path, access).map_err(failed("open", &path))
    }

    pub(crate) fn corrupt(
        &self,
        id: u64,
        offset: u64,
        index: Option<Index>,
        reason: impl Into<String>,
    ) -> StorageError {
        corrupt(&self.path(id), offset, index, reason)
    }
}

pub(crate) fn corrupt(path: &Path, offset: u64, index: Option<Index>, reason: impl Into<String>) -> StorageError {
    StorageError::Corrupt { path: path.display().to_string(), offset: Some(offset), index, reason: reason.into() }
}

/// The segments in a directory, by number.
pub(crate) fn list(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<u64>, StorageError> {
    let names = vfs.list(dir).map_err(failed("list", dir))?;
    let mut ids: Vec<u64> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// The last batch of the log, as it lies on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastBatch {
    pub(crate) offset: u64,
    pub(crate) before: Summary,
}

/// The segment in which the log ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Top {
    pub(crate) header: SegmentHeader,
    /// Where the last batch ends.
    pub(crate) end: u64,
    /// Where bytes end that a torn batch left behind; at most `end` when there are none.
    pub(crate) dirty_end: u64,
    pub(crate) last: LastBatch,
}

/// What is there, and what to do about it.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) index: LogIndex,
    /// The sequence number of the last batch.
    pub(crate) sequence: u64,
    /// Nothing when the log was never written to.
    pub(crate) top: Option<Top>,
    /// Whether the last batch is known to be durable.
    pub(crate) durable: bool,
    /// The segments that make up the log, oldest first.
    pub(crate) segments: Vec<u64>,
    /// Segment files that are no part of it: blank, torn, superseded or compacted.
    pub(crate) stale: Vec<u64>,
    /// A number that no segment has had.
    pub(crate) next_id: u64,
}

/// Reads the log. `noted` is the last batch that is noted as synced.
pub(crate) fn recover(home: &Home, ids: &[u64], noted: u64) -> Result<Recovered, StorageError> {
    let mut heads = BTreeMap::new();
    for id in ids {
        let file = home.open(*id, Access::Read)?;
        let head = SegmentHeader::read(&*file, *id, home.salt(*id)).map_err(failed("read", &home.path(*id)))?;
        heads.insert(*id, head);
    }
    let mut evidence = Evidence { next: noted + 1, from: "it is noted as synced".into(), suspects: Vec::new() };
    let top = find_top(home, &heads, &mut evidence)?;
    let mut replay = Replay::default();
    let chain = match top {
        Some(top) => chain_to(home, &heads, top)?,
        None => Vec::new(),
    };
    for (n, header) in chain.iter().enumerate() {
        let end = chain.get(n + 1).map(|next| next.previous.1);
        replay.segment(home, header, end, &mut evidence)?;
    }
    evidence.judge(home, &replay)?;
    if let (Some((from, to)), Some(first)) = (replay.index.missing(), chain.first()) {
        let reason = format!("the segment before {} is missing, and entries {} to {} with it", first.id, from.0, to.0);
        return Err(home.corrupt(first.previous.0, 0, Some(from), reason));
    }
    let top = replay.top;
    let oldest = replay.index.oldest_segment().or(top.map(|top| top.header.id));
    let (segments, compacted): (Vec<u64>, Vec<u64>) =
        chain.iter().map(|header| header.id).partition(|id| Some(*id) >= oldest);
    let stale = ids.iter().copied().filter(|id| !segments.contains(id));
    debug_assert!(compacted.iter().all(|id| !segments.contains(id)));
    Ok(Recovered {
        sequence: replay.sequence,
        durable: evidence.next > replay.sequence,
        top,
        stale: stale.collect(),
        segments,
        next_id: ids.last().map_or(1, |last| last + 1),
        index: replay.index,
    })
}

/// What is known about batches beyond those that read well.
struct Evidence {
    /// Every batch below this one had been synced.
    next: u64,
    /// How that is known.
    from: String,
    /// Segments above the top, which hold no batch that could be read in order: where, and why.
    suspects: Vec<(u64, u64, String)>,
}

impl Evidence {
    fn saw(&mut self, sequence: u64, home: &Home, segment: u64, offset: u64) {
        if sequence > self.next {
            self.next = sequence;
            self.from = format!("batch {sequence} is in {} at {offset}", home.path(segment).display());
        }
    }

    /// Refuses a log that ends before what is known to have been synced.
    fn judge(&self, home: &Home, replay: &Replay) -> Result<(), StorageError> {
        let lost = replay.sequence + 1;
        if self.next <= lost || mutant!("corruption-read-as-the-end") {
            return Ok(());
        }
        let mut first = replay
            .stop
            .as_ref()
            .filter(|(_, stop)| !stop.blank)
            .map(|(id, stop)| (*id, stop.offset, stop.reason.to_owned()));
        first = first.or_else(|| self.suspects.first().cloned());
        let index = Some(replay.index.last().index.next());
        let (id, offset, reason) = match (first, &replay.stop) {
            (Some(found), _) => found,
            (None, Some((id, stop))) => (*id, stop.offset, "the log ends here".to_owned()),
            (None, None) => (1, 0, "the segment file is missing".to_owned()),
        };
        let reason = format!("{reason}, but batch {lost} had been synced ({})", self.from);
        Err(home.corrupt(id, offset, index, reason))
    }
}

/// The newest segment that begins with a whole batch. What is newer was made in advance, or holds a torn first batch at most.
fn find_top(home: &Home, heads: &BTreeMap<u64, Head>, evidence: &mut Evidence) -> Result<Option<u64>, StorageError> {
    for (id, head) in heads.iter().rev() {
        let (file, path) = (home.open(*id, Access::Read)?, home.path(*id));
        let align = match head {
            Head::Valid(header) => {
                evidence.saw(header.first_sequence, home, *id, 0);
                header.align
            }
            Head::Blank | Head::Bad(_) => MIN_ALIGN,
        };
        let mut walk = Walk::new(&*file, home.salt(*id), align).map_err(failed("read", &path))?;
        let (offset, reason) = match head {
            Head::Valid(_) => match walk.next().map_err(failed("read", &path))? {
                Step::Batch(_) => return Ok(Some(*id)),
                Step::Stop(stop) => (stop.offset, stop.reason.to_owned()),
            },
            Head::Blank => (0, "the segment is blank".to_owned()),
            Head::Bad(reason) => (0, reason.clone()),
        };
        let behind = walk.behind().map_err(failed("read", &path))?;
        if let Some((sequence, offset)) = behind.batch {
            evidence.saw(sequence, home, *id, offset);
        }
        // The lowest comes first: that is where the log broke off.
        evidence.suspects.insert(0, (*id, offset, reason));
    }
    Ok(None)
}

/// The segments from the oldest there is to the top, as their headers link them.
fn chain_to(home: &Home, heads: &BTreeMap<u64, Head>, top: u64) -> Result<Vec<SegmentHeader>, StorageError> {
    let mut chain = Vec::new();
    let mut at = top;
    loop {
        match heads.get(&at) {
            Some(Head::Valid(header)) if header.identity != home.owner.identity => {
                return Err(home.corrupt(at, 0, None, "the segment belongs to another node, cluster or group"));
            }
            Some(Head::Valid(header)) if header.previous.0 >= at => {
                return Err(home.corrupt(at, 0, None, "the segment claims to come before itself"));
            }
            Some(Head::Valid(header)) => {
                chain.push(*header);
                at = header.previous.0;
            }
            Some(Head::Bad(reason)) => return Err(home.corrupt(at, 0, None, reason.clone())),
            Some(Head::Blank) => {
                return Err(home.corrupt(at, 0, None, "the segment is blank, but a later one follows it"));
            }
            // Compacted, as the replay will have to show.
            None => break,
        }
    }
    chain.reverse();
    Ok(chain)
}

/// The state of the log while its batches are gone through.
#[derive(Debug, Default)]
struct Replay {
    index: LogIndex,
    sequence: u64,
    started: bool,
    top: Option<Top>,
    stop: Option<(u64, Stop)>,
}

impl Replay {
    /// Goes through a segment, up to `end` where a later segment says that it ends there.
    fn segment(
        &mut self,
        home: &Home,
        header: &SegmentHeader,
        end: Option<u64>,
        evidence: &mut Evidence,
    ) -> Result<(), StorageError> {
        let (id, path) = (header.id, home.path(header.id));
        self.begin(home, header)?;
        let file = home.open(id, Access::Read)?;
        let mut walk = Walk::new(&*file, home.salt(id), header.align).map_err(failed("read", &path))?;
        let mut last = LastBatch { offset: 0, before: header.before };
        let stop = loop {
            if Some(walk.offset) == end {
                return Ok(());
            }
            match walk.next().map_err(failed("read", &path))? {
                Step::Stop(stop) => break stop,
                Step::Batch(batch) if batch.header.sequence != self.sequence + 1 => {
                    let reason = format!("batch {} where {} belongs", batch.header.sequence, self.sequence + 1);
                    return Err(home.corrupt(id, batch.offset, Some(self.index.last().index.next()), reason));
                }
                Step::Batch(batch) if end.is_some_and(|end| batch.end() > end) => {
                    return Err(home.corrupt(id, batch.offset, None, "a batch reaches beyond the end of its segment"));
                }
                Step::Batch(batch) => {
                    last = LastBatch { offset: batch.offset, before: self.index.summary() };
                    let index = self.index.last().index.next();
                    apply(&mut self.index, &batch, id)
                        .map_err(|reason| home.corrupt(id, batch.offset, Some(index), reason))?;
                    self.sequence = batch.header.sequence;
                }
            }
        };
        if let Some(end) = end {
            let reason = format!("{}, but the log goes on to offset {end} and in a later segment", stop.reason);
            return Err(home.corrupt(id, stop.offset, Some(self.index.last().index.next()), reason));
        }
        let behind = walk.behind().map_err(failed("read", &path))?;
        if let Some((sequence, offset)) = behind.batch {
            evidence.saw(sequence, home, id, offset);
        }
        self.top = Some(Top { header: *header, end: stop.offset, dirty_end: behind.dirty_end, last });
        self.stop = Some((id, stop));
        Ok(())
    }

    /// Checks that the segment goes on where the one before it ended.
    fn begin(&mut self, home: &Home, header: &SegmentHeader) -> Result<(), StorageError> {
        if !self.started {
            self.started = true;
            self.sequence = header.first_sequence.saturating_sub(1);
            self.index = LogIndex::resume(header.before);
            return Ok(());
        }
        let (ours, theirs) = (self.index.summary(), header.before);
        let agree = ours.hard_state == theirs.hard_state
            && ours.base == theirs.base
            && ours.last.index == theirs.last.index
            // Below a compaction the term may not be known any more.
            && (ours.last.term == theirs.last.term || self.index.missing().is_some());
        if header.first_sequence == self.sequence + 1 && agree {
            return Ok(());
        }
        Err(home.corrupt(header.id, 0, None, "the segment does not go on where the one before it ended"))
    }
}

/// Does to the index what the batch did to the log.
pub(crate) fn apply(index: &mut LogIndex, batch: &Batch<'_>, segment: u64) -> Result<(), &'static str> {
    let header = &batch.header;
    if let Some(hard_state) = header.hard_state {
        index.hard_state = hard_state;
    }
    if let Some((base, empties)) = header.base {
        index.compact(base, empties);
    }
    if header.count == 0 {
        return Ok(());
    }
    if !index.takes(header.first) {
        return Err("the entries of a batch do not join those before it");
    }
    index.truncate(header.first);
    for entry in batch.entries() {
        let entry = entry?;
        index.append(entry.header.id, segment, entry.offset);
    }
    Ok(())
}
