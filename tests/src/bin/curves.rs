//! How cost grows, measured and drawn:
//! `cargo build --release -p kv-example && cargo run --release -p raftkv-tests --bin curves`.
//!
//! Real servers and `kv-example bench` against them, over the number of clients, the size of values, the number of nodes, the number of keys,
//! and the delay between nodes. Writes a table and a figure for each into `docs`. See `raftkv_tests::curves`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use raftkv_tests::curves::{Options, Sweep, measure, redraw};
use tokio::sync::watch;

/// Measures how throughput, latency, processor time and memory grow, and draws it.
#[derive(Debug, Parser)]
struct Args {
    /// No other sweeps than these
    #[arg(long, value_name = "SWEEP,…", value_delimiter = ',')]
    only: Vec<Sweep>,
    /// How often each point is measured, by turns; figures show the medians
    #[arg(long, value_name = "COUNT", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each run is measured, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How long each run goes on before that, in seconds
    #[arg(long, default_value_t = 0.5, value_name = "SECONDS")]
    warmup: f64,
    /// Where figures go, and tables into `curves` below it
    #[arg(long, value_name = "DIR", default_value = "docs")]
    out: PathBuf,
    /// Draw what was measured before, and measure nothing
    #[arg(long)]
    redraw: bool,
    /// The most keys, where their number is varied: with 10000000 three servers take some 15 GB of memory
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000)]
    max_keys: u64,
    /// How many nodes there are, where their number is not varied
    #[arg(long, value_name = "COUNT", default_value = "3", value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// Other points than a sweep has by itself; takes --only with one sweep
    #[arg(long, value_name = "X,…", value_delimiter = ',')]
    points: Vec<u64>,
    /// Server and load generator [default: kv-example beside this program]
    #[arg(long, value_name = "PROGRAM")]
    kv: Option<PathBuf>,
    /// Where the servers' data goes for the time being: it should be on a disk, not in memory
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// More options for every server, such as `-- --engine redb`
    #[arg(last = true)]
    server: Vec<String>,
}

impl Args {
    fn options(self) -> Result<Options> {
        ensure!(self.points.is_empty() || self.only.len() == 1, "--points: say with --only of which sweep");
        let seconds = |name: &str, value: f64| {
            Duration::try_from_secs_f64(value).with_context(|| format!("{name} {value}: not a number of seconds"))
        };
        let duration = seconds("--seconds", self.seconds)?;
        ensure!(!duration.is_zero(), "--seconds must be more than 0");
        let kv = match self.kv {
            Some(kv) => kv,
            None => std::env::current_exe()?.with_file_name("kv-example"),
        };
        let missing = || format!("there is no program {}; run: cargo build --release -p kv-example", kv.display());
        // Servers run in other directories.
        let kv = if self.redraw { kv } else { kv.canonicalize().with_context(missing)? };
        Ok(Options {
            kv,
            sweeps: if self.only.is_empty() { Sweep::ALL.to_vec() } else { self.only },
            points: self.points,
            rounds: self.rounds,
            duration,
            warmup: seconds("--warmup", self.warmup)?,
            max_keys: self.max_keys,
            nodes: self.nodes,
            server: self.server,
            dir: self.dir,
            out: self.out,
        })
    }
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let draws_only = args.redraw;
    let options = args.options()?;
    if draws_only {
        redraw(&options.out, &options.sweeps, &say)?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run(&options))
}

async fn run(options: &Options) -> Result<ExitCode> {
    let (runs, time) = options.estimate();
    say(&format!("{runs} runs, about {:.0} minutes; Ctrl-C ends it after the run at hand", time.as_secs_f64() / 60.0));
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.send_replace(true);
        }
    });
    match measure(options, &stopped, &say).await {
        Err(error) if *stopped.borrow() => {
            say(&format!("{error:#}"));
            Ok(ExitCode::from(130))
        }
        ended => ended.map(|()| ExitCode::SUCCESS),
    }
}

/// A line at once; a reader that has left is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
