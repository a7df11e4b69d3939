//! What a seed draws before its run begins: how many nodes, which limits, and which faults how often. Some runs are calm, some lose
//! most messages, some have tiny limits: a mix of everything all the time would never meet what only a quiet stretch leads to.

use std::time::Duration;

use crate::config::Config;
use crate::testing::Random;
use crate::testing::simulation::Options;

/// The kinds of fault, as they can be switched off by name.
pub(crate) const FAULTS: &[&str] = &[
    "drop",
    "duplicate",
    "reorder",
    "late",
    "crash",
    "tear",
    "compact",
    "keep",
    "disk",
    "apply",
    "fetch",
    "partition",
    "one-way",
    "bridge",
    "pause",
    "clock",
    "campaign",
    "transfer",
    "hint",
    "prefer",
    "change",
    "hurry",
    "damage",
    "estrange",
];

/// About how many requests there are in a run with a clock.
const MAX_REQUESTS: u32 = 1000;

/// A seed's own mix.
#[derive(Clone, Debug)]
pub(crate) struct Swarm {
    pub(crate) nodes: u64,
    /// How many of them are voters at first.
    pub(crate) voters: u64,
    pub(crate) config: Config,
    pub(crate) weather: Weather,
    /// Whether time decides what happens next, or chance alone.
    pub(crate) timed: bool,
    /// How many random events there are before the healing.
    pub(crate) events: u64,
    /// With a clock: the mean time between two faults, and between two requests.
    pub(crate) between_faults: Duration,
    pub(crate) between_requests: Duration,
    /// What a message takes at least; at most twice that, unless it is held up.
    pub(crate) latency: Duration,
    /// What a write takes at least; at most twice that, unless the disk stalls.
    pub(crate) disk_latency: Duration,
}

/// How likely each kind of event is.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    // Of a hundred messages, or crashes, or boots.
    pub(crate) drop: u64,
    pub(crate) duplicate: u64,
    pub(crate) reorder: u64,
    pub(crate) late: u64,
    pub(crate) hurry: u64,
    pub(crate) damage: u64,
    pub(crate) tear: u64,
    pub(crate) compact: u64,
    pub(crate) keep: u64,
    // Weights among the faults.
    pub(crate) crash: u64,
    pub(crate) disk: u64,
    pub(crate) apply: u64,
    pub(crate) fetch: u64,
    pub(crate) partition: u64,
    pub(crate) one_way: u64,
    pub(crate) bridge: u64,
    pub(crate) pause: u64,
    pub(crate) clock: u64,
    pub(crate) campaign: u64,
    pub(crate) transfer: u64,
    pub(crate) hint: u64,
    /// None in runs whose nodes are all alike.
    pub(crate) prefer: u64,
    /// None in runs without leases, or without a clock.
    pub(crate) estrange: u64,
    /// Of a hundred requests; none in runs whose members stay the same.
    pub(crate) change: u64,
}

impl Swarm {
    pub(crate) fn draw(random: &mut Random, options: &Options) -> Self {
        let nodes = pick(random, &[1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7]);
        let config = config(random);
        let mut weather = Weather::draw(random, options);
        let churn = random.percent(40) && options.allows("change");
        weather.prefer = if random.percent(50) { weather.prefer } else { 0 };
        weather.change = if churn { random.between(2, 25) } else { 0 };
        let first = random.any();
        let timed = random.percent(60);
        let events = if timed { random.between(30, 150) } else { 400 };
        let between_faults = Duration::from_millis(pick(random, &[50, 300, 1000, 3000]));
        let between_requests = Duration::from_millis(pick(random, &[3, 20, 100, 400]));
        // Long runs are quiet ones.
        let quiet = between_faults * u32::try_from(events).unwrap_or(u32::MAX) / MAX_REQUESTS;
        let nodes = options.nodes.unwrap_or(nodes).clamp(1, 60);
        let mut config = config;
        config.lease_drift = random.percent(35).then(|| Duration::from_millis(pick(random, &[10, 100, 1000])));
        if config.lease_drift.is_some() && options.allows("estrange") {
            weather.estrange = random.between(2, 12);
        }
        Self {
            nodes,
            voters: if churn { first % nodes + 1 } else { nodes },
            config,
            weather,
            timed,
            events: options.events.map_or(events, |most| events.min(most)),
            between_faults,
            between_requests: between_requests.max(quiet),
            latency: Duration::from_micros(pick(random, &[50, 500, 500, 3000, 15_000])),
            disk_latency: Duration::from_micros(pick(random, &[20, 1000, 1000, 8000])),
        }
    }
}

