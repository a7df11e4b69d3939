//! Whole nodes on memory stores, under faults that a seed decides; and that a run is a function of its seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

#[path = "../examples/simulate.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod simulate;

use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::Random;
use raftkv::testing::linearizability::{Register, RegisterOp, RegisterRet};
use raftkv::testing::simulation::node::{MemStores, RegisterMachine, RegisterView, Registers, Simulation, Subject};
use raftkv::testing::simulation::{Depth, Options};
use raftkv::{Chunks, Fatal, LogId, StateMachine};

#[test]
fn nodes_on_memory_stores_keep_their_promises() {
    let simulation = Simulation::new(Registers::default(), MemStores::new).seeds(0..20);
    let coverage = simulation.run();
    for class in ["leaders killed", "pauses", "clock jumps", "disk errors", "answer Overloaded", "restarts", "bridges"]
    {
        assert!(coverage.count(class) > 0, "{class} never occurred:\n{coverage}");
    }
}

#[test]
fn the_example_holds() {
    let coverage = Simulation::new(simulate::Sums, MemStores::new).seeds(0..5).run();
    assert!(coverage.count("writes answered") > 0 && coverage.count("reads answered") > 0, "{coverage}");
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let simulation = Simulation::new(Registers::default(), MemStores::new);
    let run = |seed, keep| {
        let run = Depth::run(&simulation, seed, &Options::default(), keep).unwrap();
        (run.trace_hash, run.coverage, run.node_time)
    };
    for seed in 100..106 {
        assert!(run(seed, 0) == run(seed, 50), "two runs of seed {seed} differ");
    }
    assert!(run(100, 0).0 != run(101, 0).0, "the seed decides nothing");
}

/// Registers with a bug.
struct Buggy(Registers);

struct Forgetful(RegisterMachine);

#[async_trait]
impl StateMachine for Forgetful {
    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        // Now and then a write is lost, and on all nodes the same: only its clients can notice.
        if at.index.0.is_multiple_of(40) { Ok(Bytes::from_static(&[1])) } else { self.0.apply(at, command).await }
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        self.0.snapshot().await
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.0.restore(image).await
    }
}

impl Subject for Buggy {
    type Machine = Forgetful;
    type View = RegisterView;
    type Model = Register<u64, u64>;

    fn model(&self) -> Self::Model {
        self.0.model()
    }

    fn start(&self) -> (Forgetful, RegisterView) {
        let (machine, view) = self.0.start();
        (Forgetful(machine), view)
    }

    fn random_op(&self, random: &mut Random) -> RegisterOp<u64, u64> {
        self.0.random_op(random)
    }

    fn command(&self, op: &RegisterOp<u64, u64>) -> Option<Bytes> {
        self.0.command(op)
    }

    fn answer(&self, op: &RegisterOp<u64, u64>, answer: &Bytes) -> RegisterRet<u64> {
        self.0.answer(op, answer)
    }

    fn look(&self, view: &RegisterView, op: &RegisterOp<u64, u64>) -> RegisterRet<u64> {
        self.0.look(view, op)
    }
}

#[test]
fn a_machine_that_loses_writes_is_found_and_the_seed_told() {
    let simulation = Simulation::new(Buggy(Registers::default()), MemStores::new).seeds(0..20);
    let told = std::panic::catch_unwind(AssertUnwindSafe(|| simulation.run())).unwrap_err();
    let told = told.downcast_ref::<String>().unwrap();
    assert!(told.contains("not linearizable") && told.contains(".seeds("), "{told}");
}
