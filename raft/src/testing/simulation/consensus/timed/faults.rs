//! What goes wrong in a schedule with a clock: one fault at a time, drawn by the run's weights.

use super::{Event, Timed};
use crate::testing::simulation::consensus::world::World;
use crate::types::NodeId;

impl Timed<'_> {
    pub(super) fn fault(&mut self) -> Result<(), String> {
        if !self.faults {
            return Ok(());
        }
        let next = self.world.random.duration(self.world.swarm.between_faults * 2);
        self.schedule(next, Event::Fault);
        let Some(id) = self.world.any_unsteady() else { return Ok(()) };
        self.world.events += 1;
        let meanwhile = u64::from(!self.world.steady.is_empty());
        self.world.cluster.coverage.add("minorities that go on failing", meanwhile);
        let weather = self.world.swarm.weather.clone();
        let kinds = [
            weather.crash,
            weather.disk,
            weather.pause,
            weather.clock,
            weather.campaign,
            weather.partition,
            weather.one_way,
            weather.bridge,
            weather.transfer,
            weather.hint,
            weather.prefer,
            weather.estrange,
        ];
        if kinds.iter().sum::<u64>() == 0 {
            return Ok(());
        }
        match self.world.random.weighted(&kinds) {
            0 => self.crash(id),
            1 => self.stall(id),
            2 => self.pause(id),
            3 => self.tamper(id),
            4 => {
                self.set_clock(id)?;
                self.world.campaign(id)?;
                self.follow_up(id)
            }
            5 => {
                self.world.partition();
                Ok(())
            }
            6 => {
                self.world.cut_link_one_way();
                Ok(())
            }
            7 => {
                self.world.bridge();
                Ok(())
            }
            8 => self.at_any_node(|world| world.transfer(id)),
            9 => self.at_any_node(|world| world.hint(id)),
            10 => self.at_any_node(|world| world.prefer(id)),
            _ => self.at_any_node(World::estrange),
        }
    }

    /// Something that may come to other nodes than the one that was drawn, steady ones too.
    fn at_any_node(&mut self, event: impl FnOnce(&mut World) -> Result<(), String>) -> Result<(), String> {
        let ids = self.world.ids.clone();
        for id in &ids {
            self.set_clock(*id)?;
        }
        event(self.world)?;
        ids.into_iter().try_for_each(|id| self.follow_up(id))
    }

    fn crash(&mut self, id: NodeId) -> Result<(), String> {
        if self.world.is_up(id) {
            self.world.crash(id)?;
            let timeout = self.world.swarm.config.election_timeout;
            let down = self.world.random.pick(&[1, 2, 8, 30]).unwrap_or(1) * timeout;
            // Back before what it promised is over, often.
            let soon = self.world.swarm.config.lease_drift.is_some() && self.world.random.percent(60);
            let down = if soon { self.world.swarm.config.heartbeat_interval } else { down };
            let down = self.world.random.duration(down);
            self.schedule(down, Event::Start(id));
        }
        Ok(())
    }

    /// The next writes of a node take long.
    fn stall(&mut self, id: NodeId) -> Result<(), String> {
        let most = self.world.swarm.config.stall_timeout * 3;
        let (long, times) = (self.world.random.duration(most), self.world.random.between(1, 5));
        self.world.cluster.coverage.hit("stalls of a disk");
        self.machine(id)?.stall = (long, times);
        self.world.cluster.say(id, || format!("takes {long:?} for each of its next {times} writes"));
        Ok(())
    }

    /// A process stands still; its clock does not.
    fn pause(&mut self, id: NodeId) -> Result<(), String> {
        let long = self.world.random.duration(self.world.swarm.config.election_timeout * 8);
        let until = self.at + long;
        self.world.cluster.coverage.hit("pauses of a process");
        let machine = self.machine(id)?;
        machine.paused = machine.paused.max(until);
        self.world.cluster.say(id, || format!("stands still for {long:?}"));
        Ok(())
    }

    /// A clock jumps ahead, or runs at another rate from now on; where leases count on it, within what was vouched for.
    fn tamper(&mut self, id: NodeId) -> Result<(), String> {
        self.set_clock(id)?;
        let vouched = self.world.swarm.rates();
        if self.world.random.percent(50) || vouched.is_some() {
            let any = [500, 900, 990, 1000, 1000, 1010, 1100, 2000];
            let rates = vouched.as_ref().map_or(&any[..], |rates| &rates[..]);
            let rate = self.world.random.pick(rates).unwrap_or(1000);
            self.machine(id)?.rate = rate;
            self.world.cluster.coverage.add("clocks that run at another rate", u64::from(rate != 1000));
            self.world.cluster.say(id, || format!("has a clock that does {rate} milliseconds in a second"));
        } else {
            let by = self.world.random.duration(self.world.swarm.config.election_timeout * 5);
            let node = self.world.cluster.node(id)?;
            node.now = node.now.plus(by);
            self.world.cluster.coverage.hit("clocks that jump");
            self.world.cluster.say(id, || format!("has a clock that jumps by {by:?}"));
        }
        self.machine(id)?.wake = None;
        self.follow_up(id)
    }
}
