//! What a store's directory holds besides its data: the lock, the identity, and the note of what was synced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::{ClusterId, GroupId, NodeId, StorageError};

use crate::frame::{ABSURD, Identity, MIN_ALIGN, put, u32_at, u64_at};
use crate::vfs::{Access, Guard, Vfs, VfsFile, failed, read_full, read_small, write_all};

pub(crate) const LOCK: &str = "LOCK";
pub(crate) const IDENTITY: &str = "IDENTITY";
pub(crate) const SYNCED: &str = "SYNCED";
/// What the identity file of this crate's stores calls them.
pub(crate) const LOG: &str = "log";
const IDENTITY_TMP: &str = "IDENTITY.tmp";

impl Identity {
    /// Whose log directory it is, as it says itself; none where there is no log yet. Needs no lock, and changes nothing.
    ///
    /// # Errors
    /// The directory can't be read, or the file that says so is damaged.
    pub fn of(dir: impl AsRef<Path>) -> Result<Option<Self>, StorageError> {
        Ok(Owner::read_any(&crate::vfs::OsVfs, dir.as_ref())?.map(|(owner, _)| owner.identity))
    }
}

/// A directory that a store has taken for itself: locked until this is dropped, and marked with whose it is and with the kind of store that
/// it holds, so that neither another node nor another kind of store can begin anew in it.
#[derive(Debug)]
pub struct Claim {
    owner: Owner,
    _lock: Box<dyn Guard>,
}

/// Which kind of store a directory holds, in the words of [`Claim::take`]; none where there is none yet. Needs no lock, and changes nothing.
///
/// # Errors
/// The directory can't be read, or the file that says so is damaged.
pub fn kind_of(vfs: &dyn Vfs, dir: &Path) -> Result<Option<String>, StorageError> {
    Ok(Owner::read_any(vfs, dir)?.map(|(_, kind)| kind))
}

impl Claim {
    /// Takes a directory, making it where it is missing. `kind` is a word or two for the kind of store; `used` tells from the names in the
    /// directory whether it holds data, which it can't unless it is marked.
    ///
    /// # Errors
    /// * [`StorageError::Refused`]: the directory is in use, or another node's, cluster's, group's or kind of store's.
    /// * [`StorageError::Corrupt`]: the mark is damaged, or missing though there is data.
    /// * [`StorageError::Full`], [`StorageError::Io`]: as the operating system says.
    pub fn take(
        vfs: &dyn Vfs,
        dir: &Path,
        kind: &str,
        identity: Identity,
        used: impl FnOnce(&[String]) -> bool,
    ) -> Result<Self, StorageError> {
        vfs.create_dir_all(dir).map_err(failed("create", dir))?;
        let lock = lock(vfs, dir)?;
        let names = vfs.list(dir).map_err(failed("list", dir))?;
        let owner = claim(vfs, dir, kind, identity, used(&names))?;
        Ok(Self { owner, _lock: lock })
    }

    /// Takes the directory of a store that is there, for somebody who only looks at it; none where there is no store. Nothing is changed but the lock's file.
    ///
    /// # Errors
    /// * [`StorageError::Refused`]: the directory is in use, or another kind of store's.
    /// * [`StorageError::Corrupt`]: the mark is damaged.
    /// * [`StorageError::Io`]: as the operating system says.
    pub fn find(vfs: &dyn Vfs, dir: &Path, kind: &str) -> Result<Option<Self>, StorageError> {
        let Some(owner) = Owner::read_as(vfs, dir, kind)? else { return Ok(None) };
        Ok(Some(Self { owner, _lock: lock(vfs, dir)? }))
    }

    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.owner.identity
    }

    /// A random number that was chosen with the mark: what checksums in this directory should be salted with.
    #[must_use]
    pub fn nonce(&self) -> u64 {
        self.owner.nonce
    }
}

/// Takes the directory's lock.
pub(crate) fn lock(vfs: &dyn Vfs, dir: &Path) -> Result<Box<dyn Guard>, StorageError> {
    let path = dir.join(LOCK);
    vfs.lock(&path).map_err(|e| {
        if e.kind() != std::io::ErrorKind::WouldBlock {
            return failed("lock", &path)(e);
        }
        let text = read_small(vfs, &path, 32).unwrap_or_default();
        let holder = match String::from_utf8_lossy(&text).trim() {
            "" => "another process".to_owned(),
            pid => format!("process {pid}"),
        };
        let reason = format!("the directory is in use by {holder}: stop it first, or give this node its own directory");
        StorageError::Refused { path: dir.display().to_string(), reason }
    })
}

