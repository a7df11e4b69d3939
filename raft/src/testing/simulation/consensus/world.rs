//! One run: a cluster, its weather, and what both kinds of schedule do to it.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::cluster::Cluster;
use super::images::flip;
use super::swarm::Swarm;
use crate::change::Change;
use crate::consensus::{Input, Preference};
use crate::message::{Body, Message};
use crate::testing::Random;
use crate::testing::simulation::Options;
use crate::types::{EntryKind, Index, LogId, Membership, NodeId, Peer};

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) swarm: Swarm,
    pub(crate) cluster: Cluster,
    pub(crate) ids: Vec<NodeId>,
    /// Nodes that work again, and the links between them; faults go on elsewhere.
    pub(crate) steady: BTreeSet<NodeId>,
    commands: u64,
    /// How many random events there were.
    pub(crate) events: u64,
}

impl World {
    pub(crate) fn new(seed: u64, options: &Options, keep: usize) -> Self {
        let mut random = Random::new(seed);
        let swarm = Swarm::draw(&mut random.fork(), options);
        let mut cluster = Cluster::new(swarm.nodes, swarm.voters, swarm.config.clone(), seed, keep);
        cluster.checker.keep_to(&swarm.config);
        let ids = (1..=swarm.nodes).map(NodeId).collect();
        for node in cluster.nodes.values_mut().filter(|_| swarm.weather.prefer > 0) {
            node.preference.priority = priority(&mut random);
        }
        for (class, met) in [
            ("runs of one voter", swarm.nodes == 1),
            ("runs of seven voters", swarm.nodes == 7),
            ("runs with a clock", swarm.timed),
            ("runs without a clock", !swarm.timed),
            ("runs with changing members", swarm.weather.change > 0),
            ("runs with priorities", swarm.weather.prefer > 0),
            ("runs with leases", swarm.config.lease_drift.is_some()),
        ] {
            cluster.coverage.add(class, u64::from(met));
        }
        Self { random, swarm, cluster, ids, steady: BTreeSet::new(), commands: 0, events: 0 }
    }

    /// Starts the nodes, and a cluster of them, told to one of them or to several.
    pub(crate) fn begin(&mut self) -> Result<(), String> {
        self.cluster.restart_all()?;
        let several = self.random.percent(20);
        for id in self.ids.clone() {
            if several || id == NodeId(1) {
                let input = self.cluster.initialize(id, self.cluster.membership())?;
                self.cluster.step(id, input)?;
            }
        }
        Ok(())
    }

    pub(crate) fn is_up(&self, id: NodeId) -> bool {
        self.cluster.nodes.get(&id).is_some_and(|node| node.core.is_some())
    }

    /// Any node that is not steady; none when all are.
    pub(crate) fn any_unsteady(&mut self) -> Option<NodeId> {
        let others: Vec<_> = self.ids.iter().copied().filter(|id| !self.steady.contains(id)).collect();
        self.random.pick(&others)
    }

    pub(crate) fn any(&mut self) -> NodeId {
        self.random.pick(&self.ids).unwrap_or_default()
    }

    /// Whether nothing goes wrong any more on the way from one node to another.
    pub(crate) fn is_steady(&self, from: NodeId, to: NodeId) -> bool {
        self.steady.contains(&from) && self.steady.contains(&to)
    }

    /// A command like no other, of any size.
    pub(crate) fn command(&mut self) -> Bytes {
        self.commands += 1;
        let size = self.random.pick(&[0, 0, 0, 100, 700]).unwrap_or_default();
        Bytes::from(format!("{}{}", self.commands, ".".repeat(size)))
    }

    /// Up to four of them.
    pub(crate) fn commands(&mut self) -> Vec<Bytes> {
        (0..=self.random.below(3)).map(|_| self.command()).collect()
    }

