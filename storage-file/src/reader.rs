//! The part of a log that readers share with the writer.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use bytes::Bytes;
use raftkv::{Entry, Index, StorageError};

use crate::frame::{BATCH_HEADER, BatchHeader, ENTRY_HEADER, EntryHeader, round_up, u32_at};
use crate::index::{LogIndex, Mark};
use crate::recovery::Home;
use crate::vfs::{Access, VfsFile, Window, failed};

/// How many segments are kept open for readers.
const OPEN_FILES: usize = 16;
/// How much is read at a time.
const READ_AHEAD: u64 = 256 << 10;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) home: Home,
    index: RwLock<LogIndex>,
    files: Mutex<Files>,
}

/// Open segments.
#[derive(Debug, Default)]
struct Files {
    /// Those that are kept open, the most recently used last.
    kept: VecDeque<(u64, Arc<dyn VfsFile>)>,
    /// All that somebody may be reading.
    read: Vec<(u64, Weak<dyn VfsFile>)>,
}

impl Shared {
    pub(crate) fn new(home: Home, index: LogIndex) -> Self {
        Self { home, index: RwLock::new(index), files: Mutex::default() }
    }

    // Nothing that holds these locks can panic half-way, so a poisoned one holds good data.
    pub(crate) fn index(&self) -> RwLockReadGuard<'_, LogIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, LogIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of a segment that has no name any more, and tells whether somebody is still reading it: nobody else will.
    pub(crate) fn let_go(&self, id: u64) -> bool {
        let mut files = self.files();
        files.kept.retain(|(kept, _)| *kept != id);
        files.read.iter().any(|(read, file)| *read == id && file.strong_count() > 0)
    }

    pub(crate) fn file(&self, id: u64) -> Result<Arc<dyn VfsFile>, StorageError> {
        let mut files = self.files();
        let found = files.kept.iter().position(|(known, _)| *known == id).and_then(|n| files.kept.remove(n));
        let (_, file) = match found {
            Some(known) => known,
            None => {
                let file = self.home.open(id, Access::Read)?;
                files.read.retain(|(_, file)| file.strong_count() > 0);
                files.read.push((id, Arc::downgrade(&file)));
                (id, file)
            }
        };
        files.kept.push_back((id, Arc::clone(&file)));
        if files.kept.len() > OPEN_FILES {
            files.kept.pop_front();
        }
        Ok(file)
    }

    /// Reads entries, and verifies every byte that it returns.
    pub(crate) fn read(&self, range: &Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if range.is_empty() {
            return Err(StorageError::Misuse(format!(
                "a read of no entries, from {} to before {}",
                range.start.0, range.end.0
            )));
        }
        let stretches = {
            let index = self.index();
            let (base, last) = (index.base().index, index.last().index);
            if range.start <= base || range.start > last {
                return Err(not_held(range.start, base, last));
            }
            let most = range.start.0.saturating_add(max_bytes / Entry::OVERHEAD).saturating_add(1);
            index.stretches(range.start, range.end.min(last.next()).min(Index(most)))
        };
        let mut reading = Reading { from: range.start, room: max_bytes, entries: Vec::new(), max_bytes };
        for stretches in stretches.chunk_by(|(a, _), (b, _)| a.segment == b.segment) {
            let segment = stretches[0].0.segment;
            let file = match self.file(segment) {
                Ok(file) => file,
                Err(StorageError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && !self.index().reaches_back_to(segment) =>
                {
                    // Compacted since, or replaced by an image that the log did not hold.
                    let index = self.index();
                    return Err(not_held(range.start, index.base().index, index.last().index));
                }
                Err(error) => return Err(error),
            };
            if !reading.segment(&self.home, &*file, stretches)? {
                break;
            }
        }
        Ok(reading.entries)
    }
}

fn not_held(wanted: Index, base: Index, last: Index) -> StorageError {
    StorageError::Misuse(format!("entry {} is not held: the log goes from {} to {}", wanted.0, base.0 + 1, last.0))
}

struct Reading {
    from: Index,
    /// How much the next entry may cost.
    room: u64,
    max_bytes: u64,
    entries: Vec<Entry>,
}

/// A segment that is being read. One window for all stretches of it: they lie close together, so what is read ahead for one is the next.
struct Segment<'a> {
    home: &'a Home,
    id: u64,
    file: &'a dyn VfsFile,
    window: Window<'a>,
    /// Where batches begin, once that is asked for.
    align: Option<u64>,
}

