//! A disk in memory that loses power, tears writes, and refuses (feature `testing`).
//!
//! What was written and what is durable are kept apart, in sectors of 512 bytes. A write dirties sectors; a sync makes the
//! sectors of one file durable; names become durable when their directory is synced. [`Moment::lose_power`] decides for every
//! dirty sector, length and name on its own whether it made it to the disk, so sectors arrive in any order. A dirty sector may
//! also become garbage. [`Moment::kill`] ends the process only: what was written stays.
//!
//! The disk can also be full, forget what a sync was to keep, or be hurt where it lies ([`SimDisk::flip`],
//! [`SimDisk::misdirect`]). `simulation.rs` puts whole nodes on such disks.
//!
//! Each change to the disk is counted as one operation. [`SimDisk::record`] keeps an image of the disk before each, so that
//! a test can run a workload once and then lose power at every point of it. [`Restarts`] is what the conformance suites ask of a store's author: with it any store
//! that does its work through [`Vfs`](crate::Vfs) is tested for kills, losses of power and errors at any operation.

mod files;
pub mod log_model;
mod pages;
mod patterns;
mod restarts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pages::Pages;
pub use patterns::patterns;
pub use restarts::Restarts;

/// What a disk writes in one piece, in bytes.
pub const SECTOR: usize = 512;

/// What a file takes room in, in bytes.
const BLOCK: usize = 4096;

/// Something that is not durable yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending {
    /// A sector of a file.
    Sector {
        /// The file's name when it was created.
        path: PathBuf,
        /// Which one.
        sector: u64,
    },
    /// A file's new length.
    Length {
        /// The file's name when it was created.
        path: PathBuf,
    },
    /// A name that was created, renamed to, or removed.
    Name {
        /// The name.
        path: PathBuf,
    },
}

/// What becomes of it when power is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never reached the disk: the old state is there.
    Lost,
    /// It is on the disk.
    Kept,
    /// A sector reached the disk as it was after the first write since the last sync; anything else is kept.
    Early,
    /// A sector was being written and can't be made out any more; anything else is kept.
    Garbage,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has no effect, and fails with this error.
    Refuse(io::ErrorKind),
    /// A sync fails, nothing becomes durable, and the system takes the dirty sectors for clean: no later sync writes them,
    /// though reads go on returning them.
    Forget,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// The name it was created with, for reports.
    path: PathBuf,
    cache: Pages,
    disk: Pages,
    /// Dirty sectors, in the order in which they were first written: the number, and how it was after that first write.
    dirty: Vec<(u64, Vec<u8>)>,
    /// Their numbers.
    known: BTreeSet<u64>,
    length_dirty: bool,
    /// Blocks that the file was extended by and that were never written: they take no room.
    holes: BTreeSet<usize>,
    /// Since the last sync it was cut to this: what was behind does not come back when it grows again.
    cut: Option<usize>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

impl NameChange {
    fn path(&self) -> &Path {
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path, _) => path,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Image {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    disk_names: BTreeMap<PathBuf, usize>,
    changes: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    direct: Direct,
}

/// The way past the page cache: what writes are multiples of there, if there is one.
#[derive(Clone, Debug)]
struct Direct {
    block: Option<usize>,
    /// How many went there.
    writes: u64,
}

impl Default for Direct {
    fn default() -> Self {
        Self { block: Some(512), writes: 0 }
    }
}

#[derive(Default)]
struct State {
    image: Image,
    locks: BTreeSet<PathBuf>,
    /// Files that a handle has for itself.
    taken: BTreeSet<usize>,
    operations: u64,
    /// How many operations were refused.
    failures: u64,
    faults: BTreeMap<u64, Fault>,
    /// From this operation on, nothing is done any more.
    dead_from: Option<u64>,
    /// The next sync fails and forgets.
    forget_next_sync: bool,
    capacity: Option<usize>,
    /// The most that one write takes.
    write_limit: Option<usize>,
    recording: Option<Vec<Image>>,
    random: u64,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk({} operations)", self.operations())
    }
}

/// A disk as it was before an operation.
#[derive(Clone)]
pub struct Moment(Image);

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Moment").field(&self.pending()).finish()
    }
}

impl Moment {
    /// What is not durable, in the order in which it was done; names last.
    #[must_use]
    pub fn pending(&self) -> Vec<Pending> {
        self.0.pending()
    }

    /// The disk after a loss of power at this moment. `fate` is asked once for each of [`Moment::pending`], in that order.
    #[must_use]
    pub fn lose_power(&self, fate: impl FnMut(&Pending) -> Fate) -> SimDisk {
        SimDisk::from_image(self.0.after_power_loss(fate))
    }

