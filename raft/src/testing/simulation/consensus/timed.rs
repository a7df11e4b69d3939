//! A schedule with a clock: links take time, disks take time, and every node has a clock of its own that may run at another rate,
//! or jump. Time is virtual: it goes as fast as the events can be worked off.

mod faults;

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster::Hold;
use super::world::World;
use crate::change::Change;
use crate::consensus::Preference;
use crate::message::{Body, Message, RequestId};
use crate::types::{EntryKind, Index, Membership, NodeId, Peer};

/// What is going to happen.
#[derive(Debug)]
enum Event {
    Deliver {
        from: NodeId,
        to: NodeId,
        message: Message,
    },
    /// Its clock wakes a node; of no use when another wake-up has taken its place.
    Wake(NodeId, Duration),
    /// A write is done, in this run of the node.
    Stored(NodeId, u64),
    Applied(NodeId, u64),
    Fetched(NodeId, u64),
    Imaged(NodeId, u64),
    /// What several inputs caused is collected.
    Drain(NodeId, u64),
    Start(NodeId),
    Fault,
    Request,
}

/// What a cluster does not know of its nodes.
#[derive(Debug)]
struct Machine {
    /// When its clock was last set.
    at: Duration,
    /// How fast its clock runs, in thousandths.
    rate: u64,
    /// Until when the process does nothing.
    paused: Duration,
    /// When the earliest wake-up is due that is on its way.
    wake: Option<Duration>,
    /// What writes take in addition, and for how many.
    stall: (Duration, u64),
    /// The run of the node that these are of.
    boots: u64,
    storing: bool,
    applying: bool,
    fetching: bool,
    imaging: bool,
    draining: bool,
}

/// A world in virtual time.
pub(crate) struct Timed<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) at: Duration,
    seq: u64,
    events: BTreeMap<(Duration, u64), Event>,
    machines: BTreeMap<NodeId, Machine>,
    /// Whether faults and requests come by themselves.
    pub(crate) faults: bool,
    pub(crate) requests: bool,
}

impl<'a> Timed<'a> {
    /// Takes a world over as it is; its clocks go on from where they are.
    pub(crate) fn new(world: &'a mut World) -> Result<Self, String> {
        let at = world.cluster.at;
        let machine = || Machine {
            at,
            rate: 1000,
            paused: at,
            wake: None,
            stall: (Duration::ZERO, 0),
            boots: 0,
            storing: false,
            applying: false,
            fetching: false,
            imaging: false,
            draining: false,
        };
        let machines = world.ids.iter().map(|id| (*id, machine())).collect();
        world.cluster.sent = Some(Vec::new());
        let mut timed = Self { world, at, seq: 0, events: BTreeMap::new(), machines, faults: false, requests: false };
        for ((from, to), queue) in std::mem::take(&mut timed.world.cluster.links) {
            for message in queue {
                timed.post(from, to, message);
            }
        }
        for (from, to, message) in std::mem::take(&mut timed.world.cluster.delayed) {
            timed.post(from, to, message);
        }
        for id in timed.world.ids.clone() {
            timed.world.cluster.node(id)?.hold =
                Hold { disk: true, apply: true, fetch: true, snapshot: false, images: true };
            if timed.world.is_up(id) {
                timed.world.cluster.drain(id)?;
                timed.follow_up(id)?;
            }
        }
        Ok(timed)
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.seq += 1;
        self.events.insert((self.at + after, self.seq), event);
    }

    fn machine(&mut self, id: NodeId) -> Result<&mut Machine, String> {
        self.machines.get_mut(&id).ok_or_else(|| format!("there is no {id}"))
    }

    /// What was sent before comes, however late: also of a term that its sender forgot in a crash, and that makes the leader give way (seed 68516).
    pub(crate) fn late_messages(&mut self) -> Result<(), String> {
        let deliveries = self.events.iter().filter(|(_, event)| matches!(event, Event::Deliver { .. }));
        let last = deliveries.map(|((at, _), _)| *at).max().unwrap_or_default();
        self.run(last.saturating_sub(self.at))
    }

