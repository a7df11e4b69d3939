//! A database with a node's contents, on the same simulated disk as its log and images, and what it has promised.
//!
//! The rules of `kv-example/src/backends/redb.rs` are checked at each start: what was said to be durable is reflected, and nothing that was never
//! applied; so a restart does not apply more again than it must, and no image of the node's own is restored.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use kv_example::backends::redb::{Options, Owner, RedbMachine};
use kv_example::machine::KvView;
use raftkv::testing::Random;
use raftkv::testing::simulation::node::{Disk, DiskFault, Outage, Site, Stores};
use raftkv::{Chunks, Fatal, FatalKind, LogId, LogStore, Record, Recorded, Snapshot, StateMachine, StorageError};
use raftkv_storage_file::Vfs;
use raftkv_storage_file::sim::{SECTOR, SimDisk};
use raftkv_storage_file::simulation::{DiskStores, Kind, SlowDisk};

const DIR: &str = "/data";
const FILE: &str = "/data/kv.redb";
const MARK: &str = "/data/kv.redb.failed";
const HALF_MADE: &str = "/data/kv.redb.new";

/// Log and images of a kind, with a database beside them.
#[derive(Debug, Default)]
pub struct EngineStores<K> {
    stores: DiskStores<K>,
    promises: Arc<Mutex<Promises>>,
}

/// What a node's database has promised, across its runs.
#[derive(Debug, Default)]
struct Promises {
    /// The run whose word counts.
    run: u64,
    /// What it was given to apply.
    given: LogId,
    /// What it has applied.
    applied: LogId,
    /// A restart finds at least this.
    durable: LogId,
    /// Batches that were applied since: up to where, and how many bytes and commands.
    recent: Vec<(LogId, u64, u64)>,
    /// Something in the file was damaged.
    damaged: bool,
    /// It has failed in this run.
    failed: bool,
    /// The disk failed under it, and again when that was to be noted: whoever starts it next was told to delete it before.
    untold: bool,
    power_lost: bool,
}

impl Promises {
    /// Everything up to here is durable.
    fn keep(&mut self, upto: LogId) {
        self.durable = self.durable.max(upto);
        self.recent.retain(|(applied, ..)| *applied > upto);
    }

    /// How many bytes and commands have to be applied again by a restart that finds this.
    fn lost(&self, found: LogId) -> (u64, u64) {
        let lost = self.recent.iter().filter(|(applied, ..)| *applied > found);
        lost.fold((0, 0), |(bytes, commands), (_, more, count)| (bytes + more, commands + count))
    }
}

impl<K: Kind> EngineStores<K> {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self { stores: DiskStores::new(), promises: Arc::default() }
    }

    fn promises(&self) -> MutexGuard<'_, Promises> {
        lock(&self.promises)
    }

    /// Flips a bit where there is something, or puts another sector in a sector's place.
    fn damage(&self, random: &mut Random) -> bool {
        let disk = self.stores.sim();
        let Some(bytes) = disk.contents(Path::new(FILE)).filter(|bytes| !bytes.is_empty()) else { return false };
        let mut place = || usize::try_from(random.below(bytes.len() as u64)).unwrap_or(0);
        let Some(at) = (0..1000).map(|_| place()).find(|at| bytes[*at] != 0) else { return false };
        let other = place() / SECTOR * SECTOR;
        let own = at / SECTOR * SECTOR;
        let differs = bytes.get(own..own + SECTOR) != bytes.get(other..other + SECTOR);
        if random.percent(70) || !differs {
            disk.flip(Path::new(FILE), at, 1 << random.below(8));
        } else {
            disk.misdirect(Path::new(FILE), own, &bytes[other..(other + SECTOR).min(bytes.len())]);
        }
        self.promises().damaged = true;
        true
    }
}

fn lock(promises: &Mutex<Promises>) -> MutexGuard<'_, Promises> {
    promises.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has(disk: &SimDisk, path: &str) -> bool {
    disk.files().iter().any(|known| known == Path::new(path))
}

#[async_trait]
impl<K: Kind> Stores for EngineStores<K> {
    async fn open(&mut self, site: &Site) -> Result<(Arc<dyn LogStore>, Arc<dyn Snapshot>), StorageError> {
        self.stores.open(site).await
    }

    fn disk(&self) -> Option<Disk> {
        let slow = self.stores.slow_disk()?;
        Some(Arc::new(Ground { slow, promises: self.promises.clone(), run: self.promises().run }))
    }

