//! The simulation of whole nodes, as the command `sim` runs it: registers on simulated disks, and now and then on stores in memory; or the contents of
//! `kv-example`, which its state machine keeps in a database beside log and images.

mod contents;
mod engine;

use raftkv::testing::simulation::node::{MemStores, Registers, Simulation, Stores, Subject};
use raftkv::testing::simulation::{Coverage, Depth, Failure, Options, Run};
use raftkv_storage_file::simulation::{FileStores, Files};
use raftkv_storage_redb::simulation::{Redb, RedbStores};

pub use contents::Contents;
pub use engine::EngineStores;

/// What a campaign of some hundred seeds must have met.
const CLASSES: &[&str] = &[
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
    "changes made",
    "changes refused",
    "changes with an unknown outcome",
    "clock jumps",
    "disk errors",
    "drops without a shutdown",
    "durable state machines that go on",
    "elections won",
    "entries truncated",
    "snapshots installed",
    "snapshots taken",
    "failed syncs",
    "full disks",
    "last batches written anew after a failed sync",
    "joint configurations",
    "leaders killed",
    "leaders paused",
    "links that hang",
    "machines replaced",
    "machines wiped",
    "messages doubled",
    "messages lost",
    "misdirected writes",
    "nodes ended in good order",
    "nodes kept from leading",
    "nodes killed",
    "nodes stopped by a failing disk",
    "nodes stopped by a full disk",
    "nodes stopped by corruption",
    "nodes that learned that they are removed",
    "nodes that lost power",
    "one-way cuts",
    "partitions",
    "pauses",
    "peers that vanish",
    "power lost in recovery",
    "power lost in the middle of an operation",
    "reads answered by followers",
    "reads for which a lease does",
    "reads that reflect an entry",
    "repetitions answered from memory",
    "sessions expired",
    "sessions opened",
    "slow disks",
    "stalled disks",
    "stalls",
    "state machines that hang",
    "torn writes recovered",
    "transfers begun",
    "writes forwarded by followers",
    "writes past the page cache",
];

/// Of these, what only the stores on plain files can meet.
const OF_FILES: &[&str] =
    &["last batches written anew after a failed sync", "torn writes recovered", "writes past the page cache"];

/// What only the stores on redb can meet.
const OF_REDB: &[&str] = &["copies of a database cut off", "databases opened after a loss of power"];

/// What only durable state machines of the simulation's own can meet.
const OF_JOURNALS: &[&str] = &["durable state machines that lost commits"];

/// What only contents in a database can meet.
const OF_ENGINE: &[&str] = &[
    "contents behind the log after a crash",
    "contents recovered after a loss of power",
    "damage to what state machines keep",
    "databases made anew after the disk failed",
    "half-made databases removed",
    "images restored into databases",
    "state machines that begin anew after damage",
];

/// In so many percent of the seeds, at least, something befalls a disk.
const STORAGE_FAULTS: u64 = 70;

/// What a node keeps its log and its images in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreKind {
    /// `raftkv-storage-file`.
    #[default]
    File,
    /// `raftkv-storage-redb`.
    Redb,
}

/// What a node keeps its contents in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// Registers in memory.
    #[default]
    Memory,
    /// The database of `kv-example --engine redb`.
    Redb,
}

/// Whole nodes.
pub struct NodeDepth {
    engine: EngineKind,
    on_disk: Box<dyn Depth>,
    in_memory: Simulation<Registers, fn() -> MemStores>,
}

impl NodeDepth {
    /// Nodes with this kind of store, save now and then, and this engine.
    #[must_use]
    pub fn on(store: StoreKind, engine: EngineKind) -> Self {
        let command = command(store, engine);
        let of_store = match store {
            StoreKind::File => OF_FILES,
            StoreKind::Redb => OF_REDB,
        };
        let (of_engine, others) = match engine {
            EngineKind::Memory => (OF_JOURNALS, OF_ENGINE),
            EngineKind::Redb => (OF_ENGINE, OF_JOURNALS),
        };
        let classes = CLASSES.iter().filter(|class| !OF_FILES.contains(class) && !others.contains(class));
        let classes: Vec<&'static str> = classes.chain(of_store).chain(of_engine).copied().collect();
        let on_disk: Box<dyn Depth> = match (store, engine) {
            (StoreKind::File, EngineKind::Memory) => {
                simulation(Registers::default(), FileStores::new, &classes, command)
            }
            (StoreKind::Redb, EngineKind::Memory) => {
                simulation(Registers::default(), RedbStores::new, &classes, command)
            }
            (StoreKind::File, EngineKind::Redb) => simulation(Contents, EngineStores::<Files>::new, &classes, command),
            (StoreKind::Redb, EngineKind::Redb) => simulation(Contents, EngineStores::<Redb>::new, &classes, command),
        };
        let memory: fn() -> MemStores = MemStores::new;
        let in_memory = Simulation::new(Registers::default(), memory).repeated_by(command);
        Self { engine, on_disk, in_memory }
    }
}

fn simulation<S: Subject, T: Stores>(
    subject: S,
    stores: fn() -> T,
    classes: &[&'static str],
    command: &'static str,
) -> Box<dyn Depth> {
    Box::new(Simulation::new(subject, stores).expecting(classes).repeated_by(command))
}

/// What repeats a run.
fn command(store: StoreKind, engine: EngineKind) -> &'static str {
    match (store, engine) {
        (StoreKind::File, EngineKind::Memory) => "cargo run --release -p raftkv-tests --bin sim -- --depth node",
        (StoreKind::Redb, EngineKind::Memory) => {
            "cargo run --release -p raftkv-tests --bin sim -- --depth node --store redb"
        }
        (StoreKind::File, EngineKind::Redb) => {
            "cargo run --release -p raftkv-tests --bin sim -- --depth node --engine redb"
        }
        (StoreKind::Redb, EngineKind::Redb) => {
            "cargo run --release -p raftkv-tests --bin sim -- --depth node --store redb --engine redb"
        }
    }
}

impl Default for NodeDepth {
    fn default() -> Self {
        Self::on(StoreKind::default(), EngineKind::default())
    }
}

impl Depth for NodeDepth {
    fn name(&self) -> &'static str {
        match self.engine {
            EngineKind::Memory => "node",
            EngineKind::Redb => "engine",
        }
    }

    fn expected(&self) -> Coverage {
        self.on_disk.expected()
    }

    fn faults(&self) -> &'static [&'static str] {
        self.on_disk.faults()
    }

    fn shortfall(&self, coverage: &Coverage, seeds: u64) -> Option<String> {
        let met = coverage.count("runs with storage faults");
        let short = met * 100 < seeds * STORAGE_FAULTS;
        short.then(|| format!("storage faults in {met} of {seeds} seeds only, and {STORAGE_FAULTS}% are to have some"))
    }

    fn run(&self, seed: u64, options: &Options, keep: usize) -> Result<Run, Box<Failure>> {
        if seed.is_multiple_of(10) && self.engine == EngineKind::Memory {
            Depth::run(&self.in_memory, seed, options, keep)
        } else {
            self.on_disk.run(seed, options, keep)
        }
    }

    fn command(&self, seed: u64, options: &Options) -> String {
        self.on_disk.command(seed, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_campaign_with_few_storage_faults_falls_short() {
        let mut coverage = Coverage::default();
        coverage.add("runs with storage faults", 699);
        assert!(NodeDepth::default().shortfall(&coverage, 1000).is_some_and(|text| text.contains("699 of 1000")));
        coverage.hit("runs with storage faults");
        assert_eq!(NodeDepth::default().shortfall(&coverage, 1000), None);
    }
}
