//! Running many seeds: on several threads, each seed on one; what they went through, and what failed.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::Duration;

use super::coverage::Coverage;
use super::diagram;
use super::trace::Step;
use crate::testing::lock;

/// How many of the last steps a failure shows.
pub const SHOWN_STEPS: usize = 60;

/// One kind of simulation: what runs for a seed.
pub trait Depth: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// The classes that a campaign must meet, each declared by [`Coverage::expect`].
    fn expected(&self) -> Coverage;

    /// The kinds of fault that [`Options::without`] can switch off.
    fn faults(&self) -> &'static [&'static str];

    /// What a campaign that went through this does not prove although it claims to, besides classes that it never met; for campaigns that
    /// are large enough for shares to mean something.
    fn shortfall(&self, coverage: &Coverage, seeds: u64) -> Option<String> {
        let _ = (coverage, seeds);
        None
    }

    /// Runs one seed: a function of the seed and the options alone. Keeps the last `keep` steps in words.
    ///
    /// # Errors
    /// An invariant that does not hold. Panics of the code under test are caught with [`caught`] within, where the trace still is; those
    /// that escape are caught by the campaign, without their steps.
    fn run(&self, seed: u64, options: &Options, keep: usize) -> Result<Run, Box<Failure>>;

    /// The command that repeats a run.
    fn command(&self, seed: u64, options: &Options) -> String {
        let depth = self.name();
        format!("cargo run --release -p raftkv-tests --bin sim -- --depth {depth} --seed {seed} --trace{options}")
    }
}

/// What is changed about the run of a seed. The default changes nothing: the seed decides everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The most random events before everything is healed.
    pub events: Option<u64>,
    /// How many nodes there are.
    pub nodes: Option<u64>,
    /// Kinds of fault that do not occur, of those in [`Depth::faults`].
    pub without: BTreeSet<String>,
}

impl Options {
    /// Whether this kind of fault may occur.
    #[must_use]
    pub fn allows(&self, fault: &str) -> bool {
        !self.without.contains(fault)
    }
}

/// As arguments of the command `sim`.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(events) = self.events {
            write!(f, " --events {events}")?;
        }
        if let Some(nodes) = self.nodes {
            write!(f, " --nodes {nodes}")?;
        }
        if !self.without.is_empty() {
            let list: Vec<_> = self.without.iter().map(String::as_str).collect();
            write!(f, " --without {}", list.join(","))?;
        }
        Ok(())
    }
}

/// A run in which everything held.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it went through.
    pub coverage: Coverage,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// The simulated time, added up over all nodes.
    pub node_time: Duration,
    /// How many random events there were, to be bounded by [`Options::events`].
    pub events: u64,
    /// The last steps, as many as were to be kept.
    pub steps: Vec<Step>,
}

/// A run in which something did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was changed about it.
    pub options: Options,
    /// What did not hold, with the facts: `kind: details`.
    pub invariant: String,
    /// How many random events there were before.
    pub events: u64,
    /// How many nodes there were.
    pub nodes: u64,
    /// The last steps, as many as were to be kept.
    pub steps: Vec<Step>,
}

impl Failure {
    /// Which invariant it is, without the facts of this run.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.invariant.split(": ").next().unwrap_or_default()
    }

    /// For a person: the last steps as a diagram, what did not hold, and the command that repeats it.
    #[must_use]
    pub fn report(&self, depth: &dyn Depth) -> String {
        let command = depth.command(self.seed, &self.options);
        let (seed, events) = (self.seed, self.events);
        let diagram = diagram::render(self.nodes, &self.steps);
        format!(
            "{diagram}\nseed {seed} fails after {events} random events\n  {}\nrepeat it:\n  {command}\n",
            self.invariant.replace('\n', "\n  ")
        )
    }
}

/// A range of seeds to run.
pub struct Campaign<'a> {
    /// What runs for each.
    pub depth: &'a dyn Depth,
    /// The seeds.
    pub seeds: Range<u64>,
    /// What is changed about all of them.
    pub options: Options,
    /// On how many threads.
    pub threads: usize,
    /// In how many of a thousand seeds the run is repeated, and both traces are compared.
    pub repeat_per_mille: u64,
}

