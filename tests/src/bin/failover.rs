//! How long a cluster is without a leader: `cargo run --release -p raftkv-tests --bin failover -- --rounds 20`.
//!
//! Three server processes with default settings on 127.0.0.1, and a few clients that write all the time. In each round the leader's
//! process is killed (SIGKILL), and the clock runs from there to the first acknowledgement of a write that was sent after. Then the
//! dead one is started again, and catches up before the next round.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use raftkv_tests::{Cluster, ClusterOptions, LoadOptions, PATIENCE};

/// Kills the leader of a local cluster, again and again, and measures how long it is missed.
#[derive(Debug, Parser)]
struct Args {
    /// How often
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How many clients write
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// The pause between two writes of a client, in milliseconds
    #[arg(long, default_value_t = 5)]
    pause_ms: u64,
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
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(measure(&args))?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args) -> Result<()> {
    if args.rounds == 0 || args.clients == 0 {
        bail!("--rounds and --clients must be at least 1");
    }
    let options = ClusterOptions { args: args.server.clone(), ..ClusterOptions::new(std::env::current_exe()?) };
    let mut cluster = Cluster::start(options).await?;
    let pause = Duration::from_millis(args.pause_ms);
    let load =
        cluster.load(LoadOptions { writers: args.clients, readers: 0, hot: 0, pause, ..LoadOptions::default() })?;
    let mut times = Vec::new();
    for round in 1..=args.rounds {
        load.wait_for(20, PATIENCE).await?;
        let leader = cluster.leader().await?;
        let killed = Instant::now();
        cluster.kill(leader.id)?;
        let first = load.first_after(Instant::now(), PATIENCE).await?;
        let took = first.duration_since(killed);
        println!(
            "round {round:>3}: n{} of term {} killed; next write acknowledged after {took:>7.1?}",
            leader.id, leader.term
        );
        times.push(took);
        cluster.launch(leader.id)?;
        cluster.caught_up(leader.id).await?;
    }
    let history = load.stop().await?;
    let summary = cluster.verify(&history).await?;
    times.sort_unstable();
    let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1];
    println!(
        "{} rounds: min {:.0?}, median {:.0?}, p90 {:.0?}, max {:.0?}",
        times.len(),
        at(0.0),
        at(0.5),
        at(0.9),
        at(1.0)
    );
    println!("{} writes were acknowledged, and every one is on every node", summary.acknowledged);
    cluster.finish()
}
