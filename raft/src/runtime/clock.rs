//! The node's clock: tokio's, so that tests and simulations may pause it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::consensus::Time;

/// Stands in for "never": the timer then fires once a day for nothing.
const FAR: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Clock {
    origin: Instant,
    /// When to wake.
    wake_at: Option<Time>,
    /// Fires at `armed`, which is never after `wake_at`. Deadlines mostly move away before they are reached, so the
    /// timer is only set anew when that is needed.
    timer: Pin<Box<Sleep>>,
    armed: Time,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let origin = Instant::now();
        Self { origin, wake_at: None, timer: Box::pin(tokio::time::sleep_until(origin + FAR)), armed: Time(FAR) }
    }

    pub(crate) fn now(&self) -> Time {
        Time(self.origin.elapsed())
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
        self.timer.as_mut().reset(self.origin + time.0);
    }

    /// Ready at the time to wake.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
