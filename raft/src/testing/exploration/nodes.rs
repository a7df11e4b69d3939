//! Every different node, message, log and history that a search met, each under a small number, and what becomes of them: the core
//! is stepped once for each different pair of node and event, however many states of the cluster contain it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::bounds::Bounds;
use super::history::History;
use super::marks::{Mark, Marks};
use super::node::{Event, Kept, Node, Outcome, Told, command};
use super::table::{Table, mix};
use crate::consensus::RoleKind;
use crate::message::{Body, Message};
use crate::types::{LogId, NodeId};

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flight {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) message: Message,
}

/// What a search asks of a node most often.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) term: u64,
    /// The term on its disk.
    pub(super) durable_term: u64,
    pub(super) leads: bool,
    pub(super) knows_leader: bool,
    pub(super) rounds: u64,
    pub(super) commit: u64,
    /// Its log in memory, and that on its disk.
    pub(super) log: u32,
    pub(super) disk: u32,
    /// How many entries the write under way has, if there is one.
    pub(super) writing: Option<u32>,
}

/// Logs: the id of each entry from index 1, with a hash of its content.
#[derive(Debug, Default)]
pub(super) struct Logs {
    numbers: BTreeMap<Vec<(LogId, u64)>, u32>,
    logs: Vec<Vec<(LogId, u64)>>,
}

impl Logs {
    pub(super) fn get(&self, log: u32) -> &[(LogId, u64)] {
        &self.logs[log as usize]
    }

    fn number(&mut self, log: Vec<(LogId, u64)>) -> u32 {
        if let Some(number) = self.numbers.get(&log) {
            return *number;
        }
        let number = number_of(self.logs.len());
        self.logs.push(log.clone());
        self.numbers.insert(log, number);
        number
    }

    /// Log Matching (paper §5.3): where two logs hold the same id, they hold the same entries up to there.
    pub(super) fn match_each_other(&self, one: u32, other: u32) -> Result<(), String> {
        let (one, other) = (self.get(one), self.get(other));
        let Some(last) = one.iter().zip(other).rposition(|(a, b)| a.0 == b.0) else { return Ok(()) };
        match one.iter().zip(other).take(last + 1).find(|(a, b)| a != b) {
            Some((a, b)) => Err(format!(
                "log matching: two logs hold {}, and before it {} and {} with another content or id",
                one[last].0, a.0, b.0
            )),
            None => Ok(()),
        }
    }
}

/// What came of an event at a node, in numbers.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) next: u32,
    pub(super) sent: Box<[u32]>,
    pub(super) told: Box<[Told]>,
    pub(super) marks: Marks,
    pub(super) violation: Option<Box<str>>,
}

/// An event in numbers: its kind, and a message's number or the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Deliver(u32),
    Timeout,
    Heartbeat,
    Lapse,
    Stored,
    /// 0: nothing of the write under way is done; 1 and more: its hard state, and one entry less than that.
    Restart(u32),
    Propose(u32),
    Read(u32),
    Change(u32),
}

impl Act {
    fn code(self) -> u64 {
        let (kind, detail) = match self {
            Self::Deliver(message) => (0, message),
            Self::Timeout => (1, 0),
            Self::Heartbeat => (2, 0),
            Self::Lapse => (3, 0),
            Self::Stored => (4, 0),
            Self::Restart(kept) => (5, kept),
            Self::Propose(number) => (6, number),
            Self::Read(number) => (7, number),
            Self::Change(number) => (8, number),
        };
        kind << 28 | u64::from(detail)
    }
}

/// What an entry is, but for its place: a command is the same wherever it is; noops are told apart by their ids.
fn content(id: LogId, data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    if data.is_empty() {
        id.hash(&mut hasher);
    }
    hasher.finish()
}

/// The numbers fit, as memory ends before.
pub(super) fn number_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[derive(Debug)]
pub(super) struct Nodes {
    pub(super) bounds: Bounds,
    nodes: Vec<Node>,
    /// For nodes that were reached in more than one way: how they look when reached in the latest. They must go on alike.
    twins: BTreeMap<u32, Node>,
    /// How often that was checked.
    pub(super) compared: u64,
    pub(super) facts: Vec<Facts>,
    known_nodes: Table,
    pub(super) flights: Vec<Flight>,
    known_flights: Table,
    pub(super) logs: Logs,
    pub(super) histories: Vec<History>,
    known_histories: BTreeMap<History, u32>,
    pub(super) changes: Vec<Change>,
    known_changes: Table,
}

