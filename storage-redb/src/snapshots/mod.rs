//! Images of the state machine: small ones in a database, large ones in files beside it.

pub(crate) mod record;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, StorageError};
use raftkv_storage_file::{FileSnapshots, Identity, OsVfs, Vfs};
use redb::{ReadTransaction, WriteTransaction};

use crate::Commit;
use crate::error::{Trouble, corrupt};
use crate::volume::{Found, Plan, Volume};
use record::{IMAGE, STATE, State};
use writer::Writer;

/// What can be chosen about the images. The defaults suit a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// The line between small images and large ones, in bytes: what has more is kept in a file beside the database. 256 KiB by default. An image
    /// is in memory as a whole until it crosses the line.
    pub small_bytes: usize,
    /// How a small image gets to the disk.
    pub commit: Commit,
    /// Whether blocking work is left to tokio's blocking threads. Without, whoever calls does it: for tests and simulators.
    pub background: bool,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self { small_bytes: 256 << 10, commit: Commit::default(), background: true }
    }
}

/// Images of the state machine, in a directory of their own.
///
/// A small image ([`SnapshotOptions::small_bytes`]) is collected in memory and goes into a database of redb when it is published, in one
/// transaction: before that nothing of it is durable, so the next process begins it anew. An image that becomes larger moves to a
/// file of [`FileSnapshots`], which are resumed after a crash. Only the newest image is kept, wherever it is; where a crash left one in both places,
/// the newer counts. The database is not that of the log: a commit of one would wait for the other's.
#[derive(Clone, Debug)]
pub struct RedbSnapshots(Arc<Store>);

#[derive(Debug)]
struct Store {
    volume: Volume,
    files: FileSnapshots,
    options: SnapshotOptions,
    /// The image in the database.
    small: Mutex<Small>,
    /// Images that are being written, or are left off in memory.
    unfinished: Mutex<BTreeMap<SnapshotId, Unfinished>>,
    /// The number of the last commit. Held while something is written to the database, and while anything is decided or done that
    /// makes a published image go on account of another: two images may be published at the same time. `files` has a lock of its own, which
    /// is taken after this one.
    writing: Mutex<u64>,
    /// What failed first.
    failed: OnceLock<String>,
}

/// The image in the database, as of a commit.
#[derive(Clone, Debug)]
struct Small {
    commit: u64,
    image: Option<Arc<Published>>,
}

#[derive(Debug)]
struct Unfinished {
    meta: SnapshotMeta,
    /// Alive as long as the present writer of it is.
    turn: Weak<()>,
    /// None once it has moved to a file.
    bytes: Option<Vec<u8>>,
}

/// Nothing that holds these locks can leave its data half-changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs blocking work where it disturbs nobody.
async fn blocking<T: Send + 'static>(
    background: bool,
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) if background => {
            let done = runtime.spawn_blocking(work).await;
            done.map_err(|e| StorageError::Sticky(format!("the work was stopped: {e}")))?
        }
        Ok(_) | Err(_) => work(),
    }
}

impl RedbSnapshots {
    /// Opens the images in `dir`, a directory of their own, making it where it is missing. Blocks for some milliseconds.
    ///
    /// # Errors
    /// * [`StorageError::Refused`]: the directory is in use, or another node's, cluster's, group's or kind of store's.
    /// * [`StorageError::Corrupt`]: the latest image is damaged, as far as can be told without reading a large one.
    /// * [`StorageError::Full`], [`StorageError::Io`]: as the operating system says.
    pub fn open(dir: impl AsRef<Path>, identity: Identity, options: SnapshotOptions) -> Result<Self, StorageError> {
        Self::open_on(Arc::new(OsVfs), dir, identity, options)
    }

