//! What a log directory holds besides segments: the lock, the identity, and the note of what was synced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::{ClusterId, GroupId, NodeId, StorageError};

use crate::frame::{ABSURD, Identity, MIN_ALIGN, put, u32_at, u64_at};
use crate::vfs::{Access, Guard, Vfs, VfsFile, failed, read_full, read_small, write_all};

pub(crate) const LOCK: &str = "LOCK";
pub(crate) const IDENTITY: &str = "IDENTITY";
pub(crate) const SYNCED: &str = "SYNCED";
const IDENTITY_TMP: &str = "IDENTITY.tmp";

impl Identity {
    /// Whose log directory it is, as it says itself; none where there is no log yet. Needs no lock, and changes nothing.
    ///
    /// # Errors
    /// The directory can't be read, or the file that says so is damaged.
    pub fn of(dir: impl AsRef<Path>) -> Result<Option<Self>, StorageError> {
        Ok(Owner::read(&crate::vfs::OsVfs, dir.as_ref())?.map(|owner| owner.identity))
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
    fn render(&self) -> String {
        let Identity { cluster, node, group } = self.identity;
        let text = format!(
            "raftkv log, format 1\ncluster {cluster}\nnode {}\ngroup {}\nnonce {:016x}\n",
            node.0, group.0, self.nonce
        );
        let sum = crc32c::crc32c(text.as_bytes());
        format!("{text}checksum {sum:08x}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().skip(1);
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
        (owner.render() == text).then_some(owner)
    }

    /// Reads the identity file; none when there is no such file.
    pub(crate) fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Self>, StorageError> {
        let path = dir.join(IDENTITY);
        let bytes = match read_small(vfs, &path, 1024) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("read", &path))?,
        };
        let owner = std::str::from_utf8(&bytes).ok().and_then(Self::parse);
        owner.map(Some).ok_or_else(|| StorageError::Corrupt {
            path: path.display().to_string(),
            offset: 0,
            index: None,
            reason: "the file that says whose directory this is does not match its checksum".into(),
        })
    }

    /// Writes the identity file, durably: it is there whole, or not at all.
    fn write(&self, vfs: &dyn Vfs, dir: &Path) -> Result<(), StorageError> {
        let (tmp, path) = (dir.join(IDENTITY_TMP), dir.join(IDENTITY));
        let file = vfs.open(&tmp, Access::Create).map_err(failed("create", &tmp))?;
        write_all(&*file, self.render().as_bytes(), 0).map_err(failed("write", &tmp))?;
        file.sync_data().map_err(failed("fsync", &tmp))?;
        vfs.rename(&tmp, &path).map_err(failed("rename", &tmp))?;
        vfs.sync_dir(dir).map_err(failed("fsync", dir))
    }
}

/// Learns or decides whose directory it is.
pub(crate) fn claim(vfs: &dyn Vfs, dir: &Path, identity: Identity, used: bool) -> Result<Owner, StorageError> {
    match Owner::read(vfs, dir)? {
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
            offset: 0,
            index: None,
            reason: "the file is missing, but the directory holds log segments".into(),
        }),
        None => {
            let owner = Owner { identity, nonce: vfs.random() };
            owner.write(vfs, dir)?;
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
pub(crate) struct SyncedNote {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    nonce: u64,
    turn: u64,
}

impl SyncedNote {
    /// Opens the note, making it where it is missing, and reads the sequence number of the last batch it knows (0: none).
    pub(crate) fn open(vfs: &dyn Vfs, dir: &Path, nonce: u64) -> Result<(Self, u64), StorageError> {
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
    pub(crate) fn peek(vfs: &dyn Vfs, dir: &Path, nonce: u64) -> u64 {
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

    /// Notes that this batch is synced.
    pub(crate) fn set(&mut self, sequence: u64) -> Result<(), StorageError> {
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
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(failed("fsync", &self.path))
    }
}
