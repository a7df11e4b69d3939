//! How many entries the state machine is given at once: as many as are there, but for what takes long.
//!
//! Whoever looks from outside sees progress only when a batch is done. One that takes too long would look as if nothing got done, so
//! that a slow state machine would pass for one that hangs. A batch therefore begins small, and grows as long as it is quick.

use std::collections::VecDeque;
use std::time::Duration;

use super::applier::Entries;
use crate::types::Entry;

/// What the first batch holds at most.
const FIRST: usize = 64;

#[derive(Debug)]
pub(super) struct Pace {
    /// What a batch holds at most.
    most: usize,
    /// A batch that takes less may be twice as large; one that takes more was too large.
    quick: Duration,
    slow: Duration,
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
    /// For a state machine that counts as stalled after this long without progress.
    pub(super) fn new(stall_timeout: Duration) -> Self {
        Self { most: FIRST, quick: stall_timeout / 8, slow: stall_timeout / 4 }
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
    pub(super) fn took(&mut self, entries: usize, time: Duration) {
        if time > self.slow {
            self.most = (entries.min(self.most) / 2).max(1);
        } else if time < self.quick && entries >= self.most {
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

    /// The first and the last index of each list, and whether results are wanted.
    fn shape(batch: Option<(Vec<Vec<Entry>>, bool)>) -> (Vec<(u64, u64)>, bool) {
        let (lists, wants_results) = batch.unwrap();
        (lists.iter().map(|list| (list[0].id.index.0, list[list.len() - 1].id.index.0)).collect(), wants_results)
    }

    #[test]
    fn a_batch_ends_where_it_must_and_the_next_goes_on_there() {
        let mut pace = Pace::new(Duration::from_secs(1));
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
        let mut pace = Pace::new(Duration::from_secs(1));
        let (quick, fair, slow) = (Duration::from_millis(10), Duration::from_millis(200), Duration::from_millis(300));
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
}
