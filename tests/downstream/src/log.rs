//! A log in one file, which is also held in memory. Each write is a record; when the log is cut, the file is written anew.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use raftkv::{Entry, HeldLog, Index, LogId, LogState, LogStore, LogWrite, StorageError};
use raftkv_storage_file::Vfs;
use raftkv_storage_file::parts::Worker;
use serde::{Deserialize, Serialize};

use crate::lock;
use crate::records::Records;

#[derive(Serialize, Deserialize)]
enum Record {
    /// The beginning of a file, save of the first.
    Held(HeldLog),
    Write(LogWrite),
}

/// The log.
pub struct OneFile {
    held: Arc<Mutex<HeldLog>>,
    records: Worker<Records>,
}

impl OneFile {
    /// Opens the log in this file, or begins one.
    pub fn open(files: Arc<dyn Vfs>, path: PathBuf) -> Result<Self, StorageError> {
        let (mut records, found) = Records::open(files, path)?;
        let mut held = HeldLog::default();
        for record in found {
            match record {
                Record::Held(all) => held = all,
                Record::Write(write) => held.write(write)?,
            }
        }
        // What was found may be in the page cache alone: where the process before was killed, or a sync of its failed.
        records.replace(&Record::Held(held.clone()))?;
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
            records.push(&Record::Write(write.clone()))?;
            lock(&held).write(write)
        };
        self.records.run(work).await
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        let held = self.held.clone();
        let work = move |records: &mut Records| {
            let mut next = lock(&held).clone();
            if next.compact(upto) {
                records.replace(&Record::Held(next.clone()))?;
                *lock(&held) = next;
            }
            Ok(())
        };
        self.records.run(work).await
    }
}