    fn outage(&mut self, how: Outage, random: &mut Random) {
        self.stores.outage(how, random);
        let mut promises = self.promises();
        promises.run += 1;
        promises.power_lost |= how == Outage::PowerLoss;
        promises.failed = false;
    }

    fn fault(&mut self, fault: DiskFault, random: &mut Random) -> bool {
        if fault == DiskFault::MachineDamaged { self.damage(random) } else { self.stores.fault(fault, random) }
    }

    fn move_away(&mut self) {
        self.stores.sim().delete(Path::new(FILE));
        self.promises().damaged = false;
    }
}

/// Where a node's database lies.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    slow: SlowDisk,
    promises: Arc<Mutex<Promises>>,
    run: u64,
}

impl Ground {
    fn disk(&self) -> &SimDisk {
        self.slow.disk()
    }

    /// Notes something, unless the machine has gone down meanwhile.
    fn note(&self, note: impl FnOnce(&mut Promises)) {
        let mut promises = lock(&self.promises);
        if promises.run == self.run {
            note(&mut promises);
        }
    }

    /// Opens the database, or makes one, as a node does that starts.
    pub(super) fn open(&self, site: &Site) -> Result<(Box<dyn StateMachine>, KvView), Fatal> {
        let disk = self.disk();
        let untold = std::mem::take(&mut lock(&self.promises).untold);
        if untold && !has(disk, MARK) {
            site.hit("databases deleted where the failure of the disk could not be noted");
            disk.delete(Path::new(FILE));
        }
        let (exists, distrusted) = (has(disk, FILE), has(disk, MARK));
        if has(disk, HALF_MADE) {
            site.hit("half-made databases removed");
        }
        let options = options(site);
        let owner = Owner { cluster: site.cluster, node: site.node };
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let before = disk.failures();
        let opened = vfs
            .create_dir_all(Path::new(DIR))
            .map_err(|error| Fatal::state_machine(error.to_string()))
            .and_then(|()| RedbMachine::open_in(vfs, Path::new(FILE), owner, options));
        if disk.is_dead() {
            site.power_fails();
            return Err(Fatal::state_machine("power failed"));
        }
        if disk.failures() > before + 1 && !has(disk, MARK) {
            lock(&self.promises).untold = true;
        }
        let machine = opened?;
        let view = machine.view();
        if distrusted {
            site.hit("databases made anew after the disk failed");
        }
        self.check(site, view.applied(), (exists && !distrusted).then_some(options));
        let kept = Kept { machine: Some(machine), ground: self.clone(), site: site.clone() };
        Ok((Box::new(kept), view))
    }

    /// Checks what was found against what was promised.
    fn check(&self, site: &Site, found: LogId, goes_on: Option<Options>) {
        let mut promises = lock(&self.promises);
        let Promises { run, given, applied, durable, damaged, power_lost, .. } = *promises;
        if let Some(options) = goes_on {
            if power_lost {
                site.hit("contents recovered after a loss of power");
            }
            if found < applied {
                site.hit("contents behind the log after a crash");
            }
            if found < durable && !damaged {
                site.violated(format!(
                    "replayed: {} finds its contents at {found}, and {durable} was durable",
                    site.node
                ));
            }
            let (bytes, commands) = promises.lost(found);
            if !damaged && (bytes >= options.sync_bytes || commands >= options.sync_commands) {
                let text = format!("{commands} commands with {bytes} bytes were not durable: {options:?}");
                site.violated(format!("replayed: {} finds its contents at {found}; {text}", site.node));
            }
        }
        if found > goes_on.map_or(LogId::ZERO, |_| given) {
            site.violated(format!("foretold: {} finds its contents at {found}, and was given {given}", site.node));
        }
        let damaged = damaged && goes_on.is_some();
        *promises = Promises { run, given: found, applied: found, durable: found, damaged, ..Promises::default() };
    }

    /// Does something that uses the disk. Where that fails, a mark must say so.
    async fn work<T>(&self, site: &Site, work: impl Future<Output = Result<T, Fatal>>) -> Result<T, Fatal> {
        let watched = async {
            let before = self.disk().failures();
            let done = work.await;
            if let Err(fatal) = &done
                && let FatalKind::Storage(StorageError::Io { .. } | StorageError::Full { .. }) = fatal.kind()
                && !self.is_noted(before)
            {
                let text = format!("the disk of {} failed under its database, and nothing says so: {fatal}", site.node);
                site.violated(format!("untold: {text}"));
            }
            done
        };
        let done = self.slow.slowly(watched).await;
        if done.is_err() {
            self.note(|promises| promises.failed = true);
        }
        done
    }

