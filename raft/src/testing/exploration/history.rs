//! What an observer of the whole cluster remembers, as far as a property needs it: a part of each state.

use crate::types::{Index, LogId};

use super::nodes::{Facts, Logs};

/// What cannot be read off the nodes, because a node may forget it in a crash or go on to another term.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct History {
    /// Who leads or led each term, as far as any node may yet come to lead it. Term and node.
    pub(super) leaders: Vec<(u64, u8)>,
    /// All that was ever committed, anywhere.
    pub(super) committed: Vec<Committed>,
    /// For each read that waits for its answer: its number, its node, and how much was committed when it began.
    pub(super) reads: Vec<(u32, u8, u64)>,
    /// Commands that were refused, by bit.
    pub(super) refused: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Committed {
    pub(super) id: LogId,
    /// A hash of the entry.
    pub(super) content: u64,
    /// The first term in which a leader knew it to be committed.
    pub(super) by: u64,
}

impl History {
    /// How much is committed.
    pub(super) fn upto(&self) -> u64 {
        self.committed.len() as u64
    }

    /// Election Safety (paper §5.2) and Leader Completeness (§5.4): whoever is elected has all that was committed in earlier
    /// terms. What was committed in later ones it need not have: its votes may be old.
    ///
    /// Tells whether it is elected late in this sense.
    pub(super) fn elected(&mut self, node: usize, facts: &Facts, logs: &Logs) -> Result<bool, String> {
        let (term, node) = (facts.term, u8::try_from(node).unwrap_or(u8::MAX));
        match self.leaders.binary_search_by_key(&term, |(term, _)| *term) {
            Ok(at) if self.leaders[at].1 != node => {
                let other = self.leaders[at].1 + 1;
                return Err(format!("election safety: n{other} and n{} both lead term {term}", node + 1));
            }
            Ok(_) => {}
            Err(at) => self.leaders.insert(at, (term, node)),
        }
        let log = logs.get(facts.log);
        for (place, entry) in self.committed.iter().enumerate().filter(|(_, entry)| entry.by < term) {
            if log.get(place) != Some(&(entry.id, entry.content)) {
                return Err(format!(
                    "leader completeness: n{} is elected in term {term} without {}, which was committed in term {}",
                    node + 1,
                    entry.id,
                    entry.by
                ));
            }
        }
        Ok(self.committed.iter().any(|entry| entry.by > term))
    }

    /// Nobody can come to lead a term any more that all disks are past.
    pub(super) fn forget_terms_before(&mut self, term: u64) {
        self.leaders.retain(|(led, _)| *led >= term);
    }

    /// A node moved its commit index: State Machine Safety (paper §5.4.3). A node applies what it knows to be committed, in order, so
    /// that it's enough to look at this.
    ///
    /// Tells the entries that are committed only now.
    /// `led`: whether it leads, or led until this very step.
    pub(super) fn commits(&mut self, node: usize, led: bool, facts: &Facts, logs: &Logs) -> Result<Vec<LogId>, String> {
        let log = logs.get(facts.log);
        let commit = usize::try_from(facts.commit).unwrap_or(usize::MAX);
        let Some(covered) = log.get(..commit) else {
            return Err(format!("n{} has committed {commit}, beyond its log", node + 1));
        };
        for (committed, (id, content)) in self.committed.iter().zip(covered) {
            if (committed.id, committed.content) != (*id, *content) {
                let other = committed.id;
                return Err(format!("state machine safety: n{} commits {id} where {other} was committed", node + 1));
            }
        }
        let new: Vec<_> = covered.iter().skip(self.committed.len()).copied().collect();
        if !new.is_empty() && !led {
            return Err(format!("n{} follows, and knows of more that is committed than any leader", node + 1));
        }
        for (id, content) in &new {
            if self.committed.iter().any(|entry| entry.content == *content && entry.id != *id) {
                return Err(format!("a command is committed once: that of {id} is committed before"));
            }
            self.committed.push(Committed { id: *id, content: *content, by: facts.term });
        }
        Ok(new.into_iter().map(|(id, _)| id).collect())
    }

    /// What is committed is on the disks of a majority (paper §5.3), and stays there.
    ///
    /// `enough` tells whether these nodes, by bit, are a quorum.
    pub(super) fn durable<'a>(
        &self,
        disks: impl Iterator<Item = &'a [(LogId, u64)]>,
        enough: impl Fn(u8) -> bool,
    ) -> Result<(), String> {
        let (mut nodes, mut holders) = (0, 0);
        let Some(last) = self.committed.last() else { return Ok(()) };
        for disk in disks {
            let holds = |(at, entry): (usize, &Committed)| disk.get(at) == Some(&(entry.id, entry.content));
            holders |= u8::from(self.committed.iter().enumerate().all(holds)) << nodes;
            nodes += 1;
        }
        if enough(holders) {
            return Ok(());
        }
        let on = holders.count_ones();
        Err(format!("committed means durable on a quorum: {} is on {on} of {nodes} disks", last.id))
    }

    pub(super) fn read_begins(&mut self, number: u32, node: usize) {
        self.reads.push((number, u8::try_from(node).unwrap_or(u8::MAX), self.upto()));
    }

    /// A read covers all that was committed when it began (thesis §6.4).
    pub(super) fn read_ends(&mut self, number: u32, index: Option<Index>) -> Result<(), String> {
        let Some(at) = self.reads.iter().position(|(waits, _, _)| *waits == number) else { return Ok(()) };
        let (_, node, floor) = self.reads.remove(at);
        match index {
            Some(index) if index.0 < floor => Err(format!(
                "reads are linearizable: one at n{} gets {index}, and {floor} was committed when it began",
                node + 1
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// A node crashed: nobody waits there any more.
    pub(super) fn restarted(&mut self, node: usize) {
        self.reads.retain(|(_, at, _)| usize::from(*at) != node);
    }
}
