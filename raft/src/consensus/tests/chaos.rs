//! Random schedules: everything that may go wrong does, in an order that a seed decides; then all is healed, and the
//! cluster must make progress. `SEEDS=20000` runs more of them, `SEED=7` runs one and shows what happened.

use std::time::Duration;

use bytes::Bytes;

use super::cluster::Cluster;
use crate::config::Config;
use crate::consensus::{Input, RoleKind};
use crate::types::{EntryKind, LogId, NodeId};

/// How many seeds run by default: a few seconds in a debug build.
const SEEDS: u64 = 400;
/// How many random events make one schedule.
const EVENTS: u64 = 400;
/// How much of a transcript a failure shows.
const SHOWN: usize = 600;

/// A splitmix64 sequence.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        if list.is_empty() { None } else { Some(list[usize::try_from(self.below(list.len() as u64)).unwrap()]) }
    }
}

/// How likely each kind of event is, drawn anew for each seed: some schedules are calm, some lose most messages.
struct Weather {
    drop: u64,
    duplicate: u64,
    reorder: u64,
    crash: u64,
    hold: u64,
    partition: u64,
    campaign: u64,
    hurry: u64,
}

struct Chaos {
    random: Random,
    weather: Weather,
    cluster: Cluster,
    ids: Vec<NodeId>,
    commands: u64,
}

