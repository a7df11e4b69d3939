//! What can be wrong with a database, in words.

use std::panic::{AssertUnwindSafe, catch_unwind};

use raftkv::{Fatal, StorageError};

/// Runs what may meet with a damaged page, where redb may panic.
pub(super) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "a panic without a reason".into())
    })
}

/// Pages that make no sense.
pub(super) fn damaged(path: &str, reason: &str) -> Fatal {
    Fatal::state_machine(format!(
        "the database {path} is damaged: {reason}; look after the disk, then move the file away: the node makes a new one from its newest \
         image and its log, or from another node"
    ))
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
