//! Model checking: `cargo run --release -p raftkv-tests --bin explore -- --preset ci`.
//!
//! Looks at every state that a small cluster of the production core can reach within the bounds of a preset. Ends with an error when a
//! property does not hold, and shows the shortest way there.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use raftkv::testing::exploration::{Bounds, Progress, Report, explore, presets};

/// Explores every state of a small cluster within bounds.
#[derive(Debug, Parser)]
struct Args {
    /// Which searches: tiny (seconds), ci (a minute), campaign (an hour)
    #[arg(long, default_value = "ci")]
    preset: String,
    /// Only the search with this name
    #[arg(long)]
    search: Option<String>,
    /// Stop each search after so many different states, rather than after those of the preset
    #[arg(long)]
    max_states: Option<u64>,
    /// Stop each search after so many seconds
    #[arg(long)]
    max_seconds: Option<u64>,
    /// Other bounds than those of the preset, such as `--bound in_flight=5 --bound crashes=1`
    #[arg(long = "bound", value_name = "NAME=NUMBER")]
    bounds: Vec<String>,
    /// Switches a known bug on (see raft/src/mutants.rs); needs a build with RUSTFLAGS='--cfg mutants'
    #[arg(long)]
    mutant: Option<String>,
    /// Lists for every known bug of the core which search finds it, and after how many states; needs the same build
    #[arg(long)]
    mutants: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let all = presets();
    let Some(preset) = all.iter().find(|preset| preset.name == args.preset) else {
        let names: Vec<_> = all.iter().map(|preset| format!("{} ({})", preset.name, preset.about)).collect();
        bail!("there is no preset {:?}: choose one of {}", args.preset, names.join(", "));
    };
    let chosen = |search: &&Bounds| args.search.as_deref().is_none_or(|name| name == search.name);
    let mut searches: Vec<_> = preset.searches.iter().filter(chosen).cloned().collect();
    if searches.is_empty() {
        let names: Vec<_> = preset.searches.iter().map(|search| search.name).collect();
        bail!("{} has no such search: choose one of {}", preset.name, names.join(", "));
    }
    for bounds in &mut searches {
        for bound in &args.bounds {
            change(bounds, bound)?;
            // What must be met under the bounds of the preset need not be under others.
            bounds.must_meet.clear();
        }
    }
    let most = args.max_states.unwrap_or(preset.max_states);
    if args.mutants {
        return find_mutants(&args, &searches, most);
    }
    raftkv::mutants::choose(args.mutant.as_deref()).map_err(anyhow::Error::msg)?;
    let (mut states, mut failed) = (0, false);
    let begun = Instant::now();
    for bounds in &searches {
        println!("== {}", bounds.name);
        let since = Instant::now();
        let report = run(&args, bounds, most)?;
        print(&report, since.elapsed());
        states += report.distinct;
        let missing: Vec<_> = bounds.must_meet.iter().filter(|class| report.coverage.count(class) == 0).collect();
        if report.violation.is_none() && !missing.is_empty() {
            println!("NEVER MET: {missing:?}: this search has proven nothing about them");
            failed = true;
        }
        failed |= report.violation.is_some();
    }
    println!("{} searches, {states} different states in {:.0?}", searches.len(), begun.elapsed());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn run(args: &Args, bounds: &Bounds, most: u64) -> Result<Report> {
    let (begun, mut shown) = (Instant::now(), Instant::now());
    let report = explore(bounds, |progress| {
        if shown.elapsed() >= Duration::from_millis(if std::io::stderr().is_terminal() { 500 } else { 10_000 }) {
            shown = Instant::now();
            show(&progress, begun.elapsed());
        }
        let enough =
            progress.distinct >= most || args.max_seconds.is_some_and(|most| begun.elapsed().as_secs() >= most);
        if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    report.map_err(anyhow::Error::msg)
}

/// Tries the known bugs of the core one after the other, each in one search after the other until one finds it.
fn find_mutants(args: &Args, searches: &[Bounds], most: u64) -> Result<ExitCode> {
    // A bug that trips an assertion is found; its backtrace would only drown the table.
    std::panic::set_hook(Box::new(|_| {}));
    let mut survived = Vec::new();
    let of_the_core = raftkv::mutants::MUTANTS.iter().filter(|mutant| mutant.depth == "consensus");
    for mutant in of_the_core.filter(|mutant| args.mutant.as_deref().is_none_or(|name| name == mutant.name)) {
        raftkv::mutants::choose(Some(mutant.name)).map_err(anyhow::Error::msg)?;
        let mut before = 0;
        let mut found = None;
        for bounds in searches {
            let report = run(args, bounds, most)?;
            if let Some(violation) = report.violation {
                let states = format!("{} states, depth {}", report.distinct, report.depth);
                found = Some(format!("{:<24} {states:<28} {:.100}", bounds.name, violation.reason));
                break;
            }
            before += report.distinct;
        }
        println!("{:<32} {}", mutant.name, found.as_deref().unwrap_or("not found"));
        if found.is_none() {
            survived.push(format!("{} ({before} states)", mutant.name));
        }
    }
    if !survived.is_empty() {
        println!("not found within these bounds: {}", survived.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(progress: &Progress, elapsed: Duration) {
    let Progress { reached, distinct, depth, waiting } = progress;
    let rate = *distinct as f64 / elapsed.as_secs_f64();
    let line = format!(
        "{distinct} different states of {reached}, {waiting} waiting, depth {depth}, {rate:.0} states/s, {elapsed:.0?}"
    );
    let mut stderr = std::io::stderr();
    let end = if stderr.is_terminal() { "" } else { "\n" };
    let start = if stderr.is_terminal() { "\r\x1b[K" } else { "" };
    // Nobody need see it.
    let _ = write!(stderr, "{start}{line}{end}").and_then(|()| stderr.flush());
}

fn print(report: &Report, elapsed: Duration) {
    let how = if report.exhausted { "all there are" } else { "not all" };
    println!(
        "{} different states ({how}) of {} reached, depth {}, in {elapsed:.1?}: {:.0} states/s",
        report.distinct,
        report.reached,
        report.depth,
        report.distinct as f64 / elapsed.as_secs_f64()
    );
    println!(
        "{} different nodes in {} steps of the core, {} of them compared; {} states were beyond the messages allowed",
        report.nodes, report.steps, report.compared, report.beyond
    );
    for (name, times) in report.coverage.classes().filter(|(_, times)| *times > 0) {
        let first = report.first.iter().find(|(other, _)| *other == name).map_or(0, |(_, depth)| *depth);
        println!("{times:>12}  {name} (first at depth {first})");
    }
    if let Some(violation) = &report.violation {
        println!("VIOLATED: {}", violation.reason);
        for (n, line) in violation.trace.iter().enumerate() {
            println!("{:>4}  {line}", n + 1);
        }
        println!("VIOLATED: {}", violation.reason);
    }
}

/// Changes one bound, given as `name=number`; logs as terms, such as `logs=1,1/2/`; changes as voters, such as `changes=1,2/2,3`.
fn change(bounds: &mut Bounds, text: &str) -> Result<()> {
    let Some((name, number)) = text.split_once('=') else { bail!("{text:?} is not of the form name=number") };
    if name == "logs" {
        let terms = |log: &str| log.split(',').filter(|term| !term.is_empty()).map(str::parse).collect();
        bounds.logs = number.split('/').map(terms).collect::<Result<_, _>>()?;
        return Ok(());
    }
    if name == "changes" {
        let ids = |change: &str| change.split(',').map(str::parse).collect();
        bounds.changes = number.split('/').map(ids).collect::<Result<_, _>>()?;
        return Ok(());
    }
    let number: u64 = number.parse().map_err(|e| anyhow::anyhow!("{text:?}: {e}"))?;
    let small = u32::try_from(number)?;
    match name {
        "nodes" => bounds.nodes = usize::try_from(number)?,
        "voters" => bounds.voters = usize::try_from(number)?,
        "max_term" => bounds.max_term = number,
        "campaigns" => bounds.campaigns = small,
        "campaigners" => bounds.campaigners = u8::try_from(number)?,
        "in_flight" => bounds.in_flight = usize::try_from(number)?,
        "losses" => bounds.losses = small,
        "duplicates" => bounds.duplicates = small,
        "crashes" => bounds.crashes = small,
        "slow_disks" => bounds.slow_disks = u8::try_from(number)?,
        "proposals" => bounds.proposals = small,
        "forwarding" => bounds.forwarding = number > 0,
        "reads" => bounds.reads = small,
        "heartbeats" => bounds.heartbeats = number,
        "lapses" => bounds.lapses = small,
        "pre_vote" => bounds.pre_vote = number > 0,
        "check_quorum" => bounds.check_quorum = number > 0,
        "durable_machines" => bounds.durable_machines = number > 0,
        "single_entries" => bounds.single_entries = number > 0,
        "forgetful_disks" => bounds.forgetful_disks = number > 0,
        other => bail!("there is no bound {other:?}: see raftkv::testing::exploration::Bounds"),
    }
    Ok(())
}