impl Chaos {
    fn new(seed: u64, traced: bool) -> Self {
        let mut random = Random(seed);
        let defaults = Config::default();
        let count = random.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5]).unwrap();
        // Small limits, so that a short schedule meets them all.
        let config = Config {
            pre_vote: random.percent(80),
            check_quorum: random.percent(80),
            max_append_bytes: random.pick(&[1, 200, 500, 1 << 20]).unwrap(),
            max_inflight_appends: random.pick(&[1, 2, 3, 256]).unwrap(),
            max_inflight_bytes: random.pick(&[1, 400, 1 << 20]).unwrap(),
            max_write_bytes: random.pick(&[1, 300, 1 << 20]).unwrap(),
            max_applying_bytes: random.pick(&[1, 300, 1 << 20]).unwrap(),
            max_tail_bytes: random.pick(&[1, 300, 1000, 1 << 20]).unwrap(),
            max_uncommitted_bytes: random.pick(&[500, 2000, 1 << 20]).unwrap(),
            max_pending_requests: random.pick(&[3, 1 << 16]).unwrap(),
            ..defaults
        };
        let calm = random.below(4);
        let weather = Weather {
            drop: random.below(40) * calm / 3,
            duplicate: random.below(20) * calm / 3,
            reorder: random.below(60) * calm / 3,
            crash: random.below(6),
            hold: random.below(10),
            partition: random.below(6),
            campaign: random.below(4),
            hurry: random.below(60),
        };
        let cluster = Cluster::new(count, count, config, seed, traced);
        let ids = (1..=count).map(NodeId).collect();
        Self { random, weather, cluster, ids, commands: 0 }
    }

    fn up(&self, id: NodeId) -> bool {
        self.cluster.nodes[&id].core.is_some()
    }

    fn any(&mut self) -> NodeId {
        self.random.pick(&self.ids).unwrap()
    }

    fn command(&mut self) -> Bytes {
        self.commands += 1;
        let size = self.random.pick(&[0, 0, 0, 100, 700]).unwrap();
        Bytes::from(format!("{}{}", self.commands, ".".repeat(size)))
    }

    fn event(&mut self) -> Result<(), String> {
        let kinds =
            [60, 12, 10, 5, self.weather.crash, self.weather.hold, self.weather.partition, self.weather.campaign];
        let mut at = self.random.below(kinds.iter().sum());
        let kind = kinds.iter().position(|weight| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        match kind {
            Some(0) => self.message(),
            Some(1) => self.time(),
            Some(2) => self.propose(),
            Some(3) => self.read(),
            Some(4) => self.life(),
            Some(5) => self.backend(),
            Some(6) => {
                self.partition();
                Ok(())
            }
            _ => {
                let id = self.any();
                if self.up(id) { self.cluster.step(id, Input::Campaign) } else { Ok(()) }
            }
        }
    }

    /// A copy of an old message arrives, long after the first one.
    fn late(&mut self) -> Result<(), String> {
        let count = self.cluster.delayed.len() as u64;
        if count == 0 {
            return Ok(());
        }
        let (from, to, message) = self.cluster.delayed.swap_remove(usize::try_from(self.random.below(count)).unwrap());
        if self.cluster.cut.contains(&(from, to)) { Ok(()) } else { self.cluster.arrive(from, to, message) }
    }

    /// Up to eight deliveries, of which some are lost, doubled or out of turn.
    fn message(&mut self) -> Result<(), String> {
        if self.random.percent(10) {
            self.late()?;
        }
        for _ in 0..=self.random.below(8) {
            let open: Vec<_> = self
                .cluster
                .links
                .iter()
                .filter(|(link, queue)| !queue.is_empty() && !self.cluster.cut.contains(link))
                .map(|(link, queue)| (*link, queue.len() as u64))
                .collect();
            let Some((link, len)) = self.random.pick(&open) else { return Ok(()) };
            let place = if self.random.percent(self.weather.reorder) { self.random.below(len) } else { 0 };
            let place = usize::try_from(place).unwrap();
            let queue = self.cluster.links.entry(link).or_default();
            if self.random.percent(self.weather.drop) {
                queue.remove(place);
                continue;
            }
            if self.random.percent(self.weather.duplicate) {
                let again = queue[place].clone();
                // The copy comes soon, or in another term perhaps.
                if self.random.percent(50) {
                    queue.push_back(again);
                } else {
                    self.cluster.delayed.push((link.0, link.1, again));
                }
            }
            // A driver takes several messages before it asks for effects.
            if self.random.percent(self.weather.hurry) {
                self.cluster.deliver_only(link.0, link.1, place)?;
            } else {
                self.cluster.deliver(link.0, link.1, place)?;
            }
        }
        Ok(())
    }

    /// All clocks move on a little, or one node's moves on alone: a pause of the others, or a clock that drifts.
    fn time(&mut self) -> Result<(), String> {
        let by = Duration::from_millis(self.random.below(80));
        if self.random.percent(80) {
            let ids = self.ids.clone();
            return self.cluster.advance(&ids, by, false);
        }
        let id = self.any();
        self.cluster.advance(&[id], by * 8, false)
    }

    fn propose(&mut self) -> Result<(), String> {
        let id = self.any();
        if !self.up(id) {
            return Ok(());
        }
        let commands = (0..=self.random.below(3)).map(|_| self.command()).collect();
        let input = self.cluster.propose(id, commands)?;
        if self.random.percent(self.weather.hurry) {
            self.cluster.step_only(id, input)
        } else {
            self.cluster.step(id, input)
        }
    }

    fn read(&mut self) -> Result<(), String> {
        let id = self.any();
        if !self.up(id) {
            return Ok(());
        }
        let input = self.cluster.read(id)?;
        self.cluster.step(id, input)
    }

    fn life(&mut self) -> Result<(), String> {
        let id = self.any();
        if !self.up(id) {
            // Some state machines are durable themselves.
            let remembered = self.cluster.nodes[&id].remembered;
            let applied = if self.random.percent(30) { remembered } else { LogId::ZERO };
            return self.cluster.boot(id, applied);
        }
        let keep = if self.random.percent(50) { Some(usize::try_from(self.random.below(4)).unwrap()) } else { None };
        self.cluster.crash(id, keep)
    }

    fn backend(&mut self) -> Result<(), String> {
        let id = self.any();
        if !self.up(id) {
            return Ok(());
        }
        match self.random.below(6) {
            0 => self.cluster.nodes.get_mut(&id).unwrap().hold.disk = true,
            1 => self.cluster.nodes.get_mut(&id).unwrap().hold.apply = true,
            2 => self.cluster.nodes.get_mut(&id).unwrap().hold.fetch = true,
            3 => return self.cluster.release(id),
            4 => {
                self.cluster.store(id, true)?;
                return self.cluster.drain(id);
            }
            _ => {
                self.cluster.fetch(id)?;
                let next = self.cluster.nodes[&id].applying.front().map(|entry| entry.id.index);
                if let Some(next) = next {
                    self.cluster.apply(id, next.plus(self.random.below(3)))?;
                }
                return self.cluster.drain(id);
            }
        }
        Ok(())
    }

    fn partition(&mut self) {
        match self.random.below(4) {
            0 => self.cluster.cut.clear(),
            // One direction of one link.
            1 => {
                let link = (self.any(), self.any());
                self.cluster.cut.insert(link);
            }
            2 => {
                let id = self.any();
                for other in self.ids.iter().filter(|other| **other != id) {
                    self.cluster.cut.extend([(id, *other), (*other, id)]);
                }
            }
            _ => {
                let side = self.random.next();
                for one in &self.ids {
                    for other in &self.ids {
                        if (side >> one.0 & 1) != (side >> other.0 & 1) {
                            self.cluster.cut.insert((*one, *other));
                        }
                    }
                }
            }
        }
    }

    /// Everything works again: soon there is one leader, every node accepts writes and reads, and all agree.
    fn heal(&mut self) -> Result<(), String> {
        let ids = self.ids.clone();
        self.cluster.say(|| "all is healed".into());
        self.cluster.cut.clear();
        self.cluster.delayed.clear();
        for id in &ids {
            self.cluster.release(*id)?;
        }
        self.cluster.restart_all()?;
        // A batch that was passed on, and whose answer was lost, is given up by its client; everything else is answered.
        for node in self.cluster.nodes.values_mut() {
            let asked = std::mem::take(&mut node.clients.asked);
            node.clients.timed_out.extend(asked.into_keys());
        }
        let timeout = self.cluster.config.election_timeout;
        self.cluster.advance(&ids, timeout * 20, true)?;
        let mut written = Vec::new();
        for id in &ids {
            let command = self.command();
            written.push(command.clone());
            let input = self.cluster.propose(*id, vec![command])?;
            self.cluster.step(*id, input)?;
            let input = self.cluster.read(*id)?;
            self.cluster.step(*id, input)?;
            self.cluster.stabilize(None)?;
        }
        self.cluster.advance(&ids, timeout, true)?;
        for command in written {
            if !self.cluster.checker.committed().any(|entry| entry.data == command) {
                return Err(format!("no progress: {command:?} was proposed after the healing, and is not applied"));
            }
        }
        self.agreement()
    }

    fn agreement(&mut self) -> Result<(), String> {
        let statuses: Vec<_> = self
            .cluster
            .nodes
            .values()
            .filter_map(|node| node.core.as_ref().map(|core| core.status(node.now)))
            .collect();
        let leaders: Vec<_> = statuses.iter().filter(|status| status.role == RoleKind::Leader).collect();
        let [leader] = leaders[..] else { return Err(format!("after the healing these lead: {leaders:?}")) };
        for status in &statuses {
            let same = status.term == leader.term && status.leader == Some(leader.id) && status.last == leader.last;
            if !same || status.applied != leader.last.index || status.stored != leader.last.index {
                return Err(format!("after the healing {status:?} differs from {leader:?}"));
            }
        }
        if let Some(peer) = leader.peers.iter().find(|peer| peer.inflight > 0 || peer.matched != leader.last.index) {
            return Err(format!("after the healing {peer:?} is behind {leader:?}"));
        }
        for node in self.cluster.nodes.values() {
            let clients = &node.clients;
            if !clients.reads.is_empty() || !clients.readable.is_empty() {
                return Err(format!("reads at {} hang: {clients:?}", node.id));
            }
            if !clients.asked.is_empty() || !clients.appended.is_empty() {
                return Err(format!("writes at {} hang: {clients:?}", node.id));
            }
        }
        Ok(())
    }

    fn run(&mut self) -> Result<u64, String> {
        self.cluster.restart_all()?;
        let first = self.any();
        let membership = self.cluster.membership();
        let input = self.cluster.initialize(first, membership)?;
        self.cluster.step(first, input)?;
        for _ in 0..EVENTS {
            self.event()?;
        }
        self.heal()?;
        Ok(self.cluster.checker.committed().filter(|entry| entry.kind == EntryKind::Command).count() as u64)
    }
}

/// Runs one schedule; says how many commands were applied in it.
fn run(seed: u64) -> u64 {
    let attempt = |traced: bool| {
        let mut chaos = Chaos::new(seed, traced);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| chaos.run()));
        let trace = chaos.cluster.take_trace();
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into())).unwrap_or_default())
        });
        (outcome, trace)
    };
    match attempt(false).0 {
        Ok(applied) => applied,
        Err(reason) => {
            let (_, trace) = attempt(true);
            let shown = trace.len().saturating_sub(SHOWN);
            panic!("SEED={seed}: {reason}\nafter:\n{}\nSEED={seed}: {reason}", trace[shown..].join("\n"));
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

#[test]
fn random_schedules_are_safe_and_end_in_progress() {
    if let Some(seed) = number("SEED") {
        run(seed);
        return;
    }
    let first = number("FIRST_SEED").unwrap_or(1);
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let applied: u64 = (first..first + seeds).map(run).sum();
    // Schedules in which nothing happens prove nothing.
    assert!(applied > seeds * 5, "{applied} commands in {seeds} schedules");
    println!("{seeds} schedules applied {applied} commands");
}
