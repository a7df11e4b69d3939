//! What the consensus core costs, in numbers that other work on the machine does not change: instructions, as `callgrind` counts them, and allocations.
//! Cores of a whole cluster exchange their messages in one thread; disks and state machines are done at once. `instructions.sh` beside this runs each
//! piece of work under valgrind, and compares with `instructions.txt`.
//!
//! ```text
//! cargo bench -p raftkv --bench core              # allocations alone
//! raft/benches/instructions.sh                    # both
//! raft/benches/instructions.sh --check            # and fails when something has become dearer
//! raft/benches/instructions.sh --write            # and writes the new numbers down
//! ```

#![allow(clippy::expect_used, reason = "a benchmark that can't run says why by panicking")]

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use raftkv::consensus::{Boot, Consensus, Effects, Input, Reply, Time};
use raftkv::testing::fuzzing::Meter;
use raftkv::{Config, EntryKind, LogId, LogState, Membership, Message, NodeId, Peer, RequestId};

#[global_allocator]
static METER: Meter = Meter;

#[derive(Parser, Debug)]
struct Options {
    /// Only this piece of work; all of them if none is named.
    #[arg(long)]
    only: Option<String>,
    /// Prints names alone.
    #[arg(long)]
    list: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A piece of work.
struct Work {
    name: &'static str,
    nodes: u64,
    /// What is asked of whom, time after time.
    asked: Asked,
    /// How often.
    rounds: u64,
}

#[derive(Clone, Copy)]
enum Asked {
    /// So many writes, each of 256 bytes, of the leader.
    Writes(u64),
    /// The same of a follower, which passes them on.
    WritesOfFollower(u64),
    /// So many reads that came together.
    Reads(u64),
    /// Nothing: a heartbeat is due.
    Heartbeat,
}

const WORKS: [Work; 7] = [
    Work { name: "write-alone", nodes: 3, asked: Asked::Writes(1), rounds: 2000 },
    Work { name: "writes-by-64", nodes: 3, asked: Asked::Writes(64), rounds: 200 },
    Work { name: "writes-by-4096", nodes: 3, asked: Asked::Writes(4096), rounds: 5 },
    Work { name: "writes-by-64-of-7", nodes: 7, asked: Asked::Writes(64), rounds: 100 },
    Work { name: "passed-on-by-64", nodes: 3, asked: Asked::WritesOfFollower(64), rounds: 200 },
    Work { name: "reads-by-64", nodes: 3, asked: Asked::Reads(64), rounds: 200 },
    Work { name: "heartbeat-of-7", nodes: 7, asked: Asked::Heartbeat, rounds: 500 },
];

impl Asked {
    /// How many of them there are in a round.
    fn each(self) -> u64 {
        match self {
            Self::Writes(n) | Self::WritesOfFollower(n) | Self::Reads(n) => n,
            Self::Heartbeat => 1,
        }
    }
}

fn main() {
    let options = Options::parse();
    let chosen = |work: &&Work| options.only.as_ref().is_none_or(|only| only == work.name);
    for work in WORKS.iter().filter(chosen) {
        if options.list {
            println!("{} {}", work.name, work.rounds * work.asked.each());
            continue;
        }
        let mut cluster = Cores::elect(work.nodes);
        // What grows by and by has its size.
        cluster.work(work.asked, work.rounds / 10 + 1);
        let before = Meter::allocations();
        measured(&mut cluster, work);
        let allocations = (Meter::allocations() - before) as f64 / (work.rounds * work.asked.each()) as f64;
        println!("{} {allocations:.2}", work.name);
    }
}

/// `callgrind` counts what happens in here.
#[inline(never)]
fn measured(cluster: &mut Cores, work: &Work) {
    black_box(cluster).work(work.asked, work.rounds);
}

/// The cores of a cluster, and what is on its way between them.
struct Cores {
    now: Time,
    cores: Vec<Consensus>,
    effects: Effects,
    mail: Vec<(usize, NodeId, Message)>,
    leader: usize,
    requests: u64,
    answered: u64,
}

impl Cores {
    fn elect(nodes: u64) -> Self {
        let now = Time::default();
        let core = |id| {
            let log = LogState::of(raftkv::HardState::default(), LogId::ZERO, []);
            let (configurations, snapshot) = (Vec::new(), None);
            let boot = Boot { id: NodeId(id), log, configurations, snapshot, applied: LogId::ZERO, seed: id };
            Consensus::new(now, &Config::default(), boot)
        };
        let cores = (1..=nodes).map(core).collect();
        let mut cluster =
            Self { now, cores, effects: Effects::default(), mail: Vec::new(), leader: 0, requests: 0, answered: 0 };
        let membership = Membership::new((1..=nodes).map(|id| Peer::new(id, format!("node-{id}"))));
        for at in 0..cluster.cores.len() {
            let request = cluster.request();
            cluster.cores[at].step(now, Input::Initialize { request, membership: membership.clone() });
        }
        cluster.settle();
        cluster.cores[0].step(now, Input::Campaign);
        cluster.settle();
        assert_eq!(cluster.cores[0].leader(), Some(NodeId(1)), "the first node leads");
        cluster
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn work(&mut self, asked: Asked, rounds: u64) {
        let payload = Bytes::from(vec![7; 256]);
        for _ in 0..rounds {
            let before = self.answered;
            let at = match asked {
                Asked::WritesOfFollower(_) => 1,
                Asked::Writes(_) | Asked::Reads(_) | Asked::Heartbeat => self.leader,
            };
            match asked {
                Asked::Writes(n) | Asked::WritesOfFollower(n) => {
                    for _ in 0..n {
                        let (request, commands) = (self.request(), vec![payload.clone()]);
                        self.cores[at].step(self.now, Input::Propose { request, kind: EntryKind::Command, commands });
                    }
                }
                Asked::Reads(n) => {
                    for _ in 0..n {
                        let request = self.request();
                        self.cores[at].step(self.now, Input::Read { request, lease: false });
                    }
                }
                Asked::Heartbeat => {
                    self.now = self.cores[at].next_wake().expect("a leader sends heartbeats");
                    self.cores[at].step(self.now, Input::Tick);
                }
            }
            self.settle();
            let expected = if matches!(asked, Asked::Heartbeat) { 0 } else { asked.each() };
            assert_eq!(self.answered - before, expected, "each request has its answer");
            self.now = self.now.plus(Duration::from_micros(10));
        }
    }

    /// Until nobody has anything to do any more.
    fn settle(&mut self) {
        loop {
            let mut idle = true;
            for at in 0..self.cores.len() {
                idle &= !self.turn(at);
            }
            if idle {
                return;
            }
        }
    }

    /// One round of a node, as its driver has it. False if there was nothing to do.
    fn turn(&mut self, at: usize) -> bool {
        let core = &mut self.cores[at];
        let mut left = Vec::with_capacity(self.mail.len());
        for (to, from, message) in self.mail.drain(..) {
            if to == at {
                core.step(self.now, Input::Receive { from, message });
            } else {
                left.push((to, from, message));
            }
        }
        self.mail = left;
        let effects = &mut self.effects;
        core.effects(self.now, effects);
        let busy = !effects.is_empty();
        let me = NodeId(at as u64 + 1);
        for (to, message) in effects.send.drain(..) {
            self.mail.push((to.0 as usize - 1, me, message));
        }
        let answers = effects.replies.drain(..);
        self.answered +=
            answers.filter(|reply| matches!(reply, Reply::Appended { .. } | Reply::Readable { .. })).count() as u64;
        if let Some(write) = effects.write.take() {
            core.step(self.now, Input::Stored { seq: write.seq });
        }
        if let Some(last) = effects.apply.last() {
            let index = last.id.index;
            core.step(self.now, Input::Applied { index });
        }
        effects.apply.clear();
        effects.notes.clear();
        busy
    }
}
