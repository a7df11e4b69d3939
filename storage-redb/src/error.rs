//! What redb says, in the words of [`StorageError`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use raftkv::{Index, StorageError};

use crate::backend::Backend;

/// What can go wrong in the middle of work on a database.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// redb gave up.
    Redb(redb::Error),
    /// We did.
    Ours(StorageError),
}

impl From<StorageError> for Trouble {
    fn from(error: StorageError) -> Self {
        Self::Ours(error)
    }
}

macro_rules! from_redb {
    ($($kind:ident)*) => {
        $(impl From<redb::$kind> for Trouble {
            fn from(error: redb::$kind) -> Self {
                Self::Redb(error.into())
            }
        })*
    };
}

from_redb!(StorageError TableError DatabaseError TransactionError CommitError CompactionError CursorError);

/// Damage, in a file of which only redb knows what is where.
pub(crate) fn corrupt(path: &Path, index: Option<Index>, reason: impl Into<String>) -> StorageError {
    StorageError::Corrupt { path: path.display().to_string(), offset: None, index, reason: reason.into() }
}

/// Does something with redb, and tells what went wrong as this crate tells it. redb checks the bytes of a page when it opens a file, and
/// believes them afterwards: where they were damaged meanwhile, it may panic. That is damage then, and ends nobody's process.
pub(crate) fn guarded<T>(
    backend: &Backend,
    op: &'static str,
    work: impl FnOnce() -> Result<T, Trouble>,
) -> Result<T, StorageError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|trouble| explain(backend, op, trouble)),
        Err(panic) => {
            let reason = format!("redb can't make sense of the database ({})", words(&*panic));
            Err(backend.failure().unwrap_or_else(|| corrupt(backend.path(), None, reason)))
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

fn explain(backend: &Backend, op: &'static str, trouble: Trouble) -> StorageError {
    let error = match trouble {
        Trouble::Ours(error) => return error,
        Trouble::Redb(error) => error,
    };
    // The system's own words, if it refused something just now.
    if let Some(failure) = backend.failure() {
        return failure;
    }
    let path = backend.path();
    if let redb::Error::ValueTooLarge(bytes) = error {
        return StorageError::Misuse(format!("{bytes} bytes are more than redb takes"));
    }
    if matches!(error, redb::Error::PreviousIo | redb::Error::DatabaseClosed | redb::Error::LockPoisoned(_)) {
        return StorageError::Sticky(error.to_string());
    }
    if let redb::Error::Io(source) = error {
        return StorageError::Io { op, path: path.display().to_string(), source };
    }
    // What is left are kinds of damage, and a few things that this crate never asks for.
    corrupt(path, None, format!("redb says: {error}"))
}
