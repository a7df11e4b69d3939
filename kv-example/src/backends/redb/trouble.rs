//! What can be wrong with a database, in words.

use std::panic::{AssertUnwindSafe, catch_unwind};

use raftkv::{Fatal, FatalKind, StorageError, mutant};

use super::place::Distrust;

/// Runs what may meet with a damaged page, where redb may panic.
pub(super) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "a panic without a reason".into())
    })
}

/// What is in the file is not what was written, or makes no sense.
pub(super) fn damaged(path: &str, reason: &str) -> Fatal {
    Fatal::state_machine(format!(
        "the database {path} is damaged: {reason}; look after the disk. If no other node says this of its own, move the file away (this file, and nothing \
         else): the node makes a new one from its newest image and its log, or from another node. If others do, leave all files as they are, and report it"
    ))
}

/// Work on the database panicked. It may be damage that nothing else noticed, or a mistake in the program, which the other nodes come to as well.
pub(super) fn panicked(path: &str, reason: &str) -> Fatal {
    Fatal::state_machine(format!(
        "work on the database {path} ended in a panic: {reason}; leave the file as it is, and restart the node once. If it stops again with the same words, \
         or another node does, that is most likely a mistake in this version of the program: report it with these words, and don't delete anything"
    ))
}

/// Passes on what went wrong. If it was the disk, a mark tells the next start: after a failed write or sync the operating system may show what is not on the
/// disk.
pub(super) fn told(path: &str, distrust: Option<&Distrust>, fatal: Fatal) -> Fatal {
    let failed = matches!(fatal.kind(), FatalKind::Storage(StorageError::Io { .. } | StorageError::Full { .. }));
    if let Some(distrust) = distrust.filter(|_| failed && !mutant!("failed-disk-trusted"))
        && let Err(error) = distrust.mark()
    {
        tracing::error!(%error, "the disk failed under {path}, and nothing can tell the next start: delete that file before");
    }
    fatal
}

/// What an error of the database means to the node.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "redb has some thirty kinds, and adds to them; most have no other remedy than a person's"
)]
pub(super) fn fatal(path: &str, error: redb::Error) -> Fatal {
    use std::io::ErrorKind::{InvalidData, StorageFull};
    let op = "use the database";
    let path = path.to_owned();
    match error {
        redb::Error::Io(source) if source.kind() == StorageFull => StorageError::Full { op, path }.into(),
        redb::Error::Io(source) if source.kind() == InvalidData => damaged(&path, &source.to_string()),
        redb::Error::Io(source) => StorageError::Io { op, path, source }.into(),
        redb::Error::DatabaseAlreadyOpen => {
            let reason = "another process has the database open: end it first, or choose another --data".into();
            StorageError::Refused { path, reason }.into()
        }
        redb::Error::UpgradeRequired(version) => {
            let reason = format!(
                "its file format {version} is too old for this version: move the file away, and the node makes a new one from its newest image \
                 and its log"
            );
            StorageError::Refused { path, reason }.into()
        }
        error @ redb::Error::Corrupted(_) => damaged(&path, &error.to_string()),
        error => Fatal::state_machine(format!("the database {path}: {error}")),
    }
}