    /// A client asks a node for something; none when the node is down.
    pub(crate) fn request(&mut self, id: NodeId) -> Result<Option<Input>, String> {
        if !self.is_up(id) {
            return Ok(None);
        }
        if self.random.percent(self.swarm.weather.change) {
            let change = self.change(id);
            return self.cluster.change(id, change).map(Some);
        }
        if self.random.percent(33) {
            let lease = self.swarm.config.lease_drift.is_some() && self.random.percent(60);
            return self.cluster.read(id, lease).map(Some);
        }
        let commands = self.commands();
        let kind = if self.random.percent(20) { EntryKind::Session } else { EntryKind::Command };
        self.cluster.propose(id, kind, commands).map(Some)
    }

    /// What an operator at a node may want, who may have looked at the configuration before: there, or long ago.
    fn change(&mut self, id: NodeId) -> Change {
        let change = self.any_change();
        if !self.random.percent(20) {
            return change;
        }
        let node = self.cluster.nodes.get(&id);
        let status = node.and_then(|node| node.core.as_ref().map(|core| core.status(node.now)));
        let Some(seen) = status.and_then(|status| status.configuration) else { return change };
        let stale = self.random.percent(30);
        change.only_if(if stale { LogId { index: seen.id.index.prev(), ..seen.id } } else { seen.id })
    }

    /// One to three edits of the configuration, or a whole other one. Not all of them make sense.
    fn any_change(&mut self) -> Change {
        let peer = |id: NodeId| Peer::new(id.0, format!("h{}", id.0));
        if self.random.percent(30) {
            let (voters, learners) = (self.random.any(), self.random.any());
            let among = |set: u64| self.ids.iter().filter(move |id| set >> id.0 & 1 == 1).copied();
            let mut target = Membership::new(among(voters).map(peer));
            target = target.with_learners(among(learners & !voters).map(peer));
            return Change::to(target);
        }
        let mut change = Change::new();
        for _ in 0..=self.random.below(3) {
            let (id, other) = (self.any(), self.any());
            change = match self.random.below(8) {
                0 | 1 => change.add_voter(peer(id)),
                2 => change.add_learner(peer(id)),
                3 => change.remove(id),
                4 => change.replace(id, peer(other)),
                5 => change.promote(id),
                6 => change.set_address(Peer::new(
                    id.0,
                    format!("{}{}", self.random.pick(&["h", "g"]).unwrap_or_default(), other.0),
                )),
                _ => change.demote(id),
            };
        }
        change
    }

    pub(crate) fn campaign(&mut self, id: NodeId) -> Result<(), String> {
        if !self.is_up(id) {
            return Ok(());
        }
        self.cluster.coverage.hit("campaigns asked for by an operator");
        self.cluster.step(id, Input::Campaign)
    }

    /// A transport says that a connection with the leader is lost. It may be true, and comes to one node or to all.
    pub(crate) fn hint(&mut self, id: NodeId) -> Result<(), String> {
        let all = self.random.percent(50);
        let ids = if all { self.ids.clone() } else { vec![id] };
        let any = self.any();
        for id in ids {
            let leader = self.cluster.nodes.get(&id).and_then(|node| node.core.as_ref().and_then(|core| core.leader()));
            let peer = if self.random.percent(80) { leader.unwrap_or(any) } else { any };
            if self.is_up(id) && peer != id {
                self.cluster.checker.lost(id, peer);
                self.cluster.step(id, Input::PeerLost { peer })?;
            }
        }
        Ok(())
    }

    /// A leader and others, some or all of them, don't hear each other any more. Their transports may notice: these others then hold
    /// polls before the leader's lease is over.
    pub(crate) fn estrange(&mut self) -> Result<(), String> {
        let Some(leader) = self.leading() else { return Ok(()) };
        let (all, side, noticed) = (self.random.percent(40), self.random.any(), self.random.percent(50));
        for other in self.ids.clone() {
            if other == leader || !(all || side >> other.0 & 1 == 1) {
                continue;
            }
            self.cut(leader, other);
            if noticed && self.cluster.cut.contains(&(leader, other)) && self.is_up(other) {
                self.cluster.checker.lost(other, leader);
                self.cluster.step(other, Input::PeerLost { peer: leader })?;
            }
        }
        self.cluster.coverage.hit("leaders estranged");
        self.say_cuts();
        Ok(())
    }

