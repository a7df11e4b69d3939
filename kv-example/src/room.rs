//! How much of the disk a node takes, and for what.
//!
//! Files are counted as `du` counts them: by what the file system has given them. One that is long and has holes takes less than its length; one that was made
//! longer ahead takes it all. That is what runs out when a disk is full.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as Turn;

/// For how long what was found is told to whoever asks, before somebody looks again.
const FRESH: Duration = Duration::from_secs(1);
/// What was found longer ago is told no more: the disk does not answer.
const STALE: Duration = Duration::from_secs(60);
/// How long whoever asks waits for a look. A disk that hangs must not make it seem that the node does: then what was found before is told.
const PATIENCE: Duration = Duration::from_millis(100);
/// Where images are, in the data directory.
pub(crate) const IMAGES: &str = "snapshots";
/// The database of `--engine redb`, there as well.
pub(crate) const CONTENTS: &str = "kv.redb";

/// What the files of a node take of the disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The log.
    pub(crate) log: u64,
    /// What its entries take in there, where the store counts them.
    pub(crate) entries: Option<u64>,
    /// Images, whole and begun.
    pub(crate) images: u64,
    /// The contents, where they are in a database.
    pub(crate) contents: u64,
}

/// Tells how many bytes of entries a log holds. Must hold no log that is to be closed.
pub(crate) type Entries = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// Where to look. Clones share what was found.
#[derive(Clone)]
pub struct Room(Arc<Shared>);

struct Shared {
    data: PathBuf,
    entries: Option<Entries>,
    found: Mutex<Option<(Instant, Disk)>>,
    /// One looks at a time.
    turn: Arc<Turn<()>>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("data", &self.0.data).finish_non_exhaustive()
    }
}

impl Room {
    /// Of the node with its data in this directory.
    pub(crate) fn new(data: &Path, entries: Option<Entries>) -> Self {
        let (data, found, turn) = (data.to_owned(), Mutex::default(), Arc::default());
        Self(Arc::new(Shared { data, entries, found, turn }))
    }

    /// What the node takes of the disk, as of now or a little before; as of a minute before at most if the disk does not answer. None where nobody knows.
    pub(crate) async fn look(&self) -> Option<Disk> {
        if let Some((at, disk)) = self.0.found()
            && at.elapsed() < FRESH
        {
            return Some(disk);
        }
        // Whoever comes while another looks gets what is there: on a disk that hangs they would pile up.
        if let Ok(turn) = self.0.turn.clone().try_lock_owned() {
            let shared = self.0.clone();
            let looking = tokio::task::spawn_blocking(move || {
                shared.look();
                drop(turn);
            });
            // Past that it goes on for those who come later.
            _ = tokio::time::timeout(PATIENCE, looking).await;
        }
        self.0.found().filter(|(at, _)| at.elapsed() < STALE).map(|(_, disk)| disk)
    }
}

impl Shared {
    // A panic can't leave this half-changed.
    fn found(&self) -> Option<(Instant, Disk)> {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        match usage(&self.data) {
            Ok(disk) => {
                let entries = self.entries.as_ref().and_then(|entries| entries());
                *self.found.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((Instant::now(), Disk { entries, ..disk }));
            }
            // Whoever needs the directory to serve says so.
            Err(error) => {
                tracing::debug!(%error, data = %self.data.display(), "can't tell how much of the disk is taken")
            }
        }
    }
}

/// What is in a data directory: images in their own, the database of the contents with what lies beside it, and what else there is belongs to the log.
fn usage(data: &Path) -> io::Result<Disk> {
    let mut disk = Disk::default();
    each_file(data, &mut |path, bytes| {
        let inside = path.strip_prefix(data).unwrap_or(path);
        let is_of_contents =
            |name: &str| name.strip_prefix(CONTENTS).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let of = if inside.starts_with(IMAGES) {
            &mut disk.images
        } else if inside.to_str().is_some_and(is_of_contents) {
            &mut disk.contents
        } else {
            &mut disk.log
        };
        *of += bytes;
    })?;
    Ok(disk)
}