    /// The disk after the end of the process at this moment: everything that was written is there.
    #[must_use]
    pub fn kill(&self) -> SimDisk {
        SimDisk::from_image(self.0.clone())
    }
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn from_image(image: Image) -> Self {
        Self(Arc::new(Mutex::new(State { image, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many operations have changed the disk, or tried to.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// How many operations have failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    /// Makes the operation with this number fail; they count from 0.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        self.state().faults.insert(operation, fault);
    }

    /// Makes the operation with this number, and all after it, do nothing but fail: the process has ended, and [`SimDisk::now`] is
    /// the moment of its end.
    pub fn die_at(&self, operation: u64) {
        self.state().dead_from = Some(operation);
    }

    /// Whether an operation came after that.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let state = self.state();
        state.dead_from.is_some_and(|dead| state.operations > dead)
    }

    /// Makes the next sync of a file fail as [`Fault::Forget`] says, whenever it comes.
    pub fn forget_next_sync(&self) {
        self.state().forget_next_sync = true;
    }

    /// Nothing fails any more of what was to fail, and there is room.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.forget_next_sync = false;
        state.dead_from = None;
        state.capacity = None;
    }

    /// How many bytes the files take.
    #[must_use]
    pub fn used(&self) -> usize {
        self.state().image.used()
    }

    /// Makes the disk as large as this; files that are open keep what they have.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.state().capacity = bytes;
    }

    /// Makes every write stop after so many bytes, so that it takes several.
    pub fn set_write_limit(&self, bytes: Option<usize>) {
        self.state().write_limit = bytes;
    }

    /// What writes past the cache have to be multiples of, a power of two, 512 at first; none: there is no way past it.
    pub fn set_direct_block(&self, bytes: Option<usize>) {
        self.state().image.direct.block = bytes;
    }

    /// How many writes went past the cache, since there is this disk; a loss of power or a kill does not end it.
    #[must_use]
    pub fn direct_writes(&self) -> u64 {
        self.state().image.direct.writes
    }

    /// Keeps a [`Moment`] before each operation from now on.
    pub fn record(&self) {
        self.state().recording = Some(Vec::new());
    }

    /// The moments recorded, and the present one at their end. Recording ends.
    #[must_use]
    pub fn take_recording(&self) -> Vec<Moment> {
        let mut state = self.state();
        let mut images = state.recording.take().unwrap_or_default();
        images.push(state.image.clone());
        images.into_iter().map(Moment).collect()
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment(self.state().image.clone())
    }

    /// The names of all files.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.state().image.names.keys().cloned().collect()
    }

    /// What a file holds.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.image.names.get(path).map(|inode| state.image.inodes[*inode].cache.get(0..usize::MAX))
    }

    /// Flips bits of a byte, durably. Does nothing beyond the end of the file.
    pub fn flip(&self, path: &Path, offset: usize, bits: u8) {
        let mut state = self.state();
        let Some(inode) = state.image.names.get(path).copied() else { return };
        let inode = &mut state.image.inodes[inode];
        inode.cache.flip(offset, bits);
        inode.disk.flip(offset, bits);
    }

    /// Puts bytes into a file, durably, as far as it reaches: as if a write meant for another place had gone here.
    pub fn misdirect(&self, path: &Path, offset: usize, bytes: &[u8]) {
        let mut state = self.state();
        let Some(inode) = state.image.names.get(path).copied() else { return };
        let inode = &mut state.image.inodes[inode];
        inode.cache.write(offset, bytes);
        inode.disk.write(offset, bytes);
    }

    /// Removes a file, durably.
    pub fn delete(&self, path: &Path) {
        let mut state = self.state();
        state.image.names.remove(path);
        state.image.disk_names.remove(path);
    }
}

impl Image {
    fn pending(&self) -> Vec<Pending> {
        let mut out = Vec::new();
        for inode in &self.inodes {
            let path = &inode.path;
            out.extend(inode.dirty.iter().map(|(sector, _)| Pending::Sector { path: path.clone(), sector: *sector }));
            if inode.length_dirty {
                out.push(Pending::Length { path: path.clone() });
            }
        }
        out.extend(self.changes.iter().map(|change| Pending::Name { path: change.path().to_owned() }));
        out
    }

    fn after_power_loss(&self, mut fate: impl FnMut(&Pending) -> Fate) -> Self {
        let mut image = self.clone();
        for (number, inode) in image.inodes.iter_mut().enumerate() {
            inode.lose_power(number, &mut fate);
        }
        for change in std::mem::take(&mut image.changes) {
            if fate(&Pending::Name { path: change.path().to_owned() }) != Fate::Lost {
                change.apply(&mut image.disk_names);
            }
        }
        image.names.clone_from(&image.disk_names);
        image
    }

    fn used(&self) -> usize {
        self.names.values().map(|inode| self.inodes[*inode].used()).sum()
    }
}

