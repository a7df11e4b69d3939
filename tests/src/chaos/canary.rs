//! Whether the machine gives its processes their turn.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(10);
/// What is worth a note: a third of the default election timeout.
const LATE: Duration = Duration::from_millis(100);
/// What is longer ago explains nothing.
const MEMORY: Duration = Duration::from_secs(60);

/// A thread that does nothing but wake up, and notes how late it is. Where it is late, so are servers, and a cluster whose messages take
/// longer than an election timeout elects nobody for long.
#[derive(Debug)]
pub struct Canary {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    late: Mutex<VecDeque<(Instant, Duration)>>,
}

/// How late this program was run within the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// How often by more than a tenth of a second.
    pub times: usize,
    /// The most.
    pub most: Duration,
}

impl Canary {
    /// Starts the thread, which ends with this value.
    #[must_use]
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let noted = Arc::clone(&shared);
        std::thread::spawn(move || {
            while !noted.stop.load(Ordering::Relaxed) {
                let due = Instant::now() + PERIOD;
                std::thread::sleep(PERIOD);
                noted.note(Instant::now(), due);
            }
        });
        Self { shared }
    }

    /// How late it was in the last minute.
    #[must_use]
    pub fn lateness(&self) -> Lateness {
        self.lateness_of(|_| true)
    }

    /// How late it was since then, which is less than a minute ago.
    #[must_use]
    pub fn lateness_since(&self, then: Instant) -> Lateness {
        self.lateness_of(|at| at >= then)
    }

    fn lateness_of(&self, counts: impl Fn(Instant) -> bool) -> Lateness {
        let late = self.shared.late();
        let of = || late.iter().filter(|(at, _)| counts(*at)).map(|(_, late)| *late);
        Lateness { times: of().count(), most: of().max().unwrap_or_default() }
    }
}

impl Shared {
    fn late(&self) -> MutexGuard<'_, VecDeque<(Instant, Duration)>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, now: Instant, due: Instant) {
        let mut late = self.late();
        while late.front().is_some_and(|(at, _)| now.duration_since(*at) > MEMORY) {
            late.pop_front();
        }
        let by = now.saturating_duration_since(due);
        if by > LATE {
            late.push_back((now, by));
        }
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl fmt::Display for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.times == 0 {
            return write!(f, "the machine was not too busy: in the last minute this program was run in time");
        }
        write!(
            f,
            "the machine was busy: in the last minute this program was run more than {LATE:?} late {} times, at most {:.2} s",
            self.times,
            self.most.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_late_is_remembered_for_a_minute() {
        let shared = Arc::new(Shared::default());
        let canary = Canary { shared: Arc::clone(&shared) };
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        shared.note(at(60), at(10));
        assert_eq!(canary.lateness(), Lateness::default());
        assert!(canary.lateness().to_string().contains("not too busy"));
        shared.note(at(400), at(100));
        shared.note(at(900), at(500));
        let late = canary.lateness();
        assert_eq!(late, Lateness { times: 2, most: Duration::from_millis(400) });
        assert!(late.to_string().contains("late 2 times, at most 0.40 s"), "{late}");
        assert_eq!(canary.lateness_since(at(500)), Lateness { times: 1, most: Duration::from_millis(400) });
        assert_eq!(canary.lateness_since(at(901)), Lateness::default());
        shared.note(at(60_800), at(60_790));
        assert_eq!(canary.lateness().times, 1);
    }
}
