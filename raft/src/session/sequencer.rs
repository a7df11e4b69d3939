//! [`Sequencer`]: the numbers of a session's writes.

use std::collections::BTreeSet;

use super::{Once, SessionId, WINDOW};

/// Numbers the writes of one session, and knows which of them still wait for an answer.
///
/// [`Session`](super::Session) has one. A client of a service of yours keeps one beside the id of the session that the service opened for it
/// ([`Raft::open_session`](crate::Raft::open_session)), and sends the names that it makes along with its writes.
#[derive(Clone, Debug)]
pub struct Sequencer {
    session: SessionId,
    next: u64,
    under_way: BTreeSet<u64>,
}

impl Sequencer {
    /// For a session that was just opened.
    #[must_use]
    pub fn new(session: SessionId) -> Self {
        Self { session, next: 0, under_way: BTreeSet::new() }
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// A number for one more write; none while too many are under way, as seen from the oldest. Each is to be ended.
    pub fn begin(&mut self) -> Option<u64> {
        if self.next - self.answered() >= WINDOW {
            return None;
        }
        let sequence = self.next;
        self.next += 1;
        self.under_way.insert(sequence);
        Some(sequence)
    }

    /// The name of a write that is under way, for its next attempt.
    #[must_use]
    pub fn once(&self, sequence: u64) -> Once {
        Once { session: self.session, sequence, answered: self.answered().min(sequence) }
    }

    /// A write was answered, or is given up: what of it has not been applied by the session's next write never is.
    pub fn end(&mut self, sequence: u64) {
        self.under_way.remove(&sequence);
    }

    /// The lowest number whose answer is still wanted.
    fn answered(&self) -> u64 {
        self.under_way.first().copied().unwrap_or(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_is_told_with_the_next_attempt() {
        let mut sequencer = Sequencer::new(SessionId(7));
        let [a, b, c] = [(); 3].map(|()| sequencer.begin().unwrap());
        assert_eq!(sequencer.once(c), Once { session: SessionId(7), sequence: 2, answered: 0 });
        sequencer.end(b);
        assert_eq!(sequencer.once(c).answered, 0);
        sequencer.end(a);
        assert_eq!(sequencer.once(c).answered, 2);
        sequencer.end(c);
        assert_eq!(sequencer.begin(), Some(3));
        assert_eq!(sequencer.once(3).answered, 3);
    }

    #[test]
    fn nothing_gets_a_number_that_would_be_refused() {
        let mut sequencer = Sequencer::new(SessionId(7));
        let first = sequencer.begin().unwrap();
        while let Some(next) = sequencer.begin() {
            sequencer.end(next);
        }
        assert_eq!(sequencer.once(WINDOW - 1).answered, 0);
        sequencer.end(first);
        assert_eq!(sequencer.begin(), Some(WINDOW));
    }
}
