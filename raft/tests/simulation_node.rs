//! Whole nodes on memory stores, under faults that a seed decides.

use raftkv::testing::simulation::node::{MemStores, Registers, Simulation};

#[test]
fn nodes_on_memory_stores_keep_their_promises() {
    let coverage = Simulation::new(Registers::default(), MemStores::new).seeds(0..20).run();
    println!("{coverage}");
}
