//! The log itself, blocking: writes, compacts, rolls over to new segments.

use std::path::Path;
use std::sync::Arc;

use raftkv::mutant;
use raftkv::{Entry, Index, LogId, LogState, LogWrite, StorageError};

use crate::Options;
use crate::direct::{Aligned, Direct};
use crate::directory::{self, SyncedNote};
use crate::frame::{self, ABSURD, Content, Identity, MAX_ALIGN, MIN_ALIGN, Place, entry_size};
use crate::index::Summary;
use crate::keeper::{self, Keeper};
use crate::reader::Shared;
use crate::recovery::{self, Home, Recovered, Top};
use crate::segment::{self, SegmentHeader, Step, Walk};
use crate::vfs::{Access, Guard, Vfs, VfsFile, failed, write_all};

/// The buffer for batches is given back when one made it larger than this.
const KEEP_BUFFER: usize = 8 << 20;

/// Where batches are so large on average, it costs less to write them into room that was never written than to fill it with zeros first: the file system
/// then notes at each sync what is in use, which costs more than zeros when batches are small. (On ext4 the two are equal at a quarter of this.)
const LARGE_BATCH: u64 = 1 << 20;

/// The segment that is being written.
#[derive(Debug)]
struct Active {
    id: u64,
    file: Arc<dyn VfsFile>,
    /// For large batches.
    direct: Direct,
    align: u32,
    /// Where the next write goes.
    offset: u64,
    /// How far the file reaches.
    size: u64,
    /// The sequence number of its first batch, once that is written.
    first: u64,
    /// Nothing is written yet: the first batch brings the header along, which links to the segment before.
    blank: Option<(u64, u64)>,
}

/// The blocking core of [`FileLog`](crate::FileLog): the same log, without a thread.
#[derive(Debug)]
pub struct Wal {
    shared: Arc<Shared>,
    options: Options,
    active: Active,
    /// The last batch.
    sequence: u64,
    noted: u64,
    note: SyncedNote,
    /// All segments of the log, oldest first; the active one is the last.
    segments: Vec<u64>,
    next_id: u64,
    keeper: Keeper,
    buf: Aligned,
    failed: Option<String>,
    _lock: Box<dyn Guard>,
}

