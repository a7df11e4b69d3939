//! The load generator: works against any etcd v3 server, and shares a machine with it as modestly as it can.
//!
//! Clients are tasks on one thread (or a few, with `--threads`), requests are prebuilt frames, and HTTP/2 is spoken without a
//! client library in between. At a fixed rate a latency counts from the moment at which the request should have been sent,
//! so that a stall of the server is not hidden by the requests that it kept from being sent (coordinated omission).

mod fill;
mod load;
mod pacer;
mod report;
mod requests;
mod stats;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use raftkv::transport_kit::Tls;

use crate::cli::certificates::Certificates;
use crate::cli::{DEFAULT_ENDPOINTS, Failure, Who, parse_seconds};
use crate::client::endpoint::parse;
use crate::client::{Client, ClientOptions, Credentials};
use crate::service::Freshness;

const HELP: &str = "\
Examples:
  kv-example bench put --clients 64                      as fast as 64 clients can
  kv-example bench mixed --rate 2000 --duration 30       2000 requests a second, 90 % reads
  kv-example bench get --target leader --json            only the leader, JSON for programs
  kv-example bench get --target followers --consistency lease
                                                         reads on followers, by the leader's lease

At --rate max each client sends its next request when the last one is answered. At a fixed rate, requests are due at even \
intervals, and a latency counts from when its request was due, even if no client was free to send it then; a rate far above \
what the servers can do therefore shows as latency. Requests of the warm-up are not counted, failed requests \
count as errors only.

JSON: \"workload\", \"consistency\" (null for the server's choice), \"clients\", \"connections\", \"endpoints\", \"value_size\", \"keys\", \"rate\" (null for max), \
\"duration_s\", \"operations\" (answered within it), \"throughput\" (a second), \"unsent\", \"errors\" (a count by kind), \"per_second\", and \
\"latency_ms\" for \"all\", \"reads\" and \"writes\" with \"count\", \"mean\", \"p50\", \"p90\", \"p99\", \"p999\", \"max\".";

/// Options of `kv-example bench`.
#[derive(Args, Clone, Debug)]
#[command(after_help = HELP)]
pub(crate) struct BenchArgs {
    /// Write random keys, read them, or both (see --read-ratio)
    workload: Workload,
    /// Servers; the connections are spread over them in turn
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        env = "RAFTKV_ENDPOINTS",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = DEFAULT_ENDPOINTS
    )]
    endpoints: Vec<String>,
    /// Load all endpoints, or only the one that leads when the run begins, or only the others
    #[arg(long, value_enum, default_value = "all")]
    target: Target,
    /// How many requests may be under way at a time
    #[arg(long, value_name = "COUNT", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// How many TCP connections the clients share [default: one for each endpoint]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: Option<u32>,
    /// Size of the values, in bytes
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = clap::value_parser!(u32).range(0..=8 << 20))]
    value_size: u32,
    /// How many different keys, picked at random
    #[arg(long, value_name = "COUNT", default_value = "10000", value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// What the keys begin with
    #[arg(long, value_name = "TEXT", default_value = "bench/")]
    prefix: String,
    /// Requests a second, over all clients; `max` for as fast as they can
    #[arg(long, value_name = "RATE|max", default_value = "max")]
    rate: Rate,
    /// How long to measure, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    duration: Duration,
    /// How long to run before that, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = parse_warmup)]
    warmup: Duration,
    /// How long to wait for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    timeout: Duration,
    /// For `mixed`: the share of reads, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = parse_share)]
    read_ratio: f64,
    /// How fresh reads must be [default: linearizable, by the lease of a server with --lease-drift-ms]
    #[arg(long, value_enum, value_name = "LEVEL")]
    consistency: Option<Freshness>,
    /// The same as --consistency stale, by its name in etcd
    #[arg(long, conflicts_with = "consistency")]
    serializable: bool,
    /// Don't write all keys once before reading them
    #[arg(long)]
    no_fill: bool,
    /// How many keys a transaction writes of those that are written once before they are read; with 1 each is put by itself. Many are written much sooner
    /// so, but etcd 3.4 reads keys only half as fast afterwards
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=128))]
    fill_batch: u32,
    /// Threads of the load generator
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Seed of the random choices
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    seed: u64,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// One login for the whole run, which holds as long as --auth-token-ttl of the servers
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    certificates: Certificates,
}

