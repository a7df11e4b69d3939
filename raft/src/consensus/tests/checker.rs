//! What must be true of a whole cluster after every step: the properties of the paper's figure 3, and the promises of
//! `message.rs` that one node alone can't check.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::cluster::Node;
use crate::consensus::RoleKind;
use crate::message::{AppendReply, Body, Message};
use crate::metrics::Status;
use crate::types::{Entry, EntryKind, Index, LogId, NodeId, Term};

type Nodes = BTreeMap<NodeId, Node>;

/// The history of a cluster, as an observer of all its nodes sees it.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// The voters of the one configuration.
    pub(super) voters: BTreeSet<NodeId>,
    /// Who led which term.
    leaders: BTreeMap<Term, NodeId>,
    /// Whom each node voted for in which term, by what reached its disk.
    votes: BTreeMap<(NodeId, Term), NodeId>,
    /// Every entry that was ever sent or stored, with the id of the entry before it.
    known: BTreeMap<LogId, (LogId, Entry)>,
    /// What was applied anywhere.
    committed: BTreeMap<Index, Entry>,
    /// What each node said of itself last, in this run.
    seen: BTreeMap<NodeId, Seen>,
    /// How often a command was proposed; only those proposed once can be told apart.
    proposed: BTreeMap<Bytes, usize>,
    /// Commands of which a client was told that they will never be applied.
    never: BTreeSet<Bytes>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    role: RoleKind,
    term: Term,
    commit: Index,
    applied: Index,
}

