//! Images of the state machine, as files.

mod image;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{LogId, Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, StorageError};

use crate::directory::{self, Owner};
use crate::frame::{Identity, Salt};
use crate::vfs::{Access, Guard, OsVfs, Vfs, VfsFile, failed, give_back, remove_all, write_all};
#[cfg(feature = "testing")]
pub(crate) use image::seal;
use image::{Image, MAX_CHUNK};

const PUBLISHED: &str = ".snap";
const UNFINISHED: &str = ".part";

/// Images of the state machine, each in a file of its own with a checksum for each piece and a trailer.
///
/// An image is written to a file aside; what was appended is durable when [`SnapshotWriter::append`] returns, and is
/// found again by [`Snapshot::begin`] with the same meta, also after a crash (the last piece of up to 256 KiB is then fetched again).
/// Publishing renames the file, and only the newest image is kept. Of those that were left unfinished the newest is kept, while it is newer than
/// what is published and what is begun; others are removed at [`FileSnapshots::open`] and when another image is begun or published. Every
/// byte is verified when it is read.
#[derive(Clone, Debug)]
pub struct FileSnapshots(Arc<Store>);

#[derive(Debug)]
struct Store {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    owner: Owner,
    background: bool,
    latest: Mutex<Option<Arc<Image>>>,
    /// The last entry of the newest image that is kept elsewhere, if some are.
    elsewhere: Mutex<Option<LogId>>,
    /// Held while something is written.
    writing: Mutex<Writing>,
    _lock: Box<dyn Guard>,
}

#[derive(Debug, Default)]
struct Writing {
    /// The present writer of each image, while it lives.
    writers: BTreeMap<SnapshotId, Weak<()>>,
    /// How far the files of unfinished images are known to be durable, because this process synced them.
    durable: BTreeMap<SnapshotId, u64>,
    /// Files without a name, of which the room is to be given back.
    removed: Vec<Arc<dyn VfsFile>>,
    failed: Option<String>,
}

impl Writing {
    /// Whether a writer of this image lives.
    fn is_written(&self, id: SnapshotId) -> bool {
        self.writers.get(&id).is_some_and(|turn| turn.strong_count() > 0)
    }

    /// These images are gone.
    fn forget(&mut self, gone: impl Fn(SnapshotId) -> bool) {
        self.writers.retain(|id, _| !gone(*id));
        self.durable.retain(|id, _| !gone(*id));
    }
}

impl FileSnapshots {
    /// Opens the images in `dir`, a directory of their own, making it where it is missing. Blocks for a few milliseconds a GiB, and for some
    /// tenths of a second for each GiB that a crash has kept from being removed.
    ///
    /// # Errors
    /// * [`StorageError::Refused`]: the directory is in use, or another node's, cluster's or group's.
    /// * [`StorageError::Corrupt`]: the latest image is damaged, as far as its size and the headers of its pieces tell.
    /// * [`StorageError::Full`], [`StorageError::Io`]: as the operating system says.
    pub fn open(dir: impl AsRef<Path>, identity: Identity) -> Result<Self, StorageError> {
        Self::open_on(Arc::new(OsVfs), dir, identity, true)
    }

    /// Opens images on a file system of your own; see [`FileSnapshots::open`]. Without `background`, the caller's thread
    /// does all work: for tests and simulators.
    ///
    /// # Errors
    /// As there.
    pub fn open_on(
        vfs: Arc<dyn Vfs>,
        dir: impl AsRef<Path>,
        identity: Identity,
        background: bool,
    ) -> Result<Self, StorageError> {
        let dir = dir.as_ref();
        vfs.create_dir_all(dir).map_err(failed("create", dir))?;
        let lock = directory::lock(&*vfs, dir)?;
        let names = vfs.list(dir).map_err(failed("list", dir))?;
        let published: Vec<SnapshotId> = names.iter().filter_map(|name| parse(name, PUBLISHED)).collect();
        let owner = directory::claim(&*vfs, dir, directory::LOG, identity, !published.is_empty())?;
        let store = Store {
            vfs,
            dir: dir.to_owned(),
            owner,
            background,
            latest: Mutex::default(),
            elsewhere: Mutex::default(),
            writing: Mutex::default(),
            _lock: lock,
        };
        let mut latest: Option<Image> = None;
        for id in published {
            let image = store.image(id)?;
            // Two are there when a crash came between publishing one and removing the other.
            if latest.as_ref().is_none_or(|latest| latest.meta.last <= image.meta.last) {
                latest = Some(image);
            }
        }
        if latest.is_some() {
            // A process that was killed while it published may have left the name in memory alone, and the log is cut up to there now.
            store.sync_dir()?;
        }
        *locked(&store.latest) = latest.map(Arc::new);
        store.write(|writing| store.tidy(writing, None))?;
        Ok(Self(Arc::new(store)))
    }

