//! Notices that something that is under way does not get done, and that it does again.

use std::time::Duration;

use crate::consensus::Time;

/// Watches one thing.
#[derive(Debug)]
pub(crate) struct Watch {
    /// How long it may take.
    limit: Duration,
    /// Since when it is under way, or when it last got on.
    since: Option<Time>,
    /// Whether it was seen to stall.
    stalls: bool,
}

impl Watch {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, since: None, stalls: false }
    }

    /// It is under way from now on, unless it is already.
    pub(crate) fn begin(&mut self, now: Time) {
        self.since.get_or_insert(now);
    }

    /// It got on, and is done or not. Tells how long it took, and whether that was a stall which had been noticed.
    pub(crate) fn progress(&mut self, now: Time, done: bool) -> (Duration, bool) {
        let took = self.since.map_or(Duration::ZERO, |since| now.since(since));
        self.since = (!done).then_some(now);
        (took, std::mem::take(&mut self.stalls))
    }

    /// Whether it stalls, as far as [`Watch::check`] has noticed.
    pub(crate) fn stalls(&self) -> bool {
        self.stalls
    }

    /// When [`Watch::check`] has something to say, if nothing happens until then.
    pub(crate) fn next_wake(&self) -> Option<Time> {
        self.since.filter(|_| !self.stalls).map(|since| since.plus(self.limit))
    }

    /// Whether a stall begins.
    pub(crate) fn check(&mut self, now: Time) -> bool {
        let begins = self.next_wake().is_some_and(|due| now >= due);
        self.stalls |= begins;
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(Duration::from_millis(ms))
    }

    #[test]
    fn a_stall_is_noticed_once_and_ends_with_progress() {
        let mut watch = Watch::new(Duration::from_millis(100));
        assert_eq!((watch.next_wake(), watch.check(at(1000))), (None, false), "nothing is under way");
        watch.begin(at(10));
        watch.begin(at(50));
        assert_eq!((watch.next_wake(), watch.check(at(109))), (Some(at(110)), false));
        assert!(watch.check(at(110)) && watch.stalls());
        assert_eq!((watch.next_wake(), watch.check(at(500))), (None, false), "noticed");
        assert_eq!(watch.progress(at(510), false), (Duration::from_millis(500), true));
        assert_eq!((watch.stalls(), watch.next_wake()), (false, Some(at(610))), "the rest is under way");
        assert_eq!(watch.progress(at(520), true), (Duration::from_millis(10), false));
        assert_eq!(watch.next_wake(), None);
    }

    #[test]
    fn a_limit_that_means_never() {
        let mut watch = Watch::new(Duration::MAX);
        watch.begin(at(1));
        assert!(!watch.check(Time(Duration::from_secs(1 << 40))));
    }
}
