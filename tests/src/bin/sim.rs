//! Simulated clusters by the thousand: `cargo run --release -p raftkv-tests --bin sim -- --seeds 10000`.
//!
//! Each seed is a run of its own, with its own mix of faults and sizes, and runs the same way every time. The first that fails is shown
//! as a sequence diagram with the command that repeats it; `--shrink` makes it smaller first. `--mutants` grades the simulator itself:
//! it switches known bugs on, one at a time, and lists how many seeds find each.

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use raftkv::mutants::{self, MUTANTS, Mutant};
use raftkv::testing::simulation::consensus::ConsensusDepth;
use raftkv::testing::simulation::{Campaign, Depth, Failure, Findings, Options, attempt, diagram, shrink};
use raftkv_tests::simulation::{EngineKind, NodeDepth, StoreKind};

/// With fewer seeds than this, a class that never occurred is no wonder.
const SEEDS_THAT_COVER: u64 = 500;
/// How many steps `--trace` shows.
const TRACED_STEPS: usize = 10_000;
/// How many runs shrinking may take.
const SHRINKING: u32 = 400;

/// Runs simulated clusters under schedules that seeds decide, and checks every promise after every step.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Run this one alone
    #[arg(long)]
    seed: Option<u64>,
    /// Show the last steps of the one seed, even if nothing fails
    #[arg(long, requires = "seed")]
    trace: bool,
    /// What is simulated
    #[arg(long, value_enum, default_value_t = DepthName::Node)]
    depth: DepthName,
    /// What whole nodes keep their logs and images in
    #[arg(long, value_enum, default_value_t = StoreName::File)]
    store: StoreName,
    /// What whole nodes keep their contents in
    #[arg(long, value_enum, default_value_t = EngineName::Memory)]
    engine: EngineName,
    /// How many seeds run at the same time
    #[arg(long)]
    threads: Option<usize>,
    /// In this many percent of the seeds, run twice and compare
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT")]
    check_traces: f64,
    /// Make a failing run smaller before it is shown
    #[arg(long)]
    shrink: bool,
    /// The most random events of a run
    #[arg(long)]
    events: Option<u64>,
    /// How many nodes
    #[arg(long)]
    nodes: Option<u64>,
    /// Kinds of fault that must not occur
    #[arg(long, value_delimiter = ',', value_name = "FAULT,…")]
    without: Vec<String>,
    /// Find every known bug of this depth: switched on one at a time, each has so many seeds
    #[arg(long)]
    mutants: bool,

    /// With --mutants: all but these
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "mutants")]
    except: Vec<String>,
    /// Switch this known bug on
    #[arg(long, value_name = "NAME", conflicts_with = "mutants")]
    mutant: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DepthName {
    /// Whole nodes: runtime, log and state machine, on simulated disks
    Node,
    /// Many consensus cores, without the runtime
    Consensus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StoreName {
    /// Segmented files: raftkv-storage-file
    File,
    /// A database: raftkv-storage-redb
    Redb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineName {
    /// Registers in memory
    Memory,
    /// The database of kv-example, with its contents
    Redb,
}

impl From<EngineName> for EngineKind {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Memory => Self::Memory,
            EngineName::Redb => Self::Redb,
        }
    }
}

impl From<StoreName> for StoreKind {
    fn from(name: StoreName) -> Self {
        match name {
            StoreName::File => Self::File,
            StoreName::Redb => Self::Redb,
        }
    }
}

impl DepthName {
    fn depth(self, store: StoreName, engine: EngineName) -> Box<dyn Depth> {
        match self {
            Self::Node => Box::new(NodeDepth::on(store.into(), engine.into())),
            Self::Consensus => Box::new(ConsensusDepth),
        }
    }
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if (args.mutants || args.mutant.is_some()) && !mutants::COMPILED_IN {
        return run_with_mutants();
    }
    let depth = args.depth.depth(args.store, args.engine);
    let options = args.options(&*depth)?;
    if args.mutants {
        return grade(&args, &*depth, &options);
    }
    mutants::choose(args.mutant.as_deref()).map_err(anyhow::Error::msg)?;
    match args.seed {
        Some(seed) => one(&args, &*depth, seed, &options),
        None => campaign(&args, &*depth, &options),
    }
}

impl Args {
    fn options(&self, depth: &dyn Depth) -> Result<Options> {
        let known = depth.faults();
        if let Some(other) = self.without.iter().find(|fault| !known.contains(&fault.as_str())) {
            bail!("--without {other}: there is no such fault at this depth; there are {}", known.join(", "));
        }
        if !(0.0..=100.0).contains(&self.check_traces) {
            bail!("--check-traces {}: a percentage is from 0 to 100", self.check_traces);
        }
        let without: BTreeSet<String> = self.without.iter().cloned().collect();
        Ok(Options { events: self.events, nodes: self.nodes, without })
    }

    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn search(&self, depth: &dyn Depth, options: &Options, progress: &ProgressBar) -> Findings {
        let campaign = Campaign {
            depth,
            seeds: self.first..self.first.saturating_add(self.seeds),
            options: options.clone(),
            threads: self.threads(),
            repeat_per_mille: (self.check_traces * 10.0).round() as u64,
        };
        campaign.run(&|_| progress.inc(1))
    }
}

