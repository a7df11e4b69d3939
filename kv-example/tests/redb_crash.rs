//! What comes back from a redb database after kills and losses of power, and what is told of a damaged one.
//!
//! `RAFTKV_CRASH_CAMPAIGN=20 cargo test --release -p kv-example --test redb_crash -- --nocapture` does so with twenty histories instead of one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod auth_support;
mod redb_support;

use std::time::Duration;

use auth_support::{disable, of_somebody, some_change, times_enabled};
use bytes::Bytes;
use kv_example::api::command::command;
use kv_example::api::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse};
use kv_example::backends::redb::{Options, Owner, RedbMachine};
use kv_example::machine::{KvMachine, KvView, ReadError, encode_command};
use raftkv::testing::Random;
use raftkv::testing::conformance::Fault;
use raftkv::{Chunks, LogId, NodeId, Record, StateMachine};
use redb_support::{Disk, OWNER};

type Batch = Vec<(LogId, Bytes)>;

fn options(sync_commands: u64) -> Options {
    Options { cache_bytes: 1 << 20, sync_commands, ..Options::default() }
}

fn command(random: &mut Random, at: u64) -> Bytes {
    let key = || Bytes::from(format!("key-{}", at * 7919 % 40));
    let body = match random.weighted(&[12, 2, 1, 4]) {
        0 => {
            let value = vec![at as u8; random.below(900) as usize].into();
            command::Body::Put(PutRequest { key: key(), value, ..Default::default() })
        }
        1 => command::Body::DeleteRange(DeleteRangeRequest { key: key(), ..Default::default() }),
        2 => {
            let revision = at as i64 / 2;
            command::Body::Compact(CompactionRequest { revision, physical: false })
        }
        _ => some_change(random),
    };
    of_somebody(random, body)
}

/// Batches of a few commands each, and the image of a machine before the first and after each of them. Users are asked for now and then, and not at the end.
async fn history(seed: u64, count: usize) -> (Vec<Batch>, Vec<Vec<u8>>) {
    let (mut random, mut at, mut enabled) = (Random::new(seed), 0, 0);
    let mut twin = KvMachine::new();
    let (mut batches, mut images) = (Vec::new(), vec![image(&twin).await]);
    for number in 1..=count {
        let mut batch: Batch = (0..random.between(1, 9))
            .map(|_| {
                at += 1;
                (LogId::new(1, at), command(&mut random, at))
            })
            .collect();
        if number == count {
            at += 1;
            batch.push((LogId::new(1, at), disable()));
        }
        let answers = twin.apply_batch(batch.clone()).await.unwrap();
        enabled += times_enabled(batch.iter().map(|(_, command)| command).zip(&answers));
        images.push(image(&twin).await);
        batches.push(batch);
    }
    assert!(enabled > 0, "nobody was ever asked who he is: seed {seed}");
    (batches, images)
}

async fn collect(mut chunks: Box<dyn Chunks>) -> Result<Vec<u8>, raftkv::Fatal> {
    let mut image = Vec::new();
    while let Some(chunk) = chunks.next().await? {
        image.extend_from_slice(&chunk);
    }
    Ok(image)
}

async fn image(machine: &impl StateMachine) -> Vec<u8> {
    collect(machine.snapshot().await.unwrap()).await.unwrap()
}

fn in_pieces(image: &[u8]) -> Box<dyn Chunks> {
    let pieces: Vec<Bytes> = image.chunks(5000).map(Bytes::copy_from_slice).collect();
    Box::new(pieces.into_iter())
}

