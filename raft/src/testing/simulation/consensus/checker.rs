//! What must be true of a whole cluster after every step: the properties of the paper's figure 3, and the promises of
//! `message.rs` that one node alone can't check.

mod images;
mod leadership;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use self::leadership::STUCK;
use super::attention::Attention;
use super::cluster::Node;
use super::configurations;
use super::terms::Terms;
use crate::config::Config;
use crate::consensus::{Note, RoleKind, Time, TransferStep};
use crate::message::{AppendReply, Body, Message};
use crate::metrics::Status;
use crate::testing::simulation::Coverage;
use crate::traits::LogWrite;
use crate::types::{Entry, Index, LogId, Membership, NodeId, Term};

pub(super) type Nodes = BTreeMap<NodeId, Node>;

/// The history of a cluster, as an observer of all its nodes sees it.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// The voters of the first configuration.
    pub(crate) voters: BTreeSet<NodeId>,
    /// The configuration that each node had last, in this run, and where it is.
    pub(super) config_at: BTreeMap<NodeId, (Index, Membership)>,
    /// The nodes that learned that they are removed, and were not let in again since.
    pub(super) gone: BTreeSet<NodeId>,
    /// All configurations.
    pub(super) configurations: configurations::Seen,
    /// Who led which term, and what leaders committed.
    terms: Terms,
    /// Whom each node voted for in which term, by what reached its disk.
    pub(super) votes: BTreeMap<(NodeId, Term), NodeId>,
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
    /// Where commands were applied.
    places: BTreeMap<Bytes, LogId>,
    /// The highest term that anybody stood for election in.
    stood: Term,
    /// When each node last heard the leader of a term, on its own clock.
    heard: BTreeMap<NodeId, (Term, Time)>,
    /// The polls, by receiver, sender and proposed term, that came when no live leader was heard.
    polls: BTreeSet<(NodeId, NodeId, Term)>,
    /// Who was told to campaign by the leader of which term.
    successors: BTreeSet<(NodeId, Term)>,
    /// What was found while notes were taken.
    dropped: Option<String>,
    /// What went between the nodes.
    attention: Attention,
    /// Since when each leader leads, on its own clock.
    leading_since: BTreeMap<NodeId, (Term, Time)>,
    /// When a leader last saw a transfer fail, on its own clock, and how often leaders handed over by their own wish.
    failed_at: BTreeMap<NodeId, Time>,
    yields: u64,
    /// The limits that messages and writes keep to. None where a script writes messages by hand and starts from any disk: then what
    /// only holds in whole histories is not checked.
    pub(super) limits: Option<Config>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    role: RoleKind,
    term: Term,
    last: LogId,
    stored: Index,
    commit: Index,
    applied: Index,
}

