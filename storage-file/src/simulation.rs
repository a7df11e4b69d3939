//! The log and the snapshots of a simulated node, on a disk that fails in every way that [`SimDisk`] knows: for
//! [`raftkv::testing::simulation::node`] (feature `testing`).

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::Random;
use raftkv::testing::simulation::node::{DiskFault, Outage, Site, Stores};
use raftkv::{
    Entry, Index, LogId, LogState, LogStore, LogWrite, Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter,
    StorageError,
};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::directory::{Owner, SyncedNote};
use crate::dump::{DumpVerdict, verdict};
use crate::recovery::Home;
use crate::sim::{Fate, SECTOR, SimDisk};
use crate::{FileLog, FileSnapshots, Identity, Options};

const LOG: &str = "/log";
const SNAPSHOTS: &str = "/snapshots";

/// An open log, and where the images are.
pub type Opened = (Arc<dyn LogStore>, Arc<dyn Snapshot>);

/// A kind of log and snapshots that can be put on a simulated disk.
pub trait Kind: fmt::Debug + Default + Send + 'static {
    /// Chooses sizes and the like. The random numbers are the same in each run of a node.
    fn choose(&mut self, random: &mut Random);

    /// Looks at what an outage or a fault left, before it is opened, and tells the simulation.
    fn cover(&self, disk: &SimDisk, suffered: Suffered, site: &Site) {
        let _ = (disk, suffered, site);
    }

    /// Opens the log in `/log`, and the snapshots.
    ///
    /// # Errors
    /// As the stores have them.
    fn open(&self, disk: &SimDisk, identity: Identity) -> Result<Opened, StorageError>;

    /// Whether this file of the log holds entries, and not what is kept beside them.
    fn holds_entries(&self, path: &Path) -> bool;
}

/// What has befallen a disk since its log was opened last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Suffered {
    /// Power was lost.
    pub power_loss: bool,
    /// A sync was to fail.
    pub failed_sync: bool,
}

/// A log and snapshots of a kind on a simulated disk of their own.
///
/// A loss of power decides for every sector, length and name that was not synced; the end of the process keeps the page cache;
/// a failed sync forgets; the disk is full, slow, stuck, or damaged. Sizes and latency differ from node to node.
#[derive(Debug, Default)]
pub struct DiskStores<K> {
    kind: K,
    disk: SimDisk,
    pace: Arc<Pace>,
    suffered: Suffered,
    full: bool,
    /// Of the last time it was opened.
    seam: Option<Arc<Seam>>,
}

/// A [`FileLog`] and [`FileSnapshots`] on a simulated disk.
pub type FileStores = DiskStores<Files>;

/// The stores of this crate.
#[derive(Debug, Default)]
pub struct Files {
    options: Options,
    /// Of the disk, for writes past the cache.
    block: Option<usize>,
}

impl Kind for Files {
    fn choose(&mut self, random: &mut Random) {
        let segment_bytes = random.pick(&[3072, 8192, 32 << 10]).unwrap_or(8192);
        let align = random.pick(&[512, 512, 4096]).unwrap_or(512);
        self.options = Options {
            segment_bytes: segment_bytes.max(2 * u64::from(align)),
            align,
            direct_from: 4096,
            background: false,
        };
        self.block = match (segment_bytes, align) {
            (3072, _) => None,
            (8192, _) | (_, 4096) => Some(4096),
            _ => Some(512),
        };
    }

    fn cover(&self, disk: &SimDisk, suffered: Suffered, site: &Site) {
        if suffered.power_loss && is_torn(disk) {
            site.hit("torn writes recovered");
            site.note("finds a torn write");
        }
        if disk.direct_writes() > 0 {
            site.hit("writes past the page cache");
        }
        if suffered.failed_sync && is_unsure(disk) {
            site.hit("last batches written anew after a failed sync");
        }
    }

    fn open(&self, disk: &SimDisk, identity: Identity) -> Result<Opened, StorageError> {
        disk.set_direct_block(self.block);
        let vfs = Arc::new(disk.clone());
        let log = FileLog::open_on(vfs.clone(), LOG, identity, self.options)?;
        Ok((Arc::new(log), Arc::new(FileSnapshots::open_on(vfs, SNAPSHOTS, identity, false)?)))
    }

    fn holds_entries(&self, path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "wal")
    }
}

/// Whether the log ends in a torn batch.
fn is_torn(disk: &SimDisk) -> bool {
    let (vfs, dir) = (Arc::new(disk.clone()), PathBuf::from(LOG));
    let Ok(Some(owner)) = Owner::read(&*vfs, &dir) else { return false };
    let home = Home { vfs, dir, owner };
    matches!(verdict(&home), Ok(DumpVerdict::Sound { torn, .. }) if torn > 0)
}

