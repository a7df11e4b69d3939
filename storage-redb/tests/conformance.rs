//! The suites that every log store and every snapshot store passes: on real files, with a thread and without, with either way to commit, with
//! images in the database, beside it, and on either side of the line; and on a simulated disk, which is killed, loses power, fails and flips bits.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use raftkv::StorageError;
use raftkv::testing::conformance::{Fault, log_store, snapshot};
use raftkv_storage_file::sim::Restarts;
use raftkv_storage_redb::{Commit, Options, RedbLog, RedbSnapshots, SnapshotOptions};
use support::{IDENTITY, inline, open_with};
use tempfile::TempDir;

struct Files {
    dir: TempDir,
    options: Options,
}

fn files(options: Options) -> Files {
    Files { dir: tempfile::tempdir().unwrap(), options }
}

impl log_store::Backend for Files {
    type Store = RedbLog;

    async fn open(&self) -> RedbLog {
        RedbLog::open(self.dir.path().join("a/b"), IDENTITY, self.options).unwrap()
    }
}

struct Images {
    dir: TempDir,
    options: SnapshotOptions,
}

fn images(small_bytes: usize) -> Images {
    Images { dir: tempfile::tempdir().unwrap(), options: SnapshotOptions { small_bytes, ..SnapshotOptions::default() } }
}

impl snapshot::Backend for Images {
    type Store = RedbSnapshots;

    async fn open(&self) -> Result<RedbSnapshots, StorageError> {
        RedbSnapshots::open(self.dir.path().join("a/b"), IDENTITY, self.options)
    }
}

struct Simulated {
    restarts: Restarts,
    commit: Commit,
    small_bytes: usize,
}

fn simulated(commit: Commit) -> Simulated {
    Simulated { restarts: Restarts::new(1), commit, small_bytes: 0 }
}

fn simulated_images(small_bytes: usize) -> Simulated {
    Simulated { small_bytes, ..simulated(Commit::OnePhase) }
}

impl log_store::Backend for Simulated {
    type Store = RedbLog;

    async fn open(&self) -> RedbLog {
        open_with(&self.restarts.restarted(), inline(self.commit)).unwrap()
    }

    fn arm(&self, fault: Fault, after: u64) -> bool {
        // A commit takes some ten operations.
        self.restarts.arm(fault, after * 8)
    }
}

impl snapshot::Backend for Simulated {
    type Store = RedbSnapshots;

    async fn open(&self) -> Result<RedbSnapshots, StorageError> {
        let options = SnapshotOptions { small_bytes: self.small_bytes, commit: self.commit, background: false };
        RedbSnapshots::open_on(Arc::new(self.restarts.restarted()), "/images", IDENTITY, options)
    }

    fn arm(&self, fault: Fault, after: u64) -> bool {
        self.restarts.arm(fault, after * 4)
    }

    fn arm_opening(&self, fault: Fault, after: u64) -> bool {
        // An opening takes many operations, and each may be the one.
        self.restarts.arm_opening(fault, after * 5)
    }

    fn damage(&self, place: u64) -> bool {
        let disk = self.restarts.disk();
        let place = usize::try_from(place >> 3).unwrap();
        if let Some(path) = disk.files().into_iter().find(|path| path.extension().is_some_and(|ext| ext == "snap")) {
            let length = disk.contents(&path).unwrap().len();
            disk.flip(&path, place % length, 1 << (place & 7));
            return true;
        }
        // Wherever redb put the image, there are bytes of all kinds. (Without optimization redb fills pages with ones.)
        let path = std::path::Path::new("/images/images.redb");
        let bytes = disk.contents(path).unwrap();
        let colourful = |page: &[u8]| page.iter().filter(|byte| !matches!(byte, 0 | 0xff)).count() > 2000;
        let pages: Vec<usize> = (0..bytes.len()).step_by(4096).filter(|at| colourful(&bytes[*at..at + 4096])).collect();
        for page in pages {
            disk.flip(path, page + 100 + place % 2400, 1 << (place & 7));
        }
        true
    }
}

mod usual {
    raftkv::log_store_conformance!(super::files(super::Options::default()));
}

mod two_phases_and_a_small_cache {
    use super::{Commit, Options};
    raftkv::log_store_conformance!(super::files(Options {
        commit: Commit::TwoPhase,
        cache_bytes: 64 << 10,
        background: true
    }));
}

mod without_a_thread {
    raftkv::log_store_conformance!(super::files(super::inline(super::Commit::OnePhase)));
}

mod simulated_disk {
    raftkv::log_store_conformance!(super::simulated(super::Commit::OnePhase));
}

mod simulated_disk_two_phases {
    raftkv::log_store_conformance!(super::simulated(super::Commit::TwoPhase));
}

mod snapshots {
    raftkv::snapshot_conformance!(super::images(256 << 10));
}

mod snapshots_in_files {
    raftkv::snapshot_conformance!(super::images(0));
}

mod snapshots_on_either_side_of_the_line {
    raftkv::snapshot_conformance!(super::images(3500));
}

mod small_snapshots_on_a_simulated_disk {
    raftkv::snapshot_conformance!(super::simulated_images(256 << 10));
}

mod large_snapshots_on_a_simulated_disk {
    raftkv::snapshot_conformance!(super::simulated_images(2000));
}