    /// The latest image, as [`Snapshot::latest`] tells it.
    #[must_use]
    pub fn published(&self) -> Option<Published> {
        let latest = locked(&self.0.latest);
        let published =
            |image: &Arc<Image>| Published { meta: image.meta.clone(), len: image.bytes, checksum: image.checksum };
        latest.as_ref().map(published)
    }

    /// For a store that keeps some of its images elsewhere, and is about to begin one: removes what [`Snapshot::begin`] would remove, and tells
    /// whether that would go on with an unfinished image. Blocks.
    ///
    /// # Errors
    /// The store can't be written to.
    pub fn prepare(&self, meta: &SnapshotMeta) -> Result<bool, StorageError> {
        self.0.prepare(meta)
    }

    /// For a store that keeps some of its images elsewhere, and has published one there that reflects everything up to `last`: removes images
    /// that reflect no more than that, unfinished ones that nobody writes among them. One that reflects less and is published later comes too late, and
    /// is dropped. Blocks.
    ///
    /// # Errors
    /// The store can't be written to.
    pub fn retire(&self, last: LogId) -> Result<(), StorageError> {
        self.0.retire(last)
    }
}

/// The image that a file name stands for, if it does.
fn parse(name: &str, suffix: &str) -> Option<SnapshotId> {
    let digits = name.strip_suffix(suffix)?;
    let id = SnapshotId(u64::from_str_radix(digits, 16).ok()?);
    (id.to_string() == digits).then_some(id)
}

