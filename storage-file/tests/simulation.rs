//! Whole nodes on simulated disks, under faults that a seed decides.

use raftkv::testing::simulation::node::{Registers, Simulation};
use raftkv_storage_file::simulation::FileStores;

#[test]
fn nodes_on_failing_disks_keep_their_promises() {
    let coverage = Simulation::new(Registers::default(), FileStores::new).seeds(0..20).run();
    println!("{coverage}");
}
