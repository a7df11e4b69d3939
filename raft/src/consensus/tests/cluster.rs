//! Cores, their disks, the links between them and their clients: stepped one event at a time, with nothing left to
//! chance.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::checker::Checker;
use super::clients::Clients;
use super::disk::Disk;
use super::show;
use crate::config::Config;
use crate::consensus::{Boot, Consensus, Effects, Fetch, Input, Note, Time, Write};
use crate::message::Message;
use crate::types::{Entry, Index, LogId, Membership, NodeId, Peer};

/// A step that causes more rounds of effects than this goes in circles.
const MAX_ROUNDS: usize = 1000;
/// A cluster that is not quiet after this many deliveries never will be.
const MAX_DELIVERIES: usize = 100_000;

pub(super) struct Cluster {
    pub(super) config: Config,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) links: BTreeMap<(NodeId, NodeId), VecDeque<Message>>,
    /// Messages put aside, to come late.
    pub(super) delayed: Vec<(NodeId, NodeId, Message)>,
    /// Links that carry nothing.
    pub(super) cut: BTreeSet<(NodeId, NodeId)>,
    pub(super) checker: Checker,
    seed: u64,
    pub(super) requests: u64,
    /// What happened, a line each; none when nobody reads it.
    trace: Option<Vec<String>>,
}

pub(super) struct Node {
    pub(super) id: NodeId,
    /// The node's own clock.
    pub(super) now: Time,
    /// None while it is down.
    pub(super) core: Option<Consensus>,
    pub(super) disk: Disk,
    pub(super) hold: Hold,
    pub(super) writing: Option<Write>,
    pub(super) applying: VecDeque<Entry>,
    pub(super) fetching: VecDeque<Fetch>,
    /// What the state machine has applied in this run.
    pub(super) applied: BTreeMap<Index, LogId>,
    /// What a state machine that is durable itself would remember after a crash.
    pub(super) remembered: LogId,
    pub(super) clients: Clients,
    boots: u64,
}

/// What does not complete by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hold {
    pub(super) disk: bool,
    pub(super) apply: bool,
    pub(super) fetch: bool,
}

impl Node {
    fn core(&mut self) -> Result<(&mut Consensus, Time), String> {
        match &mut self.core {
            Some(core) => Ok((core, self.now)),
            None => Err(format!("{} is down", self.id)),
        }
    }

    pub(super) fn next_wake(&self) -> Option<Time> {
        self.core.as_ref().and_then(Consensus::next_wake)
    }
}

impl Cluster {
    /// Nodes 1 to `count`, of which the first `voters` vote.
    pub(super) fn new(count: u64, voters: u64, config: Config, seed: u64, traced: bool) -> Self {
        let checker = Checker::new((1..=voters).map(NodeId));
        let trace = traced.then(Vec::new);
        let mut cluster = Self {
            config,
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            delayed: Vec::new(),
            cut: BTreeSet::new(),
            checker,
            seed,
            requests: 0,
            trace,
        };
        for id in (1..=count).map(NodeId) {
            cluster.nodes.insert(
                id,
                Node {
                    id,
                    now: Time::default(),
                    core: None,
                    disk: Disk::default(),
                    hold: Hold::default(),
                    writing: None,
                    applying: VecDeque::new(),
                    fetching: VecDeque::new(),
                    applied: BTreeMap::new(),
                    remembered: LogId::ZERO,
                    clients: Clients::default(),
                    boots: 0,
                },
            );
        }
        cluster
    }

    pub(super) fn membership(&self) -> Membership {
        Membership::new(self.checker.voters.iter().map(|id| Peer::new(id.0, format!("h{}", id.0))))
    }

