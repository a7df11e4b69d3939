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
    /// Which searches: tiny, ci, campaign, …
    #[arg(long, default_value = "ci")]
    preset: String,
    /// Only the search with this name
    #[arg(long)]
    search: Option<String>,
    /// Stop each search after so many different states
    #[arg(long)]
    max_states: Option<u64>,
    /// Stop each search after so many seconds
    #[arg(long)]
    max_seconds: Option<u64>,
    /// Other bounds than those of the preset, such as `--bound in_flight=5 --bound crashes=1`
    #[arg(long = "bound", value_name = "NAME=NUMBER")]
    bounds: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let all = presets();
    let Some(preset) = all.iter().find(|preset| preset.name == args.preset) else {
        let names: Vec<_> = all.iter().map(|preset| preset.name).collect();
        bail!("there is no preset {:?}: choose one of {}", args.preset, names.join(", "));
    };
    let searches: Vec<_> =
        preset.searches.iter().filter(|search| args.search.as_deref().is_none_or(|name| name == search.name)).collect();
    if searches.is_empty() {
        let names: Vec<_> = preset.searches.iter().map(|search| search.name).collect();
        bail!("{} has no such search: choose one of {}", preset.name, names.join(", "));
    }
    let (mut states, mut failed) = (0, false);
    let begun = Instant::now();
    for search in searches {
        let mut bounds = search.clone();
        for bound in &args.bounds {
            change(&mut bounds, bound)?;
        }
        let report = run(&args, &bounds)?;
        states += report.distinct;
        failed |= report.violation.is_some();
    }
    println!("{states} different states in {:.0?}", begun.elapsed());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn run(args: &Args, bounds: &Bounds) -> Result<Report> {
    println!("== {}", bounds.name);
    let (begun, mut shown) = (Instant::now(), Instant::now());
    let result = explore(bounds, |progress| {
        if shown.elapsed() >= Duration::from_millis(if std::io::stderr().is_terminal() { 500 } else { 10_000 }) {
            shown = Instant::now();
            show(&progress, begun.elapsed());
        }
        let enough = args.max_states.is_some_and(|most| progress.distinct >= most)
            || args.max_seconds.is_some_and(|most| begun.elapsed().as_secs() >= most);
        if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let report = result.map_err(anyhow::Error::msg)?;
    print(&report, begun.elapsed());
    Ok(report)
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

/// Changes one bound, given as `name=number`.
fn change(bounds: &mut Bounds, text: &str) -> Result<()> {
    let Some((name, number)) = text.split_once('=') else { bail!("{text:?} is not of the form name=number") };
    let number: u64 = number.parse().map_err(|e| anyhow::anyhow!("{text:?}: {e}"))?;
    let small = u32::try_from(number)?;
    match name {
        "nodes" => bounds.nodes = usize::try_from(number)?,
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
        other => bail!("there is no bound {other:?}: see raftkv::testing::exploration::Bounds"),
    }
    Ok(())
}
