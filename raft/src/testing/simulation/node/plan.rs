//! What a seed decides before anything happens: how large the cluster is, how its limits are set, how its network usually is, and
//! which faults it will see (swarm testing: Groce and others, 2012. A mix that leaves kinds of fault out finds what a mix of all hides).

use std::time::Duration;

use super::kept::Kept;
use crate::config::Config;
use crate::testing::simulation::Options;
use crate::testing::{Link, Random};
use crate::types::NodeId;

/// The kinds of fault, as the option `--without` names them.
pub(super) const FAULTS: [&str; 11] =
    ["network", "kill", "pause", "stop", "disk", "damage", "clock", "overload", "members", "prefer", "machine"];

/// Draws what concerns members.
const MEMBERS: u64 = 0x6d65_6d62_6572_7300;
/// Draws what concerns priorities and state machines that hang.
const PREFER: u64 = 0x7072_6566_6572_0000;

/// Draws what concerns state machines that are durable by themselves.
const DURABLE: u64 = 0x0064_7572_6162_6c65;
/// Draws what concerns leases.
const LEASES: u64 = 0x006c_6561_7365_7300;

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) nodes: u64,
    /// How many of them are voters at first, and how many machines stand by to take another's place.
    pub(super) voters: u64,
    pub(super) reserve: u64,
    pub(super) config: Config,
    pub(super) link: Link,
    /// For each kind of [`FAULTS`], how often it is chosen.
    pub(super) weights: [u64; FAULTS.len()],
    /// How long it is from one fault to the next, on average.
    pub(super) pace: Duration,
    /// How long faults go on everywhere.
    pub(super) turmoil: Duration,
    pub(super) clients: u64,
    /// How many operations each client begins at most.
    pub(super) operations: u64,
    /// How long a client thinks between two operations, at most.
    pub(super) think: Duration,
    /// How many faults there are at most.
    pub(super) events: u64,
    /// Where state machines are durable by themselves: the seed of which of them are, and how often.
    pub(super) durable: Option<u64>,
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One of the values, each as likely.
fn one_of<T: Copy>(random: &mut Random, values: &[T], usual: T) -> T {
    random.pick(values).unwrap_or(usual)
}

impl Plan {
    pub(super) fn new(seed: u64, random: &mut Random, options: &Options) -> Self {
        let nodes = [1, 2, 3, 4, 5][random.weighted(&[6, 4, 50, 8, 32])];
        let config = config(random);
        let link = Link {
            lost_per_mille: one_of(random, &[0, 0, 5, 30], 0),
            doubled_per_mille: one_of(random, &[0, 5, 30], 0),
            delay: millis(random.below(4)),
            jitter: millis(one_of(random, &[0, 2, 10, 30], 0)),
            ..Link::default()
        };
        let mut weights = [0; FAULTS.len()];
        for (weight, kind) in
            weights.iter_mut().zip(FAULTS).filter(|(_, kind)| !["members", "prefer", "machine"].contains(kind))
        {
            let drawn = random.between(if kind == "disk" { 4 } else { 1 }, 8);
            let present = random.percent(if kind == "disk" { 85 } else { 55 });
            *weight = if present && options.allows(kind) { drawn } else { 0 };
        }
        // Damage is rare: a node that is damaged is out of the game.
        weights[5] = weights[5].min(1);
        // Drawn apart, so that runs whose members stay are what they were.
        let mut members = Random::new(seed ^ MEMBERS);
        let nodes = options.nodes.unwrap_or(nodes);
        let (mut voters, mut reserve, mut config) = (nodes, 0, config);
        if members.percent(35) && options.allows("members") {
            voters = members.between(1, nodes);
            reserve = members.below(3);
            // Long enough that a lost append which would tell a node that it is removed is sent again.
            config.catch_up_timeout = millis(members.between(500, 5000)).max(config.election_timeout * 6);
            weights[8] = members.between(2, 12);
            // Which of them may be out of the game is for the operator to know.
            weights[5] = 0;
        }
        let mut prefer = Random::new(seed ^ PREFER);
        config.priority_settle = config.election_timeout * one_of(&mut prefer, &[1, 3, 8], 3);
        if prefer.percent(50) && options.allows("machine") {
            weights[10] = prefer.between(1, 5);
        }
        if prefer.percent(40) && options.allows("prefer") {
            weights[9] = prefer.between(2, 8);
        }
        // As for members.
        let mut leases = Random::new(seed ^ LEASES);
        // The clocks of two machines may go apart by almost a quarter.
        config.lease_drift = leases.percent(35).then(|| millis(if weights[6] > 0 { 250 } else { 10 }));
        let mut durable = Random::new(seed ^ DURABLE);
        let durable = durable.percent(40).then(|| durable.any());
        let clients = random.between(1, 6);
        let operations = random.between(20, 150);
        Self {
            seed,
            nodes,
            voters,
            reserve,
            config,
            link,
            weights,
            pace: millis(one_of(random, &[150, 400, 1000], 400)),
            turmoil: millis(random.between(6_000, 20_000)),
            clients,
            operations,
            think: millis(one_of(random, &[5, 50, 400], 50)),
            events: options.events.unwrap_or(u64::MAX),
            durable,
        }
    }

