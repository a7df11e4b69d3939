//! Files on which the process dies, as by `kill -9`, at a chosen operation of the install of an image.
//!
//! What counts is what changes a disk, from the file of an unfinished image on: its parts, its publication, and the cut of the log that follows. Each
//! operation is told on standard error before it is done; the chosen one is not done any more. The server under test (`kv-node`) has such files
//! when [`DIE_AT`] says so.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Signal, getpid, kill_process};

use crate::process::notice;
use crate::watched::Watched;

/// The environment variable that holds the number of the operation at which a server dies.
pub const DIE_AT: &str = "RAFTKV_TEST_DIE_AT";

/// The install of an image, at which the process dies.
#[derive(Debug)]
pub struct Mortal {
    die_at: u64,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    operations: u64,
    /// The image has its name: what is left is the cut of the log.
    published: bool,
    complete: bool,
}

impl Mortal {
    /// Files on which this process dies at the operation that the environment names; none if it names none.
    #[must_use]
    pub fn from_env() -> Option<Watched> {
        let die_at = std::env::var(DIE_AT).ok()?.parse().ok()?;
        let install = Self { die_at, progress: Mutex::default() };
        Some(Watched::new(move |operation, path| install.reaches(operation, path)))
    }

    /// An operation is about to be done.
    fn reaches(&self, operation: &str, path: &Path) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |extension: &str| path.extension().is_some_and(|found| found == extension);
        if progress.complete || (progress.operations == 0 && !is("part")) {
            return;
        }
        progress.operations += 1;
        let number = progress.operations;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A database that was written anew at the start has another name by now than when it was opened.
        let name = name.strip_suffix(".new").unwrap_or(&name);
        notice(&format!("operation {number} of an install: {operation} {name}"));
        if number == self.die_at {
            // Whatever comes back from this, no operation is done any more: they wait for the lock.
            let _ = kill_process(getpid(), Signal::KILL);
            loop {
                std::thread::park();
            }
        }
        progress.published |= operation == "rename" && is("part");
        // The log: a segment, or a database.
        if progress.published && operation == "sync" && (is("wal") || name == "log.redb") {
            progress.complete = true;
            notice(&format!("the install is complete after {number} operations"));
        }
    }
}
