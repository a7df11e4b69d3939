//! What goes wrong: one fault at a time, drawn by the run's weights.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};

use super::load::Client;
use super::plan::FAULTS;
use super::stores::{DiskFault, Outage, Stores};
use super::subject::Subject;
use super::world::{Due, World};
use crate::consensus::Preference;
use crate::testing::{Link, Random};
use crate::types::NodeId;

fn millis(random: &mut Random, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.between(least, most))
}

impl<S: Subject, T: Stores> World<S, T> {
    /// Something goes wrong with one of these nodes, or with the links to and from them.
    pub(super) fn inject(&mut self, nodes: &[NodeId]) {
        let kind = self.random.weighted(&self.plan.weights);
        if self.plan.weights.iter().all(|weight| *weight == 0) {
            return;
        }
        match FAULTS[kind] {
            "network" => self.cut(nodes),
            "kill" => self.kill(nodes),
            "pause" => self.pause(nodes),
            "stop" => self.stop(nodes),
            "disk" => self.hurt_disk(nodes),
            "damage" => self.damage(nodes),
            "clock" => self.jump(nodes),
            "members" => self.later(Duration::ZERO, Due::Operate),
            "prefer" => self.prefer_any(nodes),
            "machine" => self.hang(nodes),
            _ => self.overload(nodes),
        }
    }

    /// A state machine gets nothing done for a while.
    fn hang(&mut self, nodes: &[NodeId]) {
        let Some(id) = self.victim(nodes) else { return };
        let long = millis(&mut self.random, 20, 3000);
        self.record.hit("state machines that hang");
        self.record.node(id, format!("has a state machine that hangs for {long:?}"));
        self.ledger.hang(id, Some(Instant::now() + long));
    }

    /// An operator gives a node another priority, keeps it from leading, or lets it lead again.
    fn prefer_any(&mut self, nodes: &[NodeId]) {
        let Some(id) = self.victim(nodes) else { return };
        let priority = self.random.pick(&[0, 1, 2, 3]).unwrap_or_default();
        let may_lead = self.random.percent(75);
        self.prefer(id, Preference { priority, may_lead });
    }

    pub(super) fn prefer(&mut self, id: NodeId, preference: Preference) {
        let Some(seat) = self.seats.get_mut(&id) else { return };
        seat.preference = preference;
        let Preference { priority, may_lead } = preference;
        self.record
            .node(id, format!("has the priority {priority}{}", if may_lead { "" } else { ", and shall not lead" }));
        if !may_lead {
            self.record.hit("nodes kept from leading");
        }
        let desk = seat.running().and_then(|running| running.desk.as_ref());
        if let Some(raft) = desk.map(|desk| &desk.raft) {
            // A node that stands still is told as well: it finds it when it goes on.
            let _ = raft.set_priority(priority).now_or_never();
            let _ = raft.set_may_lead(may_lead).now_or_never();
        }
    }

    /// A node that is up: the leader as often as another.
    fn victim(&mut self, nodes: &[NodeId]) -> Option<NodeId> {
        let up: Vec<NodeId> = self.up().into_iter().filter(|id| nodes.contains(id)).collect();
        match self.leader().filter(|leader| up.contains(leader)) {
            Some(leader) if self.random.percent(40) => Some(leader),
            Some(_) | None => self.random.pick(&up),
        }
    }

    fn is_leader(&self, id: NodeId) -> bool {
        self.leader() == Some(id)
    }

    fn cut(&mut self, nodes: &[NodeId]) {
        let all = self.ids();
        let Some(one) = self.random.pick(nodes) else { return };
        let target = match self.leader().filter(|leader| nodes.contains(leader)) {
            Some(leader) if self.random.percent(50) => leader,
            Some(_) | None => one,
        };
        let cut = Link { cut: true, ..Link::default() };
        let lost = Link { lost_per_mille: 1000, ..Link::default() };
        let others: Vec<NodeId> = all.iter().copied().filter(|id| *id != target).collect();
        let what = match self.random.below(8) {
            0 | 1 => {
                // Split in two; only links of the nodes that may suffer are touched.
                let side: Vec<NodeId> = all.iter().copied().filter(|_| self.random.percent(50)).collect();
                for from in &all {
                    for to in &all {
                        let touches = nodes.contains(from) || nodes.contains(to);
                        if touches && side.contains(from) != side.contains(to) {
                            self.network.set_link(*from, *to, cut.clone());
                        }
                    }
                }
                "partitions"
            }
            2 => {
                others.iter().for_each(|other| self.network.set_link(target, *other, cut.clone()));
                "one-way cuts"
            }
            3 => {
                others.iter().for_each(|other| self.network.set_link(*other, target, cut.clone()));
                "one-way cuts"
            }
            4 => {
                // The target is the bridge between two sides that don't see each other.
                let side: Vec<NodeId> = others.iter().copied().filter(|_| self.random.percent(50)).collect();
                for from in &others {
                    for to in &others {
                        let touches = nodes.contains(from) || nodes.contains(to);
                        if touches && side.contains(from) != side.contains(to) {
                            self.network.set_link(*from, *to, cut.clone());
                        }
                    }
                }
                "bridges"
            }
            5 => {
                for other in &others {
                    self.network.set_link(target, *other, lost.clone());
                    self.network.set_link(*other, target, lost.clone());
                }
                "peers that vanish"
            }
            6 => {
                let stuck = Link { stuck: true, ..Link::default() };
                let Some(other) = self.random.pick(&others) else { return };
                self.network.set_link(target, other, stuck);
                "links stuck"
            }
            _ => {
                let bad = Link {
                    lost_per_mille: u32::try_from(self.random.between(50, 400)).unwrap_or(50),
                    doubled_per_mille: 100,
                    delay: millis(&mut self.random, 0, 100),
                    jitter: millis(&mut self.random, 0, 200),
                    ..Link::default()
                };
                for other in &others {
                    self.network.set_link(target, *other, bad.clone());
                    self.network.set_link(*other, target, bad.clone());
                }
                "bad links"
            }
        };
        self.record.hit(what);
        self.record.cluster(format!("network: {what}, about {target}"));
        let pause = millis(&mut self.random, 50, 3000);
        self.later(pause, Due::Heal);
    }

