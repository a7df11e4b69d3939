//! What a leader knows of one other member, and how it paces what it sends there.

use std::collections::VecDeque;
use std::time::Duration;

use super::io::Time;
use crate::config::Config;
use crate::metrics::ReplicationState;
use crate::mutant;
use crate::types::Index;

/// The most that a probe carries, in bytes.
const MAX_PROBE_BYTES: u64 = 64 << 10;

#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// The member's disk holds the leader's log up to here.
    pub(crate) matched: Index,
    /// The next index to send: while replicating, past what is under way; while probing, where the logs may agree.
    pub(crate) next: Index,
    pub(crate) pace: Pace,
    /// When it was last heard in this term.
    pub(crate) heard: Option<Time>,
    /// When the connection with it was lost, although it was there; not again before an interval is over.
    pub(crate) lost: Option<Time>,
    /// The latest round of heartbeats that it answered.
    pub(crate) round: u64,
    /// Until when it is sure to stay out of elections, on this node's clock.
    pub(crate) bound_until: Time,
    /// The greatest commit index it was told of.
    pub(crate) commit_told: Index,
    /// Tells lost appends from slow ones.
    pub(super) said: Said,
    /// The furthest part of an image that it asked for.
    pub(super) furthest: u64,
    /// The priority that it said it has.
    pub(crate) priority: u32,
    /// Whether it said that it would not lead.
    pub(crate) refuses: bool,
    /// Since when, at each round of heartbeats, it could have taken over.
    pub(crate) ready_since: Option<Time>,
}

/// What a member last said to match.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) matching: Index,
    /// Since when it says so.
    pub(super) since: Time,
    /// The longest time between two changes lately.
    pub(super) gap: Duration,
}

/// How entries are sent.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Pace {
    /// Finds out where the logs agree: one message, then wait for its answer.
    Probe {
        /// The last index in the message under way, if there is one.
        sent: Option<Index>,
    },
    /// The logs agree: send ahead of the acknowledgements, within a window.
    Replicate(Window),
    /// It lacks entries that were cut off: it must have an image first. Nothing is sent but offers of one.
    Snapshot {
        /// How far it has come with the image that it was offered, in bytes.
        fetched: u64,
    },
}

/// Append messages under way.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Window {
    /// The last index and the cost of each, in order.
    messages: VecDeque<(Index, u64)>,
    bytes: u64,
}

impl Window {
    fn has_room(&self, config: &Config) -> bool {
        mutant!("window-without-a-bound")
            || self.messages.is_empty()
            || (self.messages.len() < config.max_inflight_appends && self.bytes < config.max_inflight_bytes)
    }

    fn push(&mut self, last: Index, bytes: u64) {
        if mutant!("window-not-counted") {
            return;
        }
        self.messages.push_back((last, bytes));
        self.bytes += bytes;
    }

    fn free(&mut self, upto: Index) {
        while self.messages.front().is_some_and(|(last, _)| *last <= upto) {
            if let Some((_, bytes)) = self.messages.pop_front() {
                self.bytes -= bytes;
            }
        }
    }
}

impl Progress {
    /// Nothing is known yet of a member's log; it is assumed to end at `last`.
    pub(crate) fn new(now: Time, last: Index) -> Self {
        Self {
            matched: Index::ZERO,
            next: last.next(),
            pace: Pace::Probe { sent: None },
            heard: None,
            lost: None,
            round: 0,
            bound_until: Time::default(),
            commit_told: Index::ZERO,
            said: Said { matching: Index::ZERO, since: now, gap: Duration::ZERO },
            furthest: 0,
            priority: 0,
            refuses: false,
            ready_since: None,
        }
    }

    /// Whether the connection with it was lost within this interval.
    pub(super) fn is_hurried(&self, now: Time, interval: Duration) -> bool {
        self.lost.is_some_and(|lost| now.since(lost) < interval) && !mutant!("leader-does-not-hurry")
    }

    /// Whether another append may be sent now.
    pub(crate) fn may_send(&self, config: &Config) -> bool {
        match &self.pace {
            Pace::Probe { sent } => sent.is_none(),
            Pace::Replicate(window) => window.has_room(config),
            Pace::Snapshot { .. } => false,
        }
    }

    /// What the next message may carry. A probe may well be rejected, so it carries little.
    pub(crate) fn message_bytes(&self, config: &Config) -> u64 {
        match self.pace {
            Pace::Probe { .. } => config.max_append_bytes.min(MAX_PROBE_BYTES),
            Pace::Replicate(_) | Pace::Snapshot { .. } => config.max_append_bytes,
        }
    }

