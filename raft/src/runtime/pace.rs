//! How many entries the state machine is given at once: as many as are there, but for what takes long.
//!
//! Whoever looks from outside sees progress only when a batch is done. One that takes too long would look as if nothing got done, so
//! that a slow state machine would pass for one that hangs. And where the state machine works on the thread that it was called on, nothing
//! else of that thread runs meanwhile: a leader would send no heartbeats. A batch therefore begins small, and grows as long as it is quick.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Duration;

use super::applier::Entries;
use super::clock::Clock;
use crate::config::Config;
use crate::types::Entry;

/// What the first batch holds at most, and what each may hold unless it takes far too long.
const FIRST: usize = 64;

/// For how long a batch of more than [`FIRST`] may keep its thread from all else. A smaller one may take longer: what each batch costs, such as a sync
/// by a machine that does not leave its thread for it, is not to be paid for each entry.
pub(super) const HELD: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Pace {
    /// What a batch holds at most.
    most: usize,
    /// A batch that takes less may be twice as large; one that takes more was too large.
    quick: Took,
    slow: Took,
}

/// How long something took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Took {
    /// In all.
    pub(super) time: Duration,
    /// For how long it kept its thread from all else at most.
    pub(super) held: Duration,
}

impl Took {
    /// Runs something, and looks how long it takes.
    pub(super) async fn by<T>(clock: &Clock, work: impl Future<Output = T>) -> (T, Self) {
        let (began, mut held) = (clock.now(), Duration::ZERO);
        let mut work = pin!(work);
        let done = poll_fn(|cx| {
            let began = clock.now();
            let polled = work.as_mut().poll(cx);
            held = held.max(clock.now().since(began));
            polled
        });
        let done = done.await;
        (done, Self { time: clock.now().since(began), held })
    }

    fn exceeds(self, other: Self) -> bool {
        self.time > other.time || self.held > other.held
    }

    fn half(self) -> Self {
        Self { time: self.time / 2, held: self.held / 2 }
    }
}

/// Entries that wait to be applied, in order.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<(std::vec::IntoIter<Entry>, bool)>);

impl Waiting {
    pub(super) fn push(&mut self, Entries { entries, wants_results }: Entries) {
        self.0.push_back((entries.into_iter(), wants_results));
    }
}

impl Pace {
    /// A batch takes a quarter of the time at most after which its state machine counts as stalled, and keeps its thread for no longer than a heartbeat
    /// may be late.
    pub(super) fn new(config: &Config) -> Self {
        let slow = Took { time: config.stall_timeout / 4, held: config.election_timeout / 4 };
        Self { most: FIRST, quick: slow.half(), slow }
    }

    /// The next batch, and whether anyone may want its results; none when nothing waits.
    pub(super) fn take(&self, waiting: &mut Waiting) -> Option<(Vec<Vec<Entry>>, bool)> {
        let (mut batch, mut wants, mut room) = (Vec::new(), false, self.most);
        while room > 0
            && let Some((entries, wants_results)) = waiting.0.front_mut()
        {
            let some: Vec<_> = entries.by_ref().take(room).collect();
            room -= some.len();
            if !some.is_empty() {
                batch.push(some);
                wants |= *wants_results;
            }
            if entries.as_slice().is_empty() {
                waiting.0.pop_front();
            }
        }
        (!batch.is_empty()).then_some((batch, wants))
    }