    /// Whether there is a mark, or could be none since the disk failed more than once.
    fn is_noted(&self, before: u64) -> bool {
        let disk = self.disk();
        if disk.is_dead() || has(disk, MARK) {
            return true;
        }
        let untold = disk.failures() - before > 1;
        self.note(|promises| promises.untold |= untold);
        untold
    }
}

/// Small caches and frequent syncs, or none.
fn options(site: &Site) -> Options {
    let mut random = Random::new(site.seed ^ 0x6f70_7469_6f6e);
    Options {
        cache_bytes: random.pick(&[0, 32 << 10, 1 << 20]).unwrap_or(1 << 20),
        sync_bytes: random.pick(&[3000, 20_000, 4 << 20]).unwrap_or(4 << 20),
        sync_commands: random.pick(&[1, 5, 40, 8192]).unwrap_or(8192),
        background: false,
    }
}

/// A state machine whose promises are remembered.
struct Kept {
    /// None at the very end.
    machine: Option<RedbMachine>,
    ground: Ground,
    site: Site,
}

impl Kept {
    fn machine(&self) -> Result<&RedbMachine, Fatal> {
        self.machine.as_ref().ok_or_else(|| Fatal::state_machine("it was dropped"))
    }

    fn machine_mut(&mut self) -> Result<&mut RedbMachine, Fatal> {
        self.machine.as_mut().ok_or_else(|| Fatal::state_machine("it was dropped"))
    }
}

#[async_trait]
impl StateMachine for Kept {
    async fn applied(&self) -> Result<LogId, Fatal> {
        self.machine()?.applied().await
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        // The framework gives batches to machines that keep records.
        let (ground, site) = (self.ground.clone(), self.site.clone());
        ground.work(&site, self.machine_mut()?.apply(at, command)).await
    }

    async fn apply_recorded(&mut self, batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        let (upto, commands) = (batch.upto, batch.commands.len() as u64);
        let bytes: u64 = batch.commands.iter().map(|(_, command)| command.len() as u64).sum();
        let (ground, site) = (self.ground.clone(), self.site.clone());
        ground.note(|promises| promises.given = promises.given.max(upto));
        let answers = ground.work(&site, self.machine_mut()?.apply_recorded(batch)).await?;
        ground.note(|promises| {
            promises.applied = upto;
            promises.recent.push((upto, bytes, commands));
        });
        Ok(answers)
    }

    async fn records(&self) -> Result<Option<Vec<Record>>, Fatal> {
        self.machine()?.records().await
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        let machine = self.machine()?;
        let upto = machine.applied().await?;
        let chunks = machine.snapshot().await?;
        Ok(Box::new(KeptChunks { chunks, upto, ground: self.ground.clone(), site: self.site.clone() }))
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.restore_recorded(image, Vec::new(), LogId::ZERO).await
    }

    async fn restore_recorded(
        &mut self,
        image: Box<dyn Chunks>,
        records: Vec<Record>,
        last: LogId,
    ) -> Result<(), Fatal> {
        let (ground, site) = (self.ground.clone(), self.site.clone());
        ground.note(|promises| promises.given = promises.given.max(last));
        ground.work(&site, self.machine_mut()?.restore_recorded(image, records, last)).await?;
        site.hit("images restored into databases");
        ground.note(|promises| {
            promises.applied = last;
            promises.keep(last);
        });
        Ok(())
    }
}

/// An orderly end syncs.
impl Drop for Kept {
    fn drop(&mut self) {
        let before = self.ground.disk().failures();
        drop(self.machine.take());
        self.ground.note(|promises| {
            if !promises.failed && self.ground.disk().failures() == before {
                let applied = promises.applied;
                promises.keep(applied);
            }
        });
        // What became of it was told to people alone.
        let _ = self.ground.is_noted(before);
    }
}

/// An image: when it ends, what it reflects is durable.
struct KeptChunks {
    chunks: Box<dyn Chunks>,
    upto: LogId,
    ground: Ground,
    site: Site,
}

#[async_trait]
impl Chunks for KeptChunks {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        let chunk = self.ground.work(&self.site, self.chunks.next()).await?;
        if chunk.is_none() {
            let upto = self.upto;
            self.ground.note(|promises| promises.keep(upto));
        }
        Ok(chunk)
    }
}