impl Swarm {
    /// How fast clocks may go where leases count on them, in thousandths: none where they may do as they like.
    pub(crate) fn rates(&self) -> Option<[u64; 3]> {
        let drift = u64::try_from(self.config.lease_drift?.as_millis()).unwrap_or_default();
        Some([1000, 1000 + drift / 2, 1000 + drift])
    }
}

fn pick<T: Copy + Default>(random: &mut Random, list: &[T]) -> T {
    random.pick(list).unwrap_or_default()
}

/// Small limits, so that a short run meets them all.
fn config(random: &mut Random) -> Config {
    let election_timeout = Duration::from_millis(pick(random, &[150, 300, 300, 300, 1000]));
    Config {
        election_timeout,
        heartbeat_interval: election_timeout / pick(random, &[3, 5, 6]).max(2),
        pre_vote: random.percent(80),
        check_quorum: random.percent(80),
        max_append_bytes: pick(random, &[1, 200, 500, 1 << 20]),
        max_inflight_appends: pick(random, &[1, 2, 3, 256]),
        max_inflight_bytes: pick(random, &[1, 400, 1 << 20]),
        max_write_bytes: pick(random, &[1, 300, 1 << 20]),
        max_applying_bytes: pick(random, &[1, 300, 1 << 20]),
        max_tail_bytes: pick(random, &[1, 300, 1000, 1 << 20]),
        max_uncommitted_bytes: pick(random, &[500, 2000, 1 << 20]),
        max_pending_requests: pick(random, &[3, 1 << 16]),
        snapshot_entries: pick(random, &[u64::MAX, 3, 10, 10, 30, 100]),
        snapshot_bytes: pick(random, &[u64::MAX, 1000, 5000]),
        trailing_entries: pick(random, &[0, 1, 5, 20]),
        snapshot_chunk_bytes: pick(random, &[1, 7, 30, 1000]),
        snapshot_window_bytes: pick(random, &[1, 20, 1 << 20]),
        stall_timeout: Duration::from_millis(pick(random, &[200, 1000])),
        priority_settle: election_timeout * pick(random, &[1, 3, 8]),
        catch_up_timeout: election_timeout * pick(random, &[3, 10, 40]),
        ..Config::default()
    }
}

impl Weather {
    fn draw(random: &mut Random, options: &Options) -> Self {
        let calm = random.below(4);
        let mut chance = |fault: &str, below: u64| {
            let drawn = random.below(below);
            if options.allows(fault) { drawn } else { 0 }
        };
        Self {
            drop: chance("drop", 40) * calm / 3,
            duplicate: chance("duplicate", 20) * calm / 3,
            reorder: chance("reorder", 60) * calm / 3,
            late: chance("late", 5) * calm / 3,
            hurry: chance("hurry", 60),
            damage: chance("damage", 20) * calm / 3,
            tear: chance("tear", 100),
            compact: chance("compact", 60),
            keep: chance("keep", 60),
            crash: chance("crash", 8),
            disk: chance("disk", 8),
            apply: chance("apply", 4),
            fetch: chance("fetch", 4),
            partition: chance("partition", 6),
            one_way: chance("one-way", 4),
            bridge: chance("bridge", 4),
            pause: chance("pause", 4),
            clock: chance("clock", 4),
            campaign: chance("campaign", 4),
            transfer: chance("transfer", 6),
            hint: chance("hint", 6),
            prefer: chance("prefer", 8),
            estrange: 0,
            change: 0,
        }
    }
}