/// All files below a directory. Those that go meanwhile take nothing, nor does what is somebody else's (`lost+found`, where the directory is a file system's root), and links are not
/// followed.
fn each_file(dir: &Path, each: &mut dyn FnMut(&Path, u64)) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let looked = entry.file_type().and_then(|kind| match kind {
            kind if kind.is_dir() => each_file(&path, each),
            kind if kind.is_file() => entry.metadata().map(|metadata| each(&path, taken(&metadata))),
            _ => Ok(()),
        });
        match looked {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(unix)]
fn taken(metadata: &std::fs::Metadata) -> u64 {
    // Of 512 bytes, whatever the file system's own are (stat(2)).
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

#[cfg(not(unix))]
fn taken(metadata: &std::fs::Metadata) -> u64 {
    metadata.len()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn data() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, kib: usize| {
            fs::write(dir.path().join(name), vec![7; kib << 10]).unwrap();
            // What is not written yet may have no place.
            fs::File::open(dir.path().join(name)).unwrap().sync_all().unwrap();
        };
        fs::create_dir_all(dir.path().join("snapshots/files")).unwrap();
        write("0001.wal", 64);
        write("IDENTITY", 4);
        write("snapshots/1.snap", 128);
        write("snapshots/files/2.part", 256);
        write("kv.redb", 512);
        write("kv.redb.new", 8);
        write("kv.redbx", 16);
        dir
    }

    #[test]
    fn each_file_counts_for_what_it_is_of() {
        let dir = data();
        // A file system may need some blocks of its own.
        let about = |bytes: u64, kib: u64| bytes >= kib << 10 && bytes <= (kib + 32) << 10;
        let disk = usage(dir.path()).unwrap();
        assert!(about(disk.log, 84) && about(disk.images, 384) && about(disk.contents, 520), "{disk:?}");
    }

    #[tokio::test]
    async fn whoever_asks_often_gets_what_was_found_before() {
        let dir = data();
        let room = Room::new(dir.path(), Some(Arc::new(|| Some(5))));
        let first = room.look().await.unwrap();
        assert_eq!(first.entries, Some(5));
        fs::remove_file(dir.path().join("kv.redb")).unwrap();
        assert_eq!(room.look().await, Some(first), "it was looked at again");
        *room.0.found.lock().unwrap() = Some((Instant::now().checked_sub(FRESH).unwrap(), first));
        assert!(room.look().await.unwrap().contents < first.contents);
    }

    /// As on a disk that hangs.
    #[tokio::test]
    async fn nobody_waits_for_a_look_that_another_waits_for() {
        let dir = data();
        let room = Room::new(dir.path(), None);
        let busy = room.0.turn.clone().try_lock_owned().unwrap();
        assert_eq!(room.look().await, None);
        drop(busy);
        assert!(room.look().await.is_some());
    }

    /// A disk that hangs for long is one of which nobody knows anything.
    #[tokio::test]
    async fn what_was_found_a_minute_ago_is_told_no_more() {
        let dir = data();
        let room = Room::new(dir.path(), None);
        let found = room.look().await.unwrap();
        let _hangs = room.0.turn.clone().try_lock_owned().unwrap();
        let as_of = |before| *room.0.found.lock().unwrap() = Some((Instant::now().checked_sub(before).unwrap(), found));
        as_of(STALE - Duration::from_secs(5));
        assert_eq!(room.look().await, Some(found));
        as_of(STALE);
        assert_eq!(room.look().await, None);
    }

    /// It may lead to another disk, or in a circle.
    #[cfg(unix)]
    #[test]
    fn what_a_link_leads_to_is_not_counted() {
        use std::os::unix::fs::symlink;
        let (dir, elsewhere) = (data(), data());
        let before = usage(dir.path()).unwrap();
        symlink(elsewhere.path(), dir.path().join("elsewhere")).unwrap();
        symlink(dir.path(), dir.path().join("snapshots/round")).unwrap();
        symlink(elsewhere.path().join("kv.redb"), dir.path().join("kv.redb.link")).unwrap();
        assert_eq!(usage(dir.path()).unwrap(), before);
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_takes_nothing_and_is_no_failure() {
        let room = Room::new(Path::new("/nowhere/at/all"), None);
        assert_eq!(room.look().await, None);
    }
}
