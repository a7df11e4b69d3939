//! Depth 1: many [`Consensus`](crate::consensus::Consensus) values, and nothing else of the runtime.
//!
//! A `Cluster` holds cores, simulated disks, links and clients, and moves one event at a time; a `Checker` looks at the
//! whole cluster after each. Golden scripts drive it by commands, a [`ConsensusDepth`] by a seed, in two ways: without a clock
//! (`chaos`), where chance alone decides what is next, and with one (`timed`), where links, disks and clocks take virtual time. Each
//! seed draws its own mix of faults and sizes (`swarm`). First anything may go wrong (safety); then a random majority works while the
//! faults go on elsewhere, and must elect and commit within a bound; then everything works, and all must agree (`liveness`).

mod attention;
mod chaos;
mod checker;
mod classes;
mod clients;
mod cluster;
mod configurations;
mod disk;
mod images;
mod links;
mod liveness;
mod members;
mod regroup;
pub(crate) mod show;
mod swarm;
mod terms;
mod timed;
mod world;

#[cfg(test)]
pub(crate) use {cluster::Cluster, disk::Disk};

use self::timed::Timed;
use self::world::World;
use super::campaign::{Depth, Failure, Options, Run, caught};
use super::coverage::Coverage;

/// Runs the consensus core under a schedule that a seed decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConsensusDepth;

impl Depth for ConsensusDepth {
    fn name(&self) -> &'static str {
        "consensus"
    }

    fn expected(&self) -> Coverage {
        let mut coverage = Coverage::default();
        classes::EXPECTED.iter().for_each(|class| coverage.expect(class));
        coverage
    }

    fn faults(&self) -> &'static [&'static str] {
        swarm::FAULTS
    }

    fn run(&self, seed: u64, options: &Options, keep: usize) -> Result<Run, Box<Failure>> {
        let mut world = World::new(seed, options, keep);
        let outcome = caught(|| run(&mut world)).unwrap_or_else(Err);
        let steps = world.cluster.trace.steps().cloned().collect();
        match outcome {
            Ok(()) => {
                let nodes = u32::try_from(world.ids.len()).unwrap_or(u32::MAX);
                Ok(Run {
                    coverage: world.cluster.coverage,
                    trace_hash: world.cluster.trace.hash(),
                    node_time: world.cluster.at * nodes,
                    events: world.events,
                    steps,
                })
            }
            Err(invariant) => Err(Box::new(Failure {
                seed,
                options: options.clone(),
                invariant,
                events: world.events,
                nodes: world.swarm.nodes,
                steps,
            })),
        }
    }
}

fn run(world: &mut World) -> Result<(), String> {
    world.begin()?;
    if !world.swarm.timed {
        world.chaos()?;
    }
    let mut timed = Timed::new(world)?;
    if timed.world.swarm.timed {
        timed.safety()?;
    }
    timed.recovery()
}

#[cfg(test)]
mod tests {
    use super::super::campaign::Campaign;
    use super::*;

    fn number(name: &str) -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
    }

    /// `SEEDS=5000 FIRST_SEED=1 cargo test -p raftkv schedules` runs more; `sim` of `raftkv-tests` does so faster, and says more.
    #[test]
    fn random_schedules_are_safe_and_end_in_progress() {
        let first = number("FIRST_SEED").unwrap_or(1);
        let seeds = number("SEEDS").unwrap_or(25);
        let campaign = Campaign {
            depth: &ConsensusDepth,
            seeds: first..first + seeds,
            options: Options::default(),
            threads: 2,
            repeat_per_mille: 100,
        };
        let findings = campaign.run(&|_| ());
        if let Some(failure) = findings.failure {
            panic!("{}", failure.report(&ConsensusDepth));
        }
        assert_eq!(findings.diverged, [0; 0], "two runs of these seeds differ");
        // Schedules in which nothing happens prove nothing.
        let (answered, read) = (findings.coverage.count("writes answered"), findings.coverage.count("reads confirmed"));
        assert!(answered > seeds * 5 && read > seeds * 5, "{answered} writes, {read} reads in {seeds} schedules");
    }
}