impl Nodes {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            nodes: Vec::new(),
            twins: BTreeMap::new(),
            compared: 0,
            facts: Vec::new(),
            known_nodes: Table::new(),
            flights: Vec::new(),
            known_flights: Table::new(),
            logs: Logs::default(),
            histories: Vec::new(),
            known_histories: BTreeMap::new(),
            changes: Vec::new(),
            known_changes: Table::new(),
        }
    }

    /// How many different nodes there are.
    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn node(&self, node: u32) -> &Node {
        &self.nodes[node as usize]
    }

    pub(super) fn add(&mut self, node: Node) -> u32 {
        let key = node.fingerprint();
        if let Some(number) = self.known_nodes.get(key) {
            let number = number_of(usize::try_from(number).unwrap_or(usize::MAX));
            self.twins.insert(number, node);
            return number;
        }
        let number = number_of(self.nodes.len());
        self.known_nodes.insert(key, u64::from(number));
        let facts = self.look_at(&node);
        self.facts.push(facts);
        self.nodes.push(node);
        number
    }

    fn look_at(&mut self, node: &Node) -> Facts {
        let log = node.log().into_iter().map(|(id, data)| (id, content(id, &data))).collect();
        let disk = node.disk.entries.iter().map(|entry| (entry.id, content(entry.id, &entry.data))).collect();
        let (term, role) = node.core.standing();
        Facts {
            term: term.0,
            durable_term: node.disk.hard_state.term.0,
            leads: role == RoleKind::Leader,
            knows_leader: node.core.leader().is_some(),
            rounds: node.core.rounds(),
            commit: node.core.committed().0,
            log: self.logs.number(log),
            disk: self.logs.number(disk),
            writing: node.writing.as_ref().map(|writing| number_of(writing.write.entries.len())),
        }
    }

    fn add_flight(&mut self, flight: Flight) -> u32 {
        let mut hasher = DefaultHasher::new();
        flight.hash(&mut hasher);
        let key = hasher.finish();
        if let Some(number) = self.known_flights.get(key) {
            return number_of(usize::try_from(number).unwrap_or(usize::MAX));
        }
        let number = number_of(self.flights.len());
        self.known_flights.insert(key, u64::from(number));
        self.flights.push(flight);
        number
    }

    pub(super) fn add_history(&mut self, history: History) -> u32 {
        if let Some(number) = self.known_histories.get(&history) {
            return *number;
        }
        let number = number_of(self.histories.len());
        self.histories.push(history.clone());
        self.known_histories.insert(history, number);
        number
    }

    /// What an act makes of a node, as the number of the change.
    pub(super) fn change(&mut self, node: u32, act: Act) -> usize {
        // One to one, so that no two pairs share a key.
        let key = mix((u64::from(node) + 1) << 32 | act.code());
        if let Some(number) = self.known_changes.get(key) {
            return usize::try_from(number).unwrap_or(usize::MAX);
        }
        let event = self.event(act);
        let (next, mut outcome) = self.nodes[node as usize].after(&self.bounds, &event);
        if outcome.violation.is_none() {
            outcome.violation = self.compare_with_twin(node, &event, &next, &outcome).err();
        }
        let from = next.id;
        let sent =
            outcome.sent.into_iter().map(|(to, message)| self.add_flight(Flight { from, to, message })).collect();
        // A node that failed an assertion of its own is not looked at again.
        let next = if outcome.violation.is_some() { node } else { self.add(next) };
        let change = Change {
            next,
            sent,
            told: outcome.told.into(),
            marks: outcome.marks,
            violation: outcome.violation.map(Into::into),
        };
        let number = self.changes.len();
        self.changes.push(change);
        self.known_changes.insert(key, number as u64);
        number
    }

    /// Nodes with one fingerprint go on alike, or the fingerprint leaves out what matters.
    fn compare_with_twin(&mut self, node: u32, event: &Event, next: &Node, outcome: &Outcome) -> Result<(), String> {
        let Some(twin) = self.twins.get(&node) else { return Ok(()) };
        let (other, other_outcome) = twin.after(&self.bounds, event);
        self.compared += 1;
        if *outcome == other_outcome && next.fingerprint() == other.fingerprint() {
            return Ok(());
        }
        let node = self.node(node);
        Err(format!(
            "the search is sound: it takes two nodes for one, and they answer {event:?} differently, by {outcome:?} and \
             {other_outcome:?}. The nodes are {node:?} and {twin:?}"
        ))
    }

    fn event(&self, act: Act) -> Event {
        match act {
            Act::Deliver(flight) => {
                let flight = &self.flights[flight as usize];
                Event::Deliver { from: flight.from, message: flight.message.clone() }
            }
            Act::Timeout => Event::Timeout,
            Act::Heartbeat => Event::Heartbeat,
            Act::Lapse => Event::Lapse,
            Act::Stored => Event::Stored,
            Act::Restart(0) => Event::Restart(Kept::Nothing),
            Act::Restart(kept) => Event::Restart(Kept::Entries(kept as usize - 1)),
            Act::Propose(number) => Event::Propose { number },
            Act::Read(number) => Event::Read { number },
            Act::Change(number) => Event::Change { number },
        }
    }

    /// Whether the delivery of a message can't have any effect, now or ever: an answer of a term that the receiver's disk is past.
    /// Such messages are taken off their way, which makes many states one.
    pub(super) fn is_void(&self, flight: u32, receiver: u32) -> bool {
        let message = &self.flights[flight as usize].message;
        if message.term.0 >= self.facts[receiver as usize].durable_term {
            return false;
        }
        match &message.body {
            Body::PreVote { .. }
            | Body::Vote { .. }
            | Body::Append { .. }
            | Body::Heartbeat { .. }
            | Body::ReadIndex { .. }
            // What a former leader says of a batch stays true.
            | Body::Forward { .. }
            | Body::ForwardReply { .. }
            | Body::Change { .. }
            | Body::Offer { .. } => false,
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::AppendReply(_)
            | Body::HeartbeatReply { .. }
            | Body::Commit { .. }
            | Body::TimeoutNow
            | Body::ReadIndexReply { .. }
            | Body::ChangeReply { .. }
            | Body::Fetch { .. }
            | Body::Chunk { .. } => true,
        }
    }

    /// What was refused is never committed.
    pub(super) fn check_refused(&self, history: &History) -> Result<(), String> {
        for number in (0..self.bounds.proposals).filter(|number| history.refused & (1 << number) != 0) {
            let refused = content(LogId::ZERO, &command(number));
            if let Some(entry) = history.committed.iter().find(|entry| entry.content == refused) {
                return Err(format!("what was refused is never committed: c{number} is, as {}", entry.id));
            }
        }
        Ok(())
    }

    /// Which kind of read a node's answer ends.
    pub(super) fn read_mark(&self, node: u32) -> Mark {
        if self.facts[node as usize].leads { Mark::LeaderRead } else { Mark::FollowerRead }
    }
}