/// Nothing that holds these locks can leave its data half-changed, so a poisoned one holds good data.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    fn path(&self, id: SnapshotId, suffix: &str) -> PathBuf {
        self.dir.join(format!("{id}{suffix}"))
    }

    fn salt(&self, id: SnapshotId) -> Salt {
        Salt::new(self.owner.nonce, id.0)
    }

    fn whose(&self) -> image::Owner {
        (self.owner.identity.cluster, self.owner.identity.group)
    }

    fn image(&self, id: SnapshotId) -> Result<Image, StorageError> {
        let path = self.path(id, PUBLISHED);
        let file = self.vfs.open(&path, Access::Read).map_err(failed("open", &path))?;
        let image = Image::open(file, path, self.whose(), self.salt(id))?;
        if image.meta.id == id {
            return Ok(image);
        }
        // Taken for another, its file would be removed.
        let (path, reason) = (image.path.display().to_string(), format!("it says that it is image {}", image.meta.id));
        Err(StorageError::Corrupt { path, offset: Some(0), index: None, reason })
    }

    /// Removes what nobody needs any more: images that are superseded, and of the unfinished ones that nobody writes all but the newest. That one
    /// goes as well when the latest image, or the one that is about to be `begun`, is as new.
    fn tidy(&self, writing: &mut Writing, begun: Option<&SnapshotMeta>) -> Result<(), StorageError> {
        let latest = locked(&self.latest).as_ref().map(|latest| (latest.meta.id, latest.meta.last));
        let elsewhere = *locked(&self.elsewhere);
        let mut gone = Vec::new();
        let mut newest: Option<(LogId, SnapshotId)> = None;
        for name in self.vfs.list(&self.dir).map_err(failed("list", &self.dir))? {
            if let Some(id) = parse(&name, PUBLISHED) {
                let superseded = latest.is_some_and(|(latest, _)| latest != id);
                gone.extend(superseded.then(|| self.path(id, PUBLISHED)));
            } else if let Some(id) = parse(&name, UNFINISHED)
                && begun.is_none_or(|begun| begun.id != id)
                && !writing.is_written(id)
            {
                let floor = latest.map(|(_, last)| last).max(elsewhere).max(begun.map(|begun| begun.last));
                let last = self.last_of_unfinished(id)?.filter(|last| floor.is_none_or(|floor| *last > floor));
                let older = match last {
                    Some(last) if newest.is_none_or(|(newest, _)| newest < last) => {
                        newest.replace((last, id)).map(|(_, id)| id)
                    }
                    Some(_) | None => Some(id),
                };
                gone.extend(older.map(|id| self.path(id, UNFINISHED)));
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        writing.removed.extend(remove_all(&*self.vfs, &self.dir, &gone)?);
        tracing::debug!(?gone, "removed images that nobody needs");
        writing.forget(|id| gone.contains(&self.path(id, UNFINISHED)));
        Ok(())
    }

    /// Removes an image that was the latest.
    fn remove_former(&self, writing: &mut Writing, image: Arc<Image>) -> Result<(), StorageError> {
        let path = image.path.clone();
        let removed = remove_all(&*self.vfs, &self.dir, &[path])?;
        // Whoever is reading it must find all of it.
        if Arc::try_unwrap(image).is_ok() {
            writing.removed.extend(removed);
        }
        Ok(())
    }

    /// The last entry that an unfinished image would reflect; none when not even its header is whole.
    fn last_of_unfinished(&self, id: SnapshotId) -> Result<Option<LogId>, StorageError> {
        let path = self.path(id, UNFINISHED);
        let file = self.vfs.open(&path, Access::Read).map_err(failed("open", &path))?;
        let meta = image::meta_of(&*file, self.salt(id)).map_err(failed("read", &path))?;
        Ok(meta.map(|meta| meta.last))
    }

    fn sync_dir(&self) -> Result<(), StorageError> {
        self.vfs.sync_dir(&self.dir).map_err(failed("fsync", &self.dir))
    }

    /// Does something that writes, if nothing that wrote has failed before; a failure sticks.
    fn write<T>(&self, work: impl FnOnce(&mut Writing) -> Result<T, StorageError>) -> Result<T, StorageError> {
        let mut writing = locked(&self.writing);
        if let Some(reason) = &writing.failed {
            return Err(StorageError::Sticky(reason.clone()));
        }
        let done = work(&mut writing);
        if let Err(error @ (StorageError::Io { .. } | StorageError::Full { .. })) = &done {
            tracing::error!(%error, "the snapshot store failed, and takes no more writes");
            writing.failed = Some(error.to_string());
        }
        // What is durable is durable without that, and others may go on.
        let removed = std::mem::take(&mut writing.removed);
        drop(writing);
        removed.iter().for_each(|file| give_back(&**file));
        done
    }

    fn begin(&self, meta: SnapshotMeta) -> Result<Progress, StorageError> {
        self.write(|writing| {
            // First of all: on a disk that is nearly full, what was left off may have the room that this one needs.
            self.tidy(writing, Some(&meta))?;
            let path = self.path(meta.id, UNFINISHED);
            let progress = match self.resume(&meta, &path, writing.durable.get(&meta.id).copied())? {
                Some(progress) => progress,
                None => self.start(&meta, &path)?,
            };
            writing.durable.insert(meta.id, progress.end);
            writing.writers.insert(meta.id, Arc::downgrade(&progress.turn));
            Ok(progress)
        })
    }

    fn prepare(&self, meta: &SnapshotMeta) -> Result<bool, StorageError> {
        self.write(|writing| {
            self.tidy(writing, Some(meta))?;
            let path = self.path(meta.id, UNFINISHED);
            match self.vfs.open(&path, Access::Read) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
                Err(e) => Err(failed("open", &path)(e)),
                Ok(file) => {
                    let found = image::meta_of(&*file, self.salt(meta.id)).map_err(failed("read", &path))?;
                    Ok(found.as_ref() == Some(meta))
                }
            }
        })
    }

    fn retire(&self, last: LogId) -> Result<(), StorageError> {
        self.write(|writing| {
            *locked(&self.elsewhere) = Some(last);
            let retired = {
                let mut latest = locked(&self.latest);
                if latest.as_ref().is_some_and(|latest| latest.meta.last <= last) { latest.take() } else { None }
            };
            if let Some(image) = retired {
                self.remove_former(writing, image)?;
            }
            self.tidy(writing, None)
        })
    }

    /// Goes on with what is there. A frame that another follows had been synced; of the last one this process may know.
    fn resume(&self, meta: &SnapshotMeta, path: &Path, durable: Option<u64>) -> Result<Option<Progress>, StorageError> {
        let file = match self.vfs.open(path, Access::Write) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("open", path))?,
        };
        let found = image::scan(&*file, self.salt(meta.id)).map_err(failed("read", path))?;
        let Some(mut found) = found.filter(|found| found.meta == *meta && found.owner == self.whose()) else {
            return Ok(None);
        };
        if durable.is_none_or(|durable| durable < found.end) {
            // The header is proven by the first frame, so without one there is nothing to go on with.
            let Some((last, before)) = found.pieces.pop() else { return Ok(None) };
            (found.bytes, found.end, found.checksum) = (last.at, last.offset, before);
            if found.pieces.is_empty() {
                return Ok(None);
            }
        }
        file.set_len(found.end).map_err(failed("truncate", path))?;
        Ok(Some(Progress {
            turn: Arc::default(),
            file,
            bytes: found.bytes,
            end: found.end,
            chunks: found.pieces.len() as u64,
            checksum: found.checksum,
        }))
    }

    fn start(&self, meta: &SnapshotMeta, path: &Path) -> Result<Progress, StorageError> {
        let header = image::header(meta, self.whose(), self.salt(meta.id));
        let file = self.vfs.open(path, Access::Create).map_err(failed("create", path))?;
        write_all(&*file, &header, 0).map_err(failed("write", path))?;
        file.sync_data().map_err(failed("fsync", path))?;
        self.sync_dir()?;
        Ok(Progress { turn: Arc::default(), file, bytes: 0, end: header.len() as u64, chunks: 0, checksum: 0 })
    }

    fn append(&self, id: SnapshotId, progress: &mut Progress, data: &[u8]) -> Result<(), StorageError> {
        self.write(|writing| {
            progress.check_turn(id, writing)?;
            let path = self.path(id, UNFINISHED);
            let mut buf = Vec::with_capacity(data.len().min(MAX_CHUNK) + 64);
            for piece in data.chunks(MAX_CHUNK) {
                // Each is synced before the next is written, so that a later one vouches for it.
                buf.clear();
                image::chunk(&mut buf, piece, self.salt(id), progress.end);
                write_all(&*progress.file, &buf, progress.end).map_err(failed("write", &path))?;
                progress.file.sync_data().map_err(failed("fsync", &path))?;
                progress.bytes += piece.len() as u64;
                progress.end += buf.len() as u64;
                progress.chunks += 1;
                progress.checksum = crc32c::crc32c_append(progress.checksum, piece);
                writing.durable.insert(id, progress.end);
            }
            Ok(())
        })
    }

    fn publish(&self, meta: &SnapshotMeta, progress: &Progress) -> Result<(), StorageError> {
        self.write(|writing| {
            progress.check_turn(meta.id, writing)?;
            let (from, to) = (self.path(meta.id, UNFINISHED), self.path(meta.id, PUBLISHED));
            let mut buf = Vec::new();
            let told = (progress.bytes, progress.chunks, progress.checksum);
            image::trailer(&mut buf, told, self.salt(meta.id), progress.end);
            write_all(&*progress.file, &buf, progress.end).map_err(failed("write", &from))?;
            progress.file.sync_data().map_err(failed("fsync", &from))?;
            writing.writers.remove(&meta.id);
            writing.durable.remove(&meta.id);
            let here = locked(&self.latest).as_ref().map(|latest| latest.meta.last);
            if here.max(*locked(&self.elsewhere)).is_some_and(|newest| newest > meta.last) {
                // It came too late: a newer one has been published meanwhile.
                return self.tidy(writing, None);
            }
            self.vfs.rename(&from, &to).map_err(failed("rename", &from))?;
            self.sync_dir()?;
            let image = Arc::new(self.image(meta.id)?);
            let former = locked(&self.latest).replace(image);
            tracing::info!(image = %meta.id, last = %meta.last, bytes = progress.bytes, "published a snapshot");
            if let Some(former) = former.filter(|former| former.meta.id != meta.id) {
                self.remove_former(writing, former)?;
            }
            self.tidy(writing, None)
        })
    }

    fn discard(&self, id: SnapshotId, progress: &Progress) -> Result<(), StorageError> {
        self.write(|writing| {
            progress.check_turn(id, writing)?;
            writing.writers.remove(&id);
            writing.durable.remove(&id);
            writing.removed.extend(remove_all(&*self.vfs, &self.dir, &[self.path(id, UNFINISHED)])?);
            Ok(())
        })
    }
}

