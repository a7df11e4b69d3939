//! How fast the state machine in memory applies puts, by itself: what a node does that starts again, or catches up.
//!
//! `cargo bench -p kv-example --bench apply -- [--puts N] [--keys N] [--value-size BYTES] [--rounds N]`
//!
//! Each round begins with an empty machine. Commands come as a follower has them, many in one buffer, and are made while the clock stands still.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(clippy::unwrap_used, reason = "a benchmark that can't run says why by panicking")]

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::Parser;
use kv_example::api::command::command::Body;
use kv_example::api::etcdserverpb::PutRequest;
use kv_example::machine::{KvMachine, encode_command};
use raftkv::{LogId, StateMachine};

/// As the program has it.
#[cfg(all(feature = "jemalloc", unix))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Commands in a batch, and in a buffer.
const BATCH: usize = 1024;

#[derive(Parser)]
struct Options {
    /// Puts in a round
    #[arg(long, default_value_t = 1_000_000)]
    puts: usize,
    /// Keys, each as hot as any other
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
    /// Bytes of a key
    #[arg(long, default_value_t = 16)]
    key_size: usize,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// The fastest and the median round are shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut rounds: Vec<Duration> = (0..options.rounds.max(1)).map(|_| runtime.block_on(round(&options))).collect();
    rounds.sort();
    let each = |round: Duration| round.as_nanos() as f64 / options.puts as f64;
    println!(
        "{} puts of {} bytes to {} keys of {}: {:.0} ns each, in the fastest of {} rounds {:.0}",
        options.puts,
        options.value_size,
        options.keys,
        options.key_size,
        each(rounds[rounds.len() / 2]),
        rounds.len(),
        each(rounds[0])
    );
}

async fn round(options: &Options) -> Duration {
    let mut random = fastrand::Rng::with_seed(1);
    let mut machine = KvMachine::new();
    let (mut took, mut index) = (Duration::ZERO, 0);
    while index < options.puts {
        let batch = commands(options, &mut random, index as u64, BATCH.min(options.puts - index));
        index += batch.len();
        let began = Instant::now();
        let answers = machine.apply_batch(batch).await.unwrap();
        took += began.elapsed();
        drop(answers);
    }
    took
}

fn commands(options: &Options, random: &mut fastrand::Rng, after: u64, count: usize) -> Vec<(LogId, Bytes)> {
    let mut buffer = BytesMut::new();
    let mut ends = Vec::with_capacity(count);
    for _ in 0..count {
        let key = format!("{:0width$}", random.usize(..options.keys), width = options.key_size);
        let value = vec![random.u8(..); options.value_size].into();
        buffer.extend_from_slice(&encode_command(Body::Put(PutRequest {
            key: key.into(),
            value,
            ..PutRequest::default()
        })));
        ends.push(buffer.len());
    }
    let buffer = buffer.freeze();
    let starts = [0].into_iter().chain(ends.iter().copied());
    (after + 1..)
        .zip(starts.zip(&ends))
        .map(|(index, (start, end))| (LogId::new(1, index), buffer.slice(start..*end)))
        .collect()
}
