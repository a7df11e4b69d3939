//! How fast commands are applied, and how much memory versions take, here and in etcd:
//! `cargo test --release -p kv-example --test etcd_speed -- --ignored --nocapture --test-threads 1`

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod etcd_support;

use std::time::Instant;

use bytes::Bytes;
use etcd_support::{Etcd, connect, installed};
use kv_example::api::command::command;
use kv_example::api::etcdserverpb::kv_client::KvClient;
use kv_example::api::etcdserverpb::{PutRequest, RangeRequest};
use kv_example::backends::redb::{Options, Owner, RedbMachine};
use kv_example::machine::{KvMachine, KvView, encode_command};
use raftkv::{ClusterId, LogId, NodeId, StateMachine};

const VALUE: usize = 256;

fn request(key: usize, value: usize) -> PutRequest {
    PutRequest { key: format!("key-{key:012}").into(), value: vec![b'v'; value].into(), ..Default::default() }
}

/// Keys in an order that looks random and visits each once in `count` steps, which is prime to the step.
fn scattered(count: usize) -> impl Iterator<Item = usize> + Clone {
    (0..count).map(move |n| n * 7_919 % count)
}

fn batches(keys: impl Iterator<Item = usize>, value: usize) -> Vec<Vec<(LogId, Bytes)>> {
    let commands: Vec<(LogId, Bytes)> = keys
        .enumerate()
        .map(|(n, key)| (LogId::new(1, n as u64 + 1), encode_command(command::Body::Put(request(key, value)))))
        .collect();
    commands.chunks(256).map(<[_]>::to_vec).collect()
}

