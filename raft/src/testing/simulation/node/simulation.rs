//! [`Simulation`]: seeds to run, and what is reported of them.

use std::fmt::Write;
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
/// # use raftkv::testing::simulation::node::{MemStores, Registers, Simulation};
/// # let my_subject = Registers::default();
/// Simulation::new(my_subject, MemStores::new).seeds(0..1000).threads(2).run();
/// ```
///
/// `raft/examples/simulate.rs` is a whole one. It also is a [`Depth`], for a [`Campaign`] of your own.
#[derive(Clone)]
pub struct Simulation<S, F> {
    subject: Arc<S>,
    stores: F,
    seeds: Range<u64>,
    threads: usize,
    options: Options,
    /// The command that repeats a run, without its seed.
    command: Option<&'static str>,
    expected: Coverage,
}

impl<S: Subject, T: Stores, F: Fn() -> T + Sync> Simulation<S, F> {
    /// A simulation of this subject, each node with empty stores from `stores`: a hundred seeds from 0, on one thread.
    pub fn new(subject: S, stores: F) -> Self {
        Self {
            subject: Arc::new(subject),
            stores,
            seeds: 0..100,
            threads: 1,
            options: Options::default(),
            command: None,
            expected: Coverage::default(),
        }
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

    /// At most so many faults in each run.
    #[must_use]
    pub fn events(mut self, events: u64) -> Self {
        self.options.events = Some(events);
        self
    }

    /// So many nodes in each run.
    #[must_use]
    pub fn nodes(mut self, nodes: u64) -> Self {
        self.options.nodes = Some(nodes);
        self
    }

    /// Leaves kinds of fault out: `network`, `kill`, `pause`, `stop`, `disk`, `damage`, `clock`, `overload` or `members`.
    #[must_use]
    pub fn without(mut self, faults: &[&str]) -> Self {
        self.options.without.extend(faults.iter().map(|fault| (*fault).to_owned()));
        self
    }

    /// Classes of coverage that a campaign must meet.
    #[must_use]
    pub fn expecting(mut self, classes: &[&'static str]) -> Self {
        classes.iter().for_each(|class| self.expected.expect(class));
        self
    }

    /// The command that repeats a run, to which seed and options are added. Without one, a failure names the call that does.
    #[must_use]
    pub fn repeated_by(self, command: &'static str) -> Self {
        Self { command: Some(command), ..self }
    }

    /// Runs all seeds, and one in a hundred of them twice. Returns what they went through.
    ///
    /// # Panics
    /// A promise was broken, two runs of a seed differed, or an expected class never occurred. Says which promise, with the last steps as
    /// a diagram and the line that repeats the run.
    #[expect(clippy::panic, reason = "a test reports by panicking")]
    pub fn run(&self) -> Coverage {
        assert!(!self.seeds.is_empty(), "no seed is to be run: {:?}", self.seeds);
        assert!(self.options.nodes != Some(0), "a cluster of no nodes does nothing");
        let unknown = self.options.without.iter().find(|fault| !self.faults().contains(&fault.as_str()));
        assert!(unknown.is_none(), "there is no fault {unknown:?}; there are {:?}", self.faults());
        let campaign = Campaign {
            depth: self,
            seeds: self.seeds.clone(),
            options: self.options.clone(),
            threads: self.threads,
            repeat_per_mille: 10,
        };
        let findings = campaign.run(&|_| ());
        if let Some(failure) = findings.failure {
            panic!("{}", shrink(self, &failure, SHRINKING).report(self));
        }
        assert!(findings.diverged.is_empty(), "two runs of a seed differ: {:?}", findings.diverged);
        assert!(findings.coverage.missing().is_empty(), "never met: {:?}", findings.coverage.missing());
        findings.coverage
    }
}

impl<S: Subject, T: Stores, F: Fn() -> T + Sync> Depth for Simulation<S, F> {
    fn name(&self) -> &'static str {
        "node"
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
        // One thread, and a clock that moves when nothing else does: a run is a function of its seed.
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
        if let Some(command) = self.command {
            return format!("{command} --seed {seed} --trace{options}");
        }
        let mut call = format!("Simulation::new(…).seeds({seed}..{})", seed + 1);
        if let Some(events) = options.events {
            let _ = write!(call, ".events({events})");
        }
        if let Some(nodes) = options.nodes {
            let _ = write!(call, ".nodes({nodes})");
        }
        if !options.without.is_empty() {
            let list: Vec<_> = options.without.iter().collect();
            let _ = write!(call, ".without(&{list:?})");
        }
        call + ".run()"
    }
}

impl<S, F> std::fmt::Debug for Simulation<S, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation").field("seeds", &self.seeds).field("options", &self.options).finish_non_exhaustive()
    }
}
