//! Time as a test was given it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

/// How often it looks.
const TICK: Duration = Duration::from_millis(5);
/// What one look counts for at most.
const MOST: Duration = Duration::from_millis(25);

/// Tells how long something took, without the times in which the machine did not run this test though it was to be run. What these tests wait for are
/// timers and answers on one thread: when that is not run for a second, everything is a second late, and nobody can help it. What takes long
/// by itself takes as long on this watch as on a clock.
#[derive(Debug)]
pub struct Stopwatch {
    begun: Instant,
    /// In microseconds.
    given: Arc<AtomicU64>,
    ticking: AbortHandle,
}

impl Stopwatch {
    /// Begins. Must be called within a runtime of one thread.
    #[must_use]
    pub fn start() -> Self {
        let (begun, given) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let counted = given.clone();
        let ticking = tokio::spawn(async move {
            let mut last = begun;
            loop {
                sleep(TICK).await;
                let now = Instant::now();
                let step = now.duration_since(last).min(MOST);
                counted.fetch_add(u64::try_from(step.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                last = now;
            }
        });
        Self { begun, given, ticking: ticking.abort_handle() }
    }

    /// That it took less than this.
    ///
    /// # Panics
    /// It took longer.
    pub fn expect_less_than(&self, bound: Duration) {
        let (given, passed) = (self.elapsed(), self.begun.elapsed());
        assert!(given < bound, "it took {given:?} ({passed:?} by the clock), and not less than {bound:?}");
    }

    /// How long it took so far.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.given.load(Ordering::Relaxed))
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.ticking.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_by_itself_takes_long_on_the_watch() {
        let watch = Stopwatch::start();
        sleep(Duration::from_secs(3)).await;
        assert!(watch.elapsed() > Duration::from_millis(2900), "{:?}", watch.elapsed());
        watch.expect_less_than(Duration::from_millis(3100));
    }

    /// As a machine does that has others to run.
    #[tokio::test]
    async fn what_the_machine_takes_does_not_count() {
        let watch = Stopwatch::start();
        for _ in 0..3 {
            sleep(Duration::from_millis(20)).await;
            std::thread::sleep(Duration::from_millis(400));
        }
        sleep(Duration::from_millis(20)).await;
        assert!(watch.begun.elapsed() > Duration::from_millis(1200));
        watch.expect_less_than(Duration::from_millis(600));
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "and not less than 1s")]
    async fn what_takes_too_long_is_told() {
        let watch = Stopwatch::start();
        sleep(Duration::from_secs(2)).await;
        watch.expect_less_than(Duration::from_secs(1));
    }
}