impl Checker {
    pub(super) fn new(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// The highest index whose effect anybody may have seen: a read that begins now must cover it.
    pub(super) fn visible(&self) -> Index {
        self.committed.last_key_value().map_or(Index::ZERO, |(index, _)| *index)
    }

    pub(super) fn committed(&self) -> impl Iterator<Item = &Entry> {
        self.committed.values()
    }

    pub(super) fn proposed(&mut self, command: &Bytes) {
        *self.proposed.entry(command.clone()).or_default() += 1;
    }

    /// A client was told that this command will never be applied.
    pub(super) fn denied(&mut self, command: &Bytes) -> Result<(), String> {
        if self.proposed.get(command) != Some(&1) {
            return Ok(());
        }
        self.never.insert(command.clone());
        match self.committed.values().find(|entry| entry.data == *command) {
            Some(entry) => {
                Err(format!("a client was told that {command:?} is void, and it is applied at {}", entry.id))
            }
            None => Ok(()),
        }
    }

    /// A run of a node ended; the next one may know less.
    pub(super) fn ended(&mut self, id: NodeId) {
        self.seen.remove(&id);
    }

    /// Log Matching: an id names one entry, and everything before it (paper §5.3).
    pub(super) fn entries(&mut self, mut prev: LogId, entries: &[Entry]) -> Result<(), String> {
        for entry in entries {
            if entry.id.index != prev.index.next() || entry.id.term < prev.term {
                return Err(format!("log matching: {} follows {prev}", entry.id));
            }
            let known = self.known.entry(entry.id).or_insert_with(|| (prev, entry.clone()));
            if *known != (prev, entry.clone()) {
                return Err(format!(
                    "log matching: {entry:?} after {prev}, and elsewhere {:?} after {}",
                    known.1, known.0
                ));
            }
            prev = entry.id;
        }
        Ok(())
    }

    /// What a node says must already be true of its disk.
    pub(super) fn sent(&mut self, nodes: &Nodes, from: NodeId, to: NodeId, message: &Message) -> Result<(), String> {
        let disk = &nodes[&from].disk;
        let state = disk.hard_state;
        let promise = |kept: bool, what: &str| match kept {
            true => Ok(()),
            false => {
                Err(format!("{from} says {message:?} to {to}, but on its disk is {}: {what}", super::show::disk(disk)))
            }
        };
        match &message.body {
            Body::Vote { last } => {
                promise(state.term == message.term && state.voted_for == Some(from), "a candidate's vote for itself")?;
                promise(disk.last() == *last, "a candidate's whole log")
            }
            Body::VoteReply { granted: true } => {
                promise(state.term == message.term && state.voted_for == Some(to), "the vote")
            }
            Body::Append { prev, entries, commit } => {
                self.entries(*prev, entries)?;
                self.known_as_committed(*commit, message)
            }
            Body::AppendReply(AppendReply::Accepted { stored }) => {
                promise(state.term == message.term, "the term of the promise")?;
                promise(disk.last().index >= *stored, "the entries")
            }
            Body::Heartbeat { commit, .. } | Body::Commit { index: commit } => {
                let there = nodes.get(&to).map_or(Index::ZERO, |node| node.disk.last().index);
                if there < *commit {
                    return Err(format!(
                        "{from} tells {to} that {commit} is committed, but it has stored only {there}"
                    ));
                }
                self.known_as_committed(*commit, message)
            }
            Body::HeartbeatReply { stored, matching, .. } => {
                promise(disk.last().index >= *stored, "the entries")?;
                promise(matching >= stored, "matching covers stored")
            }
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::VoteReply { granted: false }
            | Body::AppendReply(AppendReply::Rejected { .. })
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Forward { .. }
            | Body::ForwardReply { .. } => Ok(()),
        }
    }

    /// A commit index that is spoken of was reached by some node.
    fn known_as_committed(&self, commit: Index, message: &Message) -> Result<(), String> {
        let highest = self.seen.values().map(|seen| seen.commit).max().unwrap_or_default().max(self.visible());
        if commit > highest {
            return Err(format!("{message:?} speaks of {commit} as committed, but the highest known is {highest}"));
        }
        Ok(())
    }

    /// A vote that reached the disk stands, also after a crash (paper §5.2).
    pub(super) fn stored(&mut self, node: &Node) -> Result<(), String> {
        let state = node.disk.hard_state;
        let Some(vote) = state.voted_for else { return Ok(()) };
        let before = *self.votes.entry((node.id, state.term)).or_insert(vote);
        if before != vote {
            return Err(format!("{} voted for {before} and for {vote} in {}", node.id, state.term));
        }
        Ok(())
    }

    /// State Machine Safety (paper §5.4.3), and durability on a quorum before anything is applied anywhere.
    pub(super) fn applied(&mut self, nodes: &Nodes, id: NodeId, entry: &Entry) -> Result<(), String> {
        if let Some(before) = self.committed.get(&entry.id.index) {
            if before != entry {
                return Err(format!("{id} applies {entry:?}, but {before:?} was applied elsewhere"));
            }
            return Ok(());
        }
        self.durable(nodes, entry.id).map_err(|reason| format!("{id} applies {}, {reason}", entry.id))?;
        if entry.kind == EntryKind::Command && self.proposed.get(&entry.data) == Some(&1) {
            if self.never.contains(&entry.data) {
                return Err(format!("{id} applies {entry:?}, but its client was told that it never would be"));
            }
            if let Some(twice) = self.committed.values().find(|other| other.data == entry.data) {
                return Err(format!("{entry:?} was proposed once, and is also applied at {}", twice.id));
            }
        }
        self.committed.insert(entry.id.index, entry.clone());
        Ok(())
    }

    fn durable(&self, nodes: &Nodes, id: LogId) -> Result<(), String> {
        let holders: Vec<_> = self.voters.iter().filter(|voter| nodes[voter].disk.holds(id)).collect();
        if holders.len() * 2 > self.voters.len() {
            return Ok(());
        }
        Err(format!("which is stored on no quorum, only on {holders:?}"))
    }

    /// Looks at a node after a step.
    pub(super) fn observed(&mut self, nodes: &Nodes, status: &Status) -> Result<(), String> {
        let node = &nodes[&status.id];
        let now = Seen { role: status.role, term: status.term, commit: status.commit, applied: status.applied };
        let before = self.seen.insert(status.id, now);
        let went_back =
            |before: Seen| now.term < before.term || now.commit < before.commit || now.applied < before.applied;
        if before.is_some_and(went_back) {
            return Err(format!("{} went back: {before:?}, then {now:?}", status.id));
        }
        let ordered = status.applied <= status.commit && status.commit <= status.last.index;
        if !ordered || status.stored > status.last.index || status.base > status.last {
            return Err(format!("{status:?} is out of order"));
        }
        if status.stored > node.disk.last().index {
            return Err(format!(
                "{} believes that {} is stored: {}",
                status.id,
                status.stored,
                super::show::disk(&node.disk)
            ));
        }
        match now.role {
            RoleKind::Leader => self.leads(nodes, status, before),
            RoleKind::Follower | RoleKind::PreCandidate | RoleKind::Candidate => Ok(()),
        }
    }

    fn leads(&mut self, nodes: &Nodes, status: &Status, before: Option<Seen>) -> Result<(), String> {
        let id = status.id;
        let elected = *self.leaders.entry(status.term).or_insert(id);
        if elected != id {
            return Err(format!("election safety: {elected} and {id} both lead {}", status.term));
        }
        let led = before.is_some_and(|before| before.role == RoleKind::Leader && before.term == status.term);
        let disk = &nodes[&id].disk;
        if !led {
            let missing =
                self.committed.values().find(|entry| !disk.holds(entry.id) && entry.id.index > disk.base.index);
            if let Some(entry) = missing {
                return Err(format!("leader completeness: {id} leads {} without {}", status.term, entry.id));
            }
        }
        // Only an entry of its own term moves a leader's commit index (paper §5.4.2).
        if let Some(before) = before.filter(|before| led && before.commit < status.commit) {
            let at = LogId { term: status.term, index: status.commit };
            self.durable(nodes, at).map_err(|reason| format!("{id} commits {} to {at}, {reason}", before.commit))?;
        }
        Ok(())
    }
}
