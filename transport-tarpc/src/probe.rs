//! Whether a peer that says nothing is slow, or gone.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::line::Meter;

/// Says when a probe is due, and when one has been out for too long.
///
/// A probe waits behind what was to be written before it. While that still moves, the peer's machine takes it, and the link is slow rather than dead: so the
/// time counts from when the system has the probe. Whatever is received counts as a sign of life.
pub(crate) struct Probing {
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    out: Option<Out>,
}

/// A probe that is not answered yet.
#[derive(Default)]
struct Out {
    /// How many bytes are to be written until it is, once that is known.
    end: Option<u64>,
    /// Whether the system has it.
    sent: bool,
    /// Signs of life when the timer was set.
    signs: u64,
}

impl Out {
    fn signs(&self, meter: &Meter) -> u64 {
        meter.read() + if self.sent { 0 } else { meter.written() }
    }
}

/// What the timer says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A probe is due. The next look is taken when it is encoded, at the earliest.
    Probe,
    /// One was left unanswered for so long.
    Dead(Duration),
}

impl Probing {
    pub(crate) fn new(interval: Duration, timeout: Duration) -> Self {
        Self { interval, timeout, timer: Box::pin(sleep(interval)), out: None }
    }

    /// The probe was answered.
    pub(crate) fn answered(&mut self) {
        self.out = None;
        self.set(self.interval);
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, meter: &Meter) -> Poll<Verdict> {
        loop {
            if let Some(out) = &mut self.out
                && !out.sent
                && !meter.is_waiting()
            {
                let end = *out.end.get_or_insert(meter.encoded_so_far());
                if meter.written() >= end {
                    out.sent = true;
                    out.signs = out.signs(meter);
                    self.set(self.timeout);
                }
            }
            ready!(self.timer.as_mut().poll(cx));
            let Some(out) = &mut self.out else {
                let mut out = Out::default();
                out.signs = out.signs(meter);
                self.out = Some(out);
                self.set(self.timeout);
                return Poll::Ready(Verdict::Probe);
            };
            let signs = out.signs(meter);
            if std::mem::replace(&mut out.signs, signs) == signs {
                return Poll::Ready(Verdict::Dead(self.timeout));
            }
            self.set(self.timeout);
        }
    }

    fn set(&mut self, time: Duration) {
        self.timer.as_mut().reset(Instant::now() + time);
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
