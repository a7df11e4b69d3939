//! Power is lost at every operation on the disk of a workload, in many of the ways in which the disk can suffer from it, also while the database is made,
//! recovered and closed, and again while it recovers. It opens, with everything that was durable, and with what the commands up to there make.
//!
//! `RAFTKV_CRASH_CAMPAIGN=20 cargo test --release -p kv-example --test redb_power -- --nocapture` takes twenty workloads instead of one, and every
//! pattern instead of some.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod auth_support;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use auth_support::{enabling, of_somebody, some_change, times_enabled};
use bytes::Bytes;
use kv_example::api::command::command;
use kv_example::api::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest};
use kv_example::backends::redb::{Options, Owner, RedbMachine};
use kv_example::machine::KvMachine;
use raftkv::testing::Random;
use raftkv::{Chunks, ClusterId, Fatal, LogId, NodeId, StateMachine};
use raftkv_storage_file::Vfs;
use raftkv_storage_file::sim::{Moment, SimDisk, patterns};

const OWNER: Owner = Owner { cluster: ClusterId(7), node: NodeId(1) };
/// A transaction is synced after so many commands.
const SYNC: u64 = 8;

/// What the machine is told to do.
enum Call {
    Apply(Vec<(LogId, Bytes)>),
    /// An image is read to its end.
    Image,
    Restore(Vec<u8>, LogId),
}

/// What is there after a call.
#[derive(Clone)]
struct State {
    applied: LogId,
    image: Vec<u8>,
}

/// Calls, the state before the first and after each, and which of these a loss of power leaves at least.
struct Workload {
    calls: Vec<Call>,
    states: Vec<State>,
    durable: Vec<usize>,
    /// How often users are asked for from then on.
    enabled: usize,
}

/// A moment of a run, and the states that may be found if power is lost then: from one to another.
struct Point {
    moment: Moment,
    from: usize,
    upto: usize,
}

/// Without threads nothing waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it waits"),
    }
}

fn open(disk: &SimDisk) -> Result<RedbMachine, Fatal> {
    let options = Options { cache_bytes: 64 << 10, sync_commands: SYNC, background: false, ..Options::default() };
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    vfs.create_dir_all(Path::new("/data")).unwrap();
    RedbMachine::open_in(vfs, Path::new("/data/kv.redb"), OWNER, options)
}

fn read(mut chunks: Box<dyn Chunks>) -> Result<Vec<u8>, Fatal> {
    let mut image = Vec::new();
    while let Some(chunk) = now(chunks.next())? {
        image.extend_from_slice(&chunk);
    }
    Ok(image)
}

fn image(machine: &impl StateMachine) -> Result<Vec<u8>, Fatal> {
    read(now(machine.snapshot())?)
}

fn in_pieces(image: &[u8]) -> Box<dyn Chunks> {
    let pieces: Vec<Bytes> = image.chunks(900).map(Bytes::copy_from_slice).collect();
    Box::new(pieces.into_iter())
}

fn some_command(random: &mut Random, at: u64) -> Bytes {
    let key = Bytes::from(format!("key-{}", random.below(12)));
    let body = match random.weighted(&[14, 3, 1, 5]) {
        0 => {
            let value = vec![at.to_le_bytes()[0]; usize::try_from(random.below(1500)).unwrap()].into();
            command::Body::Put(PutRequest { key, value, ..Default::default() })
        }
        1 => command::Body::DeleteRange(DeleteRangeRequest { key, ..Default::default() }),
        2 => {
            let revision = i64::try_from(at / 2).unwrap();
            command::Body::Compact(CompactionRequest { revision, physical: false })
        }
        _ => some_change(random),
    };
    of_somebody(random, body)
}

fn workload(random: &mut Random, count: usize) -> Workload {
    let mut twin = KvMachine::new();
    // Users are asked for from about a quarter of it on, now and then.
    let (mut at, mut unsynced, mut synced, mut asked) = (0, 0, 0, false);
    let state = |twin: &KvMachine, applied| State { applied, image: image(twin).unwrap() };
    let mut all = Workload { calls: Vec::new(), states: vec![state(&twin, LogId::ZERO)], durable: vec![0], enabled: 0 };
    for number in 1..=count {
        let call = match random.below(12) {
            0 | 1 => Call::Image,
            2 => {
                let mut other = KvMachine::new();
                let commands = (1..random.between(2, 60)).map(|n| (LogId::new(1, n), some_command(random, n)));
                now(other.apply_batch(commands.collect())).unwrap();
                let bytes = image(&other).unwrap();
                now(twin.restore(in_pieces(&bytes))).unwrap();
                at += random.between(1, 100);
                Call::Restore(bytes, LogId::new(1, at))
            }
            _ => {
                let commands: Vec<_> = if !asked && number > count / 4 {
                    asked = true;
                    enabling()
                } else {
                    (0..random.between(1, 5)).map(|n| some_command(random, at + 1 + n)).collect()
                };
                let batch: Vec<_> = (at + 1..).map(|at| LogId::new(1, at)).zip(commands).collect();
                at += batch.len() as u64;
                let answers = now(twin.apply_batch(batch.clone())).unwrap();
                all.enabled += times_enabled(batch.iter().map(|(_, command)| command).zip(&answers));
                unsynced += batch.len() as u64;
                Call::Apply(batch)
            }
        };
        if unsynced >= SYNC || !matches!(call, Call::Apply(_)) {
            (unsynced, synced) = (0, number);
        }
        all.calls.push(call);
        all.states.push(state(&twin, LogId::new(u64::from(at > 0), at)));
        all.durable.push(synced);
    }
    all
}

