//! The suites that every log store and every snapshot store passes: on real files, with segments of the usual size, with tiny ones that
//! force many rolls, and without a thread; and on a simulated disk, which is killed, loses power, fails and flips bits.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use raftkv::StorageError;
use raftkv::testing::conformance::{Fault, log_store, snapshot};
use raftkv_storage_file::sim::Restarts;
use raftkv_storage_file::{FileLog, FileSnapshots, Options};
use support::IDENTITY;
use tempfile::TempDir;

struct Files {
    dir: TempDir,
    options: Options,
}

fn files(options: Options) -> Files {
    // Not where temporary files usually are: that may be memory, past which nothing is written.
    Files { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), options }
}

impl log_store::Backend for Files {
    type Store = FileLog;

    async fn open(&self) -> FileLog {
        FileLog::open(self.dir.path().join("a/b"), IDENTITY, self.options).unwrap()
    }
}

impl snapshot::Backend for Files {
    type Store = FileSnapshots;

    async fn open(&self) -> Result<FileSnapshots, StorageError> {
        FileSnapshots::open(self.dir.path().join("a/b"), IDENTITY)
    }
}

struct Simulated(Restarts);

fn simulated() -> Simulated {
    Simulated(Restarts::new(1))
}

impl log_store::Backend for Simulated {
    type Store = FileLog;

    async fn open(&self) -> FileLog {
        let options = Options { segment_bytes: 16 << 10, direct_from: 1024, background: false, ..Options::default() };
        FileLog::open_on(Arc::new(self.0.restarted()), "/log", IDENTITY, options).unwrap()
    }

    fn arm(&self, fault: Fault, after: u64) -> bool {
        self.0.arm(fault, after)
    }
}

impl snapshot::Backend for Simulated {
    type Store = FileSnapshots;

    async fn open(&self) -> Result<FileSnapshots, StorageError> {
        FileSnapshots::open_on(Arc::new(self.0.restarted()), "/images", IDENTITY, false)
    }

    fn arm(&self, fault: Fault, after: u64) -> bool {
        self.0.arm(fault, after)
    }

    fn arm_opening(&self, fault: Fault, after: u64) -> bool {
        self.0.arm_opening(fault, after)
    }

    fn damage(&self, place: u64) -> bool {
        let disk = self.0.disk();
        let is_image = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "snap");
        let path = disk.files().into_iter().find(is_image).unwrap();
        let length = disk.contents(&path).unwrap().len();
        disk.flip(&path, usize::try_from(place >> 3).unwrap() % length, 1 << (place & 7));
        true
    }
}

mod usual {
    raftkv::log_store_conformance!(super::files(super::Options {
        segment_bytes: 4 << 20,
        ..super::Options::default()
    }));
}

mod tiny_segments {
    raftkv::log_store_conformance!(super::files(super::Options { segment_bytes: 4096, ..super::Options::default() }));
}

mod wide_alignment_without_a_thread {
    use super::Options;
    raftkv::log_store_conformance!(super::files(Options {
        segment_bytes: 64 << 10,
        align: 4096,
        direct_from: 4096,
        background: false
    }));
}

mod past_the_page_cache {
    raftkv::log_store_conformance!(super::files(super::Options { direct_from: 0, ..super::Options::default() }));
}

mod simulated_disk {
    raftkv::log_store_conformance!(super::simulated());
}

mod snapshots {
    raftkv::snapshot_conformance!(super::files(super::Options::default()));
}

mod snapshots_on_a_simulated_disk {
    raftkv::snapshot_conformance!(super::simulated());
}