impl Inode {
    fn lose_power(&mut self, number: usize, fate: &mut impl FnMut(&Pending) -> Fate) {
        let mut disk = std::mem::take(&mut self.disk);
        let durable_len = disk.len();
        let mut decide = |pending| fate(&pending);
        let dirty: Vec<_> = self
            .take_dirty()
            .into_iter()
            .map(|(sector, early)| (sector, early, decide(Pending::Sector { path: self.path.clone(), sector })))
            .collect();
        let mut len = durable_len;
        if self.length_dirty && decide(Pending::Length { path: self.path.clone() }) != Fate::Lost {
            len = self.cache.len();
            disk.resize(self.cut.unwrap_or(durable_len).min(durable_len));
        }
        (self.length_dirty, self.cut) = (false, None);
        disk.resize(durable_len.max(self.cache.len()));
        for (sector, early, fate) in dirty {
            let from = usize::try_from(sector).unwrap_or(0) * SECTOR;
            let to = (from + SECTOR).min(self.cache.len()).max(from);
            let new = self.cache.get(from..to);
            match fate {
                Fate::Lost => {}
                Fate::Kept => disk.write(from, &new),
                Fate::Early => {
                    let n = early.len().min(new.len());
                    disk.write(from, &early[..n]);
                }
                Fate::Garbage => disk.write(from, &garbage(to - from, number as u64 * 7919 + sector)),
            }
        }
        self.holes.retain(|block| *block < len.div_ceil(BLOCK));
        disk.resize(len);
        self.cache.clone_from(&disk);
        self.disk = disk;
    }

    fn write(&mut self, buf: &[u8], offset: usize) {
        let end = offset + buf.len();
        if end > self.cache.len() {
            self.cache.resize(end);
            self.length_dirty = true;
        }
        self.cache.write(offset, buf);
        for block in offset / BLOCK..end.div_ceil(BLOCK) {
            self.holes.remove(&block);
        }
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            if self.known.insert(sector as u64) {
                let from = sector * SECTOR;
                let early = self.cache.get(from..from + SECTOR);
                self.dirty.push((sector as u64, early));
            }
        }
    }

    /// Drops the pages of the cache in which these bytes lie, as a write past it does: what a failed sync left there alone is lost.
    fn drop_clean(&mut self, offset: usize, len: usize) {
        for sector in offset / BLOCK * (BLOCK / SECTOR)..(offset + len).div_ceil(BLOCK) * (BLOCK / SECTOR) {
            if !self.known.contains(&(sector as u64)) {
                let from = sector * SECTOR;
                let mut durable = self.disk.get(from..(from + SECTOR).min(self.cut.unwrap_or(usize::MAX)).max(from));
                durable.resize(SECTOR, 0);
                self.cache.write(from, &durable);
            }
        }
    }

    /// How many bytes it takes.
    fn used(&self) -> usize {
        let len = self.cache.len();
        let holes: usize = self.holes.iter().map(|block| len.saturating_sub(block * BLOCK).min(BLOCK)).sum();
        len - holes
    }

    /// How many more it takes once so many are written at an offset.
    fn room_for(&self, offset: usize, len: usize) -> usize {
        let blocks = offset / BLOCK..(offset + len).div_ceil(BLOCK);
        (offset + len).saturating_sub(self.cache.len()) + self.holes.range(blocks).count() * BLOCK
    }

    /// As [`Inode::set_len`], without room for what it is extended by.
    fn set_len_sparsely(&mut self, len: usize) {
        self.holes.extend(self.cache.len().div_ceil(BLOCK)..len.div_ceil(BLOCK));
        self.set_len(len);
    }

    fn set_len(&mut self, len: usize) {
        self.holes.retain(|block| *block < len.div_ceil(BLOCK));
        if self.cache.len() != len {
            if len < self.cache.len() {
                self.cut = Some(self.cut.map_or(len, |cut| cut.min(len)));
            }
            self.cache.resize(len);
            self.length_dirty = true;
            let end = len.div_ceil(SECTOR) as u64;
            self.dirty.retain(|(sector, _)| *sector < end);
            self.known.retain(|sector| *sector < end);
        }
    }

    fn take_dirty(&mut self) -> Vec<(u64, Vec<u8>)> {
        self.known.clear();
        std::mem::take(&mut self.dirty)
    }

    fn sync(&mut self) {
        if let Some(cut) = self.cut.take() {
            self.disk.resize(cut.min(self.disk.len()));
        }
        // What was forgotten after a failed sync stays as it was on the disk.
        self.disk.resize(self.cache.len());
        for (sector, _) in self.take_dirty() {
            let from = usize::try_from(sector).unwrap_or(0) * SECTOR;
            self.disk.write(from, &self.cache.get(from..from + SECTOR));
        }
        self.length_dirty = false;
    }
}

/// Bytes that mean nothing.
fn garbage(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

impl State {
    /// Counts an operation, and fails it if that was asked for.
    fn begin(&mut self) -> Result<(), Fault> {
        if let Some(recording) = &mut self.recording {
            recording.push(self.image.clone());
        }
        let operation = self.operations;
        self.operations += 1;
        let dead = self.dead_from.is_some_and(|dead| operation >= dead);
        let fault = if dead { Some(Fault::Refuse(io::ErrorKind::BrokenPipe)) } else { self.faults.remove(&operation) };
        self.failures += u64::from(fault.is_some());
        fault.map_or(Ok(()), Err)
    }

    fn begin_io(&mut self) -> io::Result<()> {
        self.begin().map_err(|fault| match fault {
            Fault::Refuse(kind) => kind.into(),
            Fault::Forget => io::Error::other("a sync fault on something else"),
        })
    }

    fn check_room(&mut self, more: usize) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if self.image.used() + more > capacity => {
                self.failures += 1;
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.image.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.image.names);
        self.image.changes.push(change);
    }
}
