//! Power is lost at every operation of a workload, in many of the ways in which the disk can suffer from it, also while the database
//! is made, repaired and closed, and again while it recovers. Whatever was acknowledged must be there afterwards, what was not must be there
//! as a whole or not at all, and nothing that was replaced may come back.
//!
//! `RAFTKV_CRASH_CAMPAIGN=20 cargo test --release -p raftkv-storage-redb --test crash -- --nocapture` takes twenty workloads instead of one, and
//! every pattern instead of some.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use raftkv::testing::Random;
use raftkv::{HardState, LogWrite, NodeId, Term};
use raftkv_storage_file::sim::{Moment, SimDisk, patterns};
use raftkv_storage_redb::Commit;
use support::{Call, Model, inline, model_of, open_with, perform, workload, write};

/// A moment of a run, and what the log may hold if power is lost then.
struct Point {
    moment: Moment,
    allowed: Vec<Model>,
}

/// Opens a log, runs calls on it, closes it, and keeps every moment of that. Until the log is open it may be any of `before`.
fn run(disk: &SimDisk, commit: Commit, before: Vec<Model>, calls: &[Call]) -> Vec<Point> {
    disk.record();
    let mut allowed: Vec<(u64, Vec<Model>)> = Vec::new();
    let log = open_with(disk, inline(commit)).unwrap_or_else(|e| panic!("does not open: {e}"));
    let mut model = model_of(&log).unwrap();
    assert!(before.contains(&model), "opened as\n{model:?}\nbut it should be one of\n{before:?}");
    allowed.push((disk.operations(), before));
    for call in calls {
        let was = model.clone();
        perform(&log, call).unwrap_or_else(|e| panic!("{call:?} failed: {e}"));
        model.apply(call);
        allowed.push((disk.operations(), vec![was, model.clone()]));
    }
    assert_eq!(model_of(&log).unwrap(), model);
    drop(log);
    let mut points = Vec::new();
    for (operation, moment) in disk.take_recording().into_iter().enumerate() {
        let known = allowed.iter().find(|(end, _)| (operation as u64) < *end);
        let allowed = known.map_or_else(|| vec![model.clone()], |(_, allowed)| allowed.clone());
        points.push(Point { moment, allowed });
    }
    points
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

#[derive(Default)]
struct Count {
    first: u64,
    second: u64,
}

/// Loses power at every moment of a workload; in one of `sample` cases, also at moments of the recovery and of what follows.
fn campaign(seed: u64, commit: Commit, calls: usize, all: bool, sample: u64, count: &mut Count) {
    let mut random = Random::new(seed);
    let disk = SimDisk::new();
    let calls = workload(&mut random, calls);
    let points = run(&disk, commit, vec![Model::default()], &calls);
    for (at, point) in points.iter().enumerate() {
        let n = point.moment.pending().len();
        for fates in patterns(n, &mut random, 3, (!all).then_some(1)) {
            let context = || format!("seed {seed}, {commit:?}, operation {at}, fates {fates:?}");
            let disk = point.moment.suffer(&fates);
            let log = open_with(&disk, inline(commit)).unwrap_or_else(|e| panic!("{}: {e}", context()));
            let model = model_of(&log).unwrap_or_else(|e| panic!("{}: {e}", context()));
            assert!(point.allowed.contains(&model), "{}:\n{model:?}\nand not one of\n{:?}", context(), point.allowed);
            drop(log);
            count.first += 1;
            if random.below(sample) == 0 {
                let disk = point.moment.suffer(&fates);
                again(&disk, commit, vec![model.clone()], &aftermath(&model), &mut random, count);
            }
        }
    }
}

/// Loses power in the recovery from an earlier loss.
fn again(disk: &SimDisk, commit: Commit, before: Vec<Model>, calls: &[Call], random: &mut Random, count: &mut Count) {
    for point in run(disk, commit, before, calls) {
        let n = point.moment.pending().len();
        let patterns = patterns(n, random, 3, Some(1));
        let fates = random.pick(&patterns).unwrap();
        let log = open_with(&point.moment.suffer(&fates), inline(commit)).unwrap_or_else(|e| panic!("again: {e}"));
        let model = model_of(&log).unwrap();
        assert!(point.allowed.contains(&model), "again:\n{model:?}\nand not one of\n{:?}", point.allowed);
        count.second += 1;
    }
}

fn workloads() -> Option<u64> {
    std::env::var("RAFTKV_CRASH_CAMPAIGN").ok()?.parse().ok()
}

fn check(commit: Commit) {
    let mut count = Count::default();
    match workloads() {
        Some(workloads) => (0..workloads).for_each(|seed| campaign(seed, commit, 25, true, 200, &mut count)),
        None => campaign(1, commit, 12, false, 150, &mut count),
    }
    println!("{commit:?}: {} losses of power, and {} in the recovery from one", count.first, count.second);
    assert!(count.first > 500 && count.second > 100, "{} and {}", count.first, count.second);
}

#[test]
fn a_loss_of_power_at_any_moment_loses_nothing_that_was_acknowledged() {
    check(Commit::OnePhase);
}

#[test]
fn nor_does_it_with_two_phases() {
    check(Commit::TwoPhase);
}