    /// An operator wants another node to lead: any, or a certain one, which may not be fit for it.
    pub(crate) fn transfer(&mut self, id: NodeId) -> Result<(), String> {
        let to = if self.random.percent(40) { None } else { Some(self.any()) };
        // Most such requests come to a leader.
        let leader = self.leading();
        let id = if self.random.percent(90) { leader.unwrap_or(id) } else { id };
        if !self.is_up(id) {
            return Ok(());
        }
        let input = self.cluster.transfer(id, to)?;
        self.cluster.step(id, input)
    }

    /// An operator gives a node another priority, keeps it from leading, or lets it lead again; leaders more often than others.
    pub(crate) fn prefer(&mut self, id: NodeId) -> Result<(), String> {
        let leader = self.leading().filter(|leader| !self.steady.contains(leader));
        let id = if self.random.percent(40) { leader.unwrap_or(id) } else { id };
        let may_lead = self.random.percent(75);
        self.cluster.coverage.add("nodes kept from leading", u64::from(!may_lead));
        let preference = Preference { priority: priority(&mut self.random), may_lead };
        self.cluster.prefer(id, preference)
    }

    /// A node that leads, or takes itself for the leader.
    fn leading(&self) -> Option<NodeId> {
        let leads =
            |node: &&super::cluster::Node| node.core.as_ref().is_some_and(|core| core.leader() == Some(node.id));
        self.cluster.nodes.values().find(leads).map(|node| node.id)
    }

    /// A part of an image is damaged on its way, now and then.
    pub(crate) fn damage(&mut self, message: &mut Message) {
        let Body::Chunk { part: Some(part), .. } = &mut message.body else { return };
        if self.random.percent(self.swarm.weather.damage) {
            part.data = flip(&part.data, self.random.any());
            self.cluster.coverage.hit("parts of images damaged on their way");
        }
    }

    /// Power is lost at a node: what it was writing is gone, or a part of it is there.
    pub(crate) fn crash(&mut self, id: NodeId) -> Result<(), String> {
        let torn = self.random.percent(self.swarm.weather.tear);
        let keep = torn.then(|| usize::try_from(self.random.below(4)).unwrap_or_default());
        // Few crashes meet an image that is being received.
        if self.random.percent(self.swarm.weather.damage * 6) {
            let which = self.random.any();
            self.cluster.node(id)?.images.damage_unfinished(which);
        }
        self.cluster.crash(id, keep)
    }

    /// A node starts again, perhaps after its log was compacted. Some state machines are durable themselves.
    pub(crate) fn start(&mut self, id: NodeId) -> Result<(), String> {
        let remembered = self.cluster.node(id)?.remembered;
        if self.random.percent(self.swarm.weather.compact) {
            let upto = self.compactable(id).min(remembered.index);
            let disk = &mut self.cluster.node(id)?.disk;
            if let Some(upto) = disk.get(upto).map(|entry| entry.id) {
                disk.compact(upto);
            }
        }
        let kept = self.random.percent(self.swarm.weather.keep) && remembered != LogId::ZERO;
        self.cluster.coverage.add("state machines that kept what they applied", u64::from(kept));
        // Without an image of the state, what was compacted away is known to such a state machine alone.
        let compacted = self.cluster.node(id)?.disk.base != LogId::ZERO;
        self.cluster.boot(id, if kept || compacted { remembered } else { LogId::ZERO })
    }

