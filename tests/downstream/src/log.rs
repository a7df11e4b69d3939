//! A log in one file, which is also held in memory. Each write is a record; when the log is cut, the file is written anew.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use raftkv::{Entry, HeldLog, Index, LogId, LogState, LogStore, LogWrite, StorageError};
use raftkv_storage_file::Vfs;
use raftkv_storage_file::parts::{Records, Worker};

use crate::{decode, encode, lock};

/// The log. The first record of its file is what was held when it was begun, and each other one a write since.
pub struct OneFile {
    held: Arc<Mutex<HeldLog>>,
    records: Worker<Records>,
}

impl OneFile {
    /// Opens the log in this file, or begins one.
    pub fn open(files: Arc<dyn Vfs>, path: PathBuf) -> Result<Self, StorageError> {
        let (mut records, found) = Records::open(files, path)?;
        let mut held = found.first().map_or(Ok(HeldLog::default()), |first| decode(first))?;
        found.iter().skip(1).try_for_each(|write| held.write(decode(write)?))?;
        // What was found may be in the page cache alone: where the process before was killed, or a sync of its failed.
        records.replace(&encode(&held))?;
        Ok(Self { held: Arc::new(Mutex::new(held)), records: Worker::new(records) })
    }
}

#[async_trait]
impl LogStore for OneFile {
    async fn load(&self) -> Result<LogState, StorageError> {
        Ok(lock(&self.held).state())
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        lock(&self.held).read(range, max_bytes)
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        let held = self.held.clone();
        let work = move |records: &mut Records| {
            lock(&held).check(&write)?;
            records.push(&encode(&write))?;
            lock(&held).write(write)?;
            // Votes are written for as long as nobody is elected, and nothing is compacted then.
            if records.has_grown() { records.replace(&encode(&*lock(&held))) } else { Ok(()) }
        };
        self.records.run(work).await
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        let held = self.held.clone();
        let work = move |records: &mut Records| {
            let mut next = lock(&held).clone();
            if next.compact(upto) {
                records.replace(&encode(&next))?;
                *lock(&held) = next;
            }
            Ok(())
        };
        self.records.run(work).await
    }
}