impl BenchArgs {
    fn freshness(&self) -> Option<Freshness> {
        if self.serializable { Some(Freshness::Stale) } else { self.consistency }
    }
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    Put,
    Get,
    Mixed,
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
        }
    }
}

/// Which endpoints get load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    All,
    Leader,
    Followers,
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rate {
    Max,
    PerSecond(f64),
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.parse::<f64>() {
            Ok(rate) if rate > 0.0 && rate <= 10_000_000.0 => Ok(Self::PerSecond(rate)),
            Ok(_) | Err(_) => Err("must be `max`, or requests a second, above 0 and up to 10000000".into()),
        }
    }
}

fn parse_warmup(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_seconds(text) }
}

fn parse_share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "must be from 0 to 1".into())
}

/// Runs the benchmark and prints the report.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    let tls = args.certificates.tls()?;
    let endpoints = args
        .endpoints
        .iter()
        .map(|text| parse(text, tls.is_some()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Failure::usage(format!("--endpoints: {e}")))?;
    let leader = || load::find_leader(&endpoints, tls.as_ref(), args.timeout).map_err(Failure::runtime);
    let targets = match args.target {
        Target::All => endpoints,
        Target::Leader => vec![leader()?],
        Target::Followers => {
            let leader = leader()?;
            endpoints.iter().filter(|endpoint| **endpoint != leader).cloned().collect()
        }
    };
    if targets.is_empty() {
        return Err(Failure::usage("--target followers: none of the endpoints is a follower; name more of them"));
    }
    let connections = args.connections.map_or(targets.len(), |n| n as usize);
    if (args.threads as usize) > connections {
        return Err(Failure::usage(format!(
            "--threads {}: each thread needs a connection of its own, and there are {connections}; say --connections {}",
            args.threads, args.threads
        )));
    }
    let token = args.who.credentials()?.map(|who| login(args, tls.clone(), who)).transpose()?.flatten();
    let targets_in_turn = targets.iter().cycle().take(connections).cloned().collect();
    let plan = load::Plan::new(args, targets_in_turn, tls.clone(), token);
    if args.workload != Workload::Put && !args.no_fill {
        fill::fill(&plan).map_err(Failure::runtime)?;
    }
    let result = load::run(&plan).map_err(Failure::runtime)?;
    report::print(args, &targets, connections, &result)?;
    if result.operations == 0 {
        return Err(Failure::runtime("no request succeeded; the errors above say why"));
    }
    Ok(ExitCode::SUCCESS)
}

/// What requests show to say who they are of; none where the servers don't ask.
fn login(args: &BenchArgs, tls: Option<Tls>, who: Credentials) -> Result<Option<http::HeaderValue>, Failure> {
    let options = ClientOptions { timeout: args.timeout, tls, credentials: Some(who), ..ClientOptions::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let token = runtime.block_on(async {
        Client::new(&args.endpoints, options).map_err(Failure::usage)?.log_in().await.map_err(Failure::from)
    })?;
    let mut header = token.map(http::HeaderValue::try_from).transpose().map_err(|e| Failure::runtime(e.to_string()))?;
    header.iter_mut().for_each(|token| token.set_sensitive(true));
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert_eq!("2.5".parse(), Ok(Rate::PerSecond(2.5)));
        for text in ["0", "-1", "fast", "NaN", "inf"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert!(parse_share("1.1").is_err() && parse_share("0").is_ok());
    }
}
