//! Large writes past the page cache: the disk takes their bytes from where they were put together. In the cache they would cost a copy, and
//! memory for what is seldom read again.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::frame::MAX_ALIGN;
use crate::vfs::{Access, Vfs, VfsFile, write_all};

const ALIGN: usize = MAX_ALIGN as usize;

/// A buffer whose bytes begin where a disk can take them from memory.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    buf: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// Empties it and makes room for `len` bytes, which are to be added to what the vector holds.
    pub(crate) fn begin(&mut self, len: usize) -> &mut Vec<u8> {
        self.buf.clear();
        // With less it would move while it grows.
        self.buf.reserve(len.saturating_add(ALIGN));
        self.start = self.buf.as_ptr().align_offset(ALIGN).min(ALIGN);
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

/// The way to a file past the page cache, once it was asked for.
#[derive(Debug, Default)]
pub(crate) enum Direct {
    #[default]
    Unknown,
    Open(Arc<dyn VfsFile>),
    None,
}

impl Direct {
    /// Writes all of `buf` past the cache, or tells that it can't be done: then what it wrote is to be written again.
    ///
    /// # Errors
    /// As the operating system says.
    pub(crate) fn write_all(&mut self, vfs: &dyn Vfs, path: &Path, buf: &[u8], offset: u64) -> io::Result<bool> {
        if let Self::Unknown = self {
            *self = vfs.open(path, Access::Direct).map_or(Self::None, Self::Open);
        }
        let Self::Open(file) = self else { return Ok(false) };
        match write_all(&**file, buf, offset) {
            // Larger blocks than those of the log, or a write that was not done to its end.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                *self = Self::None;
                Ok(false)
            }
            done => done.map(|()| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_to_a_buffer_lies_where_a_disk_can_take_it() {
        let mut buffer = Aligned::default();
        for len in [1, 512, 100_000, 4096, 3_000_000] {
            let bytes = buffer.begin(len);
            let before = bytes.len();
            (0..len).for_each(|n| bytes.push(n as u8));
            assert_eq!(bytes.len() - before, len);
            assert!(buffer.bytes().iter().enumerate().all(|(n, byte)| *byte == n as u8));
            assert_eq!((buffer.bytes().len(), buffer.bytes().as_ptr().align_offset(ALIGN)), (len, 0));
            buffer.shrink(1 << 20);
        }
        assert!(buffer.bytes().is_empty(), "three megabytes are kept");
    }
}