    /// So many entries took so long.
    pub(super) fn took(&mut self, entries: usize, took: Took) {
        let (half, full) = (entries.min(self.most) / 2, entries >= self.most);
        if took.exceeds(self.slow) {
            self.most = half.max(1);
        } else if self.most < FIRST {
            if full {
                self.most = (self.most + self.most / 4 + 1).min(FIRST);
            }
        } else if took.held > HELD {
            self.most = half.max(FIRST);
        } else if full && !took.exceeds(self.quick) && took.held < HELD / 2 {
            self.most = self.most.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EntryKind, LogId};

    fn entries(indexes: std::ops::RangeInclusive<u64>, wants_results: bool) -> Entries {
        let entry = |index| Entry { id: LogId::new(1, index), kind: EntryKind::Noop, data: bytes::Bytes::new() };
        Entries { entries: indexes.map(entry).collect(), wants_results }
    }

    fn pace() -> Pace {
        let (stall_timeout, election_timeout) = (Duration::from_secs(1), Duration::from_millis(600));
        Pace::new(&Config { stall_timeout, election_timeout, ..Config::default() })
    }

    fn took(time: u64, held: u64) -> Took {
        Took { time: Duration::from_millis(time), held: Duration::from_millis(held) }
    }

    /// The first and the last index of each list, and whether results are wanted.
    fn shape(batch: Option<(Vec<Vec<Entry>>, bool)>) -> (Vec<(u64, u64)>, bool) {
        let (lists, wants_results) = batch.unwrap();
        (lists.iter().map(|list| (list[0].id.index.0, list[list.len() - 1].id.index.0)).collect(), wants_results)
    }

    #[test]
    fn a_batch_ends_where_it_must_and_the_next_goes_on_there() {
        let mut pace = pace();
        pace.most = 5;
        let mut waiting = Waiting::default();
        waiting.push(entries(1..=3, false));
        waiting.push(entries(4..=12, true));
        assert_eq!(shape(pace.take(&mut waiting)), (vec![(1, 3), (4, 5)], true));
        assert_eq!(shape(pace.take(&mut waiting)), (vec![(6, 10)], true));
        waiting.push(entries(13..=14, false));
        assert_eq!(shape(pace.take(&mut waiting)), (vec![(11, 12), (13, 14)], true));
        waiting.push(entries(15..=15, false));
        assert_eq!(shape(pace.take(&mut waiting)), (vec![(15, 15)], false));
        assert!(pace.take(&mut waiting).is_none());
    }

    #[test]
    fn batches_grow_while_they_are_quick_and_shrink_when_they_are_slow() {
        let mut pace = pace();
        let (quick, fair, slow) = (took(10, 0), took(200, 0), took(300, 0));
        pace.took(FIRST, quick);
        assert_eq!(pace.most, 2 * FIRST);
        pace.took(10, quick);
        pace.took(2 * FIRST, fair);
        assert_eq!(pace.most, 2 * FIRST, "a small batch says nothing");
        pace.took(100, slow);
        assert_eq!(pace.most, 50, "even so few are slow");
        for _ in 0..20 {
            pace.took(1, slow);
        }
        assert_eq!(pace.most, 1);
    }

    #[test]
    fn batches_shrink_when_they_keep_their_thread_for_long() {
        let mut pace = pace();
        pace.took(FIRST, took(2, 2));
        assert_eq!(pace.most, 2 * FIRST);
        pace.took(2 * FIRST, took(5, 5));
        assert_eq!(pace.most, 2 * FIRST, "as long as it may");
        pace.took(2 * FIRST, took(6, 6));
        assert_eq!(pace.most, FIRST);
        pace.took(FIRST, took(100, 2));
        assert_eq!(pace.most, 2 * FIRST, "it took long, but elsewhere");
    }

    #[test]
    fn what_each_batch_costs_is_not_paid_for_each_entry() {
        let mut pace = pace();
        let (costly, stuck) = (took(100, 100), took(160, 160));
        pace.took(FIRST, costly);
        assert_eq!(pace.most, FIRST);
        pace.took(1, stuck);
        assert_eq!(pace.most, 1, "a heartbeat would be late");
        pace.took(1, costly);
        pace.took(1, costly);
        assert_eq!(pace.most, 2, "a small batch says nothing");
        for _ in 0..20 {
            pace.took(pace.most, costly);
        }
        assert_eq!(pace.most, FIRST, "and that is over");
    }

    /// After many cheap entries a few dear ones are no reason to give many of those.
    #[test]
    fn a_few_entries_that_keep_the_thread_for_long_are_enough_to_know() {
        let mut pace = pace();
        for _ in 0..10 {
            pace.took(pace.most, took(0, 0));
        }
        assert_eq!(pace.most, FIRST << 10);
        pace.took(60, took(60, 60));
        assert_eq!(pace.most, FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_is_held_until_the_work_waits() {
        use crate::runtime::host::Tasks;
        use tokio::time::sleep;
        let clock = Clock::start(&Tasks::default(), false);
        let ((), took) = Took::by(&clock, sleep(Duration::from_millis(30))).await;
        assert_eq!(took, self::took(30, 0));
    }
}