impl Segment<'_> {
    /// Where the next entry is, from the end of a batch on.
    fn next_batch(&mut self, end: u64) -> io::Result<Result<u64, &'static str>> {
        let align = match self.align {
            Some(align) => align,
            None => *self.align.insert(alignment(self.file)?),
        };
        next_entry(&mut self.window, self.home.salt(self.id), round_up(end, align))
    }
}

impl Reading {
    /// Reads stretches of one segment. Tells whether there is room for more.
    fn segment(&mut self, home: &Home, file: &dyn VfsFile, stretches: &[(Mark, Index)]) -> Result<bool, StorageError> {
        let ahead = (self.max_bytes.saturating_add(4096)).clamp(16 << 10, READ_AHEAD);
        let window = Window::new(file, usize::try_from(ahead).unwrap_or(1 << 20));
        let mut segment = Segment { home, id: stretches[0].0.segment, file, window, align: None };
        for (mark, upto) in stretches {
            if !self.stretch(&mut segment, *mark, *upto)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a stretch. Tells whether there is room for more.
    fn stretch(&mut self, segment: &mut Segment<'_>, mark: Mark, upto: Index) -> Result<bool, StorageError> {
        let (home, id) = (segment.home, segment.id);
        let (salt, path) = (home.salt(id), home.path(id));
        let io = || failed("read", &path);
        let (mut offset, mut index) = (mark.offset, mark.first);
        while index < upto {
            let damaged = |reason: &'static str| home.corrupt(id, offset, Some(index), reason);
            let header = segment.window.at(offset, ENTRY_HEADER).map_err(io())?;
            let header = EntryHeader::decode(header, salt, offset).map_err(damaged)?;
            if header.id.index != index {
                return Err(damaged("another entry is where this one belongs"));
            }
            if index >= self.from {
                let cost = Entry::OVERHEAD + u64::from(header.length);
                if cost > self.room && !self.entries.is_empty() {
                    return Ok(false);
                }
                self.room = self.room.saturating_sub(cost);
                let size = usize::try_from(header.size()).map_err(|_| damaged("too large for this machine"))?;
                let bytes = segment.window.at(offset, size).map_err(io())?;
                let data = bytes.get(ENTRY_HEADER..).unwrap_or_default();
                if bytes.len() != size || !header.matches(data, salt, offset) {
                    return Err(damaged("the checksum of an entry does not match"));
                }
                // A copy of its own, so that a small value that is kept does not keep a large buffer.
                let data = Bytes::copy_from_slice(&data[..header.length as usize]);
                self.entries.push(Entry { id: header.id, kind: header.kind, data });
            }
            offset += header.size();
            index = index.next();
            if header.last_of_batch && index < upto {
                let next = segment.next_batch(offset).map_err(io())?;
                offset = next.map_err(|reason| home.corrupt(id, offset, Some(index), reason))?;
            }
        }
        Ok(true)
    }
}

/// The alignment of a segment. It was checked when the log was opened.
fn alignment(file: &dyn VfsFile) -> io::Result<u64> {
    let mut block = [0; 16];
    crate::vfs::read_full(file, &mut block, 0)?;
    Ok(u64::from(u32_at(&block, 12)).clamp(512, 4096))
}

/// Where the next entry is, from the end of a batch on: batches without entries are passed over.
fn next_entry(
    window: &mut Window<'_>,
    salt: crate::frame::Salt,
    mut offset: u64,
) -> io::Result<Result<u64, &'static str>> {
    loop {
        let header = match BatchHeader::decode(window.at(offset, BATCH_HEADER)?, salt, offset) {
            Ok(header) => header,
            Err(reason) => return Ok(Err(reason)),
        };
        offset += BATCH_HEADER as u64;
        if header.count > 0 {
            return Ok(Ok(offset));
        }
        offset += u64::from(header.length);
    }
}
