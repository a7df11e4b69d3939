//! What went wrong first below redb. redb may go another way then, and says of whatever comes later only that something went wrong before.

use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use redb::{BackendError, StorageBackend};

/// The first error of a file: its kind, and its words. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct First(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    error: OnceLock<(ErrorKind, String)>,
    frozen: AtomicBool,
}

impl First {
    /// What went wrong, in the place of an error that says only that something did.
    pub(super) fn told_by(&self, error: redb::Error) -> redb::Error {
        match self.0.error.get().filter(|_| matches!(error, redb::Error::PreviousIo)) {
            Some((kind, words)) => redb::Error::Io(io::Error::new(*kind, words.clone())),
            None => error,
        }
    }

    /// Nothing is written any more, so that the file stays as it was last synced. redb, when it closes a database in which work has panicked, makes a
    /// commit of one phase, and a loss of power in it might leave nothing that can be opened.
    pub(super) fn freeze(&self) {
        self.0.frozen.store(true, Ordering::SeqCst);
    }

    fn writes<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.0.frozen.load(Ordering::SeqCst) {
            return Err(io::Error::other("nothing is written any more to a database in which something is wrong"));
        }
        self.note(write())
    }

    fn note<T>(&self, done: io::Result<T>) -> io::Result<T> {
        done.inspect_err(|error| _ = self.0.error.set((error.kind(), error.to_string())))
    }
}

/// A file whose first error is noted.
#[derive(Debug)]
pub(super) struct Noting<B> {
    file: B,
    first: First,
}

impl<B> Noting<B> {
    pub(super) fn new(file: B, first: First) -> Self {
        Self { file, first }
    }
}

impl<B: StorageBackend> StorageBackend for Noting<B> {
    fn len(&self) -> io::Result<u64> {
        self.first.note(self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.first.note(self.file.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.first.writes(|| self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.first.writes(|| self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.first.writes(|| self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.first.note(self.file.close())
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