    /// Opens images on a file system of your own; see [`RedbSnapshots::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open_on(
        vfs: Arc<dyn Vfs>,
        dir: impl AsRef<Path>,
        identity: Identity,
        options: SnapshotOptions,
    ) -> Result<Self, StorageError> {
        let dir = dir.as_ref();
        // A small image is all that is ever in the database.
        let cache_bytes = 4 * options.small_bytes.max(64 << 10);
        let SnapshotOptions { commit, background, .. } = options;
        let plan = Plan { kind: "redb images", file: "images.redb", commit, cache_bytes, background };
        let (volume, state) = Volume::open(&vfs, dir, plan, identity, make, check)?;
        let files = FileSnapshots::open_on(vfs, dir.join("files"), identity, options.background)?;
        let store = Store {
            volume,
            files,
            options,
            small: Mutex::new(Small { commit: state.sequence, image: state.image.map(Arc::new) }),
            unfinished: Mutex::default(),
            writing: Mutex::new(state.sequence),
            failed: OnceLock::new(),
        };
        store.choose()?;
        Ok(Self(Arc::new(store)))
    }
}

/// Fills a new database: its first commit.
fn make(transaction: &WriteTransaction, nonce: u64) -> Result<(), Trouble> {
    drop(transaction.open_table(IMAGE)?);
    let state = State { sequence: 1, image: None };
    transaction.open_table(STATE)?.insert(0, state.encode(nonce).as_slice())?;
    Ok(())
}

fn check(found: &Found<'_>) -> Result<(State, u64), Trouble> {
    let state = read_state(&found.contents, found.nonce, found.path)?;
    if let Some(image) = &state.image {
        read_image(&found.contents, image, found.path)?;
    }
    let sequence = state.sequence;
    Ok((state, sequence))
}

fn read_state(transaction: &ReadTransaction, nonce: u64, path: &Path) -> Result<State, Trouble> {
    let table = transaction.open_table(STATE)?;
    let value = table.get(0)?.ok_or_else(|| corrupt(path, None, "the state of the images is missing"))?;
    State::decode(value.value(), nonce).map_err(|reason| corrupt(path, None, reason).into())
}

/// The bytes of the image, verified.
fn read_image(transaction: &ReadTransaction, image: &Published, path: &Path) -> Result<Bytes, Trouble> {
    let damaged = |reason: &str| corrupt(path, None, format!("image {}: {reason}", image.meta.id));
    let table = transaction.open_table(IMAGE)?;
    let value = table.get(0)?.ok_or_else(|| damaged("its bytes are missing"))?;
    let bytes = value.value();
    if bytes.len() as u64 != image.len || crc32c::crc32c(bytes) != image.checksum {
        return Err(damaged("the checksum of its bytes does not match").into());
    }
    Ok(Bytes::copy_from_slice(bytes))
}

impl Store {
    /// Of two images, which a crash can leave, only the newer one stays.
    fn choose(&self) -> Result<(), StorageError> {
        self.drop_superseded()?;
        match self.small() {
            Some(small) => self.files.retire(small.meta.last),
            None => Ok(()),
        }
    }

    fn small(&self) -> Option<Arc<Published>> {
        locked(&self.small).image.clone()
    }

    fn check_running(&self) -> Result<(), StorageError> {
        match self.failed.get() {
            Some(reason) => Err(StorageError::Sticky(reason.clone())),
            None => Ok(()),
        }
    }

    /// Publishes an image in the database, unless a newer one is published, and removes files that it supersedes.
    fn publish(&self, image: Published, bytes: Vec<u8>) -> Result<(), StorageError> {
        let mut writing = locked(&self.writing);
        let (id, last) = (image.meta.id, image.meta.last);
        if self.latest().is_some_and(|latest| latest.meta.last > last) {
            // It came too late.
            return Ok(());
        }
        self.put(&mut writing, Some((image, bytes)))?;
        tracing::info!(image = %id, %last, "published a small snapshot");
        self.files.retire(last)
    }

    /// Takes the image out of the database if one in a file supersedes it.
    fn drop_superseded(&self) -> Result<(), StorageError> {
        let mut writing = locked(&self.writing);
        // No file that is published now goes on account of an image in the database before this is done.
        if let (Some(small), Some(large)) = (self.small(), self.files.published())
            && small.meta.last <= large.meta.last
        {
            self.put(&mut writing, None)?;
        }
        Ok(())
    }

