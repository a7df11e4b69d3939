//! How much a search lets happen. Within its bounds it lets it happen in every order.

use crate::config::Config;

/// The most nodes that a search can have.
pub const MAX_NODES: usize = 5;

/// The limits of one search. What a limit excludes is not explored; everything else is, in every order.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// A name for the report.
    pub name: &'static str,
    /// How many nodes: 1 to [`MAX_NODES`].
    pub nodes: usize,
    /// How many of them vote at first: the first ones. 0: all.
    pub voters: usize,
    /// The voters that leaders are asked for, one change after the other, by id; each once, and at any time: up to 15.
    pub changes: Vec<Vec<u64>>,
    /// Nobody campaigns in this term any more.
    pub max_term: u64,
    /// How often, in all, an election timeout ends somewhere: up to 15.
    pub campaigns: u32,
    /// Only these nodes campaign, by bit: bit 0 is n1.
    pub campaigners: u8,
    /// The most messages that are on their way. States with more are not explored. A message may stay on its way for ever, which
    /// is how most of them get lost.
    pub in_flight: usize,
    /// How often, in all, a message is taken off its way: up to 15. Matters only because it makes room for others.
    pub losses: u32,
    /// How often, in all, a message is delivered and stays on its way: up to 15.
    pub duplicates: u32,
    /// How many crashes, in all, each of which loses what is not on disk, or tears the write under way: up to 15.
    pub crashes: u32,
    /// Whose disks take their time, by bit; those of others are done at once.
    pub slow_disks: u8,
    /// How many commands are proposed, in all: up to 15.
    pub proposals: u32,
    /// Whether followers pass commands and reads on to the leader.
    pub forwarding: bool,
    /// How many reads begin, in all: up to 7.
    pub reads: u32,
    /// How many rounds of heartbeats a leader begins, besides those for reads.
    pub heartbeats: u64,
    /// How often, in all, a node is silent for longer than every timeout without being woken: it forgets that it heard a leader, a
    /// leader that it heard its followers. Up to 15.
    pub lapses: u32,
    /// See [`Config::pre_vote`].
    pub pre_vote: bool,
    /// See [`Config::check_quorum`].
    pub check_quorum: bool,
    /// Whether each append message and each write to a disk carries one entry at most.
    pub single_entries: bool,
    /// Whether state machines keep what they have applied in a crash.
    pub durable_machines: bool,
    /// The situations that the search must come across, by the names in a report's coverage.
    pub must_meet: Vec<&'static str>,
    /// Whether a crash loses everything on the disk. Nothing can be promised of such disks, so that a search must find what they break: it
    /// shows that it can fail.
    pub forgetful_disks: bool,
    /// What is on the disks at first, beyond the entry that begins the cluster: the terms of the entries, node by node. The term of a
    /// node is the greatest of them.
    pub logs: Vec<Vec<u64>>,
}

impl Bounds {
    /// Elections among three nodes, and nothing else.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            nodes: 3,
            voters: 0,
            changes: Vec::new(),
            max_term: 2,
            campaigns: 3,
            campaigners: u8::MAX,
            in_flight: 4,
            losses: 0,
            duplicates: 0,
            crashes: 0,
            slow_disks: 0,
            proposals: 0,
            forwarding: false,
            reads: 0,
            heartbeats: 0,
            lapses: 0,
            pre_vote: false,
            check_quorum: false,
            single_entries: false,
            durable_machines: false,
            must_meet: vec!["a leader is elected", "an entry is committed"],
            forgetful_disks: false,
            logs: Vec::new(),
        }
    }

    /// The same under another name.
    #[must_use]
    pub fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    pub(super) fn config(&self) -> Config {
        let (pre_vote, check_quorum, common) = (self.pre_vote, self.check_quorum, Config::for_exploration());
        let (max_append_bytes, max_write_bytes) =
            if self.single_entries { (1, 1) } else { (common.max_append_bytes, common.max_write_bytes) };
        Config { pre_vote, check_quorum, max_append_bytes, max_write_bytes, ..common }
    }

    pub(super) fn may_campaign(&self, node: usize, term: u64) -> bool {
        term < self.max_term && self.campaigners & (1 << node) != 0
    }

    /// Who votes at first.
    pub(super) fn first_voters(&self) -> Vec<u64> {
        let voters = if self.voters == 0 { self.nodes } else { self.voters };
        (1..=voters as u64).collect()
    }

    /// Whether these nodes, by bit, are a majority of voters that there ever are. Those of a joint configuration are of both halves.
    pub(super) fn is_quorum_of_any(&self, holders: u8) -> bool {
        let held = |ids: &Vec<u64>| ids.iter().filter(|id| holders >> (**id - 1) & 1 == 1).count() * 2 > ids.len();
        held(&self.first_voters()) || self.changes.iter().any(held)
    }

    pub(super) fn slow_disk(&self, node: usize) -> bool {
        self.slow_disks & (1 << node) != 0
    }

    /// Why a search can't have these bounds, if it can't.
    ///
    /// # Errors
    /// The reason, for a person.
    pub fn validate(&self) -> Result<(), String> {
        if self.nodes == 0 || self.nodes > MAX_NODES {
            return Err(format!("{}: {} nodes; a search has 1 to {MAX_NODES}", self.name, self.nodes));
        }
        let known = |ids: &Vec<u64>| !ids.is_empty() && ids.iter().all(|id| (1..=self.nodes as u64).contains(id));
        if self.voters > self.nodes || self.changes.len() > 15 || !self.changes.iter().all(known) {
            return Err(format!("{}: voters are some of its {} nodes, in at most 15 changes", self.name, self.nodes));
        }
        if self.logs.len() > self.nodes {
            return Err(format!("{}: {} logs for {} nodes", self.name, self.logs.len(), self.nodes));
        }
        let counts = [self.campaigns, self.losses, self.duplicates, self.crashes, self.proposals, self.lapses];
        if counts.iter().any(|count| *count > 15) || self.reads > 7 {
            return Err(format!("{}: at most 15 of each event, and 7 reads", self.name));
        }
        Ok(())
    }
}
