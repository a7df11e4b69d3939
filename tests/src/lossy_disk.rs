//! A mounted disk that loses power: what was not synced may be gone, or torn, as the system calls of a real process meet it.
//!
//! It is the log's own simulated disk ([`SimDisk`]) behind FUSE, in memory. `kill -9` keeps what a process has written; only
//! [`LossyDisk::lose_power`] tells whether it called `fsync` where it had to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use raftkv_storage_file::sim::{Fate, SimDisk};
use raftkv_storage_file::{Access, Vfs, VfsFile};
use rustix::io::Errno as Os;
use tempfile::TempDir;

/// The kernel asks each time: after a loss of power nothing is as it was.
const TTL: Duration = Duration::ZERO;
/// Said to be there when asked; the memory of the test is the limit.
const BLOCKS: u64 = 1 << 22;
const BLOCK: u32 = 512;

/// A mounted disk. Unmounted when it goes away.
pub struct LossyDisk {
    shared: Arc<Mutex<State>>,
    /// Unmounts when it is dropped, which must be before the directory goes.
    session: Option<BackgroundSession>,
    dir: TempDir,
}

impl fmt::Debug for LossyDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LossyDisk").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// What a loss of power did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Sectors, lengths and names that were not durable.
    pub pending: usize,
    /// How many of them did not make it to the disk whole.
    pub lost: usize,
}

impl LossyDisk {
    /// Mounts an empty disk.
    ///
    /// # Errors
    /// The system does not permit it: it takes `/dev/fuse`, and root or `fusermount3`.
    pub fn mount() -> Result<Self> {
        let dir = TempDir::with_prefix("raftkv-lossy-")?;
        let shared = Arc::new(Mutex::new(State::new()));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("raftkv-lossy".into()), MountOption::NoAtime];
        let session = fuser::spawn_mount(Adapter(shared.clone()), dir.path(), &config)
            .context("a FUSE file system can't be mounted")?;
        Ok(Self { shared, session: Some(session), dir })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The power goes: everything that was not synced is lost, kept, torn or garbage, each sector, length and name as the random
    /// numbers say. Whoever uses the disk must be dead by now.
    pub fn lose_power(&self, random: &mut fastrand::Rng) -> Loss {
        let mut loss = Loss::default();
        // Some losses take everything, some nearly nothing: uniform mixes alone would hardly ever show either.
        let keep = [0, 30, 60, 95][random.usize(..4)];
        let mut state = lock(&self.shared);
        state.disk = state.disk.now().lose_power(|_| {
            loss.pending += 1;
            let fate = match random.u32(..100) {
                draw if draw < keep => Fate::Kept,
                draw if draw % 4 == 0 => Fate::Garbage,
                draw if draw % 4 == 1 => Fate::Early,
                _ => Fate::Lost,
            };
            loss.lost += usize::from(fate != Fate::Kept);
            fate
        });
        state.forget_names();
        loss
    }
}

impl Drop for LossyDisk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            crate::process::notice(&format!("{} stays mounted: {error}", self.dir.path().display()));
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the kernel knows by number, and the disk by name.
struct State {
    disk: SimDisk,
    /// Directories are durable once they are made: the log does not rely on more, and the simulated disk has no other.
    dirs: BTreeSet<PathBuf>,
    paths: BTreeMap<u64, PathBuf>,
    numbers: BTreeMap<PathBuf, u64>,
    open: BTreeMap<u64, Arc<dyn VfsFile>>,
    next: u64,
}

impl State {
    fn new() -> Self {
        let root = PathBuf::from("/");
        let disk = SimDisk::new();
        let mut state = Self {
            disk,
            dirs: BTreeSet::from([root.clone()]),
            paths: BTreeMap::from([(INodeNo::ROOT.0, root.clone())]),
            numbers: BTreeMap::from([(root, INodeNo::ROOT.0)]),
            open: BTreeMap::new(),
            next: INodeNo::ROOT.0,
        };
        state.make_dirs();
        state
    }