/// Whether the note of what was synced is behind the log: its last batch is written anew.
fn is_unsure(disk: &SimDisk) -> bool {
    let (vfs, dir) = (Arc::new(disk.clone()), PathBuf::from(LOG));
    let Ok(Some(owner)) = Owner::read(&*vfs, &dir) else { return false };
    let noted = SyncedNote::peek(&*vfs, &dir, owner.nonce);
    let home = Home { vfs, dir, owner };
    matches!(verdict(&home), Ok(DumpVerdict::Sound { sequence, .. }) if sequence > noted)
}

/// How fast the disk is at the moment. It outlives restarts.
#[derive(Debug, Default)]
struct Pace {
    state: Mutex<PaceState>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct PaceState {
    latency: Duration,
    stalled: bool,
}

impl Pace {
    fn state(&self) -> MutexGuard<'_, PaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the disk is stuck.
    async fn wait(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.state().stalled {
                return;
            }
            changed.await;
        }
    }
}

impl<K: Kind> DiskStores<K> {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk as it is now.
    #[must_use]
    pub fn sim(&self) -> &SimDisk {
        &self.disk
    }

    /// The disk as it was opened last, for what is kept on it beside log and images.
    #[must_use]
    pub fn slow_disk(&self) -> Option<SlowDisk> {
        self.seam.clone().map(SlowDisk)
    }

    /// Chooses a file of the log, and a place in it that was written to.
    fn place(&self, random: &mut Random) -> Option<(PathBuf, Vec<u8>, usize)> {
        let files: Vec<PathBuf> =
            self.disk.files().into_iter().filter(|path| path.parent() == Some(Path::new(LOG))).collect();
        let entries: Vec<PathBuf> = files.iter().filter(|path| self.kind.holds_entries(path)).cloned().collect();
        let among = if random.percent(85) { entries } else { files };
        let path = random.pick(&among)?;
        let bytes = self.disk.contents(&path)?;
        let written = bytes.iter().rposition(|byte| *byte != 0)? + 1;
        let at = usize::try_from(random.below(written as u64)).ok()?;
        Some((path, bytes, at))
    }

    fn damage(&self, fault: DiskFault, random: &mut Random) -> bool {
        let Some((path, bytes, at)) = self.place(random) else { return false };
        if fault == DiskFault::Rot {
            self.disk.flip(&path, at, 1 << random.below(8));
            return true;
        }
        // A whole sector of the log at the place of another.
        let Some((_, other, from)) = self.place(random) else { return false };
        let sector = |at: usize| at / SECTOR * SECTOR..(at / SECTOR * SECTOR + SECTOR);
        let Some(wrong) = other.get(sector(from)) else { return false };
        if bytes.get(sector(at)).is_none_or(|right| right == wrong) {
            return false;
        }
        self.disk.misdirect(&path, sector(at).start, wrong);
        true
    }
}

#[async_trait]
impl<K: Kind> Stores for DiskStores<K> {
    async fn open(&mut self, site: &Site) -> Result<Opened, StorageError> {
        self.kind.cover(&self.disk, std::mem::take(&mut self.suffered), site);
        let mut random = Random::new(site.seed);
        self.kind.choose(&mut random);
        let usual = random.pick(&[0, 0, 1, 4]).map_or(Duration::ZERO, Duration::from_millis);
        // A write past the cache that ends between two blocks goes on through it.
        let limit = if site.seed.is_multiple_of(2) { 700 } else { 3 * SECTOR };
        self.disk.set_write_limit(random.pick(&[None, None, Some(limit)]).flatten());
        let identity = Identity { cluster: site.cluster, node: site.node, group: site.group };
        let opened = self.kind.open(&self.disk, identity);
        if self.disk.is_dead() {
            site.power_fails();
        }
        let (log, snapshots) = opened?;
        let seam = Arc::new(Seam { disk: self.disk.clone(), pace: self.pace.clone(), usual, site: site.clone() });
        self.seam = Some(seam.clone());
        Ok((Arc::new(SlowLog { log, seam: seam.clone() }), Arc::new(SlowSnapshots { snapshots, seam })))
    }

    fn outage(&mut self, how: Outage, random: &mut Random) {
        let moment = self.disk.now();
        self.disk = match how {
            Outage::Kill => moment.kill(),
            Outage::PowerLoss => {
                self.suffered.power_loss = true;
                let mix = random.below(4);
                moment.lose_power(|_| match mix {
                    0 => Fate::Lost,
                    1 => Fate::Kept,
                    _ => random
                        .pick(&[Fate::Lost, Fate::Kept, Fate::Kept, Fate::Garbage, Fate::Early])
                        .unwrap_or(Fate::Lost),
                })
            }
        };
        if self.full {
            self.disk.set_capacity(Some(self.disk.used()));
        }
    }

