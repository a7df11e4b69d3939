//! Tells clients when requests are due at a fixed rate.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// The finest step: what is due within one is released together.
const STEP: Duration = Duration::from_micros(100);

/// Requests due at even intervals, from a start on. Request `n` is due at `start + n * interval`.
#[derive(Debug)]
pub(super) struct Schedule {
    start: Instant,
    per_second: f64,
    total: u64,
    taken: Cell<u64>,
    due: Arc<Semaphore>,
}

impl Schedule {
    /// A schedule of this rate and length, kept by a thread of its own: the timers of the runtime tick only each millisecond.
    pub(super) fn begin(start: Instant, per_second: f64, length: Duration, clients: usize) -> Self {
        let due = Arc::new(Semaphore::new(0));
        let total = (per_second * length.as_secs_f64()).ceil() as u64;
        let keeper = Arc::clone(&due);
        std::thread::spawn(move || {
            let mut released = 0;
            while released < total {
                let now = Instant::now();
                let passed = now.saturating_duration_since(start).as_secs_f64();
                let wanted = if now < start { 0 } else { ((passed * per_second) as u64 + 1).min(total) };
                keeper.add_permits((wanted - released) as usize);
                released = wanted;
                let next = at(start, per_second, released);
                std::thread::sleep(next.saturating_duration_since(Instant::now()).max(STEP));
            }
            // One more for each client, so that all learn that the end is reached.
            keeper.add_permits(clients);
        });
        Self { start, per_second, total, taken: Cell::new(0), due }
    }

    /// Waits for the next request that is due, and tells when it was; none at the end.
    pub(super) async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        let n = self.taken.get();
        if n >= self.total {
            return None;
        }
        self.taken.set(n + 1);
        Some(at(self.start, self.per_second, n))
    }

    /// How many requests nobody took.
    pub(super) fn left(&self) -> u64 {
        self.total - self.taken.get()
    }
}

fn at(start: Instant, per_second: f64, n: u64) -> Instant {
    start + Duration::from_secs_f64(n as f64 / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_due_evenly_and_then_the_schedule_ends_for_every_client() {
        let start = Instant::now();
        let schedule = Schedule::begin(start, 1000.0, Duration::from_millis(50), 2);
        let mut due = Vec::new();
        while let Some(at) = schedule.next().await {
            assert!(Instant::now() >= at, "never early");
            due.push(at - start);
        }
        assert_eq!(due.len(), 50);
        assert_eq!(due[10], Duration::from_millis(10));
        assert!(schedule.next().await.is_none(), "the second client ends as well");
        assert_eq!(schedule.left(), 0);
    }
}
