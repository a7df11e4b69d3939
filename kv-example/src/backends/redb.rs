//! The state machine that keeps its store in a redb database: contents may exceed the memory, and a restart does not replay.
//!
//! The rules are those of [`crate::store`], over tables in the place of a tree (`redb/tables.rs`); an image is the same stream of bytes as from the
//! machine in memory, so nodes with either serve each other.
//!
//! # What is durable, and when
//!
//! The log is on disk before a command is applied, so the database may fall behind it, as long as it falls behind as a whole and what it lacks can
//! be had again. Five rules see to that; beside each is what it costs.
//!
//! 1. *One transaction a batch.* Versions, the id of the last entry (`applied`), the members and the framework's records of sessions change together. Whatever
//!    a crash takes away, it takes from the end, and `applied` tells from where the log is to be applied again. It costs a write to the table `meta` a batch.
//! 2. *Most transactions are not synced.* A process that is killed and a loss of power both lose those since the last that was: at most
//!    [`Options::sync_bytes`] of commands, or [`Options::sync_commands`] of them. The node applies these again when it starts.
//!    Commands wait while the sync lasts, which writes every page that has changed since.
//! 3. *An image ends only when what it reflects is durable here.* The framework cuts the log for an image once it is published, and never further; so whatever
//!    power takes away, the log still has all that comes after `applied`, and a node is not restored from an image of its own. It costs a sync an image, in the
//!    background where it is read; commands that come meanwhile wait for it.
//! 4. *A restore fills tables of its own*, part by part, and one synced transaction puts them in force, with the image's last entry and its sessions. A crash before
//!    it leaves the state as it was, and the framework restores the image anew; what is left of the attempt is deleted. It costs the room of both while it lasts.
//! 5. *An orderly end syncs*: the next start applies nothing again.
//!
//! Synced transactions keep redb's list of free pages as well ("quick repair"): a start after a crash takes no walk through the file, whatever its size. It costs one
//! more sync a synced transaction.
//!
//! What an image or a slow read looks at is not overwritten before it ends, so the file may grow meanwhile. Pages that are free are used again; the file gets no shorter.
//!
//! If all else fails, the file may be deleted while the node is down. The image and the log behind it hold everything, and the node makes a new file from them. That is
//! also what happens when a directory was used without this engine before. One that is used without it meanwhile keeps its file, which goes on from where it
//! was, or from the image if that is newer.
//!
//! A database whose disk has failed is not trusted again. After a sync that failed the operating system may hold, and show to the next process, what is not on the disk.
//! `kv.redb.failed` beside the file says so to the next start, which makes a new one; where that can't be made, the file itself is removed.
//!
//! # Reads
//!
//! After each batch its state is opened for readers once, and all of them share that view. Reads run on threads for blocking work, and images as well: on those that
//! serve clients the protocol runs too, and a disk that hangs would keep the leader from telling that it hangs. Commands, which wait for the disk too, have a thread of their own.
//!
//! # What is wrong with the file
//!
//! Is told with its name. Each page has a checksum, which is verified whenever the page is read from the file (`redb/sealed.rs`): a flipped bit, or a page in the wrong
//! place, is an error, and neither an answer nor a part of an image. A read is answered with the error; no command is applied any more, so the node stops. So it does
//! where redb panics, or a rule of the store: that need not be the file's fault, and is told in other words.
//!
//! Checksums cost four bytes a page, another read of two pages for each stretch of pages that is read, and with each sync a page for every 4 MiB of the file in
//! which something has changed. What is in redb's cache is not verified again. Because of them the file is none that redb's own tools could read.
//!
//! A sector that was being written when the power went may be old, new, or garbage: of what is overwritten in place there are two, and the other is whole. Where the disk
//! damages the newest header later, the database goes back by one synced commit, which is what a loss of power right before it would have left. The log has the rest.

/// The locks of a [`StorageBackend`] that lies over another one, its `file`: they are that one's.
macro_rules! locks_of_the_file {
    () => {
        locks_of_the_file! {
            try_lock_range: bool, try_lock_shared_range: bool, lock_range: (), lock_shared_range: (), unlock_range: (), query_lock_range: bool
        }
    };
    ($($lock:ident: $told:ty),*) => {$(
        fn $lock(&self, start: std::ops::Bound<u64>, end: std::ops::Bound<u64>) -> Result<$told, redb::BackendError> {
            self.file.$lock(start, end)
        }
    )*};
}