    fn kill(&mut self, nodes: &[NodeId]) {
        if self.random.percent(5) {
            // The whole building loses power.
            self.record.hit("all nodes lost power");
            for id in nodes {
                self.take_down(*id, Outage::PowerLoss);
            }
            return;
        }
        let Some(id) = self.victim(nodes) else { return };
        if self.is_leader(id) {
            self.record.hit("leaders killed");
        }
        let how = if self.random.percent(50) { Outage::Kill } else { Outage::PowerLoss };
        self.record.hit(if how == Outage::Kill { "nodes killed" } else { "nodes that lost power" });
        self.take_down(id, how);
    }

    fn pause(&mut self, nodes: &[NodeId]) {
        let Some(id) = self.victim(nodes) else { return };
        if self.is_leader(id) {
            self.record.hit("leaders paused");
        }
        let Some(running) = self.seats.get(&id).and_then(|seat| seat.running()) else { return };
        running.machine.pause();
        let pause = millis(&mut self.random, 10, 3000);
        self.record.hit("pauses");
        self.record.node(id, format!("stands still for {pause:?}"));
        self.later(pause, Due::Resume(id));
    }

    fn stop(&mut self, nodes: &[NodeId]) {
        let Some(id) = self.victim(nodes) else { return };
        let politely = self.random.percent(60);
        self.end(id, politely);
    }

    fn hurt_disk(&mut self, nodes: &[NodeId]) {
        let sick: Vec<NodeId> =
            nodes.iter().copied().filter(|id| self.seats.get(id).is_some_and(|s| !s.is_out())).collect();
        let Some(id) = self.random.pick(&sick) else { return };
        let damaged = self.seats.get(&id).is_some_and(|seat| seat.excuses.damaged);
        let pause = millis(&mut self.random, 20, 2500);
        match self.random.below(8) {
            0 | 1 => {
                let latency = millis(&mut self.random, 1, 300);
                self.sick(id, DiskFault::Slow(latency), "slow disks");
                self.later(pause, Due::Disk(id, DiskFault::Slow(Duration::ZERO)));
            }
            2 => {
                self.sick(id, DiskFault::Stall, "stalled disks");
                self.later(pause, Due::Disk(id, DiskFault::Resume));
            }
            3 => self.sick(id, DiskFault::Error, "disk errors"),
            4 => self.sick(id, DiskFault::SyncError, "failed syncs"),
            5 => {
                self.sick(id, DiskFault::Full, "full disks");
                self.later(pause, Due::Disk(id, DiskFault::Room));
            }
            _ if damaged => {}
            _ => self.sick(id, DiskFault::PowerFailsSoon, "power failures prepared"),
        }
    }

    fn sick(&mut self, id: NodeId, fault: DiskFault, class: &'static str) {
        if self.befall(id, fault) {
            self.record.hit(class);
            self.record.hit("storage faults");
        }
    }

    /// Damages what is durable, on a minority at most.
    fn damage(&mut self, nodes: &[NodeId]) {
        let minority = (self.seats.len() - 1) / 2;
        let damaged = self.seats.values().filter(|seat| !seat.is_sound() || seat.excuses.machine_damaged).count();
        // A last batch that is damaged right after a loss of power looks like a torn one, as the log's documentation says. So power comes
        // back, and the log is opened, before anything else happens to it.
        let sound = |seat: &super::seat::Seat<S, T>| seat.is_sound() && seat.is_up();
        let sound: Vec<NodeId> = nodes.iter().copied().filter(|id| self.seats.get(id).is_some_and(sound)).collect();
        let Some(id) = self.random.pick(&sound).filter(|_| damaged < minority) else { return };
        let of_machine = self.load.subject.is_durable() && self.random.percent(70);
        let (fault, class) = match self.random.percent(70) {
            _ if of_machine => (DiskFault::MachineDamaged, "damage to what state machines keep"),
            true => (DiskFault::Rot, "bit rot"),
            false => (DiskFault::Misdirected, "misdirected writes"),
        };
        self.sick(id, fault, class);
        if self.random.percent(60) {
            // It shows at the next start at the latest.
            self.take_down(id, Outage::Kill);
        }
    }

    fn jump(&mut self, nodes: &[NodeId]) {
        if !self.plan.may_jump() {
            return;
        }
        let Some(id) = self.victim(nodes) else { return };
        let by = millis(&mut self.random, 10, 20_000);
        let Some(running) = self.seats.get(&id).and_then(|seat| seat.running()) else { return };
        running.machine.jump(by);
        self.record.hit("clock jumps");
        self.record.node(id, format!("its clock jumps by {by:?}"));
    }

    /// Many clients at once, for a moment.
    fn overload(&mut self, nodes: &[NodeId]) {
        let Some(id) = self.victim(nodes) else { return };
        self.record.hit("bursts");
        self.record.node(id, "a burst of requests");
        for _ in 0..12 {
            let mut client = self.client(Duration::ZERO);
            self.clients.spawn(async move {
                sleep(Duration::ZERO).await;
                client.ask(id).await;
            });
        }
    }

    /// A client of its own.
    pub(super) fn client(&mut self, think: Duration) -> Client<S> {
        self.tags += 1 << 20;
        Client { load: self.load.clone(), random: self.random.fork(), next_tag: self.tags, think, session: None }
    }
}