/// What a campaign found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// How many seeds ran to their end.
    pub seeds: u64,
    /// What they went through, with the classes that were expected.
    pub coverage: Coverage,
    /// The simulated time, added up over all nodes and seeds.
    pub node_time: Duration,
    /// How many seeds were run twice.
    pub repeated: u64,
    /// Those of which the two runs differed.
    pub diverged: Vec<u64>,
    /// The failure of the smallest seed, if any failed. No seed after it is begun.
    pub failure: Option<Failure>,
}

impl Findings {
    fn add(&mut self, run: &Run) {
        self.seeds += 1;
        self.coverage.merge(&run.coverage);
        self.node_time += run.node_time;
    }
}

impl Campaign<'_> {
    /// Runs all seeds, or until one fails. `progress` is told of each seed that ran.
    #[must_use]
    pub fn run(&self, progress: &(dyn Fn(&Run) + Sync)) -> Findings {
        let next = AtomicU64::new(self.seeds.start);
        let end = AtomicU64::new(self.seeds.end);
        let findings = Mutex::new(Findings { coverage: self.depth.expected(), ..Findings::default() });
        // Each seed runs on one thread from its start to its end, so threads change nothing about what it does.
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::SeqCst);
                        if seed >= end.load(Ordering::SeqCst) {
                            return;
                        }
                        match attempt(self.depth, seed, &self.options, 0) {
                            Ok(run) => {
                                let again = self.is_repeated(seed).then(|| self.repeats(seed, &run));
                                let mut findings = lock(&findings);
                                findings.add(&run);
                                if let Some(same) = again {
                                    findings.repeated += 1;
                                    findings.diverged.extend((!same).then_some(seed));
                                }
                                drop(findings);
                                progress(&run);
                            }
                            Err(failure) => {
                                end.fetch_min(seed, Ordering::SeqCst);
                                let failure = self.in_words(*failure);
                                let mut findings = lock(&findings);
                                if findings.failure.as_ref().is_none_or(|other| seed < other.seed) {
                                    findings.failure = Some(failure);
                                }
                            }
                        }
                    }
                });
            }
        });
        let mut findings = findings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        findings.diverged.sort_unstable();
        findings
    }

    fn is_repeated(&self, seed: u64) -> bool {
        // A sequence of its own: the run draws from the seed's, and only runs of one kind would be repeated. The first is, in any case.
        let drawn = crate::testing::Random::new(!seed).per_mille(self.repeat_per_mille);
        drawn || (seed == self.seeds.start && self.repeat_per_mille > 0)
    }

    fn repeats(&self, seed: u64, first: &Run) -> bool {
        attempt(self.depth, seed, &self.options, 0)
            .is_ok_and(|second| (second.trace_hash, &second.coverage) == (first.trace_hash, &first.coverage))
    }

    /// Runs a failing seed again, to see its last steps.
    fn in_words(&self, failure: Failure) -> Failure {
        match attempt(self.depth, failure.seed, &self.options, SHOWN_STEPS) {
            Err(again) if again.invariant == failure.invariant => *again,
            Err(again) => Failure {
                invariant: format!(
                    "{}\nA second run of the seed ended otherwise: {}",
                    failure.invariant, again.invariant
                ),
                ..*again
            },
            Ok(_) => Failure {
                invariant: format!("{}\nA second run of the seed did not fail: it diverged", failure.invariant),
                ..failure
            },
        }
    }
}

/// Runs one seed; a panic that escapes from it is a failure too.
///
/// # Errors
/// As [`Depth::run`].
pub fn attempt(depth: &dyn Depth, seed: u64, options: &Options, keep: usize) -> Result<Run, Box<Failure>> {
    caught(|| depth.run(seed, options, keep)).unwrap_or_else(|invariant| {
        Err(Failure { seed, options: options.clone(), invariant, events: 0, nodes: 0, steps: Vec::new() }.into())
    })
}

thread_local! {
    /// While panics are caught on this thread: the text of the last one.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
    static CATCHING: RefCell<u32> = const { RefCell::new(0) };
}

