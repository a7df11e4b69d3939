use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use raftkv::{Entry, Index, LogId, LogState, LogStore, LogWrite, StorageError};
use tokio::sync::oneshot;

use crate::frame::Identity;
use crate::reader::Shared;
use crate::vfs::{OsVfs, Vfs, failed};
use crate::wal::Wal;

/// What can be chosen about a log. The defaults suit a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The size of a segment file, in bytes. Room for it is reserved in advance; compaction frees whole segments. A batch that is
    /// larger gets a larger segment. 64 MiB by default.
    pub segment_bytes: u64,
    /// Batches begin at multiples of this many bytes, so that no write touches a disk block that holds acknowledged data: 512 by
    /// default, up to 4096 for disks whose blocks of 4096 bytes can break in a loss of power. It counts for new segments.
    pub align: u32,
    /// Batches of so many bytes and more, as they are in the file, are written past the page cache (`O_DIRECT`) on file systems that are known to do that well (ext4 and xfs), which
    /// spares a copy of them: 512 KiB by default; `u64::MAX` for never. Where a disk's blocks are larger than `align` most of them go through the cache.
    pub direct_from: u64,
    /// Whether the log has threads of its own. Without, whoever calls does the work, in a fixed order: for tests and
    /// simulators.
    pub background: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, align: 512, direct_from: 512 << 10, background: true }
    }
}

type Answer = oneshot::Sender<Result<(), StorageError>>;

enum Job {
    Write(LogWrite, Answer),
    Compact(LogId, Answer),
}

#[derive(Debug)]
enum Writer {
    Thread { jobs: Option<Sender<Job>>, thread: Option<JoinHandle<()>> },
    Inline(Mutex<Option<Box<Wal>>>),
}

/// A log on segmented, checksummed files.
///
/// A thread of its own does all writing: one write and one `fdatasync` for each [`LogWrite`]. Reads run beside it, on tokio's
/// blocking threads. Dropping the log waits for the write that is under way, notes durably where the log ends, and releases the
/// directory.
#[derive(Debug)]
pub struct FileLog {
    shared: Arc<Shared>,
    writer: Writer,
}

impl FileLog {
    /// Opens the log in `dir`, making both where they are missing. Blocks while it reads and verifies the whole log, at
    /// about the speed of the disk.
    ///
    /// What an unclean stop left behind is repaired here: a torn tail, which was never acknowledged, is cut.
    ///
    /// # Errors
    /// * [`StorageError::Refused`]: the directory is in use, or another node's, cluster's or group's; or impossible options.
    /// * [`StorageError::Corrupt`]: bytes that had been synced are damaged or missing. Nothing was changed.
    /// * [`StorageError::Full`], [`StorageError::Io`]: as the operating system says.
    pub fn open(dir: impl AsRef<Path>, identity: Identity, options: Options) -> Result<Self, StorageError> {
        Self::open_on(Arc::new(OsVfs), dir, identity, options)
    }

    /// Opens a log on a file system of your own; see [`FileLog::open`].
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
        let wal = Wal::open(vfs, dir, identity, options)?;
        let shared = wal.shared();
        if !options.background {
            return Ok(Self { shared, writer: Writer::Inline(Mutex::new(Some(Box::new(wal)))) });
        }
        let (jobs, queue) = channel();
        let thread = thread::Builder::new()
            .name("raftkv-log".into())
            .spawn(move || run(wal, &queue))
            .map_err(failed("start a thread for", dir))?;
        Ok(Self { shared, writer: Writer::Thread { jobs: Some(jobs), thread: Some(thread) } })
    }

    /// How many bytes of memory the positions and terms of all entries take: about 0.8 MB for 1 GiB of log.
    #[must_use]
    pub fn index_memory(&self) -> usize {
        self.shared.index().memory()
    }

    async fn submit(&self, job: impl FnOnce(Answer) -> Job) -> Result<(), StorageError> {
        let (answer, done) = oneshot::channel();
        let job = job(answer);
        let stopped = || StorageError::Sticky("the log's thread has ended".into());
        match &self.writer {
            Writer::Thread { jobs, .. } => jobs.as_ref().ok_or_else(stopped)?.send(job).map_err(|_| stopped())?,
            Writer::Inline(wal) => {
                let mut wal = wal.lock().unwrap_or_else(PoisonError::into_inner);
                perform(wal.as_mut().ok_or_else(stopped)?, job);
            }
        }
        done.await.map_err(|_| stopped())?
    }
}

fn run(mut wal: Wal, queue: &Receiver<Job>) {
    for job in queue {
        perform(&mut wal, job);
    }
    wal.close();
}

fn perform(wal: &mut Wal, job: Job) {
    let (done, answer) = match job {
        Job::Write(write, answer) => (wal.write(&write), answer),
        Job::Compact(upto, answer) => (wal.compact(upto), answer),
    };
    // Whoever asked may have gone.
    let _ = answer.send(done);
    wal.settle();
}

impl Drop for FileLog {
    fn drop(&mut self) {
        match &mut self.writer {
            Writer::Thread { jobs, thread } => {
                *jobs = None;
                if let Some(thread) = thread.take() {
                    // A panic there has been reported there.
                    let _ = thread.join();
                }
            }
            Writer::Inline(wal) => {
                if let Some(wal) = wal.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
                    wal.close();
                }
            }
        }
    }
}

#[async_trait]
impl LogStore for FileLog {
    async fn load(&self) -> Result<LogState, StorageError> {
        Ok(self.shared.index().state())
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let shared = Arc::clone(&self.shared);
        match (&self.writer, tokio::runtime::Handle::try_current()) {
            (Writer::Thread { .. }, Ok(runtime)) => {
                let reading = runtime.spawn_blocking(move || shared.read(&range, max_bytes));
                reading.await.map_err(|e| StorageError::Sticky(format!("a reader was stopped: {e}")))?
            }
            _ => shared.read(&range, max_bytes),
        }
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        self.submit(|answer| Job::Write(write, answer)).await
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.submit(|answer| Job::Compact(upto, answer)).await
    }
}