    /// Whether an append is owed although there may be nothing new to send: a probe that is not under way.
    pub(crate) fn owes_probe(&self) -> bool {
        matches!(self.pace, Pace::Probe { sent: None })
    }

    /// An append that ends at `last` is on its way.
    pub(crate) fn sent(&mut self, last: Index, bytes: u64) {
        match &mut self.pace {
            Pace::Probe { sent } => *sent = Some(last),
            Pace::Replicate(window) => {
                window.push(last, bytes);
                self.next = last.next();
            }
            Pace::Snapshot { .. } => {}
        }
    }

    /// The member has the leader's log on disk up to `stored`. Returns whether that is news.
    ///
    /// A probe is over when all of it is: an acknowledgement of something earlier says nothing about where the rest is.
    pub(crate) fn note_stored(&mut self, stored: Index) -> bool {
        if let Pace::Probe { sent: Some(upto) } = self.pace
            && stored >= upto
        {
            self.next = upto.next();
            self.pace = Pace::Replicate(Window::default());
        }
        let news = stored > self.matched;
        self.matched = self.matched.max(stored);
        self.next = self.next.max(self.matched.next());
        if let Pace::Replicate(window) = &mut self.pace {
            window.free(stored);
        }
        news
    }

    /// Whether a rejection of the append after `prev` can be news: it was sent, and nothing contradicts it. A member that
    /// acknowledged `prev` and now rejects it is answering late, or its disk has forgotten; asking it again at once does not help.
    pub(crate) fn expects_rejection(&self, prev: Index) -> bool {
        prev > self.matched
            && match &self.pace {
                Pace::Probe { sent } => sent.is_some() && prev == self.next.prev(),
                Pace::Replicate(_) => prev < self.next,
                Pace::Snapshot { .. } => false,
            }
    }

    /// Starts over: the logs agree at most up to before `next`.
    pub(crate) fn probe(&mut self, next: Index) {
        self.next = next.max(self.matched.next());
        self.pace = Pace::Probe { sent: None };
    }

    /// What the member lacks was cut off: it is offered an image until it has one.
    pub(crate) fn await_image(&mut self) {
        if !self.awaits_image() {
            self.pace = Pace::Snapshot { fetched: 0 };
        }
    }

    pub(crate) fn awaits_image(&self) -> bool {
        matches!(self.pace, Pace::Snapshot { .. })
    }

    /// The member asks for the part of the image that begins at `offset`. Whether it has come further than ever: whoever asks for the same
    /// parts again and again, or begins with another image, comes to no end.
    pub(crate) fn fetches(&mut self, offset: u64) -> bool {
        match &mut self.pace {
            Pace::Snapshot { fetched } => {
                let further = offset > self.furthest;
                *fetched = offset;
                self.furthest = self.furthest.max(offset);
                further
            }
            Pace::Probe { .. } | Pace::Replicate(_) => false,
        }
    }

    /// Sends again what the member does not have although it was sent, when what it says to match has not changed for long: for
    /// `patience`, or for several times as long as changes took lately, since a slow link is not a broken one. What waits for its disk
    /// is said to match already.
    pub(crate) fn notice_lost_appends(&mut self, now: Time, matching: Index, patience: Duration) {
        let unchanged_for = now.since(self.said.since);
        if !self.lacks_what_was_sent(matching) {
            self.said = Said { matching, since: now, gap: self.said.gap };
        } else if self.said.matching != matching {
            let gap = unchanged_for.min(patience * 4).max(self.said.gap / 2);
            self.said = Said { matching, since: now, gap };
        } else if unchanged_for >= patience.max(self.said.gap * 4) {
            self.send_again(now, matching);
        }
    }

    /// Sends again what the member does not have although it was sent: it is lost, or was sent while the member was not there.
    pub(crate) fn send_again(&mut self, now: Time, matching: Index) {
        if mutant!("full-window-never-reopens") {
            return;
        }
        self.said = Said { matching, since: now, gap: self.said.gap };
        if self.lacks_what_was_sent(matching) {
            match self.pace {
                // A lost probe tells nothing of the logs.
                Pace::Probe { .. } => self.probe(self.next),
                Pace::Replicate(_) => self.probe(matching.next()),
                Pace::Snapshot { .. } => {}
            }
        }
    }

    fn lacks_what_was_sent(&self, matching: Index) -> bool {
        match &self.pace {
            Pace::Probe { sent } => sent.is_some_and(|upto| matching < upto),
            Pace::Replicate(_) => matching < self.next.prev(),
            Pace::Snapshot { .. } => false,
        }
    }