/// Runs something that may panic, without a word on stderr.
///
/// # Errors
/// The text of the panic, and where it was.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if CATCHING.with_borrow(|catching| *catching > 0) {
                CAUGHT.set(Some(describe(panic)));
            } else {
                others(panic);
            }
        }));
    });
    CATCHING.with_borrow_mut(|catching| *catching += 1);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    CATCHING.with_borrow_mut(|catching| *catching -= 1);
    outcome.map_err(|payload| CAUGHT.take().unwrap_or_else(|| format!("panic: {}", text(&*payload))))
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let place = panic.location().map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
    format!("panic{place}: {}", text(panic.payload()))
}

/// What a panic says.
fn text(payload: &(dyn Any + Send)) -> &str {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it says nothing")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::simulation::shrink;

    /// Fails in seeds that are multiples of `every`, when there are at least 3 nodes, 10 events and crashes.
    struct Toy {
        every: u64,
        calls: AtomicU64,
    }

    impl Depth for Toy {
        fn name(&self) -> &'static str {
            "toy"
        }

        fn expected(&self) -> Coverage {
            let mut coverage = Coverage::default();
            coverage.expect("run");
            coverage.expect("never met");
            coverage
        }

        fn faults(&self) -> &'static [&'static str] {
            &["crash", "drop"]
        }

        fn run(&self, seed: u64, options: &Options, _keep: usize) -> Result<Run, Box<Failure>> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let (events, nodes) = (options.events.unwrap_or(500).min(500), options.nodes.unwrap_or(5));
            let fails = seed.is_multiple_of(self.every) && options.allows("crash") && events >= 10 && nodes >= 3;
            assert!(!fails || nodes < 5, "five is too many");
            if fails {
                let invariant = "too many: facts".into();
                return Err(Box::new(Failure {
                    seed,
                    options: options.clone(),
                    invariant,
                    events: 10,
                    nodes,
                    steps: Vec::new(),
                }));
            }
            let mut coverage = Coverage::default();
            coverage.hit("run");
            let node_time = Duration::from_secs(nodes);
            Ok(Run { coverage, trace_hash: seed % 100, node_time, events, steps: Vec::new() })
        }
    }

    fn campaign(depth: &Toy, threads: usize) -> Findings {
        let campaign = Campaign { depth, seeds: 1..201, options: Options::default(), threads, repeat_per_mille: 100 };
        campaign.run(&|_| ())
    }

    #[test]
    fn every_seed_runs_once_and_what_was_never_met_shows() {
        let toy = Toy { every: 1000, calls: AtomicU64::new(0) };
        let findings = campaign(&toy, 3);
        assert_eq!((findings.seeds, findings.node_time), (200, Duration::from_secs(1000)));
        assert_eq!(findings.coverage.missing(), ["never met"]);
        assert!(findings.failure.is_none() && findings.diverged.is_empty());
        assert_eq!(toy.calls.load(Ordering::SeqCst), 200 + findings.repeated);
        assert!((5..50).contains(&findings.repeated), "{}", findings.repeated);
    }

    #[test]
    fn the_smallest_failing_seed_is_found_whatever_the_threads() {
        for threads in [1, 4] {
            let toy = Toy { every: 7, calls: AtomicU64::new(0) };
            let failure = campaign(&toy, threads).failure.expect("it fails");
            assert_eq!(failure.seed, 7);
            assert!(failure.kind().starts_with("panic at "), "{}", failure.invariant);
            assert!(failure.invariant.ends_with("five is too many"), "{}", failure.invariant);
        }
    }

    #[test]
    fn a_failure_is_shrunk_and_names_the_command_that_repeats_it() {
        let toy = Toy { every: 7, calls: AtomicU64::new(0) };
        let options = Options { nodes: Some(4), ..Options::default() };
        let failure = toy.run(7, &options, 0).expect_err("it fails");
        let smaller = shrink::shrink(&toy, &failure, 100);
        assert_eq!(smaller.options.to_string(), " --events 10 --nodes 3 --without drop");
        let report = smaller.report(&toy);
        assert!(report.contains("--depth toy --seed 7 --trace --events 10 --nodes 3 --without drop"), "{report}");
    }
}
