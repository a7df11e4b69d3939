//! Cores, their disks, the links between them and their clients: stepped one event at a time, with nothing left to
//! chance.

mod effects;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::checker::Checker;
use super::clients::Clients;
use super::disk::Disk;
use super::images::Images;
use super::show;
use crate::config::Config;
use crate::consensus::{Boot, Consensus, Effects, Fetch, ImageWork, Input, Preference, RoleKind, Time, Write};
use crate::message::{Message, RequestId};
use crate::testing::simulation::{Coverage, Trace, TraceEvent};
use crate::traits::{Published, SnapshotId, SnapshotMeta};
use crate::types::{Entry, Index, LogId, Membership, NodeId, Peer};

/// A step that causes more rounds of effects than this goes in circles.
const MAX_ROUNDS: usize = 1000;

pub(crate) struct Cluster {
    pub(crate) config: Config,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) links: BTreeMap<(NodeId, NodeId), VecDeque<Message>>,
    /// Messages put aside, to come late.
    pub(crate) delayed: Vec<(NodeId, NodeId, Message)>,
    /// Links that carry nothing.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    pub(crate) checker: Checker,
    seed: u64,
    pub(crate) requests: u64,
    /// The reads that were served, of this run and of earlier ones.
    pub(crate) served: BTreeSet<RequestId>,
    /// What happened, as golden scripts show it; none in simulations.
    transcript: Option<Vec<String>>,
    /// What happened, as simulations compare and show it.
    pub(crate) trace: Trace,
    /// The time on no node's clock.
    pub(crate) at: Duration,
    pub(crate) coverage: Coverage,
    /// Where a simulation with a clock takes the messages that are sent, instead of from the links.
    pub(crate) sent: Option<Vec<(NodeId, NodeId, Message)>>,
    /// Whether a backend completed something at once, so that the core may have more to do.
    stepped: bool,
    /// Reused from step to step.
    effects: Effects,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// The node's own clock.
    pub(crate) now: Time,
    /// None while it is down.
    pub(crate) core: Option<Consensus>,
    pub(crate) disk: Disk,
    pub(crate) hold: Hold,
    pub(crate) writing: Option<Write>,
    /// When it began, on the node's clock.
    pub(crate) writing_since: Time,
    pub(crate) applying: VecDeque<Entry>,
    /// When the state machine last got on, on the node's clock, or was given something while it had nothing to do.
    pub(crate) got_on: Time,
    pub(crate) fetching: VecDeque<Fetch>,
    pub(crate) images: Images,
    /// An image to take once this is applied.
    pub(super) freezing: Option<(SnapshotId, Index)>,
    /// What is to be done with images, in order.
    pub(crate) imaging: VecDeque<ImageWork>,
    /// The image that is being received: the attempt, and what it holds.
    pub(super) receiving: Option<(u64, SnapshotMeta)>,
    /// An image by which the state is to be replaced, once what was handed out before is applied.
    pub(crate) restoring: Option<Published>,
    /// In this run, an image brought everything up to here.
    pub(super) covered: LogId,
    /// The view that is being written as an image.
    pub(super) frozen: Option<SnapshotMeta>,
    /// What the state machine has applied in this run.
    pub(crate) applied: BTreeMap<Index, LogId>,
    /// What a state machine that is durable itself would remember after a crash.
    pub(crate) remembered: LogId,
    pub(crate) clients: Clients,
    /// Counts the runs of the node.
    pub(crate) boots: u64,
    /// Whether the last crash left a part of a write.
    torn: bool,
    /// What its operator wants of it; given to each run.
    pub(crate) preference: Preference,
}

/// What does not complete by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hold {
    pub(crate) disk: bool,
    pub(crate) apply: bool,
    pub(crate) fetch: bool,
    pub(crate) snapshot: bool,
    pub(crate) images: bool,
}

impl Node {
    pub(crate) fn core(&mut self) -> Result<(&mut Consensus, Time), String> {
        match &mut self.core {
            Some(core) => Ok((core, self.now)),
            None => Err(format!("{} is down", self.id)),
        }
    }

    /// For how long the state machine has not got on with what it has to do.
    pub(crate) fn idle_for(&self) -> Duration {
        let busy = !self.applying.is_empty() || self.restoring.is_some();
        if busy { self.now.since(self.got_on) } else { Duration::ZERO }
    }

    pub(crate) fn next_wake(&self) -> Option<Time> {
        self.core.as_ref().and_then(Consensus::next_wake)
    }
}