/// Whose directory it is, and the random number that its checksums are salted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) identity: Identity,
    pub(crate) nonce: u64,
}

impl Owner {
    fn render(&self, kind: &str) -> String {
        let Identity { cluster, node, group } = self.identity;
        let text = format!(
            "raftkv {kind}, format 1\ncluster {cluster}\nnode {}\ngroup {}\nnonce {:016x}\n",
            node.0, group.0, self.nonce
        );
        let sum = crc32c::crc32c(text.as_bytes());
        format!("{text}checksum {sum:08x}\n")
    }

    /// The owner, and the kind of store.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let mut lines = text.lines();
        let kind = lines.next()?.strip_prefix("raftkv ")?.strip_suffix(", format 1")?;
        let mut number = |name: &str, radix| {
            let value = lines.next()?.strip_prefix(name)?.strip_prefix(' ')?;
            u64::from_str_radix(value, radix).ok()
        };
        let identity = Identity {
            cluster: ClusterId(number("cluster", 16)?),
            node: NodeId(number("node", 10)?),
            group: GroupId(number("group", 10)?),
        };
        let owner = Self { identity, nonce: number("nonce", 16)? };
        // There is one way to write it, checksum included, so any change shows.
        (owner.render(kind) == text).then_some((owner, kind))
    }

    /// Reads the identity file of one of this crate's stores; none when there is no such file.
    pub(crate) fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Self>, StorageError> {
        Self::read_as(vfs, dir, LOG)
    }

    /// Reads the identity file, and refuses that of another kind of store.
    fn read_as(vfs: &dyn Vfs, dir: &Path, kind: &str) -> Result<Option<Self>, StorageError> {
        match Self::read_any(vfs, dir)? {
            Some((_, other)) if other != kind => {
                let reason = format!(
                    "the directory holds a raftkv {other}, and a raftkv {kind} was opened on it: use the store that made it, or give this node an \
                     empty directory and a new id"
                );
                Err(StorageError::Refused { path: dir.display().to_string(), reason })
            }
            found => Ok(found.map(|(owner, _)| owner)),
        }
    }

    /// Reads the identity file of any kind of store, and tells which kind it is.
    fn read_any(vfs: &dyn Vfs, dir: &Path) -> Result<Option<(Self, String)>, StorageError> {
        let path = dir.join(IDENTITY);
        let bytes = match read_small(vfs, &path, 1024) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("read", &path))?,
        };
        let found = std::str::from_utf8(&bytes).ok().and_then(Self::parse);
        found.map(|(owner, kind)| Some((owner, kind.to_owned()))).ok_or_else(|| StorageError::Corrupt {
            path: path.display().to_string(),
            offset: None,
            index: None,
            reason: "the file that says whose directory this is does not match its checksum".into(),
        })
    }

    /// Writes the identity file, durably: it is there whole, or not at all.
    fn write(&self, vfs: &dyn Vfs, dir: &Path, kind: &str) -> Result<(), StorageError> {
        let (tmp, path) = (dir.join(IDENTITY_TMP), dir.join(IDENTITY));
        let file = vfs.open(&tmp, Access::Create).map_err(failed("create", &tmp))?;
        write_all(&*file, self.render(kind).as_bytes(), 0).map_err(failed("write", &tmp))?;
        file.sync_data().map_err(failed("fsync", &tmp))?;
        vfs.rename(&tmp, &path).map_err(failed("rename", &tmp))?;
        vfs.sync_dir(dir).map_err(failed("fsync", dir))
    }
}

/// Learns or decides whose directory it is.
pub(crate) fn claim(
    vfs: &dyn Vfs,
    dir: &Path,
    kind: &str,
    identity: Identity,
    used: bool,
) -> Result<Owner, StorageError> {
    match Owner::read_as(vfs, dir, kind)? {
        Some(owner) if owner.identity == identity => Ok(owner),
        Some(owner) => {
            let (theirs, ours) = (owner.identity, identity);
            let reason = format!(
                "this is the log of node {} of cluster {} (group {}), but node {} of cluster {} (group {}) was started on it: \
                 check the node's id, its data directory and the cluster's name and members",
                theirs.node.0, theirs.cluster, theirs.group.0, ours.node.0, ours.cluster, ours.group.0
            );
            Err(StorageError::Refused { path: dir.display().to_string(), reason })
        }
        None if used => Err(StorageError::Corrupt {
            path: dir.join(IDENTITY).display().to_string(),
            offset: None,
            index: None,
            reason: "the file is missing, but the directory holds data".into(),
        }),
        None => {
            let owner = Owner { identity, nonce: vfs.random() };
            owner.write(vfs, dir, kind)?;
            Ok(owner)
        }
    }
}