    /// Lets so much time go by.
    pub(crate) fn run(&mut self, time: Duration) -> Result<(), String> {
        let end = self.at + time;
        while let Some(first) = self.events.first_entry() {
            if first.key().0 > end {
                break;
            }
            let ((at, _), event) = first.remove_entry();
            self.at = self.at.max(at);
            self.world.cluster.at = self.at;
            self.handle(event)?;
            self.check_leases()?;
        }
        self.at = end;
        self.world.cluster.at = end;
        Ok(())
    }

    /// The safety phase: until there were as many faults as there are to be.
    pub(crate) fn safety(&mut self) -> Result<(), String> {
        (self.faults, self.requests) = (true, true);
        if let Some(rates) = self.world.swarm.rates() {
            for machine in self.machines.values_mut() {
                machine.rate = self.world.random.pick(&rates).unwrap_or(1000);
            }
        }
        self.schedule(Duration::ZERO, Event::Fault);
        self.schedule(Duration::ZERO, Event::Request);
        while self.world.events < self.world.swarm.events {
            self.run(self.world.swarm.between_faults)?;
        }
        Ok(())
    }

    /// While a leader may answer reads by its clock, as it stands now, nobody leads a later term.
    fn check_leases(&mut self) -> Result<(), String> {
        if self.world.swarm.config.lease_drift.is_none() || self.world.cluster.leaders() < 2 {
            return Ok(());
        }
        for id in self.world.ids.clone() {
            self.set_clock(id)?;
        }
        self.world.cluster.check_leases()
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        let node = match &event {
            Event::Deliver { to, .. } => Some(*to),
            Event::Wake(id, _)
            | Event::Stored(id, _)
            | Event::Applied(id, _)
            | Event::Fetched(id, _)
            | Event::Imaged(id, _)
            | Event::Drain(id, _) => Some(*id),
            Event::Start(_) | Event::Fault | Event::Request => None,
        };
        if let Some(id) = node {
            let paused = self.machine(id)?.paused;
            if paused > self.at {
                self.schedule(paused - self.at, event);
                return Ok(());
            }
            self.set_clock(id)?;
        }
        match event {
            Event::Deliver { from, to, message } => self.deliver(from, to, message),
            Event::Wake(id, due) => self.wake(id, due),
            Event::Stored(id, boots) if self.is_run(id, boots) => {
                self.machine(id)?.storing = false;
                self.world.cluster.store(id, true)?;
                self.settle(id)
            }
            Event::Applied(id, boots) if self.is_run(id, boots) => self.applied(id),
            Event::Fetched(id, boots) if self.is_run(id, boots) => {
                self.machine(id)?.fetching = false;
                self.world.cluster.fetch(id)?;
                self.settle(id)
            }
            Event::Imaged(id, boots) if self.is_run(id, boots) => {
                self.machine(id)?.imaging = false;
                self.world.cluster.image(id, 1)?;
                self.settle(id)
            }
            Event::Drain(id, boots) if self.is_run(id, boots) => {
                self.machine(id)?.draining = false;
                self.settle(id)
            }
            Event::Stored(..) | Event::Applied(..) | Event::Fetched(..) | Event::Imaged(..) | Event::Drain(..) => {
                Ok(())
            }
            Event::Start(id) => self.start(id),
            Event::Fault => self.fault(),
            Event::Request => self.request(),
        }
    }

    /// Faults come by themselves from now on, though they may have stopped.
    pub(crate) fn begin_faults(&mut self) {
        if !self.events.values().any(|event| matches!(event, Event::Fault)) {
            self.schedule(Duration::ZERO, Event::Fault);
        }
    }

