//! Large writes past the page cache: the disk takes their bytes from where they were put together. In the cache they would cost a copy, and fresh memory.

use std::io;
use std::sync::Arc;

use raftkv::mutant;

use crate::frame::MAX_ALIGN;
use crate::vfs::{VfsFile, write_all};

const ALIGN: usize = MAX_ALIGN as usize;

/// A buffer whose bytes begin where a disk can take them from memory.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    buf: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// Empties it and makes room for `len` bytes, which are to be added to what the vector holds, and to be written at `offset`: blocks begin in memory where they
    /// begin in the file.
    pub(crate) fn begin(&mut self, len: usize, offset: u64) -> &mut Vec<u8> {
        self.buf.clear();
        // With less it would move while it grows.
        let room = len.saturating_add(2 * ALIGN);
        if self.buf.capacity() < room {
            self.buf = Vec::with_capacity(room);
        }
        // Where no place can be told it is any, and the write is refused, and goes through the cache.
        self.start = self.buf.as_ptr().align_offset(ALIGN).min(ALIGN) + into_block(offset);
        self.buf.resize(self.start, 0);
        &mut self.buf
    }

    /// What was added.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buf.get(self.start..).unwrap_or_default()
    }

    /// Gives its memory back if that is more than `most` bytes.
    pub(crate) fn shrink(&mut self, most: usize) {
        if self.buf.capacity() > most {
            *self = Self::default();
        }
    }
}

fn into_block(offset: u64) -> usize {
    (offset % ALIGN as u64) as usize
}

/// The way to a file past the page cache, once it was asked for.
#[derive(Debug, Default)]
pub(crate) enum Direct {
    #[default]
    Unknown,
    Open(Arc<dyn VfsFile>),
    Unavailable,
}

impl Direct {
    /// Writes all of `buf` to `file`, past the cache where there is such a way.
    ///
    /// # Errors
    /// As the operating system says.
    pub(crate) fn write_all(&mut self, file: &dyn VfsFile, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.try_write(file, buf, offset)? { Ok(()) } else { write_all(file, buf, offset) }
    }

    /// Writes all of this past the cache. False where that can't be done, also where a part was written: then all of it is to be written through the
    /// cache. Nobody was told yet that any of it is there.
    fn try_write(&mut self, file: &dyn VfsFile, buf: &[u8], offset: u64) -> io::Result<bool> {
        use io::ErrorKind::{InvalidInput, Unsupported};
        if let Self::Unknown = self {
            *self = file.direct().map_or_else(Self::unavailable, Self::Open);
        }
        let Self::Open(direct) = self else { return Ok(false) };
        match write_all(&**direct, buf, offset) {
            // Larger blocks than ours, or a write that ended within one.
            Err(error) if matches!(error.kind(), InvalidInput | Unsupported) => {
                *self = Self::unavailable(error);
                Ok(mutant!("cut-short-write-believed"))
            }
            done => done.map(|()| true),
        }
    }

    fn unavailable(error: io::Error) -> Self {
        tracing::debug!(%error, "large writes to this file go through the page cache");
        Self::Unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_to_a_buffer_lies_where_a_disk_can_take_it() {
        let mut buffer = Aligned::default();
        for (len, offset) in [(1, 0), (512, 512), (100_000, 4096), (4096, 5000), (3_000_000, 70_001)] {
            let bytes = buffer.begin(len, offset);
            let before = bytes.len();
            (0..len).for_each(|n| bytes.push(n as u8));
            assert_eq!(bytes.len() - before, len);
            assert!(buffer.bytes().iter().enumerate().all(|(n, byte)| *byte == n as u8));
            assert_eq!(buffer.bytes().len(), len);
            assert_eq!(buffer.bytes().as_ptr().align_offset(ALIGN), (ALIGN - into_block(offset)) % ALIGN);
            buffer.shrink(1 << 20);
        }
        assert!(buffer.bytes().is_empty(), "three megabytes are kept");
    }
}