fn perform(machine: &mut RedbMachine, call: &Call) -> Result<(), Fatal> {
    match call {
        Call::Apply(batch) => now(machine.apply_batch(batch.clone())).map(drop),
        Call::Image => image(machine).map(drop),
        Call::Restore(image, last) => now(machine.restore_recorded(in_pieces(image), Vec::new(), *last)),
    }
}

/// Which of these states a database is in; all of it must be. Reading it to the end makes it durable, which changes the disk.
fn find(disk: &SimDisk, all: &Workload, from: usize, upto: usize) -> Result<usize, String> {
    let machine = open(disk).map_err(|error| format!("it does not open: {error}"))?;
    let applied = machine.view().applied();
    let found = image(&machine).map_err(|error| format!("it can't be read: {error}"))?;
    let fits = |state: &State| state.applied == applied && state.image == found;
    // Reading an image leaves the state as it is: the last one that fits.
    let fit = (from..=upto).rev().find(|n| fits(&all.states[*n]));
    fit.ok_or_else(|| {
        let known = all.states.iter().position(fits);
        format!("it reflects {applied}, which is state {known:?}, and not one from {from} to {upto}")
    })
}

/// Opens a database that may be in these states, goes on with the workload for so many calls, closes it, and keeps every moment of that.
fn run(disk: &SimDisk, all: &Workload, at: usize, calls: usize) -> Vec<Point> {
    disk.record();
    let mut machine = open(disk).unwrap_or_else(|error| panic!("it does not open: {error}"));
    let mut known = vec![(disk.operations(), at, at)];
    let mut from = at;
    let end = (at + calls).min(all.calls.len());
    for (number, call) in all.calls.iter().enumerate().take(end).skip(at) {
        perform(&mut machine, call).unwrap();
        known.push((disk.operations(), from, number + 1));
        // The workload counts from its own beginning: a run that begins later has synced no earlier.
        let whole = at == 0 || !matches!(call, Call::Apply(_));
        from = from.max(if whole { all.durable[number + 1] } else { at });
    }
    drop(machine);
    known.push((disk.operations(), from, end));
    let mut points = Vec::new();
    for (operation, moment) in disk.take_recording().into_iter().enumerate() {
        let allowed = known.iter().find(|(upto, ..)| (operation as u64) < *upto);
        let (from, upto) = allowed.map_or((end, end), |(_, from, upto)| (*from, *upto));
        points.push(Point { moment, from, upto });
    }
    points
}

#[derive(Default)]
struct Count {
    first: u64,
    second: u64,
    enabled: usize,
}

/// Loses power at every moment of a workload; in one of `sample` cases, also at moments of the recovery and of what follows.
fn campaign(seed: u64, calls: usize, all_patterns: bool, sample: u64, count: &mut Count) {
    let mut random = Random::new(seed);
    let all = workload(&mut random, calls);
    count.enabled += all.enabled;
    let points = run(&SimDisk::new(), &all, 0, calls);
    for (at, point) in points.iter().enumerate() {
        let pending = point.moment.pending();
        for fates in patterns(pending.len(), &mut random, 2, (!all_patterns).then_some(1)) {
            let found = find(&point.moment.suffer(&fates), &all, point.from, point.upto);
            let found =
                found.unwrap_or_else(|error| panic!("seed {seed}, operation {at}, {pending:?}, {fates:?}: {error}"));
            count.first += 1;
            if random.below(sample) == 0 {
                again(&point.moment.suffer(&fates), &all, found, &mut random, count);
            }
        }
    }
}

/// Loses power in the recovery from an earlier loss, and in what follows.
fn again(disk: &SimDisk, all: &Workload, at: usize, random: &mut Random, count: &mut Count) {
    for point in run(disk, all, at, 2) {
        let patterns = patterns(point.moment.pending().len(), random, 2, Some(1));
        let fates = random.pick(&patterns).unwrap();
        find(&point.moment.suffer(&fates), all, point.from, point.upto)
            .unwrap_or_else(|error| panic!("again, {:?}, {fates:?}: {error}", point.moment));
        count.second += 1;
    }
}

#[test]
fn a_loss_of_power_at_any_moment_takes_away_nothing_that_was_durable() {
    let mut count = Count::default();
    match std::env::var("RAFTKV_CRASH_CAMPAIGN").ok().and_then(|text| text.parse().ok()) {
        Some(workloads) => (0..workloads).for_each(|seed| campaign(seed, 25, true, 200, &mut count)),
        None => campaign(1, 10, false, 150, &mut count),
    }
    println!("{} losses of power, and {} in the recovery from one", count.first, count.second);
    assert!(count.enabled > 0, "nobody was ever asked who he is");
    assert!(count.first > 500 && count.second > 100, "{} and {}", count.first, count.second);
}
