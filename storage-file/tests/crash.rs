//! Power is lost at every point of a workload, with every kind of damage that unsynced writes can suffer, also while the log
//! recovers from an earlier loss. Whatever was acknowledged must be there afterwards, what was not acknowledged must be
//! there as a whole or not at all, and nothing that was replaced may come back.
//!
//! The default run takes a sample of the second losses. `RAFTKV_CRASH_CAMPAIGN=40 cargo test --release -p
//! raftkv-storage-file --test crash -- --nocapture` takes forty workloads instead of three, and many more second losses.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use raftkv::testing::Random;
use raftkv::{HardState, LogId, LogWrite, NodeId, Term};
use raftkv_storage_file::sim::{Fate, Fault, Moment, SECTOR, SimDisk, patterns};
use raftkv_storage_file::{Options, Wal};
use support::{Call, Model, model_of, open_with, perform, tiny, vote, write};

/// Appends, truncations, votes and compactions, in terms that only grow.
fn workload(seed: u64, calls: usize) -> Vec<Call> {
    let mut random = Random::new(seed);
    let mut model = Model::default();
    let mut term = 1;
    let mut out = Vec::new();
    for _ in 0..calls {
        let last = model.last().index.0;
        let base = model.base.index.0;
        let len = [0, 40, 300, 700, 1800][usize::try_from(random.below(5)).unwrap()];
        let call = match random.below(10) {
            0 => {
                term += 1;
                Call::Write(vote(term, 1 + random.below(3)))
            }
            1 | 2 if last > base => {
                term += 1;
                let first = base + 1 + random.below(last - base);
                let hard_state = Some(HardState { term: Term(term), voted_for: None });
                Call::Write(LogWrite { hard_state, ..write(term, first..first + 1 + random.below(3), len) })
            }
            3 if last > base => {
                let upto = &model.entries[usize::try_from(random.below(last - base)).unwrap()];
                Call::Compact(upto.id)
            }
            4 if random.below(4) == 0 => Call::Compact(LogId::new(term, last + random.below(3))),
            _ => Call::Write(write(term, last + 1..last + 2 + random.below(4), len)),
        };
        model.apply(&call);
        out.push(call);
    }
    out
}

/// A moment of a run, and what the log may hold if power is lost then.
struct Point {
    moment: Moment,
    allowed: Vec<Model>,
}

/// Opens a log and runs calls on it, and keeps every moment of that. Until the log is open it may be any of `before`.
fn run(disk: &SimDisk, options: Options, before: Vec<Model>, calls: &[Call]) -> Vec<Point> {
    disk.record();
    let mut allowed: Vec<(u64, Vec<Model>)> = Vec::new();
    let mut wal = open_with(disk, options).unwrap_or_else(|e| panic!("does not open: {e}"));
    let mut model = model_of(&wal).unwrap();
    assert!(before.contains(&model), "opened as\n{model:?}\nbut it should be one of\n{before:?}");
    allowed.push((disk.operations(), before));
    for call in calls {
        let was = model.clone();
        perform(&mut wal, call).unwrap_or_else(|e| panic!("{call:?} failed: {e}"));
        model.apply(call);
        allowed.push((disk.operations(), vec![was, model.clone()]));
        wal.settle();
        allowed.push((disk.operations(), vec![model.clone()]));
    }
    assert_eq!(model_of(&wal).unwrap(), model);
    let mut points = Vec::new();
    for (operation, moment) in disk.take_recording().into_iter().enumerate() {
        let known = allowed.iter().find(|(end, _)| (operation as u64) < *end);
        let allowed = known.map_or_else(|| vec![model.clone()], |(_, allowed)| allowed.clone());
        points.push(Point { moment, allowed });
    }
    points
}

#[derive(Default)]
struct Count {
    first: u64,
    second: u64,
}

/// What a node does after a restart: it may find that its last entry was replaced while it was away.
fn aftermath(model: &Model) -> Vec<Call> {
    let last = model.last();
    let term = model.hard_state.term.0.max(last.term.0) + 10;
    let first = if last.index > model.base.index { last.index.0 } else { last.index.0 + 1 };
    let hard_state = Some(HardState { term: Term(term), voted_for: Some(NodeId(9)) });
    vec![
        Call::Write(LogWrite { hard_state, ..write(term, first..first + 1, 100) }),
        Call::Write(write(term, first + 1..first + 3, 600)),
    ]
}

