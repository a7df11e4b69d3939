//! The answers of the state machine, by log id.

use std::collections::VecDeque;

use bytes::Bytes;

use super::cost_of;
use crate::error::Error;
use crate::mutant;
use crate::types::{Index, LogId, Term};

/// The results of all entries from one index to another. Taken one by one, or forgotten from the front.
#[derive(Debug)]
pub(crate) struct Results {
    from: Index,
    upto: Index,
    /// The term of the last entry.
    term: Term,
    runs: VecDeque<Run>,
    /// The run in which the last result was found: the next one is likely there as well.
    cursor: usize,
}

/// Results of commands with contiguous indexes and one term.
#[derive(Debug)]
struct Run {
    first: LogId,
    results: Vec<Answer>,
}

impl Run {
    fn get_mut(&mut self, id: LogId) -> Option<&mut Answer> {
        let other_term = id.term != self.first.term && !mutant!("answer-of-another-term");
        if other_term || id.index < self.first.index {
            return None;
        }
        self.results.get_mut(usize::try_from(id.index.since(self.first.index)).ok()?)
    }

    fn end(&self) -> Index {
        self.first.index.plus(self.results.len() as u64)
    }

    fn cost(&self) -> u64 {
        self.results.iter().map(cost_of).sum()
    }
}

/// What an entry that was applied answers to whoever wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The state machine's answer.
    Given(Bytes),
    /// The session's write was not applied, or not now.
    SessionExpired,
    Forgotten,
    OutOfSequence,
}

impl Default for Answer {
    fn default() -> Self {
        Self::Given(Bytes::new())
    }
}

impl From<Bytes> for Answer {
    fn from(given: Bytes) -> Self {
        Self::Given(given)
    }
}

impl From<Answer> for Result<Bytes, Error> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Given(bytes) => Ok(bytes),
            Answer::SessionExpired => Err(Error::SessionExpired),
            Answer::Forgotten => Err(Error::AnswerForgotten),
            Answer::OutOfSequence => Err(Error::OutOfSequence),
        }
    }
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Applied(Answer),
    /// Another entry was applied at its index.
    Overwritten,
    /// It is not known any more.
    Forgotten,
}

impl Results {
    /// No results, up to here.
    pub(crate) fn none(upto: Index) -> Self {
        Self { from: upto.next(), upto, term: Term(0), runs: VecDeque::new(), cursor: 0 }
    }

    /// The last index covered.
    pub(crate) fn upto(&self) -> Index {
        self.upto
    }

    /// The term of the last entry covered; 0 if none was.
    pub(crate) fn term(&self) -> Term {
        self.term
    }

    /// Adds commands that follow each other, the first of which has this id. What lies between them and what was
    /// covered before is no command.
    pub(crate) fn push_run(&mut self, first: LogId, results: Vec<Answer>) {
        debug_assert!(first.index > self.upto, "results are added in order");
        let run = Run { first, results };
        self.term = first.term;
        self.upto = run.end().prev();
        self.runs.push_back(run);
    }

    /// Covers what is no command as well, up to here.
    pub(crate) fn extend_to(&mut self, last: LogId) {
        self.upto = self.upto.max(last.index);
        self.term = self.term.max(last.term);
    }

    /// Takes the result of this entry, whose index is covered (or forgotten).
    pub(crate) fn take(&mut self, id: LogId) -> Fate {
        if id.index < self.from {
            return Fate::Forgotten;
        }
        debug_assert!(id.index <= self.upto, "only what is covered can be asked for");
        if let Some(result) = self.runs.get_mut(self.cursor).and_then(|run| run.get_mut(id)) {
            return Fate::Applied(std::mem::take(result));
        }
        let at = self.runs.partition_point(|run| run.end() <= id.index);
        match self.runs.get_mut(at).and_then(|run| run.get_mut(id)) {
            Some(result) => {
                self.cursor = at;
                Fate::Applied(std::mem::take(result))
            }
            None => Fate::Overwritten,
        }
    }

    /// Adds the results that follow. What lies between was not asked for, and is forgotten with everything before it.
    pub(crate) fn append(&mut self, later: Self) {
        debug_assert!(later.upto >= self.upto, "results come in order");
        if self.upto.next() != later.from {
            self.runs.clear();
            self.from = later.from;
            self.cursor = 0;
        }
        self.runs.extend(later.runs);
        self.upto = later.upto;
        self.term = later.term;
    }

    /// What is kept costs this much.
    pub(crate) fn cost(&self) -> u64 {
        self.runs.iter().map(Run::cost).sum()
    }

    /// Forgets the oldest run, and everything before it. Returns what it had cost; none when there is nothing to forget.
    pub(crate) fn forget_first(&mut self) -> Option<u64> {
        let run = self.runs.pop_front()?;
        self.from = run.end();
        self.cursor = 0;
        Some(run.cost())
    }

    /// Forgets everything: what follows is covered anew from here.
    pub(crate) fn clear(&mut self) {
        *self = Self::none(self.upto);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &'static str) -> Answer {
        Answer::Given(text.into())
    }

    #[test]
    fn a_result_is_found_by_its_id_and_another_term_is_overwritten() {
        let mut results = Results::none(Index(4));
        results.push_run(LogId::new(1, 5), vec![given("a"), given("b")]);
        results.push_run(LogId::new(2, 8), vec![given("c")]);
        results.extend_to(LogId::new(2, 9));
        assert_eq!(results.take(LogId::new(1, 6)), Fate::Applied(given("b")));
        assert_eq!(results.take(LogId::new(2, 6)), Fate::Overwritten);
        assert_eq!(results.take(LogId::new(1, 7)), Fate::Overwritten, "no command is at 7");
        assert_eq!(results.take(LogId::new(2, 8)), Fate::Applied(given("c")));
        assert_eq!(results.take(LogId::new(2, 9)), Fate::Overwritten);
        assert_eq!(results.take(LogId::new(1, 5)), Fate::Applied(given("a")), "also after later ones");
        assert_eq!(results.take(LogId::new(1, 4)), Fate::Forgotten);
        assert!(results.forget_first().is_some());
        assert_eq!(results.take(LogId::new(1, 5)), Fate::Forgotten);
        assert_eq!(results.take(LogId::new(2, 9)), Fate::Overwritten);
    }
}