    pub(super) fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    /// What happened since this was asked last.
    pub(super) fn take_trace(&mut self) -> Vec<String> {
        self.trace.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn node(&mut self, id: NodeId) -> Result<&mut Node, String> {
        self.nodes.get_mut(&id).ok_or_else(|| format!("there is no {id}"))
    }

    fn running(&self) -> Vec<NodeId> {
        self.nodes.values().filter(|node| node.core.is_some()).map(|node| node.id).collect()
    }

    // Life and death.

    /// Starts a node from its disk. Its state machine is empty, unless it kept `applied`.
    pub(super) fn boot(&mut self, id: NodeId, applied: LogId) -> Result<(), String> {
        let (config, seed) = (self.config.clone(), self.seed);
        let node = self.node(id)?;
        if node.core.is_some() {
            return Err(format!("{id} is running"));
        }
        node.boots += 1;
        let boot = Boot {
            id,
            log: node.disk.state(),
            membership: node.disk.membership(),
            applied,
            seed: seed.wrapping_mul(1000) + id.0 * 100 + node.boots,
        };
        node.applied = BTreeMap::from([(applied.index, applied)]);
        node.core = Some(Consensus::new(node.now, &config, boot));
        self.drain(id)
    }

    /// Kills a node. Of a write that is under way, `keep` entries reach the disk (the hard state before them); none: nothing.
    pub(super) fn crash(&mut self, id: NodeId, keep: Option<usize>) -> Result<(), String> {
        let node = self.node(id)?;
        node.core()?;
        let torn = node.writing.take();
        if let (Some(torn), Some(keep)) = (&torn, keep) {
            node.disk.tear(&torn.write, keep.min(torn.write.entries.len()))?;
        }
        node.core = None;
        node.applying.clear();
        node.fetching.clear();
        node.applied.clear();
        node.clients = Clients::default();
        self.checker.ended(id);
        self.checker.stored(&self.nodes[&id])?;
        let disk = show::disk(&self.nodes[&id].disk);
        self.say(|| format!("{id} crashes, on its disk is {disk}"));
        Ok(())
    }

    // Input.

    pub(super) fn step(&mut self, id: NodeId, input: Input) -> Result<(), String> {
        let (core, now) = self.node(id)?.core()?;
        core.step(now, input);
        self.drain(id)
    }

    /// Hands over an input, and leaves what it causes for later, as a driver does that has more inputs waiting.
    pub(super) fn step_only(&mut self, id: NodeId, input: Input) -> Result<(), String> {
        let (core, now) = self.node(id)?.core()?;
        core.step(now, input);
        Ok(())
    }

    // Time.

    /// Moves the clocks of some nodes, waking each when it asked for it; and delivers everything in between, if wished.
    pub(super) fn advance(&mut self, ids: &[NodeId], by: Duration, deliver: bool) -> Result<(), String> {
        let mut left = by;
        loop {
            let until = |node: &Node| node.next_wake().map(|wake| wake.since(node.now));
            let soonest = ids.iter().filter_map(|id| self.nodes.get(id).and_then(until)).min();
            let step = soonest.unwrap_or(left).min(left);
            for id in ids {
                let node = self.node(*id)?;
                node.now = node.now.plus(step);
            }
            left -= step;
            if soonest.is_none_or(|soonest| soonest > step) {
                return Ok(());
            }
            for id in ids {
                let node = self.node(*id)?;
                if node.next_wake().is_some_and(|wake| wake <= node.now) {
                    self.wake(*id)?;
                }
            }
            if deliver {
                self.stabilize(None)?;
            }
        }
    }

    /// Tells a node that time went on.
    pub(super) fn wake(&mut self, id: NodeId) -> Result<(), String> {
        self.step(id, Input::Tick)?;
        let node = self.node(id)?;
        match node.next_wake() {
            Some(wake) if wake <= node.now => {
                Err(format!("{id} asks at {} to be woken at {wake}: a busy loop", node.now))
            }
            Some(_) | None => Ok(()),
        }
    }

    // Effects.

    /// Does what the core wants done, until it wants nothing more.
    pub(super) fn drain(&mut self, id: NodeId) -> Result<(), String> {
        for _ in 0..MAX_ROUNDS {
            let (core, now) = self.node(id)?.core()?;
            let mut effects = Effects::default();
            core.effects(now, &mut effects);
            let status = core.status(now);
            self.checker.observed(&self.nodes, &status)?;
            if effects.is_empty() {
                return Ok(());
            }
            self.perform(id, effects)?;
        }
        Err(format!("{id} has not come to rest after {MAX_ROUNDS} rounds of effects"))
    }

    fn perform(&mut self, id: NodeId, effects: Effects) -> Result<(), String> {
        let Effects { send, write, apply, fetch, replies, notes } = effects;
        for note in notes {
            let line = || format!("{id} {}", show::note(&note));
            if matches!(note, Note::Violation { .. }) && self.trace.is_none() {
                return Err(format!("a correct peer is accused: {}", line()));
            }
            self.say(line);
        }
        for (to, message) in send {
            self.send(id, to, message)?;
        }
        if let Some(write) = write {
            self.begin_write(id, write)?;
        }
        for reply in replies {
            self.reply(id, reply)?;
        }
        if !apply.is_empty() {
            self.begin_apply(id, apply)?;
        }
        for fetch in fetch {
            self.begin_fetch(id, fetch)?;
        }
        Ok(())
    }

    fn send(&mut self, id: NodeId, to: NodeId, message: Message) -> Result<(), String> {
        self.checker.sent(&self.nodes, id, to, &message)?;
        if id == to || !self.nodes.contains_key(&to) {
            return Err(format!("{id} sends to {to}: {message:?}"));
        }
        let lost = self.cut.contains(&(id, to));
        self.say(|| format!("{id} -> {to} {}{}", show::message(&message), if lost { " ... lost" } else { "" }));
        if !lost {
            self.links.entry((id, to)).or_default().push_back(message);
        }
        Ok(())
    }

    fn begin_write(&mut self, id: NodeId, write: Write) -> Result<(), String> {
        let held = self.node(id)?.hold.disk;
        self.say(|| format!("{id} {} {}", if held { "writes" } else { "stores" }, show::write(&write.write)));
        let node = self.node(id)?;
        if let Some(before) = node.writing.replace(write) {
            return Err(format!("{id} writes while write {} is in flight", before.seq));
        }
        if held { Ok(()) } else { self.store(id, false) }
    }

    /// Completes the write that is under way, if there is one.
    pub(super) fn store(&mut self, id: NodeId, announce: bool) -> Result<(), String> {
        let node = self.node(id)?;
        let Some(Write { seq, write }) = node.writing.take() else { return Ok(()) };
        let first = write.entries.first().map(|entry| entry.id.index.prev());
        let prev = first.map(|index| node.disk.get(index).map_or(node.disk.base, |entry| entry.id));
        node.disk.write(&write).map_err(|reason| format!("{id}: {reason}"))?;
        let (core, now) = node.core()?;
        core.step(now, Input::Stored { seq });
        self.checker.entries(prev.unwrap_or_default(), &write.entries)?;
        self.checker.stored(&self.nodes[&id])?;
        if announce {
            self.say(|| format!("{id} stored {}", show::write(&write)));
        }
        Ok(())
    }

    fn begin_apply(&mut self, id: NodeId, entries: Vec<Entry>) -> Result<(), String> {
        let held = self.node(id)?.hold.apply;
        self.say(|| format!("{id} {} {}", if held { "is to apply" } else { "applies" }, show::entries(&entries)));
        let upto = entries.last().map(|entry| entry.id.index);
        self.node(id)?.applying.extend(entries);
        match upto {
            Some(upto) if !held => self.apply(id, upto),
            Some(_) | None => Ok(()),
        }
    }

    /// Lets the state machine apply what waits for it, up to an index.
    pub(super) fn apply(&mut self, id: NodeId, upto: Index) -> Result<(), String> {
        let mut last = None;
        while self.node(id)?.applying.front().is_some_and(|entry| entry.id.index <= upto) {
            let node = self.node(id)?;
            let Some(entry) = node.applying.pop_front() else { break };
            let before = node.applied.last_key_value().map(|(_, id)| *id).unwrap_or_default();
            if entry.id.index != before.index.next() {
                return Err(format!("{id} applies {} after {before}", entry.id));
            }
            node.applied.insert(entry.id.index, entry.id);
            node.remembered = node.remembered.max(entry.id);
            self.checker.applied(&self.nodes, id, &entry)?;
            self.settle(id, entry.id)?;
            last = Some(entry.id.index);
        }
        let Some(index) = last else { return Ok(()) };
        let held = self.node(id)?.hold.apply;
        if held {
            self.say(|| format!("{id} applied {}", index.0));
        }
        let readable = &mut self.node(id)?.clients.readable;
        let ready: Vec<_> =
            readable.iter().filter(|(_, wanted)| **wanted <= index).map(|(request, _)| *request).collect();
        readable.retain(|_, wanted| *wanted > index);
        for request in ready {
            self.say(|| format!("{id} serves r{}", request.0));
        }
        let (core, now) = self.node(id)?.core()?;
        core.step(now, Input::Applied { index });
        Ok(())
    }

    fn begin_fetch(&mut self, id: NodeId, fetch: Fetch) -> Result<(), String> {
        let held = self.node(id)?.hold.fetch;
        self.say(|| format!("{id} fetches {}..{} for {:?}", fetch.range.start.0, fetch.range.end.0, fetch.purpose));
        let node = self.node(id)?;
        if node.fetching.iter().any(|other| other.purpose == fetch.purpose) {
            return Err(format!("{id} fetches twice for {:?}", fetch.purpose));
        }
        node.fetching.push_back(fetch);
        if held { Ok(()) } else { self.fetch(id) }
    }

    /// Answers the oldest fetch from the disk, if there is one.
    pub(super) fn fetch(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.node(id)?;
        let Some(Fetch { purpose, range, max_bytes }) = node.fetching.pop_front() else { return Ok(()) };
        if node.disk.get(range.start).is_none() && !node.hold.fetch {
            return Err(format!(
                "{id} fetches from {}, which is not on its disk: {}",
                range.start,
                show::disk(&node.disk)
            ));
        }
        let entries = node.disk.read(range, max_bytes);
        let (core, now) = node.core()?;
        core.step(now, Input::Fetched { purpose, entries });
        Ok(())
    }

    // Links.

    /// Takes a message off a link and hands it over. A node that is down gets nothing.
    pub(super) fn deliver(&mut self, from: NodeId, to: NodeId, place: usize) -> Result<(), String> {
        let Some(message) = self.links.get_mut(&(from, to)).and_then(|queue| queue.remove(place)) else {
            return Ok(());
        };
        self.arrive(from, to, message)
    }

    /// Takes a message off a link and hands it over, but leaves what follows for the node's next step.
    pub(super) fn deliver_only(&mut self, from: NodeId, to: NodeId, place: usize) -> Result<(), String> {
        let Some(message) = self.links.get_mut(&(from, to)).and_then(|queue| queue.remove(place)) else {
            return Ok(());
        };
        if self.node(to)?.core.is_none() {
            return Ok(());
        }
        self.say(|| format!("{to} <- {from} {}, more comes", message.name()));
        self.step_only(to, Input::Receive { from, message })
    }

    pub(super) fn arrive(&mut self, from: NodeId, to: NodeId, message: Message) -> Result<(), String> {
        let down = self.node(to)?.core.is_none();
        self.say(|| format!("{to} <- {from} {}{}", message.name(), if down { " ... lost" } else { "" }));
        if down { Ok(()) } else { self.step(to, Input::Receive { from, message }) }
    }

    /// Delivers everything between the nodes given, or all, until nothing is on its way any more.
    pub(super) fn stabilize(&mut self, only: Option<&BTreeSet<NodeId>>) -> Result<(), String> {
        let mut delivered = 0;
        loop {
            let within = |id: &NodeId| only.is_none_or(|only| only.contains(id));
            let open: Vec<_> = self
                .links
                .iter()
                .filter(|(link, queue)| {
                    !queue.is_empty() && !self.cut.contains(link) && within(&link.0) && within(&link.1)
                })
                .map(|(link, queue)| (*link, queue.len()))
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            for ((from, to), count) in open {
                for _ in 0..count {
                    self.deliver(from, to, 0)?;
                }
                delivered += count;
            }
            if delivered > MAX_DELIVERIES {
                return Err(format!("the cluster is not quiet after {delivered} deliveries"));
            }
        }
    }

    /// Completes everything that is held back at a node, and holds nothing back from now on.
    pub(super) fn release(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.node(id)?;
        let hold = std::mem::take(&mut node.hold);
        if node.core.is_none() {
            return Ok(());
        }
        self.store(id, hold.disk)?;
        while !self.node(id)?.fetching.is_empty() {
            self.fetch(id)?;
        }
        self.apply(id, Index(u64::MAX))?;
        self.drain(id)
    }

    /// Starts every node that is down.
    pub(super) fn restart_all(&mut self) -> Result<(), String> {
        let up = self.running();
        let down: Vec<_> = self.nodes.keys().copied().filter(|id| !up.contains(id)).collect();
        down.into_iter().try_for_each(|id| self.boot(id, LogId::ZERO))
    }
}
