//! Faults of all kinds on real servers, under load, checked: `cargo run --release -p raftkv-tests --bin chaos -- --minutes 5`.
//!
//! `--kills 1000` does nothing but `kill -9`, a thousand times, as quickly as the cluster recovers. Ctrl-C ends a campaign after
//! the round at hand, with the checks; a second Ctrl-C ends it at once. See `raftkv_tests::chaos` for what is done and checked.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use raftkv_tests::chaos::{ChaosOptions, Failed, Kind, Length, run};
use tokio::sync::watch;

/// Hurts local clusters of real servers in every way, and checks that nothing acknowledged is lost or out of order.
#[derive(Debug, Parser)]
struct Args {
    /// How long
    #[arg(long, default_value_t = 5.0, value_name = "MINUTES")]
    minutes: f64,
    /// Instead: so many cycles of kill -9, and no other faults
    #[arg(long, value_name = "COUNT", conflicts_with = "minutes")]
    kills: Option<u64>,
    /// The seed of the first cluster; each further one has the next number [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes a cluster has [default: 3 or 5, by the seed]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: Option<u64>,
    /// No other kinds of faults than these, such as `link,pause`
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', conflicts_with = "kills")]
    only: Vec<Kind>,
    /// Each cluster has another transport, store or engine, as its seed says: eight in a row have each combination once
    #[arg(long)]
    every_stack: bool,
    /// Where to keep data and logs [default: where the system wants temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// More options for every server, such as `-- --election-timeout-ms 1000 --heartbeat-ms 100`
    #[arg(last = true)]
    server: Vec<String>,
}

fn main() -> Result<ExitCode> {
    // The servers are this program too, so that one command builds and runs all there is.
    if std::env::args().nth(1).as_deref() == Some("server") {
        return Ok(kv_example::cli::main());
    }
    let args = Args::parse();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(campaign(&args))
}

async fn campaign(args: &Args) -> Result<ExitCode> {
    ensure!(args.minutes.is_finite() && args.minutes > 0.0, "--minutes must be a positive number");
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let options = ChaosOptions {
        program: std::env::current_exe()?,
        args: args.server.clone(),
        every_stack: args.every_stack,
        seed,
        nodes: args.nodes,
        length: args.kills.map_or(Length::Time(Duration::from_secs_f64(args.minutes * 60.0)), Length::Kills),
        only: args.only.clone(),
        dir: args.dir.clone(),
    };
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(end_on_ctrl_c(stop));
    say(&format!("seed {seed}; Ctrl-C ends it in good order"));
    match run(&options, stopped, &say).await {
        Ok(report) => {
            say(&format!("\n{report}\n\nevery acknowledged write is on every node, in order, once"));
            Ok(ExitCode::SUCCESS)
        }
        Err(failed) => {
            say(&told(args, &failed));
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn end_on_ctrl_c(stop: watch::Sender<bool>) {
    if tokio::signal::ctrl_c().await.is_ok() {
        say("ending after this round, with the checks; Ctrl-C again ends it at once");
        stop.send_replace(true);
        if tokio::signal::ctrl_c().await.is_ok() {
            // The servers end with their watchdog, which is this process.
            std::process::exit(130);
        }
    }
}

/// What failed, where to look, and how to see it again.
fn told(args: &Args, failed: &Failed) -> String {
    let length = match args.kills {
        Some(_) => "--kills 100".to_owned(),
        None => "--minutes 1".to_owned(),
    };
    let mut command = format!("cargo run --release -p raftkv-tests --bin chaos -- --seed {} {length}", failed.seed);
    if let Some(nodes) = args.nodes {
        command += &format!(" --nodes {nodes}");
    }
    if !args.only.is_empty() {
        command += &format!(" --only {}", args.only.iter().map(|kind| kind.word()).collect::<Vec<_>>().join(","));
    }
    if args.every_stack {
        command += " --every-stack";
    }
    if !args.server.is_empty() {
        command += &format!(" -- {}", args.server.join(" "));
    }
    let kept = failed.kept.as_ref().map_or_else(|| "nothing was kept".into(), |dir| format!("kept: {}", dir.display()));
    format!(
        "\n{}\n\nFAILED in cluster {} with seed {}, during: {}\n  {:#}\n{}\n{kept}\nto see it again: {command}",
        failed.report, failed.act, failed.seed, failed.doing, failed.error, failed.lateness,
    )
}

/// A line at once; a reader that has left is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