    /// Puts an image into the database, in place of the one that is there, or takes that one out.
    fn put(&self, sequence: &mut u64, image: Option<(Published, Vec<u8>)>) -> Result<(), StorageError> {
        self.check_running()?;
        let (published, bytes) = image.unzip();
        let state = State { sequence: *sequence + 1, image: published };
        let done = self.volume.write("write", |transaction| {
            let mut table = transaction.open_table(IMAGE)?;
            match &bytes {
                Some(bytes) => drop(table.insert(0, bytes.as_slice())?),
                None => drop(table.remove(0)?),
            }
            let mut table = transaction.open_table(STATE)?;
            table.insert(0, state.encode(self.volume.nonce()).as_slice())?;
            Ok(())
        });
        if let Err(error) = done {
            tracing::error!(%error, "the snapshot store failed, and takes no more writes");
            let _ = self.failed.set(error.to_string());
            return Err(error);
        }
        *sequence = state.sequence;
        *locked(&self.small) = Small { commit: state.sequence, image: state.image.map(Arc::new) };
        self.volume.settle(state.sequence);
        Ok(())
    }

    /// Gives an image to a new writer, and tells how many bytes of it are in memory, and their checksum.
    fn begin(&self, meta: &SnapshotMeta, turn: &Arc<()>, in_file: bool) -> (u64, u32) {
        let mut unfinished = locked(&self.unfinished);
        let before = unfinished.remove(&meta.id).filter(|before| before.meta == *meta && !in_file);
        // What else is left off in memory is small enough to be begun anew.
        unfinished.retain(|_, unfinished| unfinished.turn.strong_count() > 0);
        let bytes = (!in_file).then(|| before.and_then(|before| before.bytes).unwrap_or_default());
        let begun = bytes.as_ref().map_or((0, 0), |bytes| (bytes.len() as u64, crc32c::crc32c(bytes)));
        unfinished.insert(meta.id, Unfinished { meta: meta.clone(), turn: Arc::downgrade(turn), bytes });
        begun
    }

    /// Reads from the image in the database.
    fn read(&self, image: &Published, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        let bytes = self.volume.read("read", |transaction| {
            let there = read_state(&transaction, self.volume.nonce(), self.volume.path())?.image;
            if there.as_ref() != Some(image) {
                return Ok(None);
            }
            read_image(&transaction, image, self.volume.path()).map(Some)
        })?;
        let bytes = bytes.ok_or_else(|| {
            StorageError::Misuse(format!("there is no image {}: a newer one has replaced it", image.meta.id))
        })?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        Ok(bytes.slice(from..from.saturating_add(max).min(bytes.len())))
    }

    /// The newest image, wherever it is.
    fn latest(&self) -> Option<Published> {
        let mut small = locked(&self.small).clone();
        loop {
            let large = self.files.published();
            let now = locked(&self.small).clone();
            if now.commit == small.commit {
                let small = small.image.map(|image| (*image).clone());
                let newer = |large: &Published| small.as_ref().is_none_or(|small| small.meta.last < large.meta.last);
                return large.filter(newer).or(small);
            }
            // An image came or went between the looks at the two places: one that moves from one to the other could be missed in both.
            small = now;
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let sequence = *self.writing.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.volume.close(self.failed.get().is_none().then_some(sequence));
    }
}

#[async_trait]
impl Snapshot for RedbSnapshots {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        Ok(self.0.latest())
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        let Some(image) = self.0.small().filter(|image| image.meta.id == *id) else {
            return self.0.files.read(id, offset, max).await;
        };
        let store = Arc::clone(&self.0);
        blocking(self.0.options.background, move || store.read(&image, offset, max)).await
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let store = Arc::clone(&self.0);
        store.check_running()?;
        let (files, named) = (store.files.clone(), meta.clone());
        let in_file = blocking(store.options.background, move || files.prepare(&named)).await?;
        let turn = Arc::new(());
        let begun = store.begin(&meta, &turn, in_file);
        if in_file {
            let file = store.files.begin(meta.clone()).await?;
            return Ok(Box::new(Writer::in_file(store, meta, turn, file)));
        }
        Ok(Box::new(Writer::in_memory(store, meta, turn, begun)))
    }
}
