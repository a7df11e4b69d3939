//! The node's clock: tokio's, so that tests may pause it, or that of a simulation's machine.
//!
//! Tokio's stops while the machine is suspended. Where leases count on it (`Config::lease_drift`), that time is added.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::host::{Host, Tasks};
use crate::consensus::Time;

/// Stands in for "never": the timer then fires once a day for nothing.
const FAR: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Clock {
    origin: Origin,
    /// When to wake.
    wake_at: Option<Time>,
    /// Fires at `armed`, which is never after `wake_at`. Deadlines mostly move away before they are reached, so the
    /// timer is only set anew when that is needed.
    timer: Pin<Box<Sleep>>,
    armed: Time,
}

/// When the clock was started.
enum Origin {
    Tokio(Instant, Option<Suspended>),
    Host(Arc<dyn Host>, Duration),
}

impl Origin {
    fn instant(&self, time: Time) -> Instant {
        match self {
            Self::Tokio(origin, suspended) => {
                let suspended = suspended.as_ref().map_or(Duration::ZERO, Suspended::so_far);
                *origin + time.0.saturating_sub(suspended)
            }
            Self::Host(host, origin) => host.instant(*origin + time.0),
        }
    }
}

/// For how long the machine was suspended since the clock was started.
#[derive(Debug)]
struct Suspended {
    before: Duration,
    /// In nanoseconds: it never becomes less, however inexact a look is.
    since: AtomicU64,
}

impl Suspended {
    fn start() -> Self {
        Self { before: suspended(), since: AtomicU64::new(0) }
    }

    fn so_far(&self) -> Duration {
        let since = suspended().saturating_sub(self.before);
        let since = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.since.fetch_max(since, Ordering::Relaxed).max(since))
    }
}

/// For how long the machine was suspended since it was started: the difference of two clocks, of which one counts that. It is
/// taken again when something came between, so that it is exact to a tenth of a millisecond.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn suspended() -> Duration {
    use rustix::time::{ClockId, Timespec, clock_gettime};
    let read = |clock| {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
        Duration::new(u64::try_from(tv_sec).unwrap_or_default(), u32::try_from(tv_nsec).unwrap_or_default())
    };
    let mut tries = 0;
    loop {
        let before = read(ClockId::Monotonic);
        let with_suspensions = read(ClockId::Boottime);
        let after = read(ClockId::Monotonic);
        tries += 1;
        if after.saturating_sub(before) < Duration::from_micros(100) || tries == 1000 {
            return with_suspensions.saturating_sub(after);
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn suspended() -> Duration {
    Duration::ZERO
}

impl Clock {
    /// `suspensions` tells whether the time counts for which the machine is suspended.
    pub(crate) fn start(tasks: &Tasks, suspensions: bool) -> Self {
        let origin = match &tasks.0 {
            None => Origin::Tokio(Instant::now(), suspensions.then(Suspended::start)),
            Some(host) => Origin::Host(host.clone(), host.now()),
        };
        let timer = Box::pin(tokio::time::sleep_until(origin.instant(Time(FAR))));
        Self { origin, wake_at: None, timer, armed: Time(FAR) }
    }

    /// Whether a simulation's machine runs this node.
    pub(crate) fn is_simulated(&self) -> bool {
        matches!(self.origin, Origin::Host(..))
    }

    pub(crate) fn now(&self) -> Time {
        match &self.origin {
            Origin::Tokio(origin, suspended) => {
                Time(origin.elapsed()).plus(suspended.as_ref().map_or(Duration::ZERO, Suspended::so_far))
            }
            Origin::Host(host, origin) => Time(host.now().saturating_sub(*origin)),
        }
    }

    /// Changes when [`Clock::poll`] is ready.
    pub(crate) fn wake_at(&mut self, time: Option<Time>) {
        self.wake_at = time;
        if let Some(time) = time
            && time < self.armed
        {
            self.arm(time);
        }
    }

    fn arm(&mut self, time: Time) {
        let time = time.min(self.now().plus(FAR));
        self.armed = time;
        self.timer.as_mut().reset(self.origin.instant(time));
    }

    /// Ready at the time to wake.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Origin::Host(..) = self.origin {
            // Its clock may have jumped since the timer was set.
            let armed = self.origin.instant(self.armed);
            if self.timer.deadline() != armed {
                self.timer.as_mut().reset(armed);
            }
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = self.now();
            if self.wake_at.is_some_and(|time| time <= now) {
                return Poll::Ready(());
            }
            let next = self.wake_at.unwrap_or(now.plus(FAR));
            self.arm(next.max(now.plus(Duration::from_millis(1))));
        }
        Poll::Pending
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("wake_at", &self.wake_at).field("armed", &self.armed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_counts_suspensions_goes_as_tokios_while_there_are_none() {
        let mut clock = Clock::start(&Tasks(None), true);
        let before = clock.now();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let passed = clock.now().since(before);
        assert!(passed >= Duration::from_secs(60) && passed < Duration::from_millis(60_010), "{passed:?}");
        let due = clock.now().plus(Duration::from_millis(50));
        clock.wake_at(Some(due));
        std::future::poll_fn(|cx| clock.poll(cx)).await;
        assert!(clock.now() >= due && clock.now().since(due) < Duration::from_millis(10));
    }

    #[test]
    fn the_time_suspended_never_becomes_less() {
        let suspended = Suspended { before: Duration::ZERO, since: AtomicU64::new(0) };
        suspended.since.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(suspended.so_far(), Duration::from_nanos(u64::MAX));
    }
}
