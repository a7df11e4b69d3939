//! What went wrong first below redb. redb may go another way then, and says of whatever comes later only that something went wrong before.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;

/// The error of a file that redb has stopped at. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct First(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    error: Mutex<Option<Told>>,
    frozen: AtomicBool,
}

#[derive(Clone, Debug)]
struct Told {
    kind: ErrorKind,
    words: String,
    /// Whether redb stops at it for certain. Some writes only make room in its cache, and when one of these fails it goes on.
    last: bool,
}

impl First {
    /// What went wrong, in the place of an error that says only that something did.
    pub(super) fn told_by(&self, error: redb::Error) -> redb::Error {
        let told = self.0.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match told.filter(|_| matches!(error, redb::Error::PreviousIo)) {
            Some(Told { kind, words, .. }) => redb::Error::Io(io::Error::new(kind, words)),
            None => error,
        }
    }

    /// Nothing is written any more, so that the file stays as it was last synced. redb, when it closes a database in which work has panicked, makes a
    /// commit of one phase, and a loss of power in it might leave nothing that can be opened.
    pub(super) fn freeze(&self) {
        self.0.frozen.store(true, Ordering::SeqCst);
    }

    fn writes<T>(&self, last: bool, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.0.frozen.load(Ordering::SeqCst) {
            return Err(io::Error::other("nothing is written any more to a database in which something is wrong"));
        }
        self.note(last, write())
    }

    fn note<T>(&self, last: bool, done: io::Result<T>) -> io::Result<T> {
        done.inspect_err(|error| {
            let mut noted = self.0.error.lock().unwrap_or_else(PoisonError::into_inner);
            if !noted.as_ref().is_some_and(|told| told.last) {
                *noted = Some(Told { kind: error.kind(), words: error.to_string(), last });
            }
        })
    }
}

/// A file of which the error is noted that redb stops at.
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
        self.first.note(true, self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.first.note(true, self.file.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.first.writes(true, || self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.first.writes(true, || self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.first.writes(false, || self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        // redb is not asked for anything any more.
        self.file.close()
    }

    locks_of_the_file!();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file on which everything fails, each in its words.
    #[derive(Debug)]
    struct Sick;

    impl StorageBackend for Sick {
        fn len(&self) -> io::Result<u64> {
            Err(io::Error::other("no length"))
        }

        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::Error::other("not readable"))
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::Error::other("it stays as long"))
        }

        fn sync_data(&self) -> io::Result<()> {
            Err(io::Error::other("not synced"))
        }

        fn write(&self, _: u64, data: &[u8]) -> io::Result<()> {
            Err(io::Error::new(ErrorKind::StorageFull, format!("no room for {} bytes", data.len())))
        }
    }

    /// redb goes on when a write fails that only made room in its cache.
    #[test]
    fn a_write_that_redb_does_without_is_not_told_as_what_it_stopped_at() {
        let first = First::default();
        let told = || first.told_by(redb::Error::PreviousIo).to_string();
        let file = Noting::new(Sick, first.clone());
        let nothing = told();
        for bytes in [1, 2] {
            file.write(0, &vec![0; bytes]).unwrap_err();
            assert!(told().contains(&format!("no room for {bytes} bytes")), "{}", told());
        }
        file.read(0, &mut []).unwrap_err();
        assert!(told().contains("not readable"), "{}", told());
        // And that stays.
        file.write(0, &[]).unwrap_err();
        file.sync_data().unwrap_err();
        file.len().unwrap_err();
        file.set_len(0).unwrap_err();
        assert!(told().contains("not readable"), "{}", told());
        assert_eq!(First::default().told_by(redb::Error::PreviousIo).to_string(), nothing);
    }
}
