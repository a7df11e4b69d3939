//! What the leader of each term held when it was elected, and what leaders committed: told from what is on disks and what was sent, not
//! from what nodes say of themselves.

use std::collections::BTreeMap;

use super::cluster::Node;
use super::disk::Disk;
use crate::traits::TermRun;
use crate::types::{Index, LogId, NodeId, Term};

/// The terms that had a leader, and what is committed.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    leaders: BTreeMap<Term, Led>,
    /// The last entry that each term's leader committed.
    commits: BTreeMap<Term, LogId>,
    /// Everything that a leader committed, from whatever is known of what came before.
    agreed: BTreeMap<Index, LogId>,
}

/// The leader of a term.
#[derive(Debug)]
struct Led {
    id: NodeId,
    /// The log on its disk when it was elected: its beginning, and where each of its terms begins.
    base: LogId,
    runs: Vec<TermRun>,
    /// From here on it holds entries of its own term, one after the other.
    opened: Index,
}

impl Led {
    /// What this leader of the term holds at an index; none where its log begins later.
    fn at(&self, term: Term, index: Index) -> Option<LogId> {
        if index >= self.opened {
            return Some(LogId { term, index });
        }
        if index <= self.base.index {
            return (index == self.base.index).then_some(self.base);
        }
        let run = self.runs.iter().rfind(|run| run.first <= index)?;
        Some(LogId { term: run.term, index })
    }
}

impl Terms {
    /// A node leads a term. Whether it is the only one that does, and who is the other.
    pub(crate) fn leads(&mut self, term: Term, node: &Node, opened: Index) -> Result<(), NodeId> {
        let led = self.leaders.entry(term).or_insert_with(|| {
            let state = node.disk.state();
            Led { id: node.id, base: state.base, runs: state.runs, opened }
        });
        if led.id == node.id { Ok(()) } else { Err(led.id) }
    }

    /// Who led a term.
    pub(crate) fn leader(&self, term: Term) -> Option<NodeId> {
        self.leaders.get(&term).map(|led| led.id)
    }

    /// The highest index that a leader committed.
    pub(crate) fn upto(&self) -> Index {
        self.agreed.last_key_value().map_or(Index::ZERO, |(index, _)| *index)
    }

    /// What leaders committed at an index.
    pub(crate) fn agreed(&self, index: Index) -> Option<LogId> {
        self.agreed.get(&index).copied()
    }

    /// The last entry that each term's leader committed.
    pub(crate) fn commits(&self) -> &BTreeMap<Term, LogId> {
        &self.commits
    }

    /// The last entry that leaders of earlier terms committed.
    pub(crate) fn before(&self, term: Term) -> Option<LogId> {
        self.commits.range(..term).next_back().map(|(_, last)| *last)
    }

    /// The leader of a term commits everything up to this entry of its own. `prev` tells the entry before another.
    ///
    /// Leaders of later terms hold it, also those that were elected before (Leader Completeness, paper §5.4), and what was committed
    /// before is a part of it.
    pub(crate) fn commit(&mut self, last: LogId, prev: impl Fn(LogId) -> Option<LogId>) -> Result<(), String> {
        self.commits.insert(last.term, last);
        for (term, led) in self.leaders.range(last.term.next()..) {
            if led.at(*term, last.index).is_some_and(|held| held != last) {
                let id = led.id;
                return Err(format!("leader completeness: {last} is committed, and {id} leads {term} without it"));
            }
        }
        let mut next = Some(last);
        while let Some(id) = next.filter(|id| *id != LogId::ZERO) {
            match self.agreed.insert(id.index, id) {
                None => next = prev(id),
                Some(other) if other == id => break,
                Some(other) => {
                    return Err(format!("state machine safety: {id} is committed, where {other} was committed"));
                }
            }
        }
        Ok(())
    }

    /// What a node acknowledges to the leader of a term is what that leader holds, not something as long.
    pub(crate) fn acknowledged(&self, disk: &Disk, to: NodeId, term: Term, stored: Index) -> Result<(), String> {
        let Some(led) = self.leaders.get(&term).filter(|led| led.id == to) else { return Ok(()) };
        let own = disk.get(stored).map(|entry| entry.id);
        match (own, led.at(term, stored)) {
            (Some(own), Some(leads)) if own != leads => {
                Err(format!("the entries: {own} is there, and {leads} is the leader's"))
            }
            _ => Ok(()),
        }
    }
}