/// How far an image is written.
#[derive(Debug)]
struct Progress {
    /// Tells this writer from one that began the image anew.
    turn: Arc<()>,
    file: Arc<dyn VfsFile>,
    bytes: u64,
    end: u64,
    chunks: u64,
    checksum: u32,
}

impl Progress {
    fn check_turn(&self, id: SnapshotId, writing: &Writing) -> Result<(), StorageError> {
        let present = writing.writers.get(&id).and_then(Weak::upgrade);
        if present.is_some_and(|turn| Arc::ptr_eq(&turn, &self.turn)) {
            return Ok(());
        }
        Err(StorageError::Misuse(format!("image {id} was begun again meanwhile, or is published")))
    }
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

#[async_trait]
impl Snapshot for FileSnapshots {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        Ok(self.published())
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        let Some(image) = locked(&self.0.latest).clone().filter(|image| image.meta.id == *id) else {
            return Err(StorageError::Misuse(format!("there is no image {id}: a newer one may have replaced it")));
        };
        blocking(self.0.background, move || image.read(offset, max)).await
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let store = Arc::clone(&self.0);
        let named = meta.clone();
        let progress = blocking(self.0.background, move || store.begin(named)).await?;
        let (offset, checksum) = (progress.bytes, progress.checksum);
        Ok(Box::new(Writer { offset, checksum, store: Arc::clone(&self.0), meta, progress: Some(progress) }))
    }
}

