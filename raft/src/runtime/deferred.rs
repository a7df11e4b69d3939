//! Messages to other nodes that wait until clients have their answers.

use crate::message::Message;
use crate::types::NodeId;

/// What is committed, for the others, which goes when the answers of the same round are on their way. Whoever waits for it at another node waits some microseconds longer.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    messages: Vec<(NodeId, Message)>,
    /// How often this driver looks at its sources before that. Between any two times but the first it is at the end of the queue of its thread's tasks.
    turns: u8,
}

impl Deferred {
    /// Right after they were dispatched, twice until what the state machine has done is taken, once when the answers are given, and twice while whoever asked and his connection, which
    /// gathers answers for a turn, come to write them.
    const TURNS: u8 = 6;

    /// Has this wait, not longer than what waits.
    pub(super) fn push(&mut self, to: NodeId, message: Message) {
        if self.messages.is_empty() {
            self.turns = Self::TURNS;
        }
        self.messages.push((to, message));
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Counts a turn. True when it is the last.
    pub(super) fn is_due(&mut self) -> bool {
        self.turns = self.turns.saturating_sub(1);
        self.is_waiting() && self.turns == 0
    }

    /// All that waits, in order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (NodeId, Message)> + '_ {
        self.messages.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Body;
    use crate::types::{Index, Term};

    /// Else it would wait for ever where something is committed all the time.
    #[test]
    fn what_is_deferred_waits_for_six_turns_whatever_joins_it() {
        let mut deferred = Deferred::default();
        let commit = |index| Message { term: Term(1), body: Body::Commit { index: Index(index) } };
        for _ in 0..3 {
            assert!(!deferred.is_due(), "there is nothing");
            for turn in 1..=6 {
                deferred.push(NodeId(2), commit(turn));
                assert!(deferred.is_waiting());
                assert_eq!(deferred.is_due(), turn == 6, "turn {turn}");
            }
            assert_eq!(deferred.drain().count(), 6);
            assert!(!deferred.is_waiting());
        }
    }
}