impl Checker {
    pub(crate) fn new(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// A disk begins after this entry, with this configuration in force.
    #[cfg(test)]
    pub(crate) fn base(&mut self, base: LogId, membership: &Membership) {
        self.configurations.add(base, membership);
    }

    /// From here on the history is whole, and all that was done is the work of nodes with these limits.
    pub(crate) fn keep_to(&mut self, config: &Config) {
        self.limits = Some(config.clone());
    }

    /// The highest index whose effect anybody may have seen: a read that begins now must cover it.
    pub(crate) fn visible(&self) -> Index {
        self.committed.last_key_value().map_or(Index::ZERO, |(index, _)| *index)
    }

    /// What was applied at an index.
    pub(crate) fn applied_at(&self, index: Index) -> Option<&Entry> {
        self.committed.get(&index)
    }

    /// Where a command was applied.
    pub(crate) fn place_of(&self, command: &Bytes) -> Option<LogId> {
        self.places.get(command).copied()
    }

    pub(crate) fn proposed(&mut self, command: &Bytes) {
        *self.proposed.entry(command.clone()).or_default() += 1;
    }

    /// A client was told that this command will never be applied.
    pub(crate) fn denied(&mut self, command: &Bytes) -> Result<(), String> {
        if self.proposed.get(command) != Some(&1) {
            return Ok(());
        }
        self.never.insert(command.clone());
        match self.places.get(command) {
            Some(at) => Err(format!("outcomes: a client was told that {command:?} is void, and it is applied at {at}")),
            None => Ok(()),
        }
    }

    /// A run of a node ended; the next one may know less.
    pub(crate) fn ended(&mut self, id: NodeId) {
        self.seen.remove(&id);
        self.heard.remove(&id);
        self.config_at.remove(&id);
        self.leading_since.remove(&id);
        self.failed_at.remove(&id);
    }

    /// Log Matching: an id names one entry, and everything before it (paper §5.3).
    pub(crate) fn entries(&mut self, nodes: &Nodes, mut prev: LogId, entries: &[Entry]) -> Result<(), String> {
        for entry in entries {
            if entry.id.index != prev.index.next() || entry.id.term < prev.term {
                return Err(format!("log matching: {} follows {prev}", entry.id));
            }
            if !self.known.contains_key(&entry.id) {
                let commits = self.limits.as_ref().map(|_| self.terms.commits());
                for new in self.configurations.entry(prev, entry, commits)? {
                    self.caught_up(nodes, &new)?;
                }
            }
            let (before, known) = self.known.entry(entry.id).or_insert_with(|| (prev, entry.clone()));
            if *before != prev || known != entry {
                return Err(format!("log matching: {entry:?} after {prev}, and elsewhere {known:?} after {before}"));
            }
            prev = entry.id;
        }
        Ok(())
    }

    /// What a node says must already be true of its disk.
    pub(crate) fn sent(&mut self, nodes: &Nodes, from: NodeId, to: NodeId, message: &Message) -> Result<(), String> {
        let (node, disk) = (&nodes[&from], &nodes[&from].disk);
        let state = disk.hard_state;
        if let Some(config) = &self.limits {
            self.attention.sends(config, from, to, message)?;
        }
        let promise = |kept: bool, what: &str| match kept {
            true => Ok(()),
            false => {
                let disk = super::show::disk(disk);
                Err(format!("promises: {from} says {message:?} to {to}, but on its disk is {disk}: {what}"))
            }
        };
        match &message.body {
            Body::Vote { last, transfer } => {
                let before = Term(message.term.0.saturating_sub(1));
                if *transfer && self.limits.is_some() && !self.successors.contains(&(from, before)) {
                    return Err(format!(
                        "disturbance: {from} claims that the leader of {before} wants it: {message:?}"
                    ));
                }
                promise(state.term == message.term && state.voted_for == Some(from), "a candidate's vote for itself")?;
                promise(disk.last() == *last, "a candidate's whole log")
            }
            Body::VoteReply { granted: true } => {
                promise(state.term == message.term && state.voted_for == Some(to), "the vote")
            }
            Body::Append { prev, entries, commit } => {
                self.within(entries, |config| config.max_append_bytes)?;
                self.entries(nodes, *prev, entries)?;
                self.known_as_committed(*commit, message)
            }
            Body::AppendReply(AppendReply::Accepted { stored }) => {
                promise(state.term == message.term, "the term of the promise")?;
                promise(node.ends_at() >= *stored, "the entries")?;
                self.acknowledged(node, to, message.term, *stored).or_else(|what| promise(false, &what))
            }
            Body::Heartbeat { commit, .. } | Body::Commit { index: commit } => {
                let there = nodes.get(&to).map_or(Index::ZERO, Node::ends_at);
                if there < *commit {
                    return Err(format!(
                        "promises: {from} tells {to} that {commit} is committed, but it has only {there}"
                    ));
                }
                self.known_as_committed(*commit, message)
            }
            Body::HeartbeatReply { stored, matching, .. } => {
                promise(node.ends_at() >= *stored, "the entries")?;
                self.acknowledged(node, to, message.term, *stored).or_else(|what| promise(false, &what))?;
                promise(matching >= stored, "matching covers stored")
            }
            Body::Offer { image } => self.offered(&nodes[&from], image),
            Body::TimeoutNow => self.hands_over(nodes, from, to, message.term),
            Body::PreVoteReply { granted: true, proposed }
                if self.limits.is_some() && !self.polls.contains(&(from, to, *proposed)) =>
            {
                Err(format!("disturbance: {from} heard a live leader and would elect {to}: {message:?}"))
            }
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::VoteReply { granted: false }
            | Body::AppendReply(AppendReply::Rejected { .. })
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Forward { .. }
            | Body::ForwardReply { .. }
            | Body::Change { .. }
            | Body::ChangeReply { .. }
            | Body::Fetch { .. }
            | Body::Chunk { .. } => Ok(()),
        }
    }

    fn acknowledged(&self, node: &Node, to: NodeId, term: Term, stored: Index) -> Result<(), String> {
        // A script's nodes may begin with logs that nobody ever sent; and what an image covers is committed, whatever the log holds there.
        if self.limits.is_none() || stored <= node.images.last().index {
            return Ok(());
        }
        self.terms.acknowledged(&node.disk, to, term, stored)
    }

    /// What is committed at an index, whether it was applied anywhere or not.
    pub(super) fn settled(&self, index: Index) -> Option<LogId> {
        self.terms.agreed(index).or_else(|| self.committed.get(&index).map(|entry| entry.id))
    }

    /// The highest index that is committed: what leaders committed, and not what others take for it.
    pub(super) fn highest(&self) -> Index {
        let told = self.seen.values().map(|seen| seen.commit).max().filter(|_| self.limits.is_none());
        told.unwrap_or_default().max(self.visible()).max(self.terms.upto())
    }

    /// A commit index that is spoken of was reached by a leader.
    fn known_as_committed(&self, commit: Index, message: &Message) -> Result<(), String> {
        let highest = self.highest();
        if commit > highest {
            return Err(format!(
                "promises: {message:?} speaks of {commit} as committed, the highest known is {highest}"
            ));
        }
        Ok(())
    }

    /// What is sent or written at once keeps to its limit, but one larger entry passes alone.
    fn within(&self, entries: &[Entry], limit: impl Fn(&Config) -> u64) -> Result<(), String> {
        let Some(limit) = self.limits.as_ref().map(limit) else { return Ok(()) };
        let cost: u64 = entries.iter().map(Entry::cost).sum();
        if cost <= limit || entries.len() <= 1 {
            return Ok(());
        }
        Err(format!("bounded queues: {} entries of {cost} bytes at once, and the limit is {limit}", entries.len()))
    }

    /// A node hands a write to its disk.
    pub(crate) fn written(&self, write: &LogWrite) -> Result<(), String> {
        self.within(&write.entries, |config| config.max_write_bytes)
    }

    /// Entries are about to replace what a disk holds from the first of them on: what is committed stays (paper §5.4).
    ///
    /// Not on this very disk: a node may have been told by one leader to remove what a later one committed with others, while a write
    /// was under way that held it. But then the node was not counted, and without it there are enough.
    pub(crate) fn replaces(&self, nodes: &Nodes, id: NodeId, entries: &[Entry]) -> Result<(), String> {
        let (Some(first), node) = (entries.first().map(|entry| entry.id.index), &nodes[&id]) else { return Ok(()) };
        let replaced = first.0..=node.disk.last().index.0;
        let mut kept = entries.iter().map(|entry| entry.id);
        for index in replaced.map(Index) {
            let Some(committed) = self.settled(index) else { return Ok(()) };
            if kept.next() == Some(committed) || !node.held(committed) {
                continue;
            }
            let others = nodes.values().filter(|other| other.id != id && other.held(committed));
            let others: BTreeSet<_> = others.map(|other| other.id).collect();
            if !self.configurations.is_quorum_of_any(&others) {
                return Err(format!("committed entries stay: {id} removes {committed}, and {others:?} hold it"));
            }
        }
        Ok(())
    }

    /// A state machine gets entries: it must never be ahead of its own log, or a crash would leave it so.
    pub(crate) fn handed_out(&self, nodes: &Nodes, id: NodeId, entries: &[Entry]) -> Result<(), String> {
        match entries.last() {
            Some(last) if self.limits.is_some() && !nodes[&id].held(last.id) => {
                Err(format!("durability: {id} applies {}, which is not on its own disk", last.id))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What a node says of itself.
    pub(crate) fn noted(&mut self, nodes: &Nodes, coverage: &mut Coverage, id: NodeId, note: &Note) {
        match note {
            Note::Role { role: RoleKind::Candidate, term, .. } => {
                let stood_already = self.limits.is_some() && *term == self.stood;
                coverage.add("split votes", u64::from(stood_already));
                self.stood = self.stood.max(*term);
            }
            Note::Role { role: RoleKind::Leader, term, .. } => {
                let now = nodes[&id].now;
                self.leading_since.insert(id, (*term, now));
                self.failed_at.remove(&id);
                self.count_figure_8(nodes, coverage, id);
            }
            Note::Role { role, term, why } => {
                if *why == "its state machine gets nothing done" {
                    self.gives_up_stuck(&nodes[&id]);
                }
                if self.leading_since.remove(&id).is_some_and(|(led, _)| led < *term) && *role == RoleKind::Follower {
                    coverage.hit("leaders that step down for a later term");
                }
            }
            Note::Membership { index, membership } => {
                self.attention.members_change(id);
                self.count_members(coverage, id, *index, membership);
            }
            Note::Removed { .. } => {
                self.gone.insert(id);
            }
            Note::SnapshotInstalled { last, .. } => self.installs(nodes, coverage, id, *last),
            Note::Yield { why: STUCK, .. } => self.gives_up_stuck(&nodes[&id]),
            Note::Yield { to, why } => self.yielded(&nodes[&id], *to, *why == "its priority is higher"),
            Note::Transfer { step: TransferStep::GivenUp | TransferStep::Refused, .. } => {
                self.failed_at.insert(id, nodes[&id].now);
            }
            Note::Leader { .. }
            | Note::ReceivingSnapshot { .. }
            | Note::SnapshotDamaged { .. }
            | Note::Suspect { .. }
            | Note::Transfer { step: TransferStep::Begins, .. }
            | Note::Truncated { .. }
            | Note::SnapshotTaken { .. }
            | Note::Ignored { .. }
            | Note::Violation { .. } => {}
        }
    }

    /// A leader begins with entries of earlier terms that it does not know to be committed (paper, figure 8).
    fn count_figure_8(&self, nodes: &Nodes, coverage: &mut Coverage, id: NodeId) {
        let node = &nodes[&id];
        let Some(core) = &node.core else { return };
        let Some(opened) = core.opened() else { return };
        let before = opened.prev();
        if before <= core.status(node.now).commit {
            return;
        }
        coverage.hit("elections won over entries of earlier terms");
        let on_quorum = node.disk.get(before).is_some_and(|entry| self.durable(nodes, entry.id, None).is_ok());
        let fresh = before > self.visible();
        coverage.add(
            "elections won with an uncommitted entry of an earlier term on a quorum (figure 8)",
            u64::from(on_quorum && fresh),
        );
    }

    /// A node was woken by its clock: a leader gives up without a quorum (thesis §6.2), and with a disk that does not get its work done.
    pub(crate) fn woken(&self, nodes: &Nodes, id: NodeId) -> Result<(), String> {
        let (Some(config), node) = (&self.limits, &nodes[&id]) else { return Ok(()) };
        let Some(core) = &node.core else { return Ok(()) };
        let Some((term, since)) = self.leading_since.get(&id) else { return Ok(()) };
        let status = core.status(node.now);
        if status.role != RoleKind::Leader || status.term != *term || status.peers.is_empty() {
            return Ok(());
        }
        let slack = config.heartbeat_interval * 2;
        let writes_for = node.writing.as_ref().map(|_| node.now.since(node.writing_since)).unwrap_or_default();
        if writes_for > config.stall_timeout + slack {
            return Err(format!("live leaders: {id} leads {term}, and its disk takes {writes_for:?} for a write"));
        }
        // It may try to hand over first, for an election timeout.
        let failed = self.failed_at.get(&id).is_some_and(|failed| node.now.since(*failed) <= slack);
        let idle_for = node.idle_for();
        // It looks when it speaks: one that stalled while it campaigned leads until then (seed 73008).
        let led_for = node.now.since(*since);
        if idle_for > config.stall_timeout + slack && led_for > slack && status.transferring_to.is_none() && !failed {
            return Err(format!(
                "live leaders: {id} leads {term}, and its state machine got nothing done for {idle_for:?}"
            ));
        }
        let heard = |peer: &crate::PeerStatus| self.attention.last_heard(id, peer.id, *term).unwrap_or(*since);
        let silent = |peer: &crate::PeerStatus| node.now.since(heard(peer).max(*since));
        let lively = status.peers.iter().filter(|peer| silent(peer) <= config.election_timeout + slack);
        let lively: BTreeSet<_> = lively.map(|peer| peer.id).chain([id]).collect();
        let in_force = status.configuration.as_ref().map(|found| &found.membership);
        if config.check_quorum && in_force.is_some_and(|membership| !configurations::is_quorum(membership, &lively)) {
            return Err(format!("live leaders: {id} leads {term} without a quorum: {status:?}"));
        }
        Ok(())
    }

    /// A vote that reached the disk stands, also after a crash (paper §5.2).
    pub(crate) fn stored(&mut self, node: &Node) -> Result<(), String> {
        let state = node.disk.hard_state;
        let Some(vote) = state.voted_for else { return Ok(()) };
        let before = *self.votes.entry((node.id, state.term)).or_insert(vote);
        if before != vote {
            return Err(format!("votes: {} voted for {before} and for {vote} in {}", node.id, state.term));
        }
        Ok(())
    }

    /// State Machine Safety (paper §5.4.3), and durability on a quorum before anything is applied anywhere.
    pub(crate) fn applied(&mut self, nodes: &Nodes, id: NodeId, entry: &Entry) -> Result<(), String> {
        if let Some(before) = self.committed.get(&entry.id.index) {
            if before != entry {
                return Err(format!(
                    "state machine safety: {id} applies {entry:?}, but {before:?} was applied elsewhere"
                ));
            }
            return Ok(());
        }
        self.durable(nodes, entry.id, None)
            .map_err(|reason| format!("durability: {id} applies {}, {reason}", entry.id))?;
        if self.limits.is_some() && self.terms.agreed(entry.id.index) != Some(entry.id) {
            return Err(format!("commitment: {id} applies {}, which no leader committed", entry.id));
        }
        if entry.kind.is_proposed() && self.proposed.get(&entry.data) == Some(&1) {
            if self.never.contains(&entry.data) {
                return Err(format!(
                    "outcomes: {id} applies {entry:?}, but its client was told that it never would be"
                ));
            }
            if let Some(twice) = self.places.insert(entry.data.clone(), entry.id) {
                return Err(format!("outcomes: {entry:?} was proposed once, and is also applied at {twice}"));
            }
        }
        self.committed.insert(entry.id.index, entry.clone());
        Ok(())
    }

    /// Whether an entry is on the disks of a quorum: of the configuration in force at the leader that commits it; else, where that is not at
    /// hand, of any.
    fn durable(&self, nodes: &Nodes, id: LogId, in_force: Option<&Membership>) -> Result<(), String> {
        let holders: BTreeSet<_> = nodes.values().filter(|node| node.held(id)).map(|node| node.id).collect();
        let enough = match in_force {
            Some(membership) => configurations::is_quorum(membership, &holders),
            None => self.configurations.is_quorum_of_any(&holders),
        };
        if enough { Ok(()) } else { Err(format!("which is stored on no quorum, only on {holders:?}")) }
    }

    /// Looks at a node after a step.
    pub(crate) fn observed(&mut self, nodes: &Nodes, status: &Status) -> Result<(), String> {
        let node = &nodes[&status.id];
        let Status { role, term, last, stored, commit, applied, .. } = *status;
        let now = Seen { role, term, last, stored, commit, applied };
        if let Some(dropped) = self.dropped.take() {
            return Err(dropped);
        }
        let before = self.seen.insert(status.id, now);
        if let Some(found) = status.configuration.as_ref().filter(|_| role == RoleKind::Leader) {
            self.configurations.add(found.id, &found.membership);
        }
        let went_back =
            |before: Seen| now.term < before.term || now.commit < before.commit || now.applied < before.applied;
        if before.is_some_and(went_back) {
            return Err(format!("going forward: {} went back: {before:?}, then {now:?}", status.id));
        }
        let ordered = status.applied <= status.commit && status.commit <= status.last.index;
        if !ordered || status.stored > status.last.index || status.base > status.last {
            return Err(format!("order of positions: {status:?}"));
        }
        if self.limits.is_some() && term > self.stood {
            return Err(format!("terms: {} is in {term}, and nobody stood for it", status.id));
        }
        if status.stored > node.ends_at() {
            let disk = super::show::disk(&node.disk);
            return Err(format!("durability: {} believes that {} is stored: {disk}", status.id, status.stored));
        }
        self.own_log(node, status)?;
        self.configured(status)?;
        self.stands(status)?;
        if !status.may_lead && matches!(role, RoleKind::PreCandidate | RoleKind::Candidate) {
            return Err(format!("preferences: {} is kept from leading, and campaigns: {status:?}", status.id));
        }
        match now.role {
            RoleKind::Leader => self.leads(nodes, status, before)?,
            // What a leader committed that stepped down at once, as it is removed: nobody else leads its term.
            RoleKind::Follower | RoleKind::PreCandidate | RoleKind::Candidate => {
                let led =
                    |before: &Seen| before.role == RoleKind::Leader && before.term == term && before.commit < commit;
                if let Some(before) = before.filter(led) {
                    self.commits(nodes, status, before.commit, before.last.index)?;
                }
            }
        }
        let highest = self.highest();
        if commit > highest {
            return Err(format!(
                "commitment: {} takes {commit} for committed, and leaders came to {highest}",
                status.id
            ));
        }
        Ok(())
    }

    /// What a node takes for committed is what was committed, and it knows the vote that is on its disk.
    fn own_log(&self, node: &Node, status: &Status) -> Result<(), String> {
        let index = status.commit.min(status.stored).min(self.visible().max(self.terms.upto()));
        if let (Some(own), Some(committed)) = (node.disk.get(index), self.settled(index))
            && own.id != committed
            && index > node.images.last().index
        {
            let (id, own) = (status.id, own.id);
            return Err(format!("state machine safety: {id} takes {own} for committed, and {committed} is"));
        }
        let (disk, Some(core)) = (node.disk.hard_state, &node.core) else { return Ok(()) };
        if disk.term == status.term && disk.voted_for.is_some() && disk.voted_for != core.voted_for() {
            return Err(format!("votes: {} forgets its vote in {}: {disk:?}", status.id, status.term));
        }
        Ok(())
    }

    fn leads(&mut self, nodes: &Nodes, status: &Status, before: Option<Seen>) -> Result<(), String> {
        let (id, node) = (status.id, &nodes[&status.id]);
        let opened = node.core.as_ref().and_then(|core| core.opened()).unwrap_or_default();
        if let Err(elected) = self.terms.leads(status.term, node, opened) {
            return Err(format!("election safety: {elected} and {id} both lead {}", status.term));
        }
        let led = before.is_some_and(|before| before.role == RoleKind::Leader && before.term == status.term);
        let disk = &node.disk;
        if !led {
            if disk.hard_state.term != status.term || disk.hard_state.voted_for != Some(id) {
                return Err(format!("votes: {id} leads {} without its own vote on disk", status.term));
            }
            self.elected(nodes, node, status.term)?;
            // What was committed in earlier terms; by Log Matching, whoever holds the last of it holds all. A vote that comes late may
            // elect the leader of a term that is long over: it need not have what came after.
            if let Some(last) = self.terms.before(status.term).filter(|last| !node.held(*last)) {
                return Err(format!("leader completeness: {id} leads {} without {last}", status.term));
            }
        }
        if let Some(before) = before.filter(|before| led && status.last < before.last) {
            return Err(format!(
                "leader append-only: {id} leads {}, and its log went from {} to {}",
                status.term, before.last, status.last
            ));
        }
        // Only an entry of its own term moves a leader's commit index (paper §5.4.2), or an image that it received before it led.
        let known = before.map_or(Index::ZERO, |before| before.commit);
        let moved = if led { known < status.commit } else { status.commit >= opened };
        if moved
            && let Some(image) = node.images.published().filter(|_| status.commit < opened)
            && image.meta.last.index == status.commit
        {
            return self.image_is_right(id, &image);
        }
        if moved {
            self.commits(nodes, status, known, before.map_or(Index::ZERO, |before| before.last.index))?;
        }
        Ok(())
    }

    /// A leader moved its commit index on from `known`, since its log was seen to end at `looked`.
    fn commits(&mut self, nodes: &Nodes, status: &Status, known: Index, looked: Index) -> Result<(), String> {
        let at = LogId { term: status.term, index: status.commit };
        let in_force = status.configuration.as_ref();
        // One that was appended since the last look need not have been in force when this was committed.
        let new = in_force.is_some_and(|found| found.id.index > looked);
        let earlier = self.configurations.known_at(at).map(|(_, earlier)| earlier).filter(|_| new);
        self.durable(nodes, at, in_force.map(|found| &found.membership))
            .or_else(|reason| earlier.map_or(Err(reason), |earlier| self.durable(nodes, at, Some(earlier))))
            .map_err(|reason| format!("durability: {} commits {known} to {at}, {reason}", status.id))?;
        let prev = |id| self.known.get(&id).map(|(prev, _)| *prev);
        self.terms.commit(at, prev)
    }
}