/// The resident memory of a process, in KiB.
fn resident(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

async fn apply(machine: &mut impl StateMachine, work: Vec<Vec<(LogId, Bytes)>>) -> f64 {
    let count: usize = work.iter().map(Vec::len).sum();
    let start = Instant::now();
    for batch in work {
        machine.apply_batch(batch).await.unwrap();
    }
    count as f64 / start.elapsed().as_secs_f64()
}

#[tokio::test]
#[ignore = "a measurement: run it in release mode"]
async fn puts_applied_per_second() {
    for keys in [100, 10_000, 100_000] {
        for value in [16, VALUE] {
            let mut machine = KvMachine::new();
            let first = apply(&mut machine, batches(scattered(keys), value)).await;
            let again = apply(&mut machine, batches(scattered(keys).cycle().take(300_000), value)).await;
            let frozen = machine.snapshot().await.unwrap();
            let shared = apply(&mut machine, batches(scattered(keys).cycle().take(100_000), value)).await;
            drop(frozen);
            println!(
                "{keys:>7} keys, values of {value:>3} B: new {:.2} M/s, again {:.2} M/s, beside a frozen copy {:.2} M/s",
                first / 1e6,
                again / 1e6,
                shared / 1e6
            );
        }
    }
    let mut machine = KvMachine::new();
    apply(&mut machine, batches(scattered(100_000), VALUE)).await;
    gets(&machine.view()).await;
}

async fn gets(view: &KvView) {
    let start = Instant::now();
    for key in scattered(300_000) {
        let get = RangeRequest { key: request(key % 100_000, 0).key, ..Default::default() };
        assert_eq!(view.range(get).await.unwrap().count, 1);
    }
    println!("gets of 100000 keys: {:.2} M/s", 0.3 / start.elapsed().as_secs_f64());
}

/// The same over a database in a file, in the directory of `RAFTKV_SPEED_DIR` or the current one: batches of one command show what a batch costs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run it in release mode"]
async fn puts_applied_per_second_over_a_database() {
    let place = std::env::var("RAFTKV_SPEED_DIR").unwrap_or_else(|_| ".".into());
    let dir = tempfile::tempdir_in(place).unwrap();
    let owner = Owner { cluster: ClusterId(1), node: NodeId(1) };
    let path = dir.path().join("kv.redb");
    let mut machine = RedbMachine::open(&path, owner, Options::default()).unwrap();
    let first = apply(&mut machine, batches(scattered(100_000), VALUE)).await;
    let again = apply(&mut machine, batches(scattered(100_000).cycle().take(200_000), VALUE)).await;
    let single = batches(scattered(100_000).take(5_000), VALUE).concat().chunks(1).map(<[_]>::to_vec).collect();
    let single = apply(&mut machine, single).await;
    println!("100000 keys, values of {VALUE} B: new {first:.0}/s, again {again:.0}/s, one by one {single:.0}/s");
    gets(&machine.view()).await;
    println!("the file has {} MiB", std::fs::metadata(&path).unwrap().len() >> 20);
    let start = Instant::now();
    drop(machine);
    let end = start.elapsed();
    let start = Instant::now();
    let machine = RedbMachine::open(&path, owner, Options::default()).unwrap();
    println!("an end takes {end:.0?}, a start {:.0?}, as of {}", start.elapsed(), machine.applied().await.unwrap());
}

/// Contents many times as large as the cache: what a process takes of the memory while they are written, read, and restored from an image.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run it in release mode"]
async fn memory_over_a_database() {
    const KEYS: usize = 300_000;
    let place = std::env::var("RAFTKV_SPEED_DIR").unwrap_or_else(|_| ".".into());
    let dir = tempfile::tempdir_in(place).unwrap();
    let owner = Owner { cluster: ClusterId(1), node: NodeId(1) };
    let options = Options { cache_bytes: 16 << 20, ..Options::default() };
    let open = |name: &str| RedbMachine::open(&dir.path().join(name), owner, options).unwrap();
    let before = resident("self");
    let taken = || (resident("self") - before) >> 10;
    let mut machine = open("one.redb");
    for chunk in scattered(KEYS).collect::<Vec<_>>().chunks(10_000) {
        apply(&mut machine, batches(chunk.iter().copied(), 1024)).await;
    }
    println!("{} MiB of keys and values with a cache of 16 MiB", machine.view().stats().bytes >> 20);
    println!("{} MiB resident after the puts", taken());
    machine.view().checksum(0).await.unwrap();
    println!("{} MiB after a read of everything", taken());
    let mut other = open("other.redb");
    let start = Instant::now();
    other.restore(machine.snapshot().await.unwrap()).await.unwrap();
    println!("{} MiB after an image was restored, in {:.1?}", taken(), start.elapsed());
    assert_eq!(other.view().checksum(0).await, machine.view().checksum(0).await);
    assert!(taken() < 128, "{} MiB", taken());
}

#[tokio::test]
#[ignore = "a measurement: run it in release mode"]
async fn memory_of_versions_here_and_in_etcd() {
    let before = resident("self");
    let mut machine = KvMachine::new();
    for chunk in scattered(100_000).cycle().take(400_000).collect::<Vec<_>>().chunks(10_000) {
        apply(&mut machine, batches(chunk.iter().copied(), VALUE)).await;
    }
    let stats = machine.view().stats();
    println!(
        "here: {} MiB resident, {} MiB by its own estimate, for {} keys with {} versions of {VALUE} B",
        (resident("self") - before) >> 10,
        stats.bytes >> 20,
        stats.live,
        stats.versions
    );
    if !installed("etcd") {
        return;
    }
    let etcd = Etcd::start();
    let client = KvClient::new(connect(&etcd.address).await);
    let keys: Vec<usize> = scattered(100_000).cycle().take(400_000).collect();
    let workers = keys.chunks(keys.len() / 128).map(|keys| {
        let (mut client, keys) = (client.clone(), keys.to_vec());
        tokio::spawn(async move {
            for key in keys {
                client.put(request(key, VALUE)).await.unwrap();
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    println!("etcd: {} MiB resident after the same puts", resident(&etcd.pid().to_string()) >> 10);
}