    fn make_dirs(&mut self) {
        for dir in &self.dirs {
            // It only notes the name.
            let _ = self.disk.create_dir_all(dir);
        }
    }

    /// After a loss of power, files have new numbers; the old ones mean nothing.
    fn forget_names(&mut self) {
        let dirs = &self.dirs;
        self.paths.retain(|_, path| dirs.contains(path));
        self.numbers.retain(|path, _| dirs.contains(path));
        self.open.clear();
        self.make_dirs();
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn path(&self, number: INodeNo) -> Result<&PathBuf, Errno> {
        self.paths.get(&number.0).ok_or(errno(Os::STALE))
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf, Errno> {
        Ok(self.path(parent)?.join(name))
    }

    fn number(&mut self, path: &Path) -> u64 {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        let number = self.next();
        self.numbers.insert(path.to_owned(), number);
        self.paths.insert(number, path.to_owned());
        number
    }

    /// A name is gone. Open handles go on.
    fn unname(&mut self, path: &Path) {
        if let Some(number) = self.numbers.remove(path) {
            self.paths.remove(&number);
        }
    }

    fn attr(&mut self, path: &Path) -> Result<FileAttr, Errno> {
        let (kind, perm, size) = if self.dirs.contains(path) {
            (FileType::Directory, 0o755, 0)
        } else {
            (FileType::RegularFile, 0o644, self.disk.open(path, Access::Read).and_then(|file| file.len()).map_err(io)?)
        };
        Ok(FileAttr {
            ino: INodeNo(self.number(path)),
            size,
            blocks: size.div_ceil(u64::from(BLOCK)),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            flags: 0,
            blksize: BLOCK,
        })
    }

    fn keep_open(&mut self, file: Arc<dyn VfsFile>) -> FileHandle {
        let handle = self.next();
        self.open.insert(handle, file);
        FileHandle(handle)
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<dyn VfsFile>, Errno> {
        self.open.get(&handle.0).cloned().ok_or(errno(Os::BADF))
    }

    fn create(&mut self, parent: INodeNo, name: &OsStr) -> Result<(FileAttr, FileHandle), Errno> {
        let path = self.child(parent, name)?;
        let file = self.disk.open(&path, Access::Create).map_err(io)?;
        Ok((self.attr(&path)?, self.keep_open(file)))
    }

    fn mkdir(&mut self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let path = self.child(parent, name)?;
        self.dirs.insert(path.clone());
        self.make_dirs();
        self.attr(&path)
    }

    fn unlink(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let path = self.child(parent, name)?;
        self.disk.remove(&path).map_err(io)?;
        self.unname(&path);
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        self.disk.rename(from, to).map_err(io)?;
        self.unname(to);
        if let Some(number) = self.numbers.remove(from) {
            self.numbers.insert(to.to_owned(), number);
            self.paths.insert(number, to.to_owned());
        }
        Ok(())
    }

    fn resize(&mut self, number: INodeNo, size: u64) -> Result<(), Errno> {
        let path = self.path(number)?.clone();
        self.disk.open(&path, Access::Write).and_then(|file| file.set_len(size)).map_err(io)
    }

    /// Number, kind and name of each entry.
    fn entries(&mut self, number: INodeNo) -> Result<Vec<(u64, FileType, String)>, Errno> {
        let dir = self.path(number)?.clone();
        let files = self.disk.list(&dir).map_err(io)?.into_iter().map(|name| (FileType::RegularFile, name));
        let below = self.dirs.iter().filter(|path| path.parent() == Some(&dir));
        let dirs = below.filter_map(|path| Some((FileType::Directory, path.file_name()?.to_str()?.to_owned())));
        let all: Vec<_> = files.chain(dirs).collect();
        let dots = [(number.0, FileType::Directory, ".".to_owned()), (number.0, FileType::Directory, "..".to_owned())];
        let named = all.into_iter().map(|(kind, name)| (self.number(&dir.join(&name)), kind, name));
        Ok(dots.into_iter().chain(named).collect())
    }
}

fn errno(os: Os) -> Errno {
    Errno::from_i32(os.raw_os_error())
}

/// The simulated disk speaks in kinds, the kernel in numbers.
fn io(error: io::Error) -> Errno {
    let known = [
        (io::ErrorKind::NotFound, Os::NOENT),
        (io::ErrorKind::StorageFull, Os::NOSPC),
        (io::ErrorKind::InvalidInput, Os::INVAL),
    ];
    errno(known.iter().find(|(kind, _)| *kind == error.kind()).map_or(Os::IO, |(_, number)| *number))
}

/// Answers the kernel.
struct Adapter(Arc<Mutex<State>>);

/// Nothing is cached by the kernel: what it shows is what the disk holds.
const UNCACHED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;

impl Filesystem for Adapter {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = lock(&self.0);
        match state.child(parent, name).and_then(|path| state.attr(&path)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let mut state = lock(&self.0);
        match state.path(number).cloned().and_then(|path| state.attr(&path)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) if handle.is_none() => reply.error(error),
            // An open file without a name.
            Err(error) => match handle.and_then(|handle| state.file(handle).ok()).and_then(|file| file.len().ok()) {
                Some(size) => match state.attr(Path::new("/")) {
                    Ok(root) => reply.attr(&TTL, &FileAttr { ino: number, size, kind: FileType::RegularFile, ..root }),
                    Err(error) => reply.error(error),
                },
                None => reply.error(error),
            },
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        _modified: Option<TimeOrNow>,
        _changed: Option<std::time::SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<std::time::SystemTime>,
        _flags_changed: Option<std::time::SystemTime>,
        _backed_up: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = lock(&self.0);
        let resized = size.map_or(Ok(()), |size| state.resize(number, size));
        match resized.and_then(|()| state.path(number).cloned()).and_then(|path| state.attr(&path)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        match lock(&self.0).mkdir(parent, name) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(lock(&self.0).unlink(parent, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = lock(&self.0);
        let names = state.child(parent, name).and_then(|from| Ok((from, state.child(new_parent, new_name)?)));
        answer(names.and_then(|(from, to)| state.rename(&from, &to)), reply);
    }

    fn open(&self, _: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let mut state = lock(&self.0);
        let file = state.path(number).and_then(|path| state.disk.open(path, Access::Write).map_err(io));
        match file {
            Ok(file) => reply.opened(state.keep_open(file), UNCACHED),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match lock(&self.0).create(parent, name) {
            Ok((attr, handle)) => reply.created(&TTL, &attr, Generation(0), handle, UNCACHED),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        let file = lock(&self.0).file(handle);
        match file.and_then(|file| file.read_at(&mut bytes, offset).map_err(io)) {
            Ok(n) => reply.data(&bytes[..n]),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = lock(&self.0).file(handle);
        match file.and_then(|file| file.write_at(data, offset).map_err(io)) {
            Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _number: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Closing a file makes nothing durable.
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.0).open.remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _number: INodeNo, handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        let file = lock(&self.0).file(handle);
        answer(file.and_then(|file| file.sync_data().map_err(io)), reply);
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        let state = lock(&self.0);
        answer(state.path(number).and_then(|dir| state.disk.sync_dir(dir).map_err(io)), reply);
    }

    fn readdir(&self, _: &Request, number: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match lock(&self.0).entries(number) {
            Ok(entries) => {
                for (at, (number, kind, name)) in (1..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX))
                {
                    if reply.add(INodeNo(number), at, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(errno(Os::OPNOTSUPP));
        }
        let file = lock(&self.0).file(handle);
        answer(file.and_then(|file| file.allocate(offset + length).map(drop).map_err(io)), reply);
    }

    fn statfs(&self, _: &Request, _number: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, 0, 0, BLOCK, 255, BLOCK);
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}