mod database;
mod first;
mod load;
mod meta;
mod place;
mod scribe;
mod sealed;
mod sweep;
mod tables;
#[cfg(test)]
mod tests;
mod trouble;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{Chunks, ClusterId, Fatal, LogId, NodeId, Record, Recorded, StateMachine};
use raftkv_storage_file::parts::failed;
use raftkv_storage_file::{OsVfs, Vfs};
use redb::{Database, StorageBackend};

use self::database::{Core, Reading};
use self::first::{First, Noting};
use self::load::Fresh;
use self::place::{Distrust, Medium, Place};
use self::scribe::Scribe;
use self::sealed::Sealed;
use self::tables::Tables;
use self::trouble::damaged;
use crate::machine::{KvView, NEVER_SWEPT};
use crate::store::{Image, Loader, Store};

/// Whose database it is. Another's is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// What may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How much memory pages may take, in bytes: those read, and those changed and not yet written.
    pub cache_bytes: usize,
    /// A transaction is synced after so many bytes of commands.
    pub sync_bytes: u64,
    /// A transaction is synced after so many commands.
    pub sync_commands: u64,
    /// Whether the machine has a thread that writes, reads on threads that may wait, and drops what was compacted beside all that. Without, whoever calls does
    /// the work, in a fixed order: for tests and simulators.
    pub background: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20, sync_bytes: 4 << 20, sync_commands: 8192, background: true }
    }
}

/// The state machine over a database.
#[derive(Debug)]
pub struct RedbMachine {
    core: Arc<Core>,
    /// None where whoever calls does the work.
    scribe: Option<Scribe>,
    sweeper: Option<JoinHandle<()>>,
}

impl RedbMachine {
    /// Opens the database in this file, or makes a new one in it.
    ///
    /// # Errors
    /// It can't be opened, is damaged, or is another's. The error names the file.
    pub fn open(path: &Path, owner: Owner, options: Options) -> Result<Self, Fatal> {
        Self::open_in(Arc::new(OsVfs), path, owner, options)
    }

    /// As [`RedbMachine::open`], in a file system of your own.
    ///
    /// # Errors
    /// As there.
    pub fn open_in(vfs: Arc<dyn Vfs>, path: &Path, owner: Owner, options: Options) -> Result<Self, Fatal> {
        let name = path.display().to_string();
        let place = Place::look(vfs, path)?;
        let usable = place.is_usable();
        let file = if usable { place.open() } else { place.create() }?;
        if usable && file.is_empty().map_err(failed("stat", place.path()))? {
            return Err(damaged(&name, "the file is empty"));
        }
        let open = |first| database(&name, Medium::take(file)?, options, first);
        let machine = Self::over(name.clone(), Some(place.distrust()), open, owner, options)?;
        if !usable {
            place.replace()?;
        }
        Ok(machine)
    }

    /// As [`RedbMachine::open`], on a medium of your own.
    ///
    /// # Errors
    /// As there.
    pub fn open_on(medium: impl StorageBackend, owner: Owner, options: Options) -> Result<Self, Fatal> {
        let name = "(a medium of its own)";
        Self::over(name.into(), None, |first| database(name, medium, options, first), owner, options)
    }

    fn over(
        path: String,
        distrust: Option<Distrust>,
        open: impl FnOnce(First) -> Result<Database, redb::DatabaseError>,
        owner: Owner,
        options: Options,
    ) -> Result<Self, Fatal> {
        let core = Arc::new(Core::open(path, distrust, open, owner, options)?);
        let no_thread = |error| Fatal::state_machine(format!("no thread to write with: {error}"));
        let scribe = options.background.then(Scribe::start).transpose().map_err(no_thread)?;
        let mut machine = Self { core, scribe, sweeper: None };
        machine.sweep();
        Ok(machine)
    }

    /// A view for readers.
    #[must_use]
    pub fn view(&self) -> KvView {
        KvView::new(self.core.clone())
    }