#[derive(Debug)]
struct Writer {
    store: Arc<Store>,
    meta: SnapshotMeta,
    offset: u64,
    checksum: u32,
    /// Away while a piece is being written; it stays away when that was cancelled.
    progress: Option<Progress>,
}

impl Writer {
    fn take(&mut self) -> Result<Progress, StorageError> {
        let lost = || StorageError::Misuse("an earlier append was cancelled: begin the image again".into());
        self.progress.take().ok_or_else(lost)
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn checksum(&self) -> u32 {
        self.checksum
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        let (store, id, mut progress) = (Arc::clone(&self.store), self.meta.id, self.take()?);
        let appended = blocking(store.background, move || {
            store.append(id, &mut progress, &chunk)?;
            Ok(progress)
        });
        let progress = appended.await?;
        (self.offset, self.checksum) = (progress.bytes, progress.checksum);
        self.progress = Some(progress);
        Ok(())
    }

    async fn discard(mut self: Box<Self>) -> Result<(), StorageError> {
        let (store, id, progress) = (Arc::clone(&self.store), self.meta.id, self.take()?);
        blocking(store.background, move || store.discard(id, &progress)).await
    }

    async fn publish(mut self: Box<Self>) -> Result<(), StorageError> {
        let (store, meta, progress) = (Arc::clone(&self.store), self.meta.clone(), self.take()?);
        blocking(store.background, move || store.publish(&meta, &progress)).await
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::sim::SimDisk;
    use raftkv::{ClusterId, GroupId, Membership, NodeId};

    async fn write(store: &FileSnapshots, n: u64, data: &Bytes) -> Result<(), StorageError> {
        let meta = SnapshotMeta {
            id: SnapshotId(n),
            last: LogId::new(1, n),
            membership: Membership::default(),
            membership_at: LogId::default(),
        };
        let mut writer = store.begin(meta).await?;
        writer.append(data.clone()).await?;
        writer.publish().await
    }

    /// The file of the latest image was removed, as that called itself another, and the next could not be published. (Found by fuzzing.)
    #[tokio::test]
    async fn an_image_that_calls_itself_another_is_damaged() {
        let identity = Identity { cluster: ClusterId(1), node: NodeId(1), group: GroupId(1) };
        let disk = SimDisk::new();
        let open = || FileSnapshots::open_on(Arc::new(disk.clone()), "/images", identity, false);
        let store = open().unwrap();
        write(&store, 1, &Bytes::from_static(b"image")).await.unwrap();
        let (whose, salt) = (store.0.whose(), store.0.salt(SnapshotId(1)));
        let path = store.0.path(SnapshotId(1), PUBLISHED);
        let meta = SnapshotMeta { id: SnapshotId(9), ..store.published().unwrap().meta };
        drop(store);
        write_all(&*disk.open(&path, Access::Write).unwrap(), &image::header(&meta, whose, salt), 0).unwrap();
        let error = open().unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("image 0000000000000009"), "{error}");
        assert!(disk.contents(&path).is_some());
    }

    /// A node that sends an image may write the next one meanwhile.
    #[tokio::test]
    async fn an_image_that_is_being_read_is_not_cut_when_the_next_takes_its_place() {
        let identity = Identity { cluster: ClusterId(1), node: NodeId(1), group: GroupId(1) };
        let disk = SimDisk::new();
        let store = FileSnapshots::open_on(Arc::new(disk.clone()), "/images", identity, false).unwrap();
        let data = Bytes::from(vec![7; 18 << 20]);
        write(&store, 1, &data).await.unwrap();
        let read = locked(&store.0.latest).clone().unwrap();
        write(&store, 2, &data).await.unwrap();
        let end = data.len() as u64 - 1000;
        assert_eq!(read.read(end, 1000).unwrap(), data.slice(data.len() - 1000..));
        // Of this one nobody reads.
        let unread = disk.open(&store.0.path(SnapshotId(2), PUBLISHED), Access::Read).unwrap();
        let full = unread.len().unwrap();
        write(&store, 3, &data).await.unwrap();
        assert!(unread.len().unwrap() < full, "its room is given back at once");
        assert_eq!(disk.files().iter().filter(|path| path.extension().is_some_and(|end| end == "snap")).count(), 1);
    }
}