const SLOT: usize = 32;
const SLOTS: u64 = 2;

/// A note of which batch was synced last. It is written after each sync but not synced itself, so it may be old; it is
/// never ahead of the truth. It survives the death of the process, and is synced when the log is closed: only after a loss
/// of power can the last batch be unknown to it.
#[derive(Debug)]
pub struct SyncedNote {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    nonce: u64,
    turn: u64,
}

impl SyncedNote {
    /// Opens the note, making it where it is missing, and reads the sequence number of the last batch it knows (0: none). `nonce` is that of
    /// the directory ([`Claim::nonce`]).
    ///
    /// # Errors
    /// As the operating system says.
    pub fn open(vfs: &dyn Vfs, dir: &Path, nonce: u64) -> Result<(Self, u64), StorageError> {
        let path = dir.join(SYNCED);
        let file = match vfs.open(&path, Access::Write) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let file = vfs.open(&path, Access::Create).map_err(failed("create", &path))?;
                write_all(&*file, &[0; SLOTS as usize * MIN_ALIGN as usize], 0).map_err(failed("write", &path))?;
                file.sync_data().map_err(failed("fsync", &path))?;
                vfs.sync_dir(dir).map_err(failed("fsync", dir))?;
                file
            }
            other => other.map_err(failed("open", &path))?,
        };
        let (sequence, turn) = Self::latest(&*file, nonce).map_err(failed("read", &path))?;
        Ok((Self { file, path, nonce, turn: turn + 1 }, sequence))
    }

    /// What the note in a directory says, without opening it for writing; 0 where there is none.
    #[must_use]
    pub fn peek(vfs: &dyn Vfs, dir: &Path, nonce: u64) -> u64 {
        let file = vfs.open(&dir.join(SYNCED), Access::Read);
        file.and_then(|file| Self::latest(&*file, nonce)).map_or(0, |(sequence, _)| sequence)
    }

    /// The two slots are written in turn, each in a sector of its own, so that a torn write leaves one whole.
    fn latest(file: &dyn VfsFile, nonce: u64) -> std::io::Result<(u64, u64)> {
        let mut best = (0, 0);
        for slot in 0..SLOTS {
            let mut bytes = [0; SLOT];
            read_full(file, &mut bytes, slot * u64::from(MIN_ALIGN))?;
            let found = (u64_at(&bytes, 8), u64_at(&bytes, 16));
            let sane = found.0 < ABSURD && found.1 < ABSURD;
            if u32_at(&bytes, 0) == Self::sum(nonce, &bytes) && sane && found.1 >= best.1 {
                best = found;
            }
        }
        Ok(best)
    }

    fn sum(nonce: u64, bytes: &[u8; SLOT]) -> u32 {
        // Never 0, so that blank bytes are no note.
        crc32c::crc32c_append(crc32c::crc32c(&nonce.to_le_bytes()), &bytes[4..]) | 1
    }

    /// Computes the checksums of both slots anew, for fuzzing.
    #[cfg(feature = "testing")]
    pub(crate) fn seal(file: &mut [u8], nonce: u64) {
        for slot in file.chunks_mut(MIN_ALIGN as usize).take(SLOTS as usize) {
            if let Some(bytes) = slot.first_chunk::<SLOT>() {
                let sum = Self::sum(nonce, bytes);
                put(slot, 0, &sum.to_le_bytes());
            }
        }
    }

    /// Notes that this batch is synced. Numbers are below 2^63.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn set(&mut self, sequence: u64) -> Result<(), StorageError> {
        let mut bytes = [0; SLOT];
        put(&mut bytes, 8, &sequence.to_le_bytes());
        put(&mut bytes, 16, &self.turn.to_le_bytes());
        let sum = Self::sum(self.nonce, &bytes);
        put(&mut bytes, 0, &sum.to_le_bytes());
        let offset = self.turn % SLOTS * u64::from(MIN_ALIGN);
        self.turn += 1;
        write_all(&*self.file, &bytes, offset).map_err(failed("write", &self.path))
    }

    /// Makes the note durable.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn sync(&self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(failed("fsync", &self.path))
    }
}
