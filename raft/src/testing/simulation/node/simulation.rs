//! [`Simulation`]: seeds to run, and what is reported of them.

use std::ops::Range;
use std::sync::Arc;

use super::plan::FAULTS;
use super::run::run;
use super::stores::Stores;
use super::subject::Subject;
use crate::testing::simulation::{Campaign, Coverage, Depth, Failure, Options, Run, shrink};

/// How many runs a failure may cost to make it smaller.
const SHRINKING: u32 = 60;

/// The simulation of a state machine on stores. Each seed is a cluster of its own, with its own sizes, limits and faults.
///
/// ```no_run
/// # use raftkv::testing::simulation::node::{MemStores, Simulation, Subject};
/// # fn simulate(bank: impl Subject) {
/// Simulation::new(bank, MemStores::new).seeds(0..1000).run();
/// # }
/// ```
///
/// `raft/examples/simulate.rs` is a whole one.
pub struct Simulation<S, F> {
    subject: Arc<S>,
    stores: F,
    seeds: Range<u64>,
    threads: usize,
    name: &'static str,
    expected: Coverage,
}

impl<S: Subject, T: Stores, F: Fn() -> T + Sync> Simulation<S, F> {
    /// A simulation of this subject, each node with empty stores from `stores`: a hundred seeds from 0, on one thread.
    pub fn new(subject: S, stores: F) -> Self {
        let expected = Coverage::default();
        Self { subject: Arc::new(subject), stores, seeds: 0..100, threads: 1, name: "node", expected }
    }

    /// Which seeds to run.
    #[must_use]
    pub fn seeds(self, seeds: Range<u64>) -> Self {
        Self { seeds, ..self }
    }

    /// On how many threads; each seed runs on one.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Classes of coverage that a campaign must meet, beside those that any campaign of some size meets.
    #[must_use]
    pub fn expecting(mut self, classes: &[&'static str]) -> Self {
        classes.iter().for_each(|class| self.expected.expect(class));
        self
    }

    /// Runs all seeds, and one in a hundred of them twice.
    ///
    /// # Panics
    /// A promise was broken, or two runs of a seed differed. Says which promise, with the last steps as a diagram and the line that repeats
    /// the run.
    #[expect(clippy::panic, reason = "a test reports by panicking")]
    pub fn run(self) -> Coverage {
        let campaign = Campaign {
            depth: &self,
            seeds: self.seeds.clone(),
            options: Options::default(),
            threads: self.threads,
            repeat_per_mille: 10,
        };
        let findings = campaign.run(&|_| ());
        if let Some(failure) = findings.failure {
            let failure = shrink(&self, &failure, SHRINKING);
            panic!("{}", failure.report(&self));
        }
        assert!(findings.diverged.is_empty(), "two runs of a seed differ: {:?}", findings.diverged);
        findings.coverage
    }
}

impl<S: Subject, T: Stores, F: Fn() -> T + Sync> Depth for Simulation<S, F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn expected(&self) -> Coverage {
        self.expected.clone()
    }

    fn faults(&self) -> &'static [&'static str] {
        &FAULTS
    }

    fn run(&self, seed: u64, options: &Options, keep: usize) -> Result<Run, Box<Failure>> {
        let failed = |invariant: String| Failure {
            seed,
            options: options.clone(),
            invariant,
            events: 0,
            nodes: 0,
            steps: Vec::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|error| Box::new(failed(format!("no runtime: {error}"))))?;
        let outcome = runtime.block_on(run(self.subject.clone(), &self.stores, seed, options, keep));
        drop(runtime);
        let (trace, coverage, violation) = outcome.record.take();
        let steps = trace.steps().cloned().collect();
        match violation {
            Some(invariant) => {
                Err(Box::new(Failure { events: outcome.events, nodes: outcome.nodes, steps, ..failed(invariant) }))
            }
            None => Ok(Run {
                coverage,
                trace_hash: trace.hash(),
                node_time: outcome.took * u32::try_from(outcome.nodes).unwrap_or(1),
                events: outcome.events,
                steps,
            }),
        }
    }

    fn command(&self, seed: u64, options: &Options) -> String {
        if self.name != "node" {
            return format!("Simulation::new(…).seeds({seed}..{})", seed + 1);
        }
        format!("cargo run --release -p raftkv-tests --bin sim -- --depth node --seed {seed} --trace{options}")
    }
}
