//! A thousand seeds of faults (200 in a debug build) for a state machine of your own: crashes, lost power, partitions, pauses, sick disks, clocks that are
//! wrong. Everything that clients are told is checked against a model.
//!
//! `cargo run --release -p raftkv --features testing --example simulate [SEEDS]`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::Random;
use raftkv::testing::linearizability::{Counter, CounterOp};
use raftkv::testing::simulation::node::{MemStores, Simulation, Subject};
use raftkv::{Chunks, Fatal, LogId, StateMachine};

/// What is replicated: a sum.
#[derive(Clone, Default)]
pub(crate) struct Sum(Arc<AtomicU64>);

#[async_trait]
impl StateMachine for Sum {
    async fn apply(&mut self, _at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        let add = command[..].try_into().map(u64::from_be_bytes).map_err(|_| Fatal::state_machine("not a number"))?;
        Ok((self.0.fetch_add(add, Ordering::SeqCst) + add).to_be_bytes().to_vec().into())
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Ok(Box::new(vec![Bytes::from(self.0.load(Ordering::SeqCst).to_be_bytes().to_vec())].into_iter()))
    }

    async fn restore(&mut self, mut image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let bytes = image.next().await?.and_then(|bytes| bytes[..].try_into().ok());
        let sum = bytes.map(u64::from_be_bytes).ok_or_else(|| Fatal::state_machine("not a sum's image"))?;
        self.0.store(sum, Ordering::SeqCst);
        Ok(())
    }
}

/// How it is simulated: what clients ask, what that means to the machine, and what they should be told.
pub(crate) struct Sums;

impl Subject for Sums {
    type Machine = Sum;
    type View = Sum;
    type Model = Counter;

    fn model(&self) -> Counter {
        Counter
    }

    fn start(&self) -> (Sum, Sum) {
        let sum = Sum::default();
        (sum.clone(), sum)
    }

    fn random_op(&self, random: &mut Random) -> CounterOp {
        // Always the same number: with different ones, which of the calls without an answer took effect is a riddle that no budget
        // solves, since a sum can be had in very many ways.
        if random.percent(50) { CounterOp::Get } else { CounterOp::Add(1) }
    }

    fn command(&self, op: &CounterOp) -> Option<Bytes> {
        match op {
            CounterOp::Add(number) => Some(Bytes::from(number.to_be_bytes().to_vec())),
            CounterOp::Get => None,
        }
    }

    fn answer(&self, _op: &CounterOp, answer: &Bytes) -> u64 {
        answer[..].try_into().map_or(0, u64::from_be_bytes)
    }

    fn look(&self, view: &Sum, _op: &CounterOp) -> u64 {
        view.0.load(Ordering::SeqCst)
    }
}

fn main() {
    // Some ten seconds on two cores in a debug build, which is ten times slower than an optimized one. Each kind of fault comes dozens of times all the same.
    let default = if cfg!(debug_assertions) { 200 } else { 1000 };
    let seeds = std::env::args().nth(1).and_then(|seeds| seeds.parse().ok()).unwrap_or(default);
    println!("{}", Simulation::new(Sums, MemStores::new).seeds(0..seeds).threads(2).run());
}
