//! A log in one file, which is also held in memory. Each write is a record; when the log is cut, the file is written anew.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use raftkv::{Entry, HardState, Index, LogId, LogState, LogStore, LogWrite, StorageError};
use serde::{Deserialize, Serialize};

use crate::{lock, records};

#[derive(Clone, Default, Serialize, Deserialize)]
struct Held {
    hard_state: HardState,
    base: LogId,
    entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
enum Record {
    /// The beginning of a file.
    Held(Held),
    Write(LogWrite),
}

struct Disk {
    file: File,
    failed: Option<String>,
}

struct Shared {
    path: PathBuf,
    held: Mutex<Held>,
    disk: Mutex<Disk>,
}

/// The log.
pub struct OneFile(Arc<Shared>);

impl Held {
    fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    fn ends(&self) -> (LogId, LogId) {
        (self.base, self.last())
    }

    /// How many entries there are before this index.
    fn before(&self, index: Index) -> usize {
        self.entries.partition_point(|entry| entry.id.index < index)
    }

    fn apply(&mut self, write: LogWrite) {
        self.hard_state = write.hard_state.unwrap_or(self.hard_state);
        if let Some(first) = write.entries.first() {
            self.entries.truncate(self.before(first.id.index));
        }
        self.entries.extend(write.entries);
    }
}

impl Shared {
    /// Writes the file anew. It takes the place of the old one when it is whole.
    fn begin(&self, held: Held) -> Result<File, StorageError> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new).map_err(StorageError::io("create", &new))?;
        records::push(&mut file, &new, &Record::Held(held))?;
        fs::rename(&new, &self.path).map_err(StorageError::io("rename", &new))?;
        records::sync_names(self.path.parent().unwrap_or(Path::new(".")))?;
        Ok(file)
    }

    fn write(&self, disk: &mut Disk, write: LogWrite) -> Result<(), StorageError> {
        let (base, last) = lock(&self.held).ends();
        write.check(base, last)?;
        records::push(&mut disk.file, &self.path, &Record::Write(write.clone()))?;
        lock(&self.held).apply(write);
        Ok(())
    }

    fn compact(&self, disk: &mut Disk, upto: LogId) -> Result<(), StorageError> {
        let mut held = lock(&self.held).clone();
        if upto.index > held.base.index {
            let kept = held.entries.split_off(held.before(upto.index.next()));
            let holds = held.entries.last().is_some_and(|entry| entry.id == upto);
            held = Held { base: upto, entries: if holds { kept } else { Vec::new() }, ..held };
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
        let (mut held, is_new) = (Held::default(), found.is_empty());
        for record in found {
            match record {
                Record::Held(first) => held = first,
                Record::Write(write) => held.apply(write),
            }
        }
        let disk = Mutex::new(Disk { file, failed: None });
        let shared = Shared { path, held: Mutex::new(held), disk };
        if is_new {
            lock(&shared.disk).file = shared.begin(Held::default())?;
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
        let held = lock(&self.0.held);
        Ok(LogState::of(held.hard_state, held.base, held.entries.iter().map(|entry| entry.id)))
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let held = lock(&self.0.held);
        if range.is_empty() || range.start <= held.base.index || range.start > held.last().index {
            return Err(StorageError::Misuse(format!("{range:?} is read of a log that ends at {}", held.last())));
        }
        let wanted = &held.entries[held.before(range.start)..held.before(range.end)];
        Ok(Entry::fitting(wanted.iter().cloned(), max_bytes))
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        self.work(move |shared, disk| shared.write(disk, write)).await
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.work(move |shared, disk| shared.compact(disk, upto)).await
    }
}
