//! What a thread of the load generator saw; merged at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::wire::CallError;

/// Latencies are recorded in nanoseconds, up to this.
const LONGEST: u64 = 600_000_000_000;
/// Kinds of errors that are told apart; messages may hold numbers that never repeat.
const MAX_KINDS: usize = 32;
const MAX_KIND_CHARS: usize = 120;

#[derive(Debug)]
pub(super) struct Stats {
    pub(super) reads: Histogram<u64>,
    pub(super) writes: Histogram<u64>,
    /// Successful requests that were answered within the measured time.
    pub(super) operations: u64,
    /// The same, by the second in which they were answered.
    pub(super) per_second: Vec<u64>,
    pub(super) errors: BTreeMap<String, u64>,
    /// Requests that were due at a fixed rate, and never sent.
    pub(super) unsent: u64,
}

impl Stats {
    pub(super) fn new(seconds: usize) -> Result<Self, String> {
        let histogram = || Histogram::new_with_bounds(1, LONGEST, 3).map_err(|e| e.to_string());
        Ok(Self {
            reads: histogram()?,
            writes: histogram()?,
            operations: 0,
            per_second: vec![0; seconds],
            errors: BTreeMap::new(),
            unsent: 0,
        })
    }

    /// A success. `answered` counts from the start of the measured time; none when it came after its end.
    pub(super) fn success(&mut self, read: bool, latency: Duration, answered: Option<Duration>) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST);
        let histogram = if read { &mut self.reads } else { &mut self.writes };
        histogram.saturating_record(nanoseconds);
        if let Some(answered) = answered {
            self.operations += 1;
            if let Some(second) = self.per_second.get_mut(answered.as_secs() as usize) {
                *second += 1;
            }
        }
    }

    pub(super) fn failure(&mut self, error: &CallError) {
        let kind: String = error.to_string().chars().take(MAX_KIND_CHARS).collect();
        let full = self.errors.len() >= MAX_KINDS && !self.errors.contains_key(&kind);
        *self.errors.entry(if full { "other".into() } else { kind }).or_default() += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) -> Result<(), String> {
        self.reads.add(&other.reads).map_err(|e| e.to_string())?;
        self.writes.add(&other.writes).map_err(|e| e.to_string())?;
        self.operations += other.operations;
        for (sum, n) in self.per_second.iter_mut().zip(&other.per_second) {
            *sum += n;
        }
        for (kind, n) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += n;
        }
        self.unsent += other.unsent;
        Ok(())
    }

    pub(super) fn all(&self) -> Result<Histogram<u64>, String> {
        let mut all = self.reads.clone();
        all.add(&self.writes).map_err(|e| e.to_string())?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_threads_saw_adds_up() {
        let mut a = Stats::new(2).unwrap();
        let mut b = Stats::new(2).unwrap();
        a.success(true, Duration::from_millis(2), Some(Duration::from_millis(100)));
        b.success(false, Duration::from_millis(8), Some(Duration::from_millis(1500)));
        b.success(false, Duration::from_millis(9), None);
        a.failure(&CallError::Timeout);
        b.failure(&CallError::Timeout);
        a.merge(&b).unwrap();
        assert_eq!((a.operations, &a.per_second[..]), (2, &[1, 1][..]));
        assert_eq!(a.errors["timeout"], 2);
        let all = a.all().unwrap();
        assert_eq!(all.len(), 3);
        assert!((8_990_000..9_010_000).contains(&all.max()), "{}", all.max());
    }

    #[test]
    fn the_kinds_of_errors_are_bounded() {
        let mut stats = Stats::new(1).unwrap();
        for n in 0..1000 {
            stats.failure(&CallError::Status(13, format!("request {n}")));
        }
        assert_eq!(stats.errors.len(), MAX_KINDS + 1);
        assert_eq!(stats.errors.values().sum::<u64>(), 1000);
    }
}