impl Cluster {
    /// Nodes 1 to `count`, of which the first `voters` vote, for a simulation that keeps its last `keep` steps in words.
    pub(crate) fn new(count: u64, voters: u64, config: Config, seed: u64, keep: usize) -> Self {
        let checker = Checker::new((1..=voters).map(NodeId));
        let mut cluster = Self {
            config,
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            delayed: Vec::new(),
            cut: BTreeSet::new(),
            checker,
            seed,
            requests: 0,
            served: BTreeSet::new(),
            transcript: None,
            trace: Trace::new(keep),
            at: Duration::ZERO,
            coverage: Coverage::default(),
            sent: None,
            stepped: false,
            effects: Effects::default(),
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
                    writing_since: Time::default(),
                    applying: VecDeque::new(),
                    got_on: Time::default(),
                    fetching: VecDeque::new(),
                    images: Images::default(),
                    imaging: VecDeque::new(),
                    receiving: None,
                    restoring: None,
                    covered: LogId::ZERO,
                    freezing: None,
                    frozen: None,
                    applied: BTreeMap::new(),
                    remembered: LogId::ZERO,
                    clients: Clients::default(),
                    boots: 0,
                    torn: false,
                    preference: Preference { priority: cluster.config.priority, may_lead: cluster.config.may_lead },
                },
            );
        }
        cluster
    }

    pub(crate) fn membership(&self) -> Membership {
        Membership::new(self.checker.voters.iter().map(|id| Peer::new(id.0, format!("h{}", id.0))))
    }

    /// The same with a transcript, for golden scripts.
    #[cfg(test)]
    pub(crate) fn with_transcript(count: u64, voters: u64, config: Config, seed: u64) -> Self {
        Self { transcript: Some(Vec::new()), ..Self::new(count, voters, config, seed, 0) }
    }

    /// Something happened at a node.
    pub(crate) fn say(&mut self, node: NodeId, text: impl FnOnce() -> String) {
        match &mut self.transcript {
            Some(transcript) => transcript.push(format!("{node} {}", text())),
            None => self.trace.step(self.at, node.0, || TraceEvent::Node { node, text: text() }),
        }
    }

    /// Something happened to all.
    pub(crate) fn announce(&mut self, text: impl FnOnce() -> String) {
        match &mut self.transcript {
            Some(transcript) => transcript.push(text()),
            None => self.trace.step(self.at, 0, || TraceEvent::Cluster { text: text() }),
        }
    }

    /// A line of a transcript alone.
    pub(crate) fn note_down(&mut self, line: impl FnOnce() -> String) {
        if let Some(transcript) = &mut self.transcript {
            transcript.push(line());
        }
    }

    /// What happened since this was asked last.
    #[cfg(test)]
    pub(crate) fn take_transcript(&mut self) -> Vec<String> {
        self.transcript.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn node(&mut self, id: NodeId) -> Result<&mut Node, String> {
        self.nodes.get_mut(&id).ok_or_else(|| format!("there is no {id}"))
    }

    fn running(&self) -> Vec<NodeId> {
        self.nodes.values().filter(|node| node.core.is_some()).map(|node| node.id).collect()
    }

    /// How many nodes lead, in whatever terms.
    pub(crate) fn leaders(&self) -> usize {
        let leads = |node: &&Node| node.core.as_ref().is_some_and(|core| core.standing().1 == RoleKind::Leader);
        self.nodes.values().filter(leads).count()
    }

    /// While a leader may answer reads by its clock, nobody leads a later term. The clocks of all nodes must be up to date.
    pub(crate) fn check_leases(&self) -> Result<(), String> {
        let cores = self.nodes.values().filter_map(|node| node.core.as_ref().map(|core| (node, core)));
        let leaders: Vec<_> = cores.filter(|(_, core)| core.standing().1 == RoleKind::Leader).collect();
        let newest = leaders.iter().map(|(node, core)| (core.standing().0, node.id)).max();
        let leases =
            leaders.iter().filter_map(|(node, core)| Some((node.id, core.standing().0, core.lease_left(node.now)?)));
        for (id, term, left) in leases {
            if let Some((later, other)) = newest.filter(|(later, _)| *later > term) {
                return Err(format!(
                    "leases: {id} answers reads of {term} by its clock for {left:?} more, and {other} leads {later}"
                ));
            }
        }
        Ok(())
    }

    // Life and death.

    /// Starts a node from its disk. Its state machine is empty, unless it kept `applied`.
    pub(crate) fn boot(&mut self, id: NodeId, applied: LogId) -> Result<(), String> {
        let (mut config, seed) = (self.config.clone(), self.seed);
        let node = self.node(id)?;
        (config.priority, config.may_lead) = (node.preference.priority, node.preference.may_lead);
        if node.core.is_some() {
            return Err(format!("{id} is running"));
        }
        node.boots += 1;
        let (torn, compacted) = (std::mem::take(&mut node.torn), node.disk.base != LogId::ZERO);
        let cut = node.cut_what_an_image_has_overtaken()?;
        // The state machine is brought to the newest image, unless it is further already.
        let applied = if node.images.last().index > applied.index { node.images.last() } else { applied };
        let boot = Boot {
            id,
            log: node.disk.state(),
            configurations: node.configurations(applied.index),
            snapshot: node.images.published(),
            applied,
            seed: seed.wrapping_mul(1000) + id.0 * 100 + node.boots,
        };
        node.applied = BTreeMap::from([(applied.index, applied)]);
        node.core = Some(Consensus::new(node.now, &config, boot));
        for (class, met) in [
            ("torn writes recovered", torn),
            ("starts from a compacted log", compacted),
            ("power lost between an image and its cut", cut),
        ] {
            self.coverage.add(class, u64::from(met));
        }
        if self.transcript.is_none() {
            self.say(id, || "starts".into());
        }
        self.drain(id)
    }

    /// Kills a node. Of a write that is under way, `keep` entries reach the disk (the hard state before them); none: nothing.
    pub(crate) fn crash(&mut self, id: NodeId, keep: Option<usize>) -> Result<(), String> {
        let node = self.node(id)?;
        let (core, _) = node.core()?;
        let led = core.leader() == Some(id);
        let lost = node.writing.take();
        if let Some(write) = &lost {
            let all = write.write.entries.len();
            if let Some(keep) = keep {
                self.reach_disk(id, write, keep.min(all))?;
            }
            self.node(id)?.torn = keep.is_some_and(|keep| keep < all);
        }
        let node = self.node(id)?;
        let class = if node.torn { "writes torn by a crash" } else { "writes lost in a crash" };
        node.core = None;
        node.applying.clear();
        node.fetching.clear();
        (node.freezing, node.frozen) = (None, None);
        node.imaging.clear();
        (node.receiving, node.restoring, node.covered) = (None, None, LogId::ZERO);
        node.applied.clear();
        node.clients = Clients::default();
        if lost.is_some() {
            self.coverage.hit(class);
        }
        self.coverage.hit(if led { "crashes of leaders" } else { "crashes of others" });
        self.checker.ended(id);
        self.checker.stored(&self.nodes[&id])?;
        self.say_disk(id);
        Ok(())
    }

    fn say_disk(&mut self, id: NodeId) {
        let disk = self.nodes.get(&id).map(|node| show::disk(&node.disk)).unwrap_or_default();
        self.say(id, || format!("crashes, on its disk is {disk}"));
    }

    // Input.

    pub(crate) fn step(&mut self, id: NodeId, input: Input) -> Result<(), String> {
        let (core, now) = self.node(id)?.core()?;
        core.step(now, input);
        self.drain(id)
    }

    /// An operator wants something else of a node, in all of its runs from now on.
    pub(crate) fn prefer(&mut self, id: NodeId, preference: Preference) -> Result<(), String> {
        let node = self.node(id)?;
        node.preference = preference;
        let up = node.core.is_some();
        let Preference { priority, may_lead } = preference;
        self.say(id, || format!("has the priority {priority}{}", if may_lead { "" } else { " and shall not lead" }));
        if up { self.step(id, Input::Prefer { preference }) } else { Ok(()) }
    }

    /// Hands over an input, and leaves what it causes for later, as a driver does that has more inputs waiting.
    pub(crate) fn step_only(&mut self, id: NodeId, input: Input) -> Result<(), String> {
        let (core, now) = self.node(id)?.core()?;
        core.step(now, input);
        Ok(())
    }

    // Time.

    /// Moves the clocks of some nodes, waking each when it asked for it; and delivers everything in between, if wished.
    pub(crate) fn advance(&mut self, ids: &[NodeId], by: Duration, deliver: bool) -> Result<(), String> {
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
    pub(crate) fn wake(&mut self, id: NodeId) -> Result<(), String> {
        self.step(id, Input::Tick)?;
        self.checker.woken(&self.nodes, id)?;
        let node = self.node(id)?;
        match node.next_wake() {
            Some(wake) if wake <= node.now => {
                Err(format!("busy loop: {id} asks at {} to be woken at {wake}", node.now))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A backend completed something: the core may have more to do.
    pub(super) fn stepped(&mut self) {
        self.stepped = true;
    }

    // Everything at once.

    /// Completes everything that is held back at a node, and holds nothing back from now on.
    pub(crate) fn release(&mut self, id: NodeId) -> Result<(), String> {
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
        self.publish(id, true)?;
        self.image(id, usize::MAX)?;
        self.drain(id)
    }

    /// Starts every node that is down.
    pub(crate) fn restart_all(&mut self) -> Result<(), String> {
        let up = self.running();
        let down: Vec<_> = self.nodes.keys().copied().filter(|id| !up.contains(id)).collect();
        down.into_iter().try_for_each(|id| self.boot(id, LogId::ZERO))
    }
}
