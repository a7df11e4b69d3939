//! What a campaign has done, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::fault::Kind;
use crate::history::Summary;

/// Faults that happened, and when all was well again.
#[derive(Clone, Debug)]
pub struct Round {
    /// One kind, or two that overlapped.
    pub kinds: Vec<Kind>,
    /// How many processes were killed.
    pub killed: usize,
    /// When the first fault began.
    pub from: Instant,
    /// When everything was mended.
    pub mended: Instant,
    /// When a write was acknowledged that was sent after that.
    pub until: Instant,
}

/// What happened to one kind of fault.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    times: usize,
    /// The longest time without an acknowledged write, in rounds with nothing else.
    longest: Option<Duration>,
    /// The longest part of it after everything was mended.
    recovery: Option<Duration>,
}

/// A campaign in figures.
#[derive(Clone, Debug, Default)]
pub struct Report {
    rows: BTreeMap<Kind, Row>,
    /// Rounds with two faults at once.
    both: Row,
    /// How many clusters were hurt.
    pub acts: u64,
    /// Rounds in which processes were killed with SIGKILL.
    pub kill_cycles: u64,
    /// Processes killed with SIGKILL.
    pub killed: usize,
    /// Writes by outcome.
    pub writes: Summary,
    /// Answered reads.
    pub reads: u64,
    /// How long it all took.
    pub took: Duration,
    /// What could not be done here, and why.
    pub skipped: BTreeMap<Kind, String>,
}

impl Report {
    pub(super) fn new(skipped: BTreeMap<Kind, String>) -> Self {
        Self { skipped, ..Self::default() }
    }

    /// How often a kind of fault was done.
    #[must_use]
    pub fn times(&self, kind: Kind) -> usize {
        self.rows.get(&kind).map_or(0, |row| row.times)
    }

    /// Adds an act: its rounds, the moments at which writes were served, and what the history came to.
    pub(super) fn add(&mut self, rounds: &[Round], mut served: Vec<Instant>, writes: Summary, reads: u64) {
        served.sort_unstable();
        self.acts += 1;
        self.reads += reads;
        self.writes.acknowledged += writes.acknowledged;
        self.writes.refused += writes.refused;
        self.writes.unknown += writes.unknown;
        self.writes.unknown_but_there += writes.unknown_but_there;
        self.writes.hot += writes.hot;
        self.writes.hot_unknown += writes.hot_unknown;
        for round in rounds {
            self.kill_cycles += u64::from(round.killed > 0);
            self.killed += round.killed;
            for kind in &round.kinds {
                self.rows.entry(*kind).or_default().times += 1;
            }
            let row = match round.kinds[..] {
                [kind] => self.rows.entry(kind).or_default(),
                _ => {
                    self.both.times += 1;
                    &mut self.both
                }
            };
            row.recovery = row.recovery.max(Some(round.until.duration_since(round.mended)));
            row.longest = row.longest.max(Some(longest_gap(round, &served)));
        }
    }
}

/// The longest time within a round in which no write was acknowledged. `acknowledged` is in order.
fn longest_gap(round: &Round, acknowledged: &[Instant]) -> Duration {
    let first = acknowledged.partition_point(|at| *at < round.from);
    let within = acknowledged[first..].iter().copied().take_while(|at| *at < round.until);
    let (mut last, mut longest) = (round.from, Duration::ZERO);
    for at in within.chain([round.until]) {
        longest = longest.max(at.duration_since(last));
        last = at;
    }
    longest
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24}{:>8}   longest time without an acknowledged write", "fault", "times")?;
        writeln!(f, "{:<24}{:>8}   in all      after it was mended", "", "")?;
        for kind in Kind::ALL {
            match (self.rows.get(&kind), self.skipped.get(&kind)) {
                (Some(row), _) => line(f, kind.name(), row)?,
                (None, Some(reason)) => writeln!(f, "{:<24} SKIPPED   {reason}", kind.name())?,
                (None, None) => line(f, kind.name(), &Row::default())?,
            }
        }
        line(f, "two of these at once", &self.both)?;
        writeln!(f)?;
        let writes = self.writes;
        writeln!(f, "{:<24}{:>8}", "writes acknowledged", writes.acknowledged)?;
        writeln!(f, "{:<24}{:>8}   none of them took effect", "writes refused", writes.refused)?;
        let there = writes.unknown_but_there;
        writeln!(f, "{:<24}{:>8}   {there} of them took effect", "writes of unknown fate", writes.unknown)?;
        writeln!(f, "{:<24}{:>8}", "reads answered", self.reads)?;
        let open = writes.hot_unknown;
        writeln!(f, "{:<24}{:>8}   linearizable, with {open} of unknown fate", "calls at hot keys", writes.hot)?;
        writeln!(f)?;
        write!(
            f,
            "{} clusters; {} processes killed with SIGKILL, in {} cycles; {:.0?}",
            self.acts, self.killed, self.kill_cycles, self.took
        )
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, row: &Row) -> fmt::Result {
    let seconds =
        |time: Option<Duration>| time.map_or_else(|| "-".into(), |time| format!("{:.2} s", time.as_secs_f64()));
    writeln!(f, "{name:<24}{:>8}   {:<12}{}", row.times, seconds(row.longest), seconds(row.recovery))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_both_ends_of_a_round() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let gap = |acknowledged: &[u64]| {
            let round = Round { kinds: vec![Kind::Pause], killed: 0, from: at(100), mended: at(700), until: at(1000) };
            let acknowledged: Vec<_> = acknowledged.iter().map(|ms| at(*ms)).collect();
            longest_gap(&round, &acknowledged).as_millis()
        };
        assert_eq!(gap(&[]), 900);
        assert_eq!(gap(&[50, 600, 1000, 5000]), 500);
        assert_eq!(gap(&[50, 150, 300, 2000]), 700);
    }

    #[test]
    fn the_table_shows_what_was_done_and_what_could_not_be() {
        let start = Instant::now();
        let round = |kinds: &[Kind], killed| {
            let at = |ms| start + Duration::from_millis(ms);
            Round { kinds: kinds.to_vec(), killed, from: start, mended: at(1250), until: at(1500) }
        };
        let mut report = Report { skipped: BTreeMap::from([(Kind::Clock, "not here".into())]), ..Report::default() };
        let writes = Summary { acknowledged: 7, refused: 3, unknown: 2, unknown_but_there: 1, ..Summary::default() };
        report.add(&[round(&[Kind::KillAll], 3), round(&[Kind::Slow, Kind::Pause], 0)], Vec::new(), writes, 5);
        let text = report.to_string();
        for words in [
            "kill -9 of all",
            "1.50 s      0.25 s",
            "SKIPPED   not here",
            "1 of them took effect",
            "3 processes killed",
        ] {
            assert!(text.contains(words), "{words} is missing in\n{text}");
        }
        assert_eq!((report.times(Kind::Slow), report.times(Kind::Pause), report.both.times), (1, 1, 1));
    }
}
