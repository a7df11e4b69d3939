//! The node's clock: tokio's, so that tests may pause it, or that of a simulation's machine.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
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
    Tokio(Instant),
    Host(Arc<dyn Host>, Duration),
}

impl Origin {
    fn instant(&self, time: Time) -> Instant {
        match self {
            Self::Tokio(origin) => *origin + time.0,
            Self::Host(host, origin) => host.instant(*origin + time.0),
        }
    }
}

impl Clock {
    pub(crate) fn start(tasks: &Tasks) -> Self {
        let origin = match &tasks.0 {
            None => Origin::Tokio(Instant::now()),
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
            Origin::Tokio(origin) => Time(origin.elapsed()),
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