/// Loses power at every moment of a workload, in every pattern; in one of `sample` of these, also at every moment of the recovery
/// and of what follows.
fn campaign(seed: u64, calls: usize, options: Options, limit: Option<usize>, sample: u64, count: &mut Count) {
    let disk = SimDisk::new();
    disk.set_write_limit(limit);
    let mut random = Random::new(seed + 7);
    let points = run(&disk, options, vec![Model::default()], &workload(seed, calls));
    for (at, point) in points.iter().enumerate() {
        for fates in patterns(point.moment.pending().len(), &mut random, 6, None) {
            count.first += 1;
            let context = || format!("seed {seed}, moment {at}, {:?} {fates:?}", point.moment.pending());
            let crashed = point.moment.suffer(&fates);
            let kept = crashed.now();
            let wal = open_with(&crashed, options).unwrap_or_else(|e| panic!("{e}\n{}", context()));
            let found = model_of(&wal).unwrap_or_else(|e| panic!("{e}\n{}", context()));
            assert!(point.allowed.contains(&found), "{}\nfound {found:?}\nallowed {:?}", context(), point.allowed);
            drop(wal);
            if random.below(sample) == 0 {
                second_loss(&kept, options, point, &found, &mut random, count, &context());
            }
        }
    }
}

fn second_loss(
    first: &Moment,
    options: Options,
    point: &Point,
    found: &Model,
    random: &mut Random,
    count: &mut Count,
    context: &str,
) {
    // Power is lost for the first time, the log recovers and goes on, and then power is lost again, at each moment of that.
    let later = run(&first.kill(), options, point.allowed.clone(), &aftermath(found));
    for (at, point) in later.iter().enumerate() {
        let n = point.moment.pending().len();
        let mut fates = patterns(n, random, 3, None);
        while fates.len() > 12 {
            fates.swap_remove(usize::try_from(random.below(fates.len() as u64)).unwrap());
        }
        for fates in fates {
            count.second += 1;
            let context = || format!("{context}\nthen moment {at}, {:?} {fates:?}", point.moment.pending());
            let crashed = point.moment.suffer(&fates);
            let wal = open_with(&crashed, options).unwrap_or_else(|e| panic!("{e}\n{}", context()));
            let found = model_of(&wal).unwrap_or_else(|e| panic!("{e}\n{}", context()));
            assert!(point.allowed.contains(&found), "{}\nfound {found:?}\nallowed {:?}", context(), point.allowed);
        }
    }
}

/// How many workloads to try in a long campaign.
fn long() -> Option<u64> {
    std::env::var("RAFTKV_CRASH_CAMPAIGN").ok()?.parse().ok()
}

#[test]
fn a_loss_of_power_at_any_moment_loses_nothing_acknowledged() {
    let mut count = Count::default();
    let (seeds, sample) = long().map_or((3, 500), |seeds| (seeds, 20));
    for seed in 1..=seeds {
        campaign(seed, 22, tiny(), None, sample, &mut count);
        println!("{seed} workloads: {} losses of power, {} second ones", count.first, count.second);
    }
    assert!(count.first > 2000 && count.second > 1000, "too few states: {} and {}", count.first, count.second);
}

#[test]
fn a_loss_of_power_between_short_writes_loses_nothing_acknowledged() {
    let mut count = Count::default();
    let (seeds, sample) = long().map_or((1, 500), |seeds| (seeds, 20));
    for seed in 101..101 + seeds {
        // Within a block, and between two.
        for limit in [700, 3 * SECTOR] {
            campaign(seed, 14, Options { segment_bytes: 2048, ..tiny() }, Some(limit), sample, &mut count);
        }
    }
    println!("{} losses of power, {} second ones", count.first, count.second);
    assert!(count.first > 2000, "too few states: {}", count.first);
}

/// The end of a process at any moment: what was written is still in the page cache.
#[test]
fn a_killed_process_loses_nothing_acknowledged() {
    for seed in 201..205 {
        let points = run(&SimDisk::new(), tiny(), vec![Model::default()], &workload(seed, 30));
        for point in points {
            let disk = point.moment.kill();
            let wal = open_with(&disk, tiny()).unwrap();
            assert!(point.allowed.contains(&model_of(&wal).unwrap()));
            drop(wal);
            // What it said after the restart must survive a loss of power right then.
            let found = model_of(&open_with(&disk, tiny()).unwrap()).unwrap();
            let after = disk.now().lose_power(|_| Fate::Lost);
            assert_eq!(model_of(&open_with(&after, tiny()).unwrap()).unwrap(), found);
        }
    }
}