/// Runs the same command again, compiled with the known bugs.
fn run_with_mutants() -> Result<ExitCode> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let flags = "--cfg mutants";
    let cargo = ["run", "--release", "--target-dir", "target/mutants", "-p", "raftkv-tests", "--bin", "sim", "--"];
    eprintln!(
        "The known bugs are not compiled in. This command has them:\n  RUSTFLAGS='{flags}' cargo {} {}",
        cargo.join(" "),
        args.join(" ")
    );
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let status = Command::new("cargo").args(cargo).args(args).env("RUSTFLAGS", flags).current_dir(root).status();
    let status = status.context("cargo is not to be started here: run the command yourself, in the source tree")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One seed.
fn one(args: &Args, depth: &dyn Depth, seed: u64, options: &Options) -> Result<ExitCode> {
    let keep = if args.trace { TRACED_STEPS } else { 60 };
    match attempt(depth, seed, options, keep) {
        Ok(run) => {
            if args.trace {
                println!("{}", diagram::render(options.nodes.unwrap_or(1), &run.steps));
            }
            println!(
                "seed {seed}: all held, after {} random events and {} of all nodes' time (trace {:016x})",
                run.events,
                hours(run.node_time),
                run.trace_hash
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            show(args, depth, &failure);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn show(args: &Args, depth: &dyn Depth, failure: &Failure) {
    let shrunk = args.shrink.then(|| shrink(depth, failure, SHRINKING));
    println!("{}", shrunk.as_ref().unwrap_or(failure).report(depth));
    if let Some(name) = &args.mutant {
        println!("with the known bug: add --mutant {name}");
    }
}

/// All seeds, until one fails.
fn campaign(args: &Args, depth: &dyn Depth, options: &Options) -> Result<ExitCode> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left")?;
    let progress = ProgressBar::new(args.seeds).with_style(style);
    let started = Instant::now();
    let findings = args.search(depth, options, &progress);
    progress.finish_and_clear();
    let wall = started.elapsed();
    if let Some(failure) = &findings.failure {
        show(args, depth, failure);
    }
    println!("{}", findings.coverage);
    let a_minute = findings.node_time.as_secs_f64() / 3600.0 / (wall.as_secs_f64() / 60.0);
    println!(
        "{} seeds at depth {}: {} simulated in {wall:.1?} on {} threads, {a_minute:.0} node-hours a minute",
        findings.seeds,
        depth.name(),
        hours(findings.node_time),
        args.threads()
    );
    println!(
        "{} seeds were run twice, of which {} differed {:?}",
        findings.repeated,
        findings.diverged.len(),
        findings.diverged
    );
    let missing = findings.coverage.missing();
    let representative = findings.seeds >= SEEDS_THAT_COVER && options.without.is_empty();
    let uncovered = representative && !missing.is_empty();
    if uncovered {
        println!("never met, so this campaign proves nothing about it: {}", missing.join("; "));
    }
    let shortfall = depth.shortfall(&findings.coverage, findings.seeds).filter(|_| representative);
    if let Some(shortfall) = &shortfall {
        println!("{shortfall}");
    }
    let failed = findings.failure.is_some() || !findings.diverged.is_empty() || uncovered || shortfall.is_some();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn hours(time: Duration) -> String {
    format!("{:.2} node-hours", time.as_secs_f64() / 3600.0)
}

/// Finds every known bug of this depth, or says which survive.
fn grade(args: &Args, depth: &dyn Depth, options: &Options) -> Result<ExitCode> {
    if let Some(unknown) = args.except.iter().find(|name| MUTANTS.iter().all(|mutant| mutant.name != **name)) {
        anyhow::bail!("--except: there is no known bug {unknown:?}");
    }
    let wanted = |mutant: &&Mutant| mutant.depth == depth.name() && !args.except.iter().any(|name| name == mutant.name);
    let of_this_depth: Vec<&Mutant> = MUTANTS.iter().filter(wanted).collect();
    let width = of_this_depth.iter().map(|mutant| mutant.name.len()).max().unwrap_or(0);
    let mut survivors = Vec::new();
    println!("{:width$}  {:>6}  {:>7}  what is wrong, and what found it", "known bug", "seeds", "time");
    for mutant in &of_this_depth {
        mutants::choose(Some(mutant.name)).map_err(anyhow::Error::msg)?;
        let started = Instant::now();
        let findings = args.search(depth, options, &ProgressBar::hidden());
        let time = format!("{:.1?}", started.elapsed());
        let Some(failure) = findings.failure else {
            survivors.push(mutant.name);
            println!("{:width$}  {:>6}  {time:>7}  {} NOT FOUND", mutant.name, "-", mutant.wrong);
            continue;
        };
        let seeds = failure.seed - args.first + 1;
        let found: String = failure.invariant.lines().next().unwrap_or_default().chars().take(150).collect();
        println!(
            "{:width$}  {seeds:>6}  {time:>7}  {}\n{:width$}  {:>6}  {:>7}    {found}",
            mutant.name, mutant.wrong, "", "", ""
        );
    }
    mutants::choose(None).map_err(anyhow::Error::msg)?;
    println!(
        "{} of {} found, each within {} seeds",
        of_this_depth.len() - survivors.len(),
        of_this_depth.len(),
        args.seeds
    );
    if survivors.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("these survive, so the simulator has holes: {}", survivors.join(", "));
    Ok(ExitCode::FAILURE)
}
