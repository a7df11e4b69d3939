//! A log in one file, which is also held in memory. Each write is a record; when the log is cut, the file is written anew.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use raftkv::{Entry, HeldLog, Index, LogId, LogState, LogStore, LogWrite, StorageError};
use serde::{Deserialize, Serialize};

use crate::{lock, records};

#[derive(Serialize, Deserialize)]
enum Record {
    /// The beginning of a file.
    Held(HeldLog),
    Write(LogWrite),
}

struct Disk {
    file: File,
    failed: Option<String>,
}

struct Shared {
    path: PathBuf,
    held: Mutex<HeldLog>,
    disk: Mutex<Disk>,
}

/// The log.
pub struct OneFile(Arc<Shared>);

impl Shared {
    /// Writes the file anew. It takes the place of the old one when it is whole.
    fn begin(&self, held: HeldLog) -> Result<File, StorageError> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new).map_err(StorageError::io("create", &new))?;
        records::push(&mut file, &new, &Record::Held(held))?;
        fs::rename(&new, &self.path).map_err(StorageError::io("rename", &new))?;
        records::sync_names(self.path.parent().unwrap_or(Path::new(".")))?;
        Ok(file)
    }

    fn write(&self, disk: &mut Disk, write: LogWrite) -> Result<(), StorageError> {
        lock(&self.held).check(&write)?;
        records::push(&mut disk.file, &self.path, &Record::Write(write.clone()))?;
        lock(&self.held).write(write)
    }

    fn compact(&self, disk: &mut Disk, upto: LogId) -> Result<(), StorageError> {
        let mut held = lock(&self.held).clone();
        if held.compact(upto) {
            disk.file = self.begin(held.clone())?;
            *lock(&self.held) = held;
        }
        Ok(())
    }
}

impl OneFile {
    /// Opens the log in this file, or begins one.
    pub fn open(path: PathBuf) -> Result<Self, StorageError> {
        let (file, found) = records::open(&path)?;
        let (mut held, is_new) = (HeldLog::default(), found.is_empty());
        for record in found {
            match record {
                Record::Held(first) => held = first,
                Record::Write(write) => held.write(write)?,
            }
        }
        let disk = Mutex::new(Disk { file, failed: None });
        let shared = Shared { path, held: Mutex::new(held), disk };
        if is_new {
            lock(&shared.disk).file = shared.begin(HeldLog::default())?;
        }
        Ok(Self(Arc::new(shared)))
    }

    /// Works on the file, on a thread that may wait for it. After an error nobody does any more.
    async fn work(
        &self,
        work: impl FnOnce(&Shared, &mut Disk) -> Result<(), StorageError> + Send + 'static,
    ) -> Result<(), StorageError> {
        let shared = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut disk = lock(&shared.disk);
            match &disk.failed {
                Some(why) => Err(StorageError::Sticky(why.clone())),
                None => work(&shared, &mut disk).inspect_err(|error| disk.failed = Some(error.to_string())),
            }
        });
        done.await.unwrap_or_else(|panic| Err(StorageError::Sticky(panic.to_string())))
    }
}

#[async_trait]
impl LogStore for OneFile {
    async fn load(&self) -> Result<LogState, StorageError> {
        Ok(lock(&self.0.held).state())
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        lock(&self.0.held).read(range, max_bytes)
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        self.work(move |shared, disk| shared.write(disk, write)).await
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.work(move |shared, disk| shared.compact(disk, upto)).await
    }
}
