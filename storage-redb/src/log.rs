use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use raftkv::{Entry, Index, LogId, LogState, LogStore, LogWrite, StorageError};
use raftkv_storage_file::parts::failed;
use raftkv_storage_file::{Identity, OsVfs, Vfs};
use tokio::sync::oneshot;

use crate::store::Store;

/// How a commit gets to the disk. Either way it is there when a write returns, whatever happens next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Commit {
    /// One `fdatasync`. What of an interrupted commit is on the disk is found out by redb's checksums at the next open, and it is taken back
    /// as a whole. The default.
    #[default]
    OnePhase,
    /// Two: the commit, and then the bit that makes it count. About half as many commits a second. Two things are gained. An interrupted
    /// commit is told from a whole one without relying on checksums, which matters where somebody who may write to the
    /// log can also choose when power is lost. And where, after a loss of power, the very last commit turns out to be damaged, that is
    /// always told: with one phase it may be taken for one that was interrupted.
    TwoPhase,
}

/// What can be chosen about a log. The defaults suit a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How a commit gets to the disk. There is no choice that answers before it is there: a log that does is none.
    pub commit: Commit,
    /// How much memory redb takes for pages that it has read or is about to write, at most. 64 MiB by default; a node reads
    /// little of its log, so more helps only where followers lag far behind.
    pub cache_bytes: usize,
    /// Whether the log has a thread of its own. Without, whoever calls does the work, in a fixed order: for tests and simulators.
    pub background: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { commit: Commit::default(), cache_bytes: 64 << 20, background: true }
    }
}

/// How much room a log takes, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The length of the database's file, in bytes.
    pub file_bytes: u64,
    /// Bytes of the entries that the log holds, with what is kept beside each. The rest of the file is redb's own, waits to be used again, or is for growth.
    pub entry_bytes: u64,
}

type Answer<T> = oneshot::Sender<Result<T, StorageError>>;

enum Job {
    Write(LogWrite, Answer<()>),
    Compact(LogId, Answer<()>),
}

#[derive(Debug)]
struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// A log in a database of redb.
///
/// A thread of its own does all writing: one transaction for each [`LogWrite`]. Reads run beside it, on tokio's blocking threads. Dropping the
/// log waits for what is under way, writes what the next open needs to do without a repair, and releases the directory.
#[derive(Debug)]
pub struct RedbLog {
    store: Arc<Store>,
    writer: Option<Writer>,
}

impl RedbLog {
    /// Opens the log in `dir`, making both where they are missing. Blocks while it reads and verifies the whole log; after an unclean stop
    /// also while it copies and repairs the database.
    ///
    /// # Errors
    /// * [`StorageError::Refused`]: the directory is in use, or another node's, cluster's, group's or kind of store's.
    /// * [`StorageError::Corrupt`]: what had been acknowledged is damaged or missing.
    /// * [`StorageError::Full`], [`StorageError::Io`]: as the operating system says.
    pub fn open(dir: impl AsRef<Path>, identity: Identity, options: Options) -> Result<Self, StorageError> {
        Self::open_on(Arc::new(OsVfs), dir, identity, options)
    }

    /// Opens a log on a file system of your own; see [`RedbLog::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open_on(
        vfs: Arc<dyn Vfs>,
        dir: impl AsRef<Path>,
        identity: Identity,
        options: Options,
    ) -> Result<Self, StorageError> {
        let dir = dir.as_ref();
        let store = Arc::new(Store::open(&vfs, dir, identity, options)?);
        if !options.background {
            return Ok(Self { store, writer: None });
        }
        let (jobs, queue) = channel();
        let of_thread = Arc::clone(&store);
        let thread = thread::Builder::new()
            .name("raftkv-redb".into())
            .spawn(move || run(&of_thread, &queue))
            .map_err(failed("start a thread for", dir))?;
        Ok(Self { store, writer: Some(Writer { jobs: Some(jobs), thread: Some(thread) }) })
    }

    /// How much room the log takes, and what for. Counted as it goes, so that it costs nothing to ask.
    ///
    /// # Errors
    /// The operating system does not tell how long the file is.
    pub fn stats(&self) -> Result<Stats, StorageError> {
        self.store.stats()
    }

    async fn submit<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, StorageError> {
        let (answer, done) = oneshot::channel();
        let job = job(answer);
        let stopped = || StorageError::Sticky("the log's thread has ended".into());
        match &self.writer {
            Some(writer) => writer.jobs.as_ref().ok_or_else(stopped)?.send(job).map_err(|_| stopped())?,
            None => perform(&self.store, job),
        }
        done.await.map_err(|_| stopped())?
    }
}

fn run(store: &Store, queue: &Receiver<Job>) {
    for job in queue {
        perform(store, job);
    }
}

fn perform(store: &Store, job: Job) {
    // Whoever asked may have gone.
    match job {
        Job::Write(write, answer) => drop(answer.send(store.write(&write))),
        Job::Compact(upto, answer) => drop(answer.send(store.compact(upto))),
    }
    store.settle();
}

impl Drop for RedbLog {
    fn drop(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.jobs = None;
            if let Some(thread) = writer.thread.take() {
                // A panic there has been reported there.
                let _ = thread.join();
            }
        }
        self.store.close();
    }
}

#[async_trait]
impl LogStore for RedbLog {
    async fn load(&self) -> Result<LogState, StorageError> {
        Ok(self.store.state())
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let store = Arc::clone(&self.store);
        match (&self.writer, tokio::runtime::Handle::try_current()) {
            (Some(_), Ok(runtime)) => {
                let reading = runtime.spawn_blocking(move || store.read(&range, max_bytes));
                reading.await.map_err(|e| StorageError::Sticky(format!("a reader was stopped: {e}")))?
            }
            _ => store.read(&range, max_bytes),
        }
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        self.submit(|answer| Job::Write(write, answer)).await
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.submit(|answer| Job::Compact(upto, answer)).await
    }
}
