//! `kill -9`: the plainest way to lose a server.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use raftkv_tests::chaos::Canary;
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, Load, LoadOptions, PATIENCE, number_from_env};

use crate::three;

/// Who is killed in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victims {
    Leader,
    Follower,
    LeaderAndAnother,
    All,
}

fn choose(random: &mut fastrand::Rng) -> Victims {
    match random.u32(0..20) {
        0..12 => Victims::Leader,
        12..14 => Victims::Follower,
        14..17 => Victims::LeaderAndAnother,
        _ => Victims::All,
    }
}

/// Rounds of `kill -9` under load. Every acknowledged write is there, in order, once; a leader's successor acknowledges writes within
/// two seconds; whoever was killed comes back and catches up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_9() -> Result<()> {
    let _alone = exclusive().await?;
    let rounds = number_from_env("RAFTKV_TEST_ROUNDS", 20)?;
    let seed = number_from_env("RAFTKV_TEST_SEED", u64::from(fastrand::u32(..)))?;
    let limit = Duration::from_millis(number_from_env("RAFTKV_TEST_FAILOVER_MS", 2000)?);
    notice(&format!("kill -9: {rounds} rounds; RAFTKV_TEST_SEED={seed}"));
    let mut random = fastrand::Rng::with_seed(seed);

    let canary = Canary::start();
    let mut cluster = Cluster::start(three()).await?;
    let load = cluster.load(LoadOptions::default())?;
    let mut failovers = Vec::new();
    for round in 1..=rounds {
        load.wait_for(50, PATIENCE).await?;
        let victims = choose(&mut random);
        let leader = cluster.leader().await?.id;
        let others = cluster.others(leader);
        let another = others[random.usize(..others.len())];
        let ids = match victims {
            Victims::Leader => vec![leader],
            Victims::Follower => vec![another],
            Victims::LeaderAndAnother => vec![leader, another],
            Victims::All => cluster.ids(),
        };
        let began = Instant::now();
        let failover = round_of(&mut cluster, &load, &ids, victims == Victims::Leader, &mut random).await?;
        let lateness = canary.lateness_since(began);
        if lateness.times > 0 && failover.is_some_and(|took| took >= limit) {
            notice(&format!("round {round} is not judged by its time: {lateness}"));
        } else if let Some(took) = failover {
            failovers.push(took);
            ensure!(took < limit, "round {round}: {took:?} from kill -9 of the leader to the next acknowledged write");
        }
    }
    let history = load.stop().await?;
    let summary = cluster.verify(&history).await?;
    failovers.sort_unstable();
    if let Some(max) = failovers.last() {
        let median = failovers[failovers.len() / 2];
        notice(&format!(
            "kill -9: {} failovers: median {median:.0?}, max {max:.0?}; {summary:?}, {} reads",
            failovers.len(),
            history.reads
        ));
    }
    cluster.finish()
}

/// Kills, waits for service where a majority is left, and brings back. Returns how long the leader was missed.
async fn round_of(
    cluster: &mut Cluster,
    load: &Load,
    victims: &[u64],
    measured: bool,
    random: &mut fastrand::Rng,
) -> Result<Option<Duration>> {
    let killed = Instant::now();
    for id in victims {
        cluster.kill(*id)?;
    }
    let dead = Instant::now();
    let majority_lives = victims.len() * 2 < cluster.ids().len();
    let took = if majority_lives {
        let first = load.first_after(dead, PATIENCE).await?;
        measured.then(|| first.duration_since(killed))
    } else {
        None
    };
    tokio::time::sleep(Duration::from_millis(random.u64(0..300))).await;
    for id in victims {
        cluster.launch(*id)?;
    }
    load.first_after(Instant::now(), PATIENCE).await?;
    for id in victims {
        cluster.caught_up(*id).await?;
    }
    Ok(took)
}
