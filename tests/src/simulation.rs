//! The simulation of whole nodes, as the command `sim` runs it: registers on simulated disks, and now and then on stores in memory.

use raftkv::testing::simulation::node::{MemStores, Registers, Simulation};
use raftkv::testing::simulation::{Coverage, Depth, Failure, Options, Run};
use raftkv_storage_file::simulation::FileStores;

const COMMAND: &str = "cargo run --release -p raftkv-tests --bin sim -- --depth node";

/// What a campaign of some hundred seeds must have met.
const CLASSES: [&str; 44] = [
    "all nodes lost power",
    "answer Lost",
    "answer NotLeader",
    "answer OutcomeUnknown",
    "answer Overloaded",
    "answer Stopped",
    "answer Unavailable",
    "bad links",
    "bit rot",
    "bridges",
    "bursts",
    "calls given up by the client",
    "campaigns",
    "clock jumps",
    "disk errors",
    "drops without a shutdown",
    "elections won",
    "entries truncated",
    "failed syncs",
    "full disks",
    "last batches written anew after a failed sync",
    "leaders killed",
    "leaders paused",
    "links that hang",
    "messages doubled",
    "messages lost",
    "misdirected writes",
    "nodes ended in good order",
    "nodes killed",
    "nodes stopped by a failing disk",
    "nodes stopped by a full disk",
    "nodes stopped by corruption",
    "nodes that lost power",
    "one-way cuts",
    "partitions",
    "pauses",
    "peers that vanish",
    "power lost in recovery",
    "power lost in the middle of an operation",
    "reads answered by followers",
    "slow disks",
    "stalled disks",
    "torn writes recovered",
    "writes forwarded by followers",
];

/// Whole nodes.
#[derive(Debug)]
pub struct NodeDepth {
    on_files: Simulation<Registers, fn() -> FileStores>,
    in_memory: Simulation<Registers, fn() -> MemStores>,
}

impl Default for NodeDepth {
    fn default() -> Self {
        let files: fn() -> FileStores = FileStores::new;
        let memory: fn() -> MemStores = MemStores::new;
        let on_files = Simulation::new(Registers::default(), files).expecting(&CLASSES).repeated_by(COMMAND);
        Self { on_files, in_memory: Simulation::new(Registers::default(), memory).repeated_by(COMMAND) }
    }
}

impl Depth for NodeDepth {
    fn name(&self) -> &'static str {
        "node"
    }

    fn expected(&self) -> Coverage {
        self.on_files.expected()
    }

    fn faults(&self) -> &'static [&'static str] {
        self.on_files.faults()
    }

    fn run(&self, seed: u64, options: &Options, keep: usize) -> Result<Run, Box<Failure>> {
        if seed.is_multiple_of(10) {
            Depth::run(&self.in_memory, seed, options, keep)
        } else {
            Depth::run(&self.on_files, seed, options, keep)
        }
    }

    fn command(&self, seed: u64, options: &Options) -> String {
        self.on_files.command(seed, options)
    }
}
