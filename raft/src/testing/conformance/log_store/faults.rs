//! Kills, losses of power and errors at any operation, for stores that offer the seam.

use super::*;

/// How often a store is opened, used and cut off in one case.
const ROUNDS: u64 = 300;
/// How many operations pass at most before the fault.
const OPERATIONS: u64 = 30;

#[derive(Clone, Debug)]
enum Call {
    Write(LogWrite),
    Compact(LogId),
}

/// What a log holds, as simply as it can be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    hard_state: HardState,
    base: LogId,
    entries: Vec<Entry>,
}

impl Model {
    async fn of(store: &impl LogStore) -> Self {
        let state = load(store).await;
        let model = Self { hard_state: state.hard_state, base: state.base, entries: all(store).await };
        assert_eq!(model.last(), state.last, "the bounds contradict the entries");
        let mut runs: Vec<TermRun> = Vec::new();
        for (entry, index) in model.entries.iter().zip(state.base.index.0 + 1..) {
            assert_eq!(entry.id.index.0, index, "the entries are not contiguous");
            if runs.last().is_none_or(|run| run.term != entry.id.term) {
                runs.push(TermRun { term: entry.id.term, first: entry.id.index });
            }
        }
        assert_eq!(state.runs, runs, "the terms contradict the entries");
        model
    }

    fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    fn apply(&mut self, call: &Call) {
        match call {
            Call::Write(write) => {
                self.hard_state = write.hard_state.unwrap_or(self.hard_state);
                if let Some(first) = write.entries.first() {
                    self.entries.retain(|entry| entry.id.index < first.id.index);
                    self.entries.extend(write.entries.iter().cloned());
                }
            }
            Call::Compact(upto) if upto.index > self.base.index => {
                let held = self.entries.iter().any(|entry| entry.id == *upto);
                self.entries.retain(|entry| held && entry.id.index > upto.index);
                self.base = *upto;
            }
            Call::Compact(_) => {}
        }
    }

    /// All that may be there when a call was cut off: nothing of it, its hard state with a prefix of its entries, or all of it.
    fn cut_off(&self, call: &Call) -> Vec<Self> {
        let mut possible = vec![self.clone()];
        let mut add = |call: &Call| {
            let mut model = self.clone();
            model.apply(call);
            possible.push(model);
        };
        match call {
            Call::Write(write) => (0..=write.entries.len()).for_each(|n| {
                add(&Call::Write(LogWrite { hard_state: write.hard_state, entries: write.entries[..n].to_vec() }));
            }),
            Call::Compact(_) => add(call),
        }
        possible
    }

    /// What a node might do next. Terms only grow.
    fn next(&self, random: &mut Random) -> Call {
        let (base, last) = (self.base.index.0, self.last().index.0);
        let term = self.last().term.max(self.hard_state.term).0.max(1);
        let size = random.pick(&[0, 24, 500, 5000]).unwrap_or(0);
        let write = |hard_state, term, first, count| {
            Call::Write(LogWrite {
                hard_state,
                entries: (first..first + count).map(|index| sized(term, index, size)).collect(),
            })
        };
        match random.weighted(&[6, 2, 1, 2, 1]) {
            0 => write(None, term, last + 1, random.between(1, 4)),
            1 if last > base => {
                let first = random.between(base + 1, last);
                write(Some(hard_state(term + 1, None)), term + 1, first, random.between(1, 4))
            }
            2 if last > base => {
                let entry = self.entries.get(usize::try_from(random.below(last - base)).unwrap_or(0));
                Call::Compact(entry.map_or(self.base, |entry| entry.id))
            }
            1..=3 => write(Some(hard_state(term + 1, Some(random.between(1, 3)))), 0, 1, 0),
            // A snapshot from a leader.
            _ => Call::Compact(LogId::new(term, last + random.below(3))),
        }
    }
}

async fn perform(store: &impl LogStore, call: &Call) -> Result<(), StorageError> {
    match call {
        Call::Write(write) => store.write(write.clone()).await,
        Call::Compact(upto) => store.compact(*upto).await,
    }
}

async fn at_any_point<B: Backend>(backend: &B, fault: Fault) {
    let mut random = Random::new(2014);
    let mut possible = vec![Model::default()];
    let mut reached = 0;
    for round in 0..ROUNDS {
        let store = backend.open().await;
        let mut model = Model::of(&store).await;
        assert!(possible.contains(&model), "{fault:?} in round {round} left\n{model:?}\nand not one of\n{possible:#?}");
        if !backend.arm(fault, random.below(OPERATIONS)) {
            return not_tested(&format!("{fault:?}"));
        }
        for _ in 0..OPERATIONS {
            let call = model.next(&mut random);
            if perform(&store, &call).await.is_err() {
                // What this process saw when it opened the log need not be durable, so what was possible then still is.
                possible.extend(model.cut_off(&call));
                reached += 1;
                expect_stopped(&store).await;
                break;
            }
            model.apply(&call);
            possible = vec![model.clone()];
        }
    }
    assert!(
        reached > ROUNDS / 4,
        "only {reached} of {ROUNDS} faults reached the store: does `arm` count its operations?"
    );
}

/// What was acknowledged is there when the process is killed at any operation and started again, time after time; of the step under
/// way, no more than a prefix is.
pub async fn a_kill_at_any_point_loses_nothing_that_was_acknowledged<B: Backend>(backend: &B) {
    at_any_point(backend, Fault::Kill).await;
}

/// The same when power is lost.
pub async fn a_loss_of_power_at_any_point_loses_nothing_that_was_acknowledged<B: Backend>(backend: &B) {
    at_any_point(backend, Fault::PowerLoss).await;
}

/// After an error, at any operation, no write and no compaction is taken, and what was acknowledged before is there for the next
/// process.
pub async fn an_error_at_any_point_sticks_and_loses_nothing<B: Backend>(backend: &B) {
    at_any_point(backend, Fault::Error).await;
}

/// What a process finds after a kill or an error counts for its quorum from then on, so it is on the disk: a loss of power right after takes nothing of it. In the page cache alone
/// it may be where it was written and not synced, or where a sync failed: no later one brings that out.
pub async fn what_is_found_after_a_kill_or_an_error_outlasts_a_loss_of_power<B: Backend>(backend: &B) {
    let mut random = Random::new(2018);
    let mut reached = 0;
    for round in 0..ROUNDS {
        let fault = random.pick(&[Fault::Kill, Fault::Error]).unwrap_or(Fault::Kill);
        let store = backend.open().await;
        let mut model = Model::of(&store).await;
        if !backend.arm(fault, random.below(OPERATIONS)) {
            return not_tested(&format!("{fault:?}"));
        }
        for _ in 0..OPERATIONS {
            let call = model.next(&mut random);
            if perform(&store, &call).await.is_err() {
                reached += 1;
                break;
            }
            model.apply(&call);
        }
        drop(store);
        let store = backend.open().await;
        let found = Model::of(&store).await;
        if !backend.arm(Fault::PowerLoss, 0) {
            return not_tested(&format!("{:?}", Fault::PowerLoss));
        }
        drop(store);
        let left = Model::of(&backend.open().await).await;
        assert!(left == found, "in round {round}, after {fault:?}, a loss of power left\n{left:?}\nof\n{found:?}");
    }
    assert!(
        reached > ROUNDS / 4,
        "only {reached} of {ROUNDS} faults reached the store: does `arm` count its operations?"
    );
}