    /// Up to where every disk holds what is committed: nobody would need an image of the state.
    fn compactable(&self, id: NodeId) -> Index {
        let held = |index: Index| {
            let Some(entry) = self.cluster.checker.applied_at(index) else { return false };
            self.cluster.nodes.values().all(|node| node.held(entry.id))
        };
        let ends = self.cluster.nodes.values().map(|node| node.disk.last().index);
        let mut upto = ends.min().unwrap_or_default().min(self.cluster.checker.visible());
        let base = self.cluster.nodes.get(&id).map(|node| node.disk.base.index).unwrap_or_default();
        while upto > base && !held(upto) {
            upto = upto.prev();
        }
        upto
    }

    /// Whether a leader could be heard there that does not hear that: unless it steps down for it, those that are to get on would follow it for ever.
    fn must_cut_back(&self, from: NodeId, to: NodeId) -> bool {
        self.steady.contains(&from) && !self.steady.contains(&to) && !self.swarm.config.check_quorum
    }

    /// From here on nothing befalls these nodes, nor what is on its way between them.
    pub(crate) fn let_be(&mut self, ids: &[NodeId]) {
        self.steady.extend(ids);
        let steady = &self.steady;
        self.cluster.cut.retain(|(from, to)| !(steady.contains(from) && steady.contains(to)));
        let cuts = self.cluster.cut.iter().filter(|(from, to)| self.must_cut_back(*from, *to));
        let back: Vec<_> = cuts.map(|(from, to)| (*to, *from)).collect();
        self.cluster.cut.extend(back);
    }

    /// Both directions between two nodes.
    fn cut(&mut self, one: NodeId, other: NodeId) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    fn cut_one_way(&mut self, from: NodeId, to: NodeId) {
        if from != to && !self.is_steady(from, to) {
            self.cluster.cut.insert((from, to));
        }
    }

    /// Two sides that don't see each other, of which one may be a single node; or all links carry again.
    pub(crate) fn partition(&mut self) {
        if self.random.percent(35) {
            self.cluster.cut.clear();
            self.cluster.announce(|| "all links carry".into());
            return;
        }
        let one = self.any();
        let side = if self.random.percent(40) { 1 << one.0 } else { self.random.any() };
        for from in self.ids.clone() {
            for to in self.ids.clone() {
                if (side >> from.0 & 1) != (side >> to.0 & 1) {
                    self.cut_one_way(from, to);
                }
            }
        }
        self.cluster.coverage.hit("whole partitions");
        self.say_cuts();
    }

    pub(crate) fn cut_link_one_way(&mut self) {
        let (from, to) = (self.any(), self.any());
        if from == to || self.is_steady(from, to) {
            return;
        }
        if self.must_cut_back(from, to) {
            self.cut(from, to);
        } else {
            self.cut_one_way(from, to);
            self.cluster.coverage.hit("one-way cuts");
        }
        self.say_cuts();
    }

    /// Two sides that don't see each other, and one node that sees both.
    pub(crate) fn bridge(&mut self) {
        let (bridge, side) = (self.any(), self.random.any());
        let others: Vec<_> = self.ids.iter().copied().filter(|id| *id != bridge).collect();
        let before = self.cluster.cut.len();
        for one in &others {
            for other in &others {
                if (side >> one.0 & 1) != (side >> other.0 & 1) {
                    self.cut(*one, *other);
                }
            }
        }
        if self.cluster.cut.len() > before {
            self.cluster.coverage.hit("bridge partitions");
            self.say_cuts();
        }
    }

    fn say_cuts(&mut self) {
        let cuts = self.cluster.cut.clone();
        self.cluster.announce(|| {
            let list: Vec<_> = cuts.iter().map(|(from, to)| format!("{from}->{to}")).collect();
            format!("cut: {}", list.join(" "))
        });
    }
}

/// Few, so that nodes often have the same.
fn priority(random: &mut Random) -> u32 {
    random.pick(&[0, 1, 2, 3]).unwrap_or_default()
}