/// A sync fails, and the system takes the pages for clean, as Linux does. The process ends, the next one reads them from the
/// cache and relies on them, and then power is lost.
#[test]
fn a_failed_sync_never_costs_what_the_next_process_relies_on() {
    let mut failures = 0;
    for seed in 301..303 {
        let calls = workload(seed, 18);
        let reference = SimDisk::new();
        run(&reference, tiny(), vec![Model::default()], &calls);
        for operation in 0..reference.operations() {
            let disk = SimDisk::new();
            disk.fail_at(operation, Fault::Forget);
            let allowed = until_failure(&disk, &calls);
            failures += u32::from(allowed.len() > 1);
            let disk = disk.now().kill();
            let found = model_of(&open_with(&disk.now().kill(), tiny()).unwrap()).unwrap();
            let points = run(&disk, tiny(), allowed.clone(), &aftermath(&found));
            for point in points {
                for fate in [Fate::Lost, Fate::Kept, Fate::Garbage] {
                    let wal = open_with(&point.moment.lose_power(|_| fate), tiny());
                    let wal = wal.unwrap_or_else(|e| panic!("seed {seed}, sync failed at {operation}: {e}"));
                    let found = model_of(&wal).unwrap();
                    assert!(point.allowed.contains(&found), "seed {seed}, sync failed at {operation}");
                }
            }
        }
    }
    assert!(failures > 25, "only {failures} syncs failed");
}

/// Runs calls until one fails, checks that the failure sticks, and returns what the log may hold.
fn until_failure(disk: &SimDisk, calls: &[Call]) -> Vec<Model> {
    let mut model = Model::default();
    let Ok(mut wal) = open_with(disk, tiny()) else { return vec![model] };
    for call in calls {
        if let Err(error) = perform(&mut wal, call) {
            expect_stopped(&mut wal, &error.to_string());
            let mut after = model.clone();
            after.apply(call);
            return vec![model, after];
        }
        model.apply(call);
        wal.settle();
    }
    vec![model]
}

fn expect_stopped(wal: &mut Wal, first: &str) {
    let again = wal.write(&vote(99, 1)).unwrap_err().to_string();
    assert!(again.contains("stopped after an earlier failure") && again.contains(first), "{again}");
    assert!(wal.compact(LogId::new(1, 1)).is_err());
}

/// Segments that are removed are cut piece by piece, which those of other tests are too small for.
#[test]
fn a_loss_of_power_while_segments_are_cut_loses_nothing() {
    let disk = SimDisk::new();
    let options = Options { segment_bytes: 5 << 20, background: false, ..Options::default() };
    let mut wal = open_with(&disk, options).unwrap();
    for index in 1..=14 {
        wal.write(&write(1, index..index + 1, 1 << 20)).unwrap();
    }
    let (before, upto) = (model_of(&wal).unwrap(), LogId::new(1, 13));
    disk.record();
    wal.compact(upto).unwrap();
    let after = model_of(&wal).unwrap();
    let (mut losses, mut removed, mut durable) = (0, 0, false);
    for moment in disk.take_recording() {
        removed += usize::from(moment.kill().contents(&support::segment(1)).is_none());
        for fate in [Fate::Lost, Fate::Kept, Fate::Early, Fate::Garbage] {
            let mut odd = false;
            // All of it, and every other of what was not durable.
            for mixed in [false, true] {
                let disk = moment.lose_power(|_| {
                    odd = !odd;
                    if mixed && odd { Fate::Kept } else { fate }
                });
                let found = model_of(&open_with(&disk, options).unwrap()).unwrap();
                assert!(found == after || (!durable && found == before), "{fate:?}, mixed {mixed}");
                // What nothing that is lost can take back is there from then on.
                durable |= found == after && fate == Fate::Lost && !mixed;
                losses += 1;
            }
        }
    }
    assert!(durable && losses > 50 && removed > 3, "{losses} losses of power, {removed} moments with a segment less");
}