    /// What a node's state machine keeps. A few of many are machines in memory, as all are in most runs.
    pub(super) fn kept(&self, id: NodeId) -> Kept {
        let Some(seed) = self.durable else { return Kept::AsItIs };
        let mut random = Random::new(seed ^ id.0);
        if random.percent(20) { Kept::Nothing } else { Kept::durable(one_of(&mut random, &[1, 3, 20], 3)) }
    }

    /// Images of machines that keep their contents are larger than some registers: in the smallest pieces they would take longer than a cluster has.
    pub(super) fn widen(&mut self) {
        self.config.snapshot_chunk_bytes = self.config.snapshot_chunk_bytes.max(2000);
        self.config.snapshot_window_bytes = self.config.snapshot_window_bytes.max(20_000);
    }

    /// Whether what is durable may be damaged.
    pub(super) fn may_damage(&self) -> bool {
        self.weights[5] > 0
    }

    /// Whether members come and go.
    pub(super) fn may_change(&self) -> bool {
        self.weights[8] > 0
    }

    /// Whether some nodes should lead rather than others.
    pub(super) fn may_prefer(&self) -> bool {
        self.weights[9] > 0
    }

    /// Whether clocks may be wrong.
    pub(super) fn may_misjudge_time(&self) -> bool {
        self.weights[6] > 0
    }

    /// Whether clocks may jump. Leases count on clocks that only go a little too slow or too fast.
    pub(super) fn may_jump(&self) -> bool {
        self.may_misjudge_time() && self.config.lease_drift.is_none()
    }

    /// How long a majority that is well may take until it commits again.
    pub(super) fn patience(&self) -> Duration {
        let handed_over = if self.may_prefer() { self.config.priority_settle * 2 } else { Duration::ZERO };
        self.config.election_timeout * 40
            + self.config.write_timeout * 2
            + self.config.stall_timeout * 2
            + handed_over
            + millis(2000)
    }

    /// How long it may take in addition until the right node leads: after many attempts that failed the next one is put off.
    pub(super) fn preferring(&self) -> Duration {
        let pause = self.config.priority_settle.max(self.config.election_timeout);
        if self.may_prefer() { pause * 40 } else { Duration::ZERO }
    }
}

/// Times that suit each other, and limits that are often so small that they are reached.
fn config(random: &mut Random) -> Config {
    let election_timeout = millis(random.between(150, 500));
    let usual = Config::default();
    let mut config = Config {
        election_timeout,
        heartbeat_interval: election_timeout / one_of(random, &[3, 5, 10], 5),
        write_timeout: millis(random.between(500, 4000)),
        read_timeout: millis(random.between(500, 4000)),
        stall_timeout: millis(random.between(300, 1200)),
        slow_disk: millis(100),
        ..usual.clone()
    };
    if random.percent(50) {
        config.max_append_bytes = one_of(random, &[100, 1000, usual.max_append_bytes], 1000);
        config.max_inflight_appends = one_of(random, &[1, 2, 16, 256], 16);
        config.max_inflight_bytes = one_of(random, &[500, 16 << 20], 16 << 20);
        config.max_write_bytes = one_of(random, &[100, 1000, usual.max_write_bytes], 1000);
        config.max_applying_bytes = one_of(random, &[100, 2000, usual.max_applying_bytes], 2000);
        config.max_tail_bytes = one_of(random, &[1, 500, 4000, usual.max_tail_bytes], 500);
        config.max_uncommitted_bytes = one_of(random, &[500, 5000, 20_000, usual.max_uncommitted_bytes], 5000);
        config.max_pending_requests = one_of(random, &[2, 8, 1000, 1000], 1000);
    }
    if random.percent(60) {
        config.snapshot_entries = one_of(random, &[3, 10, 30, 100], 30);
        config.trailing_entries = one_of(random, &[0, 2, 10], 2);
        config.snapshot_chunk_bytes = one_of(random, &[30, 300, usual.snapshot_chunk_bytes], 300);
        config.snapshot_window_bytes = one_of(random, &[100, 2000, usual.snapshot_window_bytes], 2000);
    }
    if random.percent(30) {
        config.max_sessions = one_of(random, &[1, 2, 4, usual.max_sessions], 4);
        config.session_idle = millis(one_of(random, &[1000, 2000, 10_000], 2000));
        config.max_session_bytes = one_of(random, &[1, 200, 2000, usual.max_session_bytes], 200);
    }
    config
}