    pub(crate) fn state(&self) -> ReplicationState {
        match self.pace {
            Pace::Probe { .. } => ReplicationState::Probe,
            Pace::Replicate(_) => ReplicationState::Replicate,
            Pace::Snapshot { .. } => ReplicationState::Snapshot,
        }
    }

    /// What the append messages under way cost.
    #[cfg(feature = "testing")]
    pub(crate) fn inflight_bytes(&self) -> u64 {
        match &self.pace {
            Pace::Probe { .. } | Pace::Snapshot { .. } => 0,
            Pace::Replicate(window) => window.bytes,
        }
    }

    /// How far the member has come with the image that it was offered, in bytes.
    pub(crate) fn fetched(&self) -> Option<u64> {
        match &self.pace {
            Pace::Snapshot { fetched } => Some(*fetched),
            Pace::Probe { .. } | Pace::Replicate(_) => None,
        }
    }

    /// How many append messages are under way.
    pub(crate) fn inflight(&self) -> usize {
        match &self.pace {
            Pace::Probe { sent } => usize::from(sent.is_some()),
            Pace::Replicate(window) => window.messages.len(),
            Pace::Snapshot { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Time {
        Time(Duration::from_millis(ms))
    }

    fn replicating() -> Progress {
        let mut progress = Progress::new(at(0), Index(4));
        progress.sent(Index(4), 0);
        progress.note_stored(Index(4));
        progress
    }

    #[test]
    fn a_full_window_is_reopened_by_acknowledgements() {
        let config = Config { max_inflight_appends: 2, ..Config::default() };
        let mut progress = replicating();
        progress.sent(Index(5), 10);
        assert!(progress.may_send(&config));
        progress.sent(Index(6), 10);
        assert!(!progress.may_send(&config));
        progress.note_stored(Index(5));
        assert!(progress.may_send(&config));
        assert_eq!((progress.matched, progress.next, progress.inflight()), (Index(5), Index(7), 1));
    }

    #[test]
    fn one_oversize_message_passes_an_empty_window() {
        let config = Config { max_inflight_bytes: 1, ..Config::default() };
        let mut progress = replicating();
        assert!(progress.may_send(&config));
        progress.sent(Index(5), 1000);
        assert!(!progress.may_send(&config));
    }

    #[test]
    fn appends_are_sent_again_when_nothing_matched_for_long() {
        let timeout = Duration::from_millis(100);
        let mut progress = replicating();
        progress.sent(Index(9), 10);
        progress.notice_lost_appends(at(10), Index(4), timeout);
        progress.notice_lost_appends(at(30), Index(6), timeout);
        progress.notice_lost_appends(at(120), Index(6), timeout);
        assert_eq!(progress.state(), ReplicationState::Replicate);
        progress.notice_lost_appends(at(130), Index(6), timeout);
        assert_eq!((progress.state(), progress.next), (ReplicationState::Probe, Index(7)));
    }

    #[test]
    fn a_slow_link_is_given_more_time() {
        let timeout = Duration::from_millis(100);
        let mut progress = replicating();
        progress.sent(Index(9), 10);
        progress.notice_lost_appends(at(10), Index(4), timeout);
        progress.notice_lost_appends(at(90), Index(5), timeout);
        progress.notice_lost_appends(at(400), Index(5), timeout);
        assert_eq!(progress.state(), ReplicationState::Replicate);
        progress.notice_lost_appends(at(420), Index(5), timeout);
        assert_eq!((progress.state(), progress.next), (ReplicationState::Probe, Index(6)));
    }

    #[test]
    fn a_lost_probe_is_repeated_where_it_was() {
        let timeout = Duration::from_millis(100);
        let mut progress = Progress::new(at(0), Index(1000));
        progress.sent(Index(1001), 10);
        progress.notice_lost_appends(at(50), Index(0), timeout);
        progress.notice_lost_appends(at(150), Index(0), timeout);
        assert_eq!((progress.owes_probe(), progress.next), (true, Index(1001)));
    }

    #[test]
    fn a_member_that_forgot_what_it_acknowledged_is_not_asked_at_once_for_ever() {
        let mut progress = replicating();
        progress.probe(Index(5));
        progress.sent(Index(5), 10);
        assert!(!progress.expects_rejection(Index(4)));
    }

    #[test]
    fn a_member_that_only_waits_for_its_disk_is_not_sent_anything_again() {
        let timeout = Duration::from_millis(100);
        let mut progress = replicating();
        progress.sent(Index(9), 10);
        progress.notice_lost_appends(at(10), Index(9), timeout);
        progress.notice_lost_appends(at(900), Index(9), timeout);
        assert_eq!(progress.state(), ReplicationState::Replicate);
    }
}