    /// For the report of a campaign: how long recoveries take, in election timeouts.
    pub(crate) fn longest_recovery(&mut self, timeouts: u32) {
        let class = match timeouts {
            0..=5 => "recoveries of a majority within 5 election timeouts",
            6..=10 => "recoveries of a majority within 10 election timeouts",
            11..=20 => "recoveries of a majority within 20 election timeouts",
            _ => "recoveries of a majority that take longer",
        };
        self.world.cluster.coverage.hit(class);
    }

    fn is_run(&self, id: NodeId, boots: u64) -> bool {
        self.world.is_up(id) && self.world.cluster.nodes.get(&id).is_some_and(|node| node.boots == boots)
    }

    /// Brings a node's own clock up to now.
    fn set_clock(&mut self, id: NodeId) -> Result<(), String> {
        let at = self.at;
        let machine = self.machine(id)?;
        let passed = at.saturating_sub(machine.at);
        machine.at = at;
        let nanos = passed.as_nanos() * u128::from(machine.rate) / 1000;
        let node = self.world.cluster.node(id)?;
        node.now = node.now.plus(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        Ok(())
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, message: Message) -> Result<(), String> {
        let hurry = !self.world.steady.contains(&to) && self.world.random.percent(self.world.swarm.weather.hurry / 2);
        if !hurry || !self.world.is_up(to) {
            self.world.cluster.arrive(from, to, message)?;
            return self.follow_up(to);
        }
        self.world.cluster.arrive_only(from, to, message)?;
        self.drain_soon(to)
    }

    /// A driver takes several inputs before it asks for effects.
    fn drain_soon(&mut self, id: NodeId) -> Result<(), String> {
        let boots = self.world.cluster.node(id)?.boots;
        if !std::mem::replace(&mut self.machine(id)?.draining, true) {
            let soon = self.world.random.duration(self.world.swarm.latency);
            self.schedule(soon, Event::Drain(id, boots));
        }
        Ok(())
    }

    fn settle(&mut self, id: NodeId) -> Result<(), String> {
        self.world.cluster.drain(id)?;
        self.follow_up(id)
    }

    fn wake(&mut self, id: NodeId, due: Duration) -> Result<(), String> {
        let machine = self.machine(id)?;
        if machine.wake != Some(due) {
            return Ok(());
        }
        machine.wake = None;
        let node = self.world.cluster.node(id)?;
        if node.next_wake().is_some_and(|wake| wake <= node.now) {
            self.world.cluster.wake(id)?;
        }
        self.follow_up(id)
    }

    fn applied(&mut self, id: NodeId) -> Result<(), String> {
        self.machine(id)?.applying = false;
        let some = self.world.random.below(8);
        let next = self.world.cluster.node(id)?.applying.front().map(|entry| entry.id.index);
        match next {
            Some(next) => self.world.cluster.apply(id, next.plus(some))?,
            None => self.world.cluster.apply(id, Index(u64::MAX))?,
        }
        self.settle(id)
    }

    /// After a node did something: what it sent is on its way, what it began will be done, and it will be woken.
    fn follow_up(&mut self, id: NodeId) -> Result<(), String> {
        let sent = self.world.cluster.sent.as_mut().map(std::mem::take).unwrap_or_default();
        for (from, to, message) in sent {
            self.post(from, to, message);
        }
        if !self.world.is_up(id) {
            return Ok(());
        }
        let node = self.world.cluster.node(id)?;
        let (boots, now, wake) = (node.boots, node.now, node.next_wake());
        let (storing, fetching, imaging) =
            (node.writing.is_some(), !node.fetching.is_empty(), !node.imaging.is_empty());
        let applying = !node.applying.is_empty() || node.restoring.is_some();
        let machine = self.machine(id)?;
        if machine.boots != boots {
            machine.boots = boots;
            (machine.storing, machine.applying, machine.fetching) = (false, false, false);
            (machine.imaging, machine.draining) = (false, false);
        }
        let store = storing && !std::mem::replace(&mut machine.storing, storing);
        let apply = applying && !std::mem::replace(&mut machine.applying, applying);
        let fetch = fetching && !std::mem::replace(&mut machine.fetching, fetching);
        let image = imaging && !std::mem::replace(&mut machine.imaging, imaging);
        if image {
            let after = self.backend_time(id, self.world.swarm.weather.fetch);
            self.schedule(after, Event::Imaged(id, boots));
        }
        if store {
            let after = self.disk_time(id)?;
            self.schedule(after, Event::Stored(id, boots));
        }
        if apply {
            let after = self.backend_time(id, self.world.swarm.weather.apply);
            self.schedule(after, Event::Applied(id, boots));
        }
        if fetch {
            let after = self.backend_time(id, self.world.swarm.weather.fetch);
            self.schedule(after, Event::Fetched(id, boots));
        }
        if let Some(wake) = wake {
            self.wake_after(id, wake.since(now))?;
        }
        Ok(())
    }

    /// A wake-up that is on its way already serves for all that are due later.
    fn wake_after(&mut self, id: NodeId, own: Duration) -> Result<(), String> {
        let at = self.at;
        let machine = self.machine(id)?;
        let nanos = (own.as_nanos() * 1000).div_ceil(u128::from(machine.rate)) + 1;
        let after = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4));
        if machine.wake.is_none_or(|wake| wake > at + after) {
            machine.wake = Some(at + after);
            self.schedule(after, Event::Wake(id, at + after));
        }
        Ok(())
    }

    fn disk_time(&mut self, id: NodeId) -> Result<Duration, String> {
        let latency = self.world.swarm.disk_latency;
        let usual = latency + self.world.random.duration(latency);
        let (more, times) = self.machine(id)?.stall;
        if times == 0 {
            return Ok(usual);
        }
        self.machine(id)?.stall = (more, times - 1);
        Ok(usual + more)
    }

    /// What reading the log or applying a batch takes: little, or much.
    fn backend_time(&mut self, id: NodeId, slow: u64) -> Duration {
        let held_up = !self.world.steady.contains(&id) && self.world.random.percent(slow * 2);
        let most = if held_up { self.world.swarm.config.election_timeout * 4 } else { Duration::from_micros(200) };
        self.world.random.duration(most)
    }

    /// A message begins its way.
    fn post(&mut self, from: NodeId, to: NodeId, mut message: Message) {
        let latency = self.world.swarm.latency;
        let mut after = latency + self.world.random.duration(latency);
        if !self.world.is_steady(from, to) {
            let weather = self.world.swarm.weather.clone();
            self.world.damage(&mut message);
            let coverage = &mut self.world.cluster.coverage;
            if self.world.random.percent(weather.drop) {
                coverage.hit("messages lost");
                return self.world.cluster.lose(from, to, &message);
            }
            let timeout = self.world.swarm.config.election_timeout;
            if self.world.random.percent(weather.duplicate) {
                coverage.hit("messages delivered twice");
                let again = after + self.world.random.duration(latency * 10);
                self.schedule(again, Event::Deliver { from, to, message: message.clone() });
            }
            let coverage = &mut self.world.cluster.coverage;
            if self.world.random.percent(weather.late) {
                // In another term, perhaps.
                coverage.hit("messages delivered late");
                after += self.world.random.duration(timeout * 12);
            } else if self.world.random.percent(weather.reorder) {
                coverage.hit("messages out of order");
                after += self.world.random.duration(latency * 10);
            }
        }
        self.schedule(after, Event::Deliver { from, to, message });
    }

    fn start(&mut self, id: NodeId) -> Result<(), String> {
        if self.world.is_up(id) {
            return Ok(());
        }
        self.set_clock(id)?;
        self.world.start(id)?;
        self.follow_up(id)
    }

    fn request(&mut self) -> Result<(), String> {
        if !self.requests {
            return Ok(());
        }
        let mean = self.world.swarm.between_requests;
        let next = self.world.random.duration(mean * 2);
        self.schedule(next, Event::Request);
        let id = self.world.any();
        // Several at once, now and then.
        let burst = if self.world.random.percent(5) { self.world.random.below(12) } else { 0 };
        for _ in 0..=burst {
            self.ask(id)?;
        }
        Ok(())
    }

    fn ask(&mut self, id: NodeId) -> Result<(), String> {
        let at = self.at;
        if self.machine(id)?.paused > at {
            return Ok(());
        }
        self.set_clock(id)?;
        let Some(input) = self.world.request(id)? else { return Ok(()) };
        if self.world.random.percent(self.world.swarm.weather.hurry) {
            self.world.cluster.step_only(id, input)?;
            return self.drain_soon(id);
        }
        self.world.cluster.step(id, input)?;
        self.follow_up(id)
    }

    /// From here on nothing goes wrong at these nodes, or between them.
    pub(crate) fn steady(&mut self, ids: &[NodeId]) -> Result<(), String> {
        self.world.let_be(ids);
        for id in ids {
            self.set_clock(*id)?;
            let machine = self.machine(*id)?;
            (machine.rate, machine.paused, machine.stall, machine.wake) = (1000, machine.at, (Duration::ZERO, 0), None);
            self.start(*id)?;
            self.let_lead(*id, true)?;
        }
        Ok(())
    }

    /// An operator lets a node lead, or keeps it from that.
    pub(crate) fn let_lead(&mut self, id: NodeId, may_lead: bool) -> Result<(), String> {
        self.set_clock(id)?;
        let preference = self.world.cluster.node(id)?.preference;
        if preference.may_lead != may_lead {
            self.world.cluster.prefer(id, Preference { may_lead, ..preference })?;
        }
        self.follow_up(id)
    }

    /// An operator starts the cluster at a node, perhaps once more.
    pub(crate) fn initialize(&mut self, id: NodeId) -> Result<(), String> {
        self.set_clock(id)?;
        let input = self.world.cluster.initialize(id, self.world.cluster.membership())?;
        self.world.cluster.step(id, input)?;
        self.follow_up(id)
    }

    /// Requests for changes that are on their way are lost: nobody knows whom they would make voters of.
    pub(crate) fn forget_changes(&mut self) {
        let is_one = |event: &Event| matches!(event, Event::Deliver { message, .. } if matches!(message.body, Body::Change { .. }));
        self.events.retain(|_, event| !is_one(event));
    }

    /// An operator wants these nodes to vote, and asks this one for it.
    pub(crate) fn regroup(&mut self, id: NodeId, voters: &[NodeId]) -> Result<(), String> {
        self.set_clock(id)?;
        let voters = voters.iter().map(|id| Peer::new(id.0, format!("h{}", id.0)));
        let input = self.world.cluster.change(id, Change::to(Membership::new(voters)))?;
        self.world.cluster.step(id, input)?;
        self.follow_up(id)
    }

    /// A client asks a node for something right now.
    pub(crate) fn propose(&mut self, id: NodeId) -> Result<bytes::Bytes, String> {
        self.set_clock(id)?;
        let command = self.world.command();
        let input = self.world.cluster.propose(id, EntryKind::Command, vec![command.clone()])?;
        self.world.cluster.step(id, input)?;
        self.follow_up(id)?;
        Ok(command)
    }

    pub(crate) fn read(&mut self, id: NodeId) -> Result<RequestId, String> {
        self.set_clock(id)?;
        let lease = self.world.swarm.config.lease_drift.is_some();
        let input = self.world.cluster.read(id, lease)?;
        let request = RequestId(self.world.cluster.requests);
        self.world.cluster.step(id, input)?;
        self.follow_up(id)?;
        Ok(request)
    }

    /// How far a node has applied.
    pub(crate) fn applied_upto(&self, id: NodeId) -> Index {
        let node = self.world.cluster.nodes.get(&id);
        node.and_then(|node| node.applied.last_key_value()).map_or(Index::ZERO, |(index, _)| *index)
    }
}
