//! Reads that are to reflect an entry: they wait until it is applied here, or can't be any more.

use std::collections::VecDeque;

use super::super::intake::{Answer, Load};
use super::take_if;
use crate::consensus::{Reflects, Time};
use crate::error::Error;
use crate::mutant;
use crate::types::{Entry, Index, LogId, Term};

#[derive(Debug)]
struct Reader {
    id: LogId,
    deadline: Time,
    answer: Answer<()>,
}

impl Reader {
    fn answer(self, outcome: Result<(), Error>, answered: &mut Load) {
        answered.add(1, Entry::OVERHEAD);
        let _ = self.answer.send(outcome);
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct AtLeast {
    /// Came since the last look.
    fresh: Vec<Reader>,
    /// Wait, in the order of their indexes.
    waiting: VecDeque<Reader>,
    /// The term of the last entry applied.
    term: Term,
    /// Whether what was applied since the last look decides some.
    due: bool,
}

impl AtLeast {
    pub(crate) fn submit(&mut self, id: LogId, deadline: Time, answer: Answer<()>) {
        self.fresh.push(Reader { id, deadline, answer });
    }

    /// Everything up to here is applied, the last of it in this term. A new term rules out what is of an earlier one and not there.
    pub(crate) fn on_applied(&mut self, upto: Index, term: Term) {
        self.due |= term > self.term || self.waiting.front().is_some_and(|reader| reader.id.index <= upto);
        self.term = self.term.max(term);
    }

    /// Answers what is decided, as the log tells.
    pub(crate) fn settle(&mut self, reflects: impl Fn(LogId) -> Reflects, answered: &mut Load) {
        let decided = |reader: &Reader| reflects(reader.id) != Reflects::NotYet || mutant!("read-before-applied");
        let mut ready = Vec::new();
        if std::mem::take(&mut self.due) {
            ready.extend(take_if(&mut self.waiting, decided));
        }
        for reader in self.fresh.drain(..) {
            if decided(&reader) {
                ready.push(reader);
            } else {
                let at = self.waiting.partition_point(|other| other.id.index <= reader.id.index);
                self.waiting.insert(at, reader);
            }
        }
        for reader in ready {
            let wanted = reader.id;
            let outcome = match reflects(wanted) {
                Reflects::Yes | Reflects::NotYet => Ok(()),
                Reflects::Never { found } => Err(Error::NeverCommitted { wanted, found }),
                Reflects::Unknown { base } => Err(Error::Compacted { wanted, base }),
            };
            reader.answer(outcome, answered);
        }
    }

    pub(crate) fn expire(&mut self, now: Time, answered: &mut Load) {
        for reader in take_if(&mut self.waiting, |reader| reader.deadline <= now) {
            reader.answer(Err(Error::Unavailable), answered);
        }
    }

    pub(crate) fn first_deadline(&self) -> Option<Time> {
        self.waiting.iter().map(|reader| reader.deadline).min()
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tells everyone the same.
    pub(crate) fn fail_all(&mut self, error: &Error, answered: &mut Load) {
        for reader in self.waiting.drain(..).chain(self.fresh.drain(..)) {
            reader.answer(Err(error.clone()), answered);
        }
    }
}
