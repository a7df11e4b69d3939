//! The log and the snapshots of a simulated node, on a disk that fails: for
//! [`raftkv::testing::simulation::node`] (feature `testing`).

use std::path::Path;
use std::sync::Arc;

use raftkv::StorageError;
use raftkv::testing::Random;
use raftkv::testing::simulation::node::Site;
use raftkv_storage_file::sim::SimDisk;
use raftkv_storage_file::simulation::{DiskStores, Kind, Opened, Suffered};

use crate::{Commit, Identity, Options, RedbLog, RedbSnapshots, SnapshotOptions};

/// A [`RedbLog`] and [`RedbSnapshots`] on a simulated disk.
pub type RedbStores = DiskStores<Redb>;

/// The stores of this crate.
#[derive(Debug, Default)]
pub struct Redb {
    commit: Commit,
    cache_bytes: usize,
    small_bytes: usize,
}

impl Kind for Redb {
    fn choose(&mut self, random: &mut Random) {
        self.commit = random.pick(&[Commit::OnePhase, Commit::OnePhase, Commit::TwoPhase]).unwrap_or_default();
        self.cache_bytes = random.pick(&[32 << 10, 1 << 20]).unwrap_or_default();
        self.small_bytes = random.pick(&[0, 300, 64 << 10]).unwrap_or_default();
    }

    fn cover(&self, disk: &SimDisk, suffered: Suffered, site: &Site) {
        if disk.files().iter().any(|path| path.ends_with("log.redb.new")) {
            site.hit("copies of a database cut off");
        }
        if suffered.power_loss && disk.files().iter().any(|path| path.ends_with("log.redb")) {
            site.hit("databases opened after a loss of power");
        }
    }

    fn open(&self, disk: &SimDisk, identity: Identity) -> Result<Opened, StorageError> {
        let vfs = Arc::new(disk.clone());
        let options = Options { commit: self.commit, cache_bytes: self.cache_bytes, background: false };
        let log = RedbLog::open_on(vfs.clone(), "/log", identity, options)?;
        let options = SnapshotOptions { small_bytes: self.small_bytes, commit: self.commit, background: false };
        Ok((Arc::new(log), Arc::new(RedbSnapshots::open_on(vfs, "/snapshots", identity, options)?)))
    }

    fn holds_entries(&self, path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "redb")
    }
}