    fn fault(&mut self, fault: DiskFault, random: &mut Random) -> bool {
        let soon = |random: &mut Random, most| self.disk.operations() + random.below(most);
        match fault {
            DiskFault::Slow(latency) => self.pace.state().latency = latency,
            DiskFault::Stall => self.pace.state().stalled = true,
            DiskFault::Resume => {
                self.pace.state().stalled = false;
                self.pace.changed.notify_waiters();
            }
            DiskFault::Error => {
                let refuse = crate::sim::Fault::Refuse(std::io::ErrorKind::Other);
                self.disk.fail_at(soon(random, 6), refuse);
            }
            DiskFault::SyncError => {
                self.suffered.failed_sync = true;
                self.disk.forget_next_sync();
            }
            DiskFault::Full => {
                self.full = true;
                let room = usize::try_from(random.below(10_000)).unwrap_or(0);
                self.disk.set_capacity(Some(self.disk.used() + room));
            }
            DiskFault::Room => {
                self.full = false;
                self.disk.set_capacity(None);
            }
            DiskFault::PowerFailsSoon => self.disk.die_at(soon(random, 12)),
            DiskFault::Rot | DiskFault::Misdirected => {
                self.disk.heal();
                self.full = false;
                return self.damage(fault, random);
            }
            DiskFault::MachineDamaged => return false,
            DiskFault::Heal => {
                self.full = false;
                self.disk.heal();
                *self.pace.state() = PaceState::default();
                self.pace.changed.notify_waiters();
            }
        }
        true
    }
}

/// Where writes take time, and power may fail meanwhile.
#[derive(Debug)]
struct Seam {
    disk: SimDisk,
    pace: Arc<Pace>,
    usual: Duration,
    site: Site,
}

impl Seam {
    /// Does something that writes, in the middle of the time that it takes.
    async fn slowly<T>(&self, work: impl Future<Output = T>) -> T {
        let half = (self.usual + self.pace.state().latency) / 2;
        if !half.is_zero() {
            sleep(half).await;
        }
        self.pace.wait().await;
        let done = work.await;
        if self.disk.is_dead() {
            // Nobody learns of it: the machine is off from here on.
            self.site.power_fails();
            std::future::pending::<()>().await;
        }
        if !half.is_zero() {
            sleep(half).await;
        }
        done
    }

    /// What reading takes.
    async fn pause(&self) {
        let latency = self.pace.state().latency / 4;
        if !latency.is_zero() {
            sleep(latency).await;
        }
    }
}

/// A simulated disk for something that is kept on it beside log and images, as slow and as stuck as for these.
#[derive(Clone, Debug)]
pub struct SlowDisk(Arc<Seam>);

impl SlowDisk {
    /// The disk itself.
    #[must_use]
    pub fn disk(&self) -> &SimDisk {
        &self.0.disk
    }

    /// Does something that writes, in the middle of the time that it takes. Where power fails in it, it does not end.
    pub async fn slowly<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.slowly(work).await
    }
}

struct SlowLog {
    log: Arc<dyn LogStore>,
    seam: Arc<Seam>,
}

#[async_trait]
impl LogStore for SlowLog {
    async fn load(&self) -> Result<LogState, StorageError> {
        self.log.load().await
    }

    async fn read(&self, range: Range<Index>, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.seam.pause().await;
        self.log.read(range, max_bytes).await
    }

    async fn write(&self, write: LogWrite) -> Result<(), StorageError> {
        self.seam.slowly(self.log.write(write)).await
    }

    async fn compact(&self, upto: LogId) -> Result<(), StorageError> {
        self.seam.slowly(self.log.compact(upto)).await
    }
}

struct SlowSnapshots {
    snapshots: Arc<dyn Snapshot>,
    seam: Arc<Seam>,
}

#[async_trait]
impl Snapshot for SlowSnapshots {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        self.snapshots.latest().await
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        self.seam.pause().await;
        self.snapshots.read(id, offset, max).await
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let writer = self.seam.slowly(self.snapshots.begin(meta)).await?;
        Ok(Box::new(SlowWriter { writer, seam: self.seam.clone() }))
    }
}

struct SlowWriter {
    writer: Box<dyn SnapshotWriter>,
    seam: Arc<Seam>,
}

#[async_trait]
impl SnapshotWriter for SlowWriter {
    fn offset(&self) -> u64 {
        self.writer.offset()
    }

    fn checksum(&self) -> u32 {
        self.writer.checksum()
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        self.seam.slowly(self.writer.append(chunk)).await
    }

    async fn publish(self: Box<Self>) -> Result<(), StorageError> {
        let Self { writer, seam } = *self;
        seam.slowly(writer.publish()).await
    }

    async fn discard(self: Box<Self>) -> Result<(), StorageError> {
        let Self { writer, seam } = *self;
        seam.slowly(writer.discard()).await
    }
}
