//! Notices that the node is not run in time: then its heartbeats and votes are late as well, and no election may ever end (paper §5.6:
//! the time of a broadcast must be far below the election timeout).

use std::time::Duration;

use crate::consensus::Time;

/// After a warning, how long until the next one.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Lateness {
    /// What is late.
    limit: Duration,
    /// When the driver ran last.
    ran: Time,
    /// What happened since the last warning.
    since: Late,
    quiet_until: Option<Time>,
}

/// How often, and how late at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Late {
    pub(crate) times: u64,
    pub(crate) most: Duration,
}

impl Lateness {
    /// A leader that is not run for half of an election timeout is about to be missed.
    pub(crate) fn new(election_timeout: Duration) -> Self {
        Self { limit: election_timeout / 2, ran: Time::default(), since: Late::default(), quiet_until: None }
    }

    /// The driver runs, and wanted to at the latest when it was `due`. Returns what is worth a warning.
    pub(crate) fn check(&mut self, due: Option<Time>, now: Time) -> Option<Late> {
        // Before it began to wait, nothing could wake it.
        let late = due.map_or(Duration::ZERO, |due| now.since(due.max(self.ran)));
        self.ran = now;
        if late < self.limit {
            return None;
        }
        self.since.times += 1;
        self.since.most = self.since.most.max(late);
        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        self.quiet_until = Some(now.plus(QUIET));
        Some(std::mem::take(&mut self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time(Duration::from_millis(millis))
    }

    fn late(times: u64, millis: u64) -> Option<Late> {
        Some(Late { times, most: Duration::from_millis(millis) })
    }

    #[test]
    fn a_node_that_is_not_run_in_time_says_so_now_and_then() {
        let mut lateness = Lateness::new(Duration::from_millis(300));
        assert_eq!(lateness.check(Some(at(50)), at(60)), None, "as on any machine");
        assert_eq!(lateness.check(Some(at(110)), at(270)), late(1, 160));
        assert_eq!(lateness.check(Some(at(320)), at(900)), None, "it was warned of just now");
        assert_eq!(lateness.check(Some(at(950)), at(1100)), None);
        assert_eq!(lateness.check(Some(at(10_300)), at(10_500)), late(3, 580));
    }

    #[test]
    fn what_was_due_long_ago_is_not_late_again() {
        let mut lateness = Lateness::new(Duration::from_millis(300));
        assert_eq!(lateness.check(None, at(1000)), None, "it waited for nothing");
        assert_eq!(lateness.check(Some(at(10)), at(1001)), None, "it had run since");
    }
}