    /// Does work that writes, where that is done.
    async fn run<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> Result<T, Fatal> + Send + 'static,
    ) -> Result<T, Fatal> {
        match &self.scribe {
            Some(scribe) => scribe.run(run).await,
            None => run(),
        }
    }

    /// Starts to drop what a compaction has left, if there is something. When it happens makes no difference to any answer, so nodes need not agree on it.
    fn sweep(&mut self) {
        if !self.core.wants_sweeper() {
            return;
        }
        if !self.core.options.background {
            return self.core.sweep();
        }
        let core = Arc::clone(&self.core);
        match std::thread::Builder::new().name("kv-sweep".into()).spawn(move || core.sweep()) {
            Ok(sweeper) => self.sweeper = Some(sweeper),
            Err(error) => {
                self.core.has_no_sweeper();
                tracing::warn!(%error, "no thread to drop compacted versions; will try again");
            }
        }
    }

    async fn replace(&mut self, mut image: Box<dyn Chunks>, records: Vec<Record>, last: LogId) -> Result<(), Fatal> {
        let core = self.core.clone();
        let mut loader = self.run(move || Fresh::begin(core).map(Loader::into)).await?;
        while let Some(bytes) = image.next().await? {
            let load = move || {
                loader.push(&bytes).map_err(|error| Fatal::state_machine(error.to_string()))?;
                loader.store.keys.check().map(|()| loader)
            };
            loader = self.run(load).await?;
        }
        let Store { keys: mut fresh, head } =
            loader.finish().map_err(|error| Fatal::state_machine(error.to_string()))?;
        let core = self.core.clone();
        let switch = move || {
            let generation = fresh.end()?;
            core.switch(generation, head, records, last)
        };
        self.run(switch).await
    }
}

/// The database in this file, or a new one if it is empty.
fn database(
    name: &str,
    file: impl StorageBackend,
    options: Options,
    first: First,
) -> Result<Database, redb::DatabaseError> {
    let file = Sealed::new(file)?;
    if file.has_hurt_header()? {
        tracing::warn!(
            "of the two headers of the database {name} one is not as it was written; the other one counts, and what it lacks is in the log. If power was not lost while the \
             node ran, look after the disk"
        );
    }
    let file = Noting::new(file, first);
    Database::builder().set_cache_size(options.cache_bytes).create_with_backend(file)
}

/// A read that waits for the disk, on a thread that may.
async fn blocking<T: Send + 'static>(core: &Core, run: impl FnOnce() -> T + Send + 'static) -> T {
    if !core.options.background {
        return run();
    }
    match tokio::task::spawn_blocking(run).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is going down.
        Err(_) => std::future::pending().await,
    }
}

#[async_trait]
impl StateMachine for RedbMachine {
    async fn applied(&self) -> Result<LogId, Fatal> {
        Ok(self.core.view().applied)
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        let mut answers = self.apply_batch(vec![(at, command)]).await?;
        answers.pop().ok_or_else(|| Fatal::state_machine("a command has no answer"))
    }

    async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
        let Some(upto) = batch.last().map(|(at, _)| *at) else { return Ok(Vec::new()) };
        let core = self.core.clone();
        let answers = self.run(move || core.apply(batch, upto, |_| Vec::new())).await?;
        self.sweep();
        Ok(answers)
    }

    async fn apply_recorded(&mut self, mut batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        let core = self.core.clone();
        let apply = move || {
            let commands = std::mem::take(&mut batch.commands);
            core.apply(commands, batch.upto, |answers| batch.changes(answers))
        };
        let answers = self.run(apply).await?;
        self.sweep();
        Ok(answers)
    }

    async fn records(&self) -> Result<Option<Vec<Record>>, Fatal> {
        let core = self.core.clone();
        blocking(&self.core, move || core.records()).await.map(Some)
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Ok(Box::new(ImageChunks { core: self.core.clone(), image: Some(self.core.image()) }))
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        // What the image reflects is not told, so nothing is claimed.
        self.replace(image, Vec::new(), LogId::ZERO).await
    }

    async fn restore_recorded(
        &mut self,
        image: Box<dyn Chunks>,
        records: Vec<Record>,
        last: LogId,
    ) -> Result<(), Fatal> {
        self.replace(image, records, last).await
    }
}

impl Drop for RedbMachine {
    fn drop(&mut self) {
        self.core.stop.store(true, Ordering::Relaxed);
        if let Some(sweeper) = self.sweeper.take() {
            _ = sweeper.join();
        }
        // For whoever still waits for it.
        self.core.swept.send_replace(NEVER_SWEPT);
        if let Err(error) = self.core.close() {
            tracing::warn!(%error, "the last commands could not be made durable; the log has them");
        }
    }
}

/// An image as the framework reads it.
struct ImageChunks {
    core: Arc<Core>,
    image: Option<Image<Tables<Reading>>>,
}

#[async_trait]
impl Chunks for ImageChunks {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        let Some(mut image) = self.image.take() else { return Ok(None) };
        let core = self.core.clone();
        let (record, image) =
            blocking(&self.core, move || core.next_record(&mut image).map(|record| (record, image))).await?;
        self.image = record.is_some().then_some(image);
        Ok(record)
    }
}