/// How many histories are gone through.
fn histories() -> u64 {
    std::env::var("RAFTKV_CRASH_CAMPAIGN").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// How many of these batches are reflected; all of the machine must be.
async fn reflected(machine: &RedbMachine, batches: &[Batch], images: &[Vec<u8>]) -> usize {
    let applied = machine.applied().await.unwrap();
    let done = batches.partition_point(|batch| batch.last().unwrap().0 <= applied);
    assert!(done == 0 || batches[done - 1].last().unwrap().0 == applied, "{applied} is in the middle of a batch");
    assert!(image(machine).await == images[done], "the state is not that after {done} batches");
    done
}

#[tokio::test]
async fn whatever_ends_it_a_whole_number_of_batches_comes_back() {
    for (seed, fault) in (0..histories()).flat_map(|seed| [(seed, Fault::Kill), (seed, Fault::PowerLoss)]) {
        let (batches, images) = history(3 + seed, 150).await;
        let disk = Disk::new(5 + seed);
        let (mut random, mut done, mut faults, mut lost) = (Random::new(6 + seed), 0, 0, 0);
        let mut machine = disk.open(options(20)).unwrap();
        let mut imaged = 0;
        while done < batches.len() {
            disk.arm(fault, random.below(120));
            let mut attempted = done;
            while done < batches.len() {
                attempted = done + 1;
                if machine.apply_batch(batches[done].clone()).await.is_err() {
                    faults += 1;
                    break;
                }
                done += 1;
                // What an image ends with is there, whatever happens.
                if random.percent(10) && collect(machine.snapshot().await.unwrap()).await.is_ok() {
                    imaged = done;
                }
            }
            drop(machine);
            disk.end(fault);
            machine = disk.open(options(20)).unwrap();
            let now = reflected(&machine, &batches, &images).await;
            // A batch whose commit failed may be there all the same, had it reached the disk.
            assert!(now <= attempted && now >= imaged, "{now} of {attempted} are there, an image had {imaged}");
            lost += u64::from(now < done);
            done = now;
        }
        println!("history {seed}, {fault:?}: {faults} faults, {lost} times something was lost");
        assert!(faults > 3 && lost > 0, "{faults} faults, {lost} times something was lost ({fault:?})");
    }
}

#[tokio::test]
async fn an_orderly_end_loses_nothing_and_syncs_no_more_than_it_must() {
    let (batches, images) = history(7, 60).await;
    let disk = Disk::new(8);
    let mut machine = disk.open(Options::default()).unwrap();
    let before = disk.syncs();
    for batch in &batches {
        machine.apply_batch(batch.clone()).await.unwrap();
    }
    // Those that there are grow the file.
    let syncs = disk.syncs() - before;
    assert!(syncs * 10 < batches.len() as u64, "{syncs} syncs of {} batches", batches.len());
    drop(machine);
    disk.end(Fault::PowerLoss);
    let machine = disk.open(Options::default()).unwrap();
    assert_eq!(reflected(&machine, &batches, &images).await, batches.len());
}

#[tokio::test]
async fn a_restore_that_is_cut_off_anywhere_leaves_what_was_there() {
    let (batches, images) = history(9, 40).await;
    let (others, theirs) = history(10, 80).await;
    let record = Record { key: Bytes::from_static(b"session"), value: Bytes::from_static(b"theirs") };
    let last = LogId::new(9, 9999);
    assert!(others.last().unwrap().last().unwrap().0 < last);
    let (mut after, mut cut_off) = (0, 0);
    loop {
        let disk = Disk::new(after);
        let mut machine = disk.open(options(1)).unwrap();
        for batch in &batches {
            machine.apply_batch(batch.clone()).await.unwrap();
        }
        disk.arm(Fault::PowerLoss, after);
        let restored = machine.restore_recorded(in_pieces(&theirs[80]), vec![record.clone()], last).await;
        drop(machine);
        disk.end(Fault::PowerLoss);
        let machine = disk.open(options(1)).unwrap();
        if machine.applied().await.unwrap() == last {
            assert!(image(&machine).await == theirs[80]);
            assert_eq!(machine.records().await.unwrap(), Some(vec![record.clone()]));
        } else {
            assert!(restored.is_err(), "it was said to be restored");
            assert_eq!(reflected(&machine, &batches, &images).await, batches.len());
            assert_eq!(machine.records().await.unwrap(), Some(Vec::new()));
            cut_off += 1;
        }
        if restored.is_ok() {
            break;
        }
        after += 1;
    }
    assert!(cut_off > 3, "{cut_off} attempts were cut off");
}

#[tokio::test]
async fn a_start_that_is_cut_off_anywhere_is_made_up_for_by_the_next() {
    let (batches, images) = history(15, 60).await;
    for fault in [Fault::Kill, Fault::PowerLoss] {
        let mut cut_off = 0;
        for after in 0.. {
            let disk = Disk::new(after);
            let mut machine = disk.open(options(50)).unwrap();
            for batch in &batches {
                machine.apply_batch(batch.clone()).await.unwrap();
            }
            disk.end(fault);
            drop(machine);
            let started = disk.open_with(options(50), fault, after);
            let failed = started.is_err();
            drop(started);
            disk.end(fault);
            let machine = disk.open(options(50)).unwrap();
            assert!(reflected(&machine, &batches, &images).await > 0, "what was synced is gone");
            if !failed {
                break;
            }
            cut_off += 1;
        }
        assert!(cut_off > 2, "{cut_off} starts were cut off ({fault:?})");
    }
}

/// The compaction's garbage is gone in the end, although the process was killed in the middle.
#[tokio::test]
async fn a_sweep_that_was_cut_off_goes_on_after_the_next_start() {
    let disk = Disk::new(11);
    let mut machine = disk.open(Options { sync_commands: 1_000_000, ..options(1) }).unwrap();
    let put = |n: u64| {
        let key = format!("key-{:04}", n % 2000).into();
        encode_command(command::Body::Put(PutRequest { key, value: vec![1; 50].into(), ..Default::default() }))
    };
    let mut batch: Batch = (1..=6000).map(|n| (LogId::new(1, n), put(n))).collect();
    let compaction = CompactionRequest { revision: 6001, physical: false };
    batch.push((LogId::new(1, 6001), encode_command(command::Body::Compact(compaction))));
    machine.apply_batch(batch).await.unwrap();
    image(&machine).await;
    disk.end(Fault::Kill);
    drop(machine);
    let machine = disk.open(options(1)).unwrap();
    let view = machine.view();
    tokio::time::timeout(Duration::from_secs(20), view.swept(6001)).await.expect("the sweep ends").unwrap();
    assert_eq!((view.stats().live, view.stats().versions), (2000, 2000));
}

/// What clients read: everything, keys one by one, and how it was some time ago.
async fn reads(view: &KvView) -> Result<Vec<RangeResponse>, ReadError> {
    let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let before = RangeRequest { revision: view.revision() - 5, ..all.clone() };
    let keys = (0..40).map(|n| RangeRequest { key: format!("key-{n}").into(), ..Default::default() });
    let mut answers = Vec::new();
    for request in keys.chain([all, before]) {
        answers.push(view.range(request).await?);
    }
    Ok(answers)
}

/// Whole pages of another content, stretches, and single bits where there is something; some files are cut off.
fn damage(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    if random.percent(60) {
        loop {
            let at = random.below(bytes.len() as u64) as usize;
            if bytes[at] != 0 {
                bytes[at] ^= 1 << random.below(8);
                return bytes;
            }
        }
    }
    for _ in 0..random.between(1, 60) {
        let at = random.below(bytes.len() as u64) as usize;
        let len = random.pick(&[1, 8, 4096]).unwrap().min(bytes.len() - at);
        bytes[at..at + len].fill(random.any() as u8);
    }
    if random.percent(10) {
        bytes.truncate(random.below(good.len() as u64) as usize);
    }
    bytes
}

/// A wrong value would be an answer, and would travel with the next image; a wrong last entry would make the node skip commands. redb may panic over pages
/// that make no sense: nobody else may, and whoever asks is told which file it is.
#[tokio::test]
async fn damage_is_told_and_is_never_a_wrong_answer_or_state() {
    for seed in 0..histories() {
        damaged_history(seed).await;
    }
}

async fn damaged_history(seed: u64) {
    let (batches, images) = history(12 + seed, 60).await;
    let disk = Disk::new(13 + seed);
    let mut machine = disk.open(options(1)).unwrap();
    for batch in &batches {
        machine.apply_batch(batch.clone()).await.unwrap();
    }
    drop(machine);
    let (good, last) = (disk.bytes(), batches.last().unwrap().last().unwrap().0);
    let mut twin = KvMachine::new();
    twin.restore(in_pieces(images.last().unwrap())).await.unwrap();
    let truth = reads(&twin.view()).await.unwrap();
    let (at, next) = (LogId::new(2, 100_000), command(&mut Random::new(15), 5));
    twin.apply(at, next.clone()).await.unwrap();
    let after = image(&twin).await;
    let (mut random, mut told, mut harmless) = (Random::new(14 + seed), 0, 0);
    for round in 0..400 {
        // Of what comes while the database is open nothing is seen but what the cache does not have.
        let late = random.percent(30);
        disk.replace(if late { good.clone() } else { damage(&good, &mut random) });
        let opened = disk.open(Options { cache_bytes: if late { 0 } else { 1 << 20 }, ..options(1) });
        if late {
            disk.alter(|bytes| damage(bytes, &mut random));
        }
        let says = |error: String| {
            assert!(error.contains("a medium of its own"), "round {round}: {error}");
            // redb says no more where it has met with it before.
            assert!(!error.contains("Previous I/O error"), "round {round}: nobody is told what is wrong: {error}");
        };
        let mut machine = match opened {
            Ok(machine) => machine,
            Err(fatal) => {
                says(fatal.to_string());
                told += 1;
                continue;
            }
        };
        assert_eq!(machine.applied().await.unwrap(), last, "round {round}");
        let read = reads(&machine.view()).await;
        let applied = machine.apply(at, next.clone()).await;
        match &read {
            Ok(read) => assert!(*read == truth, "round {round}: wrong answers"),
            Err(error) => {
                says(error.to_string());
                assert!(applied.is_err(), "round {round}: a node that can't read its state goes on");
            }
        }
        let image = collect(machine.snapshot().await.unwrap()).await;
        if let (Ok(_), Ok(image)) = (&applied, &image) {
            assert!(*image == after, "round {round}: a wrong image");
        }
        if read.is_err() || applied.is_err() || image.is_err() {
            told += 1;
        } else {
            harmless += 1;
        }
    }
    println!("{told} told, {harmless} harmless");
    assert!(told > 100 && harmless > 20, "{told} told, {harmless} harmless");
}

/// Damages the newer of the two headers in front of the file: it has the higher number behind its checksum.
fn damage_newest_header(disk: &Disk) {
    disk.alter(|bytes| {
        let number = |page: usize| u64::from_le_bytes(bytes[page * 4096 + 4..][..8].try_into().unwrap());
        let newest = usize::from(number(1) > number(0));
        let mut bytes = bytes.to_vec();
        bytes[newest * 4096 + 100] ^= 1;
        bytes
    });
}

/// Such a header can't be told from one that a loss of power has torn. The older one must not refer to what was overwritten since.
#[tokio::test]
async fn a_database_whose_newest_header_is_damaged_is_as_it_was_one_sync_before_and_goes_on_from_there() {
    let (batches, images) = history(17, 30).await;
    let disk = Disk::new(18);
    let mut machine = disk.open(options(1)).unwrap();
    let mut went_back = 0;
    for (n, batch) in batches.iter().enumerate() {
        machine.apply_batch(batch.clone()).await.unwrap();
        disk.end(Fault::Kill);
        drop(machine);
        damage_newest_header(&disk);
        machine = disk.open(options(1)).unwrap();
        let done = reflected(&machine, &batches, &images).await;
        assert!(done == n || done == n + 1, "{done} of {} batches are there, each of which was synced", n + 1);
        went_back += usize::from(done == n);
        for again in &batches[done..=n] {
            machine.apply_batch(again.clone()).await.unwrap();
        }
        assert_eq!(reflected(&machine, &batches, &images).await, n + 1);
    }
    assert!(went_back > 5, "it went back in {went_back} of 30 cases");
    // An orderly end leaves the last commit in both of them.
    drop(machine);
    damage_newest_header(&disk);
    let machine = disk.open(options(1)).unwrap();
    assert_eq!(reflected(&machine, &batches, &images).await, batches.len());
}

#[tokio::test]
async fn the_file_is_named_and_nobody_elses_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv.redb");
    // Left by a process that was killed while it made the file.
    std::fs::write(dir.path().join("kv.redb.new"), vec![7; 20_000]).unwrap();
    let machine = RedbMachine::open(&path, OWNER, options(1)).unwrap();
    assert!(!dir.path().join("kv.redb.new").exists());
    let says = |owner, wanted: &[&str]| {
        let error = RedbMachine::open(&path, owner, options(1)).unwrap_err().to_string();
        for part in wanted {
            assert!(error.contains(part), "{error}");
        }
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    };
    says(OWNER, &["another process has the database open"]);
    drop(machine);
    says(Owner { node: NodeId(2), ..OWNER }, &["another node or cluster", "move it away"]);
    std::fs::write(&path, vec![7; 20_000]).unwrap();
    says(OWNER, &["is damaged", "move the file away"]);
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 20_000], "the file is left as it is");
}
