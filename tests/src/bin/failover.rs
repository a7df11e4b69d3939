//! How long a cluster is without a leader, and one of etcd: `cargo run --release -p raftkv-tests --bin failover`.
//!
//! Three server processes of each with default settings on 127.0.0.1, and in each round, for one after the other, a few clients that write all the time. The
//! leader's process is killed (SIGKILL), and the clock runs from there to the first acknowledgement of a write that was sent after. Then the
//! dead one is started again, and catches up before the next round.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use raftkv_tests::{Cluster, ClusterOptions, Etcd, Load, LoadOptions, PATIENCE};

/// Kills the leader of a local cluster, again and again, and measures how long it is missed; and that of etcd's servers, by turns.
#[derive(Debug, Parser)]
struct Args {
    /// How often
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// How many clients write
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// The pause between two writes of a client, in milliseconds
    #[arg(long, default_value_t = 5)]
    pause_ms: u64,
    /// etcd's server, which is measured as well
    #[arg(long, value_name = "PROGRAM", default_value = "etcd", conflicts_with = "no_etcd")]
    etcd: PathBuf,
    /// Measure this cluster alone
    #[arg(long)]
    no_etcd: bool,
    /// More options for every server of ours, such as `-- --election-timeout-ms 1000 --heartbeat-ms 100`
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
    let missing =
        || format!("{}: install it (Debian: etcd-server), name it with --etcd, or say --no-etcd", args.etcd.display());
    let mut etcd = if args.no_etcd { None } else { Some(Etcd::start(&args.etcd).await.with_context(missing)?) };
    let (mut ours, mut theirs, mut acknowledged) = (Vec::new(), Vec::new(), 0);
    for round in 1..=args.rounds {
        let load = cluster.load(load_options(args, round))?;
        load.wait_for(20, PATIENCE).await?;
        let leader = cluster.leader().await?;
        let took = missed(&load, || cluster.kill(leader.id)).await?;
        ours.push(took);
        cluster.launch(leader.id)?;
        cluster.caught_up(leader.id).await?;
        acknowledged += cluster.verify(&load.stop().await?).await?.acknowledged;
        let beside = match &mut etcd {
            Some(etcd) => {
                let took = round_of_etcd(etcd, load_options(args, round)).await?;
                theirs.push(took);
                format!("; etcd {took:>7.1?}")
            }
            None => String::new(),
        };
        println!(
            "round {round:>3}: n{} of term {} killed; next write acknowledged after {took:>7.1?}{beside}",
            leader.id, leader.term
        );
    }
    report("RaftKV", &mut ours);
    if etcd.is_some() {
        report("etcd", &mut theirs);
        println!("ratio of the medians: {:.2}", median(&ours).as_secs_f64() / median(&theirs).as_secs_f64());
    }
    println!("{acknowledged} writes were acknowledged, and every one is on every node");
    cluster.finish()
}

/// Keys of their own for each round: what was written before is not looked at again.
fn load_options(args: &Args, round: usize) -> LoadOptions {
    let pause = Duration::from_millis(args.pause_ms);
    let prefix = format!("round-{round}/");
    LoadOptions { prefix, writers: args.clients, readers: 0, hot: 0, pause, ..LoadOptions::default() }
}

async fn round_of_etcd(etcd: &mut Etcd, options: LoadOptions) -> Result<Duration> {
    let load = etcd.load(options)?;
    load.wait_for(20, PATIENCE).await?;
    let leader = etcd.leader().await?;
    let took = missed(&load, || etcd.kill(leader)).await?;
    etcd.bring_back(leader).await?;
    load.stop().await?;
    Ok(took)
}

/// From the leader's death to the first answer to a write that was sent after.
async fn missed(load: &Load, kill: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let killed = Instant::now();
    kill()?;
    Ok(load.first_after(Instant::now(), PATIENCE).await?.duration_since(killed))
}

/// The middle of sorted times.
fn median(times: &[Duration]) -> Duration {
    at(times, 0.5)
}

fn at(times: &[Duration], share: f64) -> Duration {
    times[((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1]
}

fn report(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let (min, middle, p90, max) = (at(times, 0.0), median(times), at(times, 0.9), at(times, 1.0));
    println!("{name}, {} rounds: min {min:.0?}, median {middle:.0?}, p90 {p90:.0?}, max {max:.0?}", times.len());
}
