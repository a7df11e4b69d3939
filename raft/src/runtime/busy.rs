//! Looks again for what is about to come, rather than sleep (`Config::busy_poll`): where a core has gone idle, it takes longer to wake up than to do a
//! write whose log is in memory.
//!
//! Only as long as what is waited for comes in time. To find out whether it does takes no more than two looks at the clock a wait.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;

/// How often in a row it has come in time when it is worth it: where it comes late for all that one looks for it, as nobody else has a core, and in time to one who
/// sleeps, that is never.
const IN_TIME: u32 = 2;

/// For how long nobody looks again once that was not worth it.
const REST: Duration = Duration::from_millis(100);

/// How often one looks again at most: a test's clock may stand still.
const MAX_LOOKS: u32 = 10_000;

#[derive(Debug)]
pub(crate) struct BusyPoll {
    limit: Duration,
    /// How often in a row it came in time.
    in_time: AtomicU32,
    /// When it may be worth it again, in nanoseconds.
    rests_until: AtomicU64,
}

/// One wait.
#[derive(Debug)]
pub(crate) struct Wait {
    began: Duration,
    looks: u32,
}

impl BusyPoll {
    /// Zero: never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, in_time: AtomicU32::new(0), rests_until: AtomicU64::new(0) }
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.limit.is_zero()
    }

    /// Begins to wait. Time is what has passed on any clock since anything.
    pub(crate) fn wait(&self, now: Duration) -> Wait {
        let rests = nanos(now) < self.rests_until.load(Ordering::Relaxed);
        let looks = if self.in_time.load(Ordering::Relaxed) >= IN_TIME && !rests { MAX_LOOKS } else { 0 };
        Wait { began: now, looks }
    }

    /// It is not there yet: has the task run again, once its thread has looked at everything else, unless that has gone on for long enough.
    pub(crate) fn look_again(&self, wait: &mut Wait, cx: &mut Context<'_>, now: impl FnOnce() -> Duration) {
        if wait.looks == 0 {
            return;
        }
        wait.looks -= 1;
        if wait.looks == 0 || self.is_late(wait, now()) {
            wait.looks = 0;
            self.in_time.store(0, Ordering::Relaxed);
            return;
        }
        // Unlike a task that wakes itself, one that yields is not taken over by another thread of the runtime.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
    }

    /// It is there.
    pub(crate) fn came(&self, wait: &Wait, now: Duration) {
        if self.is_late(wait, now) {
            self.in_time.store(0, Ordering::Relaxed);
        } else if self.in_time.load(Ordering::Relaxed) < IN_TIME {
            self.in_time.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Others need the core more: those who wait within the next tenth of a second sleep.
    pub(crate) fn is_not_worth_it(&self, now: Duration) {
        self.rests_until.store(nanos(now.saturating_add(REST)), Ordering::Relaxed);
    }

    fn is_late(&self, wait: &Wait, now: Duration) -> bool {
        now.saturating_sub(wait.began) > self.limit
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn looks(busy: &BusyPoll, times: impl IntoIterator<Item = u64>) -> u32 {
        looks_from(busy, Duration::ZERO, times)
    }

    /// How often one who waits, and looks after so many microseconds, is woken for the next look.
    fn looks_from(busy: &BusyPoll, began: Duration, times: impl IntoIterator<Item = u64>) -> u32 {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut wait = busy.wait(began);
        for time in times {
            busy.look_again(&mut wait, &mut Context::from_waker(&waker), || began + us(time));
        }
        woken.0.load(Ordering::Relaxed)
    }

    fn came(busy: &BusyPoll, after: u64) {
        busy.came(&busy.wait(us(1000)), us(1000 + after));
    }

    fn came_twice(busy: &BusyPoll) {
        came(busy, 1);
        came(busy, 1);
    }

    #[test]
    fn who_waits_looks_again_for_as_long_as_the_limit_if_it_came_in_time_before() {
        let busy = BusyPoll::new(us(50));
        assert_eq!(looks(&busy, [0, 1, 2]), 0, "nobody knows whether it comes soon");
        came(&busy, 50);
        came(&busy, 51);
        came(&busy, 50);
        assert_eq!(looks(&busy, [0, 1, 2]), 0, "it came late");
        came(&busy, 50);
        assert_eq!(looks(&busy, [0, 20, 50]), 3);
        assert_eq!(looks(&busy, [0, 20, 51, 52, 53]), 2);
    }

    /// An idle node would keep a core busy for a while at each heartbeat.
    #[test]
    fn one_who_looked_in_vain_sleeps_the_next_time() {
        let busy = BusyPoll::new(us(50));
        came_twice(&busy);
        assert_eq!(looks(&busy, [0, 51]), 1);
        assert_eq!(looks(&busy, [0, 1]), 0);
        came_twice(&busy);
        assert_eq!(looks(&busy, [0, 1]), 2);
    }

    /// Reads by 64 clients were a tenth fewer: their load generator had the same cores.
    #[test]
    fn where_many_come_at_once_nobody_looks_again_for_a_while() {
        let busy = BusyPoll::new(us(50));
        came_twice(&busy);
        busy.is_not_worth_it(us(1));
        came(&busy, 1);
        assert_eq!(looks_from(&busy, us(2), [0, 1]), 0);
        assert_eq!(looks_from(&busy, REST, [0, 1]), 0);
        assert_eq!(looks_from(&busy, REST + us(1), [0, 1]), 2);
    }

    /// A test with a clock that goes on only when everybody sleeps would never end.
    #[test]
    fn a_clock_that_stands_still_keeps_nobody_awake() {
        let busy = BusyPoll::new(us(50));
        came_twice(&busy);
        assert_eq!(looks(&busy, std::iter::repeat_n(0, 1_000_000)), MAX_LOOKS - 1);
        assert_eq!(looks(&busy, [0]), 0, "nor the next time");
    }
}
