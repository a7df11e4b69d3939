//! For how long this leader's entries have been waiting to be applied.
//!
//! A bound in bytes keeps memory in check, but not time: where a disk or a state machine is slow, a backlog that fits may take longer than any
//! client waits for its answer. Everything would then be done for clients that have given up, and are asking again. So a leader refuses
//! commands while the oldest has waited for a good part of [`Config::write_timeout`](crate::Config::write_timeout).

use std::collections::VecDeque;
use std::time::Duration;

use super::io::Time;
use crate::types::Index;

/// How many marks there are in the longest time that is of interest.
const PRECISION: u32 = 8;

/// When entries were appended: a mark for all within an eighth of the limit, with the last of them and the time of the first. So a wait counts as
/// up to an eighth too long, and none is overlooked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backlog(VecDeque<(Index, Time)>);

impl Backlog {
    /// Entries up to this one were appended now.
    pub(crate) fn appended(&mut self, now: Time, last: Index, limit: Duration) {
        match self.0.back_mut() {
            Some((index, since)) if now.since(*since) < limit / PRECISION => *index = last,
            Some(_) | None => self.0.push_back((last, now)),
        }
    }

    /// Whether an entry that is not applied yet was appended so long ago.
    pub(crate) fn is_older_than(&mut self, limit: Duration, now: Time, applied: Index) -> bool {
        while self.0.front().is_some_and(|(index, _)| *index <= applied) {
            self.0.pop_front();
        }
        self.0.front().is_some_and(|(_, since)| now.since(*since) >= limit)
    }
}
