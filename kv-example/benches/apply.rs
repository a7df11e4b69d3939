//! How fast the state machine in memory applies puts, by itself: what a node does that starts again, or catches up.
//!
//! `cargo bench -p kv-example --bench apply -- [--puts N] [--keys N] [--key-size BYTES] [--value-size BYTES] [--rounds N]`
//!
//! Each round begins with a machine that has each key once. Commands come as a follower has them, many in one buffer, and are made while the clock stands
//! still. The allocator is the program's, but with settings of its own: rounds after the first have the memory of those before.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(clippy::unwrap_used, reason = "a benchmark that can't run says why by panicking")]

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::Parser;
use kv_example::api::command::command::Body;
use kv_example::api::etcdserverpb::PutRequest;
use kv_example::machine::{KvMachine, encode_command};
use raftkv::{LogId, StateMachine};

#[cfg(all(feature = "jemalloc", unix))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Commands in a batch, and in a buffer.
const BATCH: usize = 1024;

#[derive(Parser)]
struct Options {
    /// Puts in a round
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    puts: u64,
    /// Keys, each as hot as any other
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Bytes of a key, if it has no more digits
    #[arg(long, default_value_t = 16)]
    key_size: usize,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// The median and the fastest are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut rounds: Vec<Duration> = (0..options.rounds).map(|_| runtime.block_on(round(&options))).collect();
    rounds.sort();
    let each = |round: Duration| round.as_nanos() as f64 / options.puts as f64;
    println!(
        "{} puts of {} bytes to {} keys of {}: {:.0} ns each in the median of {} rounds, {:.0} in the fastest",
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
    let mut index = 0;
    for first in (0..options.keys).step_by(BATCH) {
        let keys = first..options.keys.min(first + BATCH as u64);
        let batch = commands(options, &mut random, &mut index, keys);
        machine.apply_batch(batch).await.unwrap();
    }
    let mut took = Duration::ZERO;
    for first in (0..options.puts).step_by(BATCH) {
        let count = (options.puts - first).min(BATCH as u64);
        let keys: Vec<_> = (0..count).map(|_| random.u64(..options.keys)).collect();
        let batch = commands(options, &mut random, &mut index, keys);
        let began = Instant::now();
        drop(machine.apply_batch(batch).await.unwrap());
        took += began.elapsed();
    }
    took
}

/// A put for each of the keys, with values of their own.
fn commands(
    options: &Options,
    random: &mut fastrand::Rng,
    index: &mut u64,
    keys: impl IntoIterator<Item = u64>,
) -> Vec<(LogId, Bytes)> {
    let mut buffer = BytesMut::new();
    let mut ends = Vec::with_capacity(BATCH);
    for key in keys {
        let key = format!("{key:0width$}", width = options.key_size);
        let value = vec![random.u8(..); options.value_size].into();
        let put = PutRequest { key: key.into(), value, ..PutRequest::default() };
        buffer.extend_from_slice(&encode_command(Body::Put(put)));
        ends.push(buffer.len());
    }
    let (buffer, mut start) = (buffer.freeze(), 0);
    let mut command = |end| {
        *index += 1;
        let command = buffer.slice(start..end);
        start = end;
        (LogId::new(1, *index), command)
    };
    ends.into_iter().map(&mut command).collect()
}