impl Wal {
    /// Opens a log, making it where there is none, and repairs what an unclean stop left behind.
    ///
    /// # Errors
    /// See [`FileLog::open`](crate::FileLog::open).
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path, identity: Identity, options: Options) -> Result<Self, StorageError> {
        options.validate(dir)?;
        vfs.create_dir_all(dir).map_err(failed("create", dir))?;
        let lock = directory::lock(&*vfs, dir)?;
        let ids = recovery::list(&*vfs, dir)?;
        let owner = directory::claim(&*vfs, dir, directory::LOG, identity, !ids.is_empty())?;
        let (note, noted) = SyncedNote::open(&*vfs, dir, owner.nonce)?;
        let home = Home { vfs: Arc::clone(&vfs), dir: dir.to_owned(), owner };
        let found = recovery::recover(&home, &ids, noted)?;
        let mut keeper = Keeper::new(vfs, dir.to_owned(), options.segment_bytes, options.background)?;
        cut_torn_tail(&home, &found)?;
        // What is above the log holds nothing. What is below may be needed until the last batch is durable: that may be the one
        // that compacted it.
        let above = found.top.map_or(0, |top| top.header.id);
        let (unused, compacted): (Vec<u64>, Vec<u64>) = found.stale.iter().partition(|id| **id > above);
        keeper::remove(&*home.vfs, dir, &unused)?;
        let Recovered { index, sequence, top, durable, segments, next_id, .. } = found;
        let durable = durable || mutant!("recovered-tail-believed");
        let active = match &top {
            Some(top) if durable => reopen(&home, top)?,
            _ => Active::make(&mut keeper, &options, next_id, (0, 0))?,
        };
        let mut wal = Self {
            shared: Arc::new(Shared::new(home, index)),
            options,
            sequence,
            noted,
            note,
            segments,
            next_id: next_id.max(active.id + 1),
            active,
            keeper,
            buf: Aligned::default(),
            failed: None,
            _lock: lock,
        };
        match top {
            Some(top) if !durable => wal.move_last_batch(&top)?,
            Some(_) => {}
            None => wal.segments.push(wal.active.id),
        }
        wal.keeper.remove(compacted, &wal.shared);
        wal.note_synced();
        wal.note.sync()?;
        let state = wal.state();
        tracing::info!(dir = %dir.display(), base = %state.base, last = %state.last, segments = wal.segments.len(), "opened the log");
        Ok(wal)
    }

    /// What the log holds.
    #[must_use]
    pub fn state(&self) -> LogState {
        self.shared.index().state()
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Reads entries; see [`raftkv::LogStore::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, range: std::ops::Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.shared.read(&range, max_bytes)
    }

    /// Makes one step durable; see [`raftkv::LogStore::write`].
    ///
    /// # Errors
    /// As there. Sticky.
    pub fn write(&mut self, write: &LogWrite) -> Result<(), StorageError> {
        self.check_running()?;
        let done = self.try_write(write);
        self.remember(done)
    }

    /// Moves the base; see [`raftkv::LogStore::compact`].
    ///
    /// # Errors
    /// As there. Sticky.
    pub fn compact(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.check_running()?;
        let done = self.try_compact(upto);
        self.remember(done)
    }

    /// What can be done after a write has been answered: notes that it is synced, and sees to the next segment.
    pub fn settle(&mut self) {
        if self.failed.is_some() {
            return;
        }
        self.note_synced();
        if self.active.offset > self.active.size / 2 {
            let batches = self.sequence - self.active.first + 1;
            let large = self.active.offset / batches >= LARGE_BATCH;
            self.keeper.prepare(self.next_id, !large);
        }
    }

    /// Ends in good order: notes durably where the log ends, so that the next open can vouch for every byte.
    pub fn close(mut self) {
        if self.failed.is_some() {
            return;
        }
        self.note_synced();
        if let Err(error) = self.note.sync() {
            tracing::warn!(%error, "the log could not be closed in good order; nothing is lost");
        }
    }

    fn check_running(&self) -> Result<(), StorageError> {
        match &self.failed {
            Some(reason) => Err(StorageError::Sticky(reason.clone())),
            None => Ok(()),
        }
    }

    fn remember(&mut self, done: Result<(), StorageError>) -> Result<(), StorageError> {
        if let Err(error) = &done {
            tracing::error!(%error, "the log failed, and takes no more writes");
            self.failed = Some(error.to_string());
        }
        done
    }

    fn try_write(&mut self, write: &LogWrite) -> Result<(), StorageError> {
        if write.hard_state.is_none() && write.entries.is_empty() {
            return Ok(());
        }
        let before = {
            let index = self.shared.index();
            check_contract(write, index.base(), index.last())?;
            index.summary()
        };
        self.sequence += 1;
        let offset = self.put(Content::Write(write), before)?;
        self.publish(write, offset);
        Ok(())
    }

    /// Lets readers see what is durable now.
    fn publish(&self, write: &LogWrite, batch: u64) {
        let mut index = self.shared.index_mut();
        if let Some(hard_state) = write.hard_state {
            index.hard_state = hard_state;
        }
        if let Some(first) = write.entries.first() {
            index.truncate(first.id.index);
        }
        let mut offset = batch + frame::BATCH_HEADER as u64;
        for entry in &write.entries {
            index.append(entry.id, self.active.id, offset);
            offset += entry_size(entry.data.len());
        }
    }

    fn try_compact(&mut self, upto: LogId) -> Result<(), StorageError> {
        let (before, empties) = {
            let index = self.shared.index();
            if upto.index <= index.base().index {
                return Ok(());
            }
            (index.summary(), index.emptied_by(upto))
        };
        self.sequence += 1;
        self.put(Content::Base { base: upto, empties }, before)?;
        let oldest = {
            let mut index = self.shared.index_mut();
            index.compact(upto, empties);
            index.oldest_segment().unwrap_or(self.active.id)
        };
        let keep = self.segments.partition_point(|id| *id < oldest);
        let gone: Vec<u64> = self.segments.drain(..keep).collect();
        self.keeper.remove(gone, &self.shared);
        Ok(())
    }

    /// Writes and syncs a batch with the current sequence number, and tells where it is. `before` is the state of the log
    /// before it.
    fn put(&mut self, content: Content<'_>, before: Summary) -> Result<u64, StorageError> {
        if self.active.blank.is_none() && self.active.offset + self.active.room_for(content)? > self.active.size {
            self.roll()?;
        }
        let active = &mut self.active;
        let (start, salt) = (active.offset, self.shared.home.salt(active.id));
        let (size, mut offset) = (active.room_for(content)?, start);
        let buf = self.buf.begin(usize::try_from(size).unwrap_or(usize::MAX), start);
        if let Some(previous) = active.blank {
            let header = SegmentHeader {
                align: active.align,
                id: active.id,
                identity: self.shared.home.owner.identity,
                previous,
                first_sequence: self.sequence,
                before,
            };
            active.first = self.sequence;
            let header = header.encode(salt);
            buf.extend_from_slice(&header);
            offset += header.len() as u64;
        }
        frame::encode(buf, content, self.sequence, Place { offset, salt, align: active.align });
        self.write_out(start)?;
        let active = &mut self.active;
        active.blank = None;
        active.offset = start + self.buf.bytes().len() as u64;
        // A batch larger than a segment makes its segment longer.
        active.size = active.size.max(active.offset);
        self.buf.shrink(KEEP_BUFFER);
        Ok(offset)
    }

    /// Writes what is in the buffer, and syncs it.
    fn write_out(&mut self, offset: u64) -> Result<(), StorageError> {
        let Active { id, file, direct, .. } = &mut self.active;
        let (path, bytes) = (segment::path(&self.shared.home.dir, *id), self.buf.bytes());
        let large = bytes.len() as u64 >= self.options.direct_from;
        let written = if large { direct.write_all(&**file, bytes, offset) } else { write_all(&**file, bytes, offset) };
        written.map_err(failed("write", &path))?;
        let synced = if mutant!("fsync-skipped") { Ok(()) } else { file.sync_data() };
        if !mutant!("fsync-error-ignored") {
            synced.map_err(failed("fsync", &path))?;
        }
        Ok(())
    }

    fn roll(&mut self) -> Result<(), StorageError> {
        let previous = (self.active.id, self.active.offset);
        self.active = Active::make(&mut self.keeper, &self.options, self.next_id, previous)?;
        self.segments.push(self.active.id);
        self.next_id = self.active.id + 1;
        tracing::debug!(segment = self.active.id, "began a segment");
        Ok(())
    }

    /// Writes the last batch anew in a segment of its own. Nothing proves that it is on disk: after an fsync that failed in
    /// an earlier process, it may be in the page cache only, and no sync would bring it out. It is not written in place, since it
    /// may also be acknowledged and on disk, where a torn write would destroy it.
    fn move_last_batch(&mut self, top: &Top) -> Result<(), StorageError> {
        let id = top.header.id;
        let (write, base) = {
            let path = self.shared.home.path(id);
            let file = self.shared.home.open(id, Access::Read)?;
            let walk = Walk::new(&*file, self.shared.home.salt(id), top.header.align);
            let mut walk = walk.map_err(failed("read", &path))?;
            walk.offset = top.last.offset;
            match walk.next().map_err(failed("read", &path))? {
                Step::Batch(batch) => {
                    copy_out(&batch).map_err(|e| self.shared.home.corrupt(id, batch.offset, None, e))?
                }
                Step::Stop(stop) => return Err(self.shared.home.corrupt(id, stop.offset, None, stop.reason)),
            }
        };
        let alone = top.last.offset == u64::from(top.header.align);
        self.active.blank = Some(if alone { top.header.previous } else { (id, top.last.offset) });
        let content = match base {
            Some((base, empties)) => Content::Base { base, empties },
            None => Content::Write(&write),
        };
        let offset = self.put(content, top.last.before)?;
        self.publish(&write, offset);
        self.segments.push(self.active.id);
        if alone {
            self.segments.retain(|known| *known != id);
            keeper::remove(&*self.shared.home.vfs, &self.shared.home.dir, &[id])?;
        } else {
            let path = self.shared.home.path(id);
            let file = self.shared.home.open(id, Access::Write)?;
            file.set_len(top.last.offset).map_err(failed("truncate", &path))?;
        }
        tracing::info!(
            segment = self.active.id,
            batch = self.sequence,
            "wrote the last batch anew after an unclean stop"
        );
        Ok(())
    }

    fn note_synced(&mut self) {
        if self.noted < self.sequence {
            self.noted = self.sequence;
            let ahead = u64::from(mutant!("note-ahead-of-log"));
            if let Err(error) = self.note.set(self.sequence + ahead) {
                tracing::warn!(%error, "could not note what is synced; nothing is lost");
            }
        }
    }
}

impl Active {
    /// How many bytes a batch takes here, with the header if it is the first.
    fn room_for(&self, content: Content<'_>) -> Result<u64, StorageError> {
        let header = if self.blank.is_some() { u64::from(self.align) } else { 0 };
        let batch = frame::batch_size(content, self.align);
        let size = batch.ok_or_else(|| StorageError::Misuse("a write of more than 4 GiB".into()))?;
        Ok(header + size)
    }

    fn make(keeper: &mut Keeper, options: &Options, id: u64, previous: (u64, u64)) -> Result<Self, StorageError> {
        let file = keeper.take(id)?;
        let size = file.len().map_err(failed("stat", Path::new("a new segment")))?;
        Ok(Self {
            id,
            file,
            direct: Direct::default(),
            align: options.align,
            offset: 0,
            size,
            first: 0,
            blank: Some(previous),
        })
    }
}

/// Goes on in the segment in which the log ends.
fn reopen(home: &Home, top: &Top) -> Result<Active, StorageError> {
    let id = top.header.id;
    let file = home.open(id, Access::Write)?;
    let size = file.len().map_err(failed("stat", &home.path(id)))?;
    let mut offset = top.end;
    if mutant!("torn-tail-kept") {
        offset = frame::round_up(top.end.max(top.dirty_end), u64::from(top.header.align));
    }
    let SegmentHeader { align, first_sequence: first, .. } = top.header;
    Ok(Active { id, file, direct: Direct::default(), align, offset, size, first, blank: None })
}

/// Cuts what a torn batch left behind the end: later writes must not be mixed with it.
fn cut_torn_tail(home: &Home, found: &Recovered) -> Result<(), StorageError> {
    let Some(top) = found.top.filter(|top| top.dirty_end > top.end) else { return Ok(()) };
    if mutant!("torn-tail-kept") {
        return Ok(());
    }
    let (id, path) = (top.header.id, home.path(top.header.id));
    tracing::warn!(path = %path.display(), from = top.end, to = top.dirty_end, "cutting a torn tail, which was never acknowledged");
    let file = home.open(id, Access::Write)?;
    segment::zero(&*file, top.end, top.dirty_end).map_err(failed("write", &path))?;
    file.sync_data().map_err(failed("fsync", &path))
}

type CopiedBatch = (LogWrite, Option<(LogId, bool)>);

fn copy_out(batch: &segment::Batch<'_>) -> Result<CopiedBatch, &'static str> {
    let mut write = LogWrite { hard_state: batch.header.hard_state, entries: Vec::new() };
    for entry in batch.entries() {
        let entry = entry?;
        let data = bytes::Bytes::copy_from_slice(entry.data);
        write.entries.push(Entry { id: entry.header.id, kind: entry.header.kind, data });
    }
    Ok((write, batch.header.base))
}

/// What the trait asks of a caller.
fn check_contract(write: &LogWrite, base: LogId, last: LogId) -> Result<(), StorageError> {
    let misuse = |reason: String| Err(StorageError::Misuse(reason));
    let terms = write.hard_state.map(|state| state.term).into_iter().chain(write.entries.iter().map(|e| e.id.term));
    // What is refused when it is read must not be acknowledged when it is written.
    if let Some(term) = terms.into_iter().find(|term| term.0 >= ABSURD) {
        return misuse(format!("{term}: no log counts this far"));
    }
    write.check(base, last)?;
    match write.entries.iter().find(|entry| u32::try_from(entry.data.len()).is_err()) {
        Some(entry) => misuse(format!("entry {} has {} bytes; 4 GiB is the limit", entry.id, entry.data.len())),
        None => Ok(()),
    }
}

impl Options {
    fn validate(&self, dir: &Path) -> Result<(), StorageError> {
        let refuse = |reason| Err(StorageError::Refused { path: dir.display().to_string(), reason });
        if !self.align.is_power_of_two() || !(MIN_ALIGN..=MAX_ALIGN).contains(&self.align) {
            return refuse(format!("an alignment of {} is not possible: use 512, 1024, 2048 or 4096", self.align));
        }
        if self.segment_bytes < 2 * u64::from(self.align) || !self.segment_bytes.is_multiple_of(u64::from(self.align)) {
            return refuse(format!(
                "segments of {} bytes are not possible: use a multiple of the alignment ({}), at least twice that",
                self.segment_bytes, self.align
            ));
        }
        Ok(())
    }
}
