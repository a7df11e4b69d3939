//! The simulated disk itself: what no real file system does, it must not do either.

use std::path::Path;

use raftkv_storage_file::sim::{Fate, SimDisk};
use raftkv_storage_file::{Access, Vfs};

/// A file that is cut and grows again before it is synced has zeros there, and not what it had before.
#[test]
fn what_was_cut_off_does_not_come_back() {
    for lengths_last in [false, true] {
        let disk = SimDisk::new();
        let path = Path::new("/file");
        let file = disk.open(path, Access::Create).expect("a file");
        file.write_at(&[1; 2000], 0).expect("a write");
        file.sync_data().expect("a sync");
        disk.sync_dir(Path::new("/")).expect("a sync of names");
        file.set_len(100).expect("a cut");
        file.set_len(2000).expect("room");
        if !lengths_last {
            file.sync_data().expect("a sync");
        }
        let after = disk.now().lose_power(|_| Fate::Kept).contents(path).expect("the file");
        assert_eq!(after.len(), 2000);
        assert!(after[..100] == [1; 100] && after[100..].iter().all(|byte| *byte == 0));
    }
}
