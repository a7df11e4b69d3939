//! A schedule without a clock: chance alone decides which event is next, so that orders occur which no sensible timing leads to.

use std::time::Duration;

use super::world::World;
use crate::types::{Index, NodeId};

impl World {
    /// The safety phase of a run without a clock.
    pub(crate) fn chaos(&mut self) -> Result<(), String> {
        while self.events < self.swarm.events {
            self.events += 1;
            self.chaotic_event()?;
            self.cluster.check_leases()?;
        }
        Ok(())
    }

    fn chaotic_event(&mut self) -> Result<(), String> {
        let weather = &self.swarm.weather;
        let backend = weather.disk + weather.apply + weather.fetch;
        let cuts = [weather.partition, weather.one_way, weather.bridge];
        let kinds = [
            120,
            24,
            30,
            weather.crash * 2,
            backend,
            cuts[0],
            cuts[1],
            cuts[2],
            weather.campaign * 2,
            weather.transfer * 2,
            weather.hint * 2,
            weather.prefer * 2,
        ];
        let id = self.any();
        match self.random.weighted(&kinds) {
            0 => self.some_messages(),
            1 => self.some_time(),
            2 => self.chaotic_request(id),
            3 if self.is_up(id) => self.crash(id),
            3 => self.start(id),
            4 => self.backend(id),
            5 => {
                self.partition();
                Ok(())
            }
            6 => {
                self.cut_link_one_way();
                Ok(())
            }
            7 => {
                self.bridge();
                Ok(())
            }
            8 => self.campaign(id),
            9 => self.transfer(id),
            10 => self.hint(id),
            _ => self.prefer(id),
        }
    }

    /// A copy of an old message arrives, long after the first one.
    fn late(&mut self) -> Result<(), String> {
        let count = self.cluster.delayed.len() as u64;
        if count == 0 {
            return Ok(());
        }
        let place = usize::try_from(self.random.below(count)).unwrap_or_default();
        let (from, to, message) = self.cluster.delayed.swap_remove(place);
        if self.cluster.cut.contains(&(from, to)) {
            return Ok(());
        }
        self.cluster.coverage.hit("messages delivered late");
        self.cluster.arrive(from, to, message)
    }

    /// Up to eight deliveries, of which some are lost, doubled or out of turn.
    fn some_messages(&mut self) -> Result<(), String> {
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
            let reordered = self.random.percent(self.swarm.weather.reorder);
            let place = if reordered { self.random.below(len) } else { 0 };
            self.one_message(link, usize::try_from(place).unwrap_or_default())?;
        }
        Ok(())
    }

    fn one_message(&mut self, link: (NodeId, NodeId), place: usize) -> Result<(), String> {
        let queue = self.cluster.links.entry(link).or_default();
        self.cluster.coverage.add("messages out of order", u64::from(place > 0));
        if self.random.percent(self.swarm.weather.drop) {
            if let Some(message) = queue.remove(place) {
                self.cluster.coverage.hit("messages lost");
                self.cluster.lose(link.0, link.1, &message);
            }
            return Ok(());
        }
        if let Some(again) = queue.get(place)
            && self.random.percent(self.swarm.weather.duplicate)
        {
            let again = again.clone();
            self.cluster.coverage.hit("messages delivered twice");
            // The copy comes soon, or in another term perhaps.
            if self.random.percent(50) {
                queue.push_back(again);
            } else {
                self.cluster.delayed.push((link.0, link.1, again));
            }
        }
        if let Some(mut message) = self.cluster.links.get(&link).and_then(|queue| queue.get(place)).cloned() {
            self.damage(&mut message);
            if let Some(queue) = self.cluster.links.get_mut(&link) {
                queue[place] = message;
            }
        }
        // A driver takes several messages before it asks for effects.
        if self.random.percent(self.swarm.weather.hurry) {
            self.cluster.deliver_only(link.0, link.1, place)
        } else {
            self.cluster.deliver(link.0, link.1, place)
        }
    }

    /// All clocks move on a little, or one node's moves on alone: a pause of the others, or a clock that drifts.
    fn some_time(&mut self) -> Result<(), String> {
        let by = Duration::from_millis(self.random.below(80));
        if self.random.percent(80) || self.swarm.config.lease_drift.is_some() {
            self.cluster.at += by;
            let ids = self.ids.clone();
            return self.cluster.advance(&ids, by, false);
        }
        let id = self.any();
        self.cluster.advance(&[id], by * 8, false)
    }

    fn chaotic_request(&mut self, id: NodeId) -> Result<(), String> {
        let Some(input) = self.request(id)? else { return Ok(()) };
        if self.random.percent(self.swarm.weather.hurry) {
            self.cluster.step_only(id, input)
        } else {
            self.cluster.step(id, input)
        }
    }

    /// A disk, a state machine or a log stops getting things done, does one thing, or works again.
    fn backend(&mut self, id: NodeId) -> Result<(), String> {
        if !self.is_up(id) {
            return Ok(());
        }
        let weather = &self.swarm.weather;
        let kinds = [weather.disk, weather.apply, weather.fetch, 3, 3, 3];
        let kind = self.random.weighted(&kinds);
        let some = self.random.below(3);
        let node = self.cluster.node(id)?;
        match kind {
            0 => node.hold.disk = true,
            1 => node.hold.apply = true,
            2 => (node.hold.fetch, node.hold.images) = (true, some == 0),
            3 => return self.cluster.release(id),
            4 => {
                self.cluster.store(id, true)?;
                return self.cluster.drain(id);
            }
            _ => {
                let next = node.applying.front().map_or(Index(u64::MAX), |entry| entry.id.index.plus(some));
                self.cluster.fetch(id)?;
                self.cluster.apply(id, next)?;
                self.cluster.image(id, usize::try_from(some).unwrap_or_default())?;
                return self.cluster.drain(id);
            }
        }
        Ok(())
    }
}
