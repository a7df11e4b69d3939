//! Whole nodes on simulated disks, under faults that a seed decides.
//!
//! `RAFTKV_SIMULATION_SEEDS=0..1000 cargo test --release -p raftkv-storage-file --test simulation -- --nocapture` runs more of them.

use std::ops::Range;
use std::time::Instant;

use raftkv::testing::simulation::Campaign;
use raftkv::testing::simulation::node::{Registers, Simulation};
use raftkv_storage_file::simulation::FileStores;

/// What some dozens of seeds meet.
const MET: [&str; 14] = [
    "bit rot",
    "entries truncated",
    "failed syncs",
    "full disks",
    "last batches written anew after a failed sync",
    "leaders killed",
    "leaders paused",
    "nodes stopped by a failing disk",
    "nodes stopped by corruption",
    "power lost in the middle of an operation",
    "restarts",
    "shutdowns",
    "stalled disks",
    "writes answered",
];

fn seeds() -> Option<Range<u64>> {
    let text = std::env::var("RAFTKV_SIMULATION_SEEDS").ok()?;
    let (from, to) = text.split_once("..")?;
    Some(from.parse().ok()?..to.parse().ok()?)
}

#[test]
fn nodes_on_failing_disks_keep_their_promises() {
    let simulation = Simulation::new(Registers::default(), FileStores::new).expecting(&MET);
    let campaign = Campaign {
        depth: &simulation,
        seeds: seeds().unwrap_or(0..30),
        options: Default::default(),
        threads: 1,
        repeat_per_mille: 100,
    };
    let began = Instant::now();
    let findings = campaign.run(&|_| ());
    println!("{}", findings.coverage);
    let hours = findings.node_time.as_secs_f64() / 3600.0;
    println!("{} seeds, {hours:.1} node-hours in {:?}", findings.seeds, began.elapsed());
    if let Some(failure) = findings.failure {
        panic!("{}", failure.report(&simulation));
    }
    assert_eq!(findings.diverged, [] as [u64; 0], "two runs of a seed differ");
    assert_eq!(findings.coverage.missing(), [] as [&str; 0], "never met");
}
