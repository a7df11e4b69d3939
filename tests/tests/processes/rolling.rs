//! A rolling restart: each node in turn is asked to go and started again, while clients write and read.
//!
//! A leader hands over before it ends, and a node that ends answers what is in progress. So the retrying client sees no error, and hardly a
//! pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kv_example::client::{Client, ClientOptions};
use raftkv_tests::chaos::Canary;
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, PATIENCE};
use tokio::task::JoinSet;

use crate::three;

/// How many clients, each with connections of its own to all nodes.
const CLIENTS: usize = 9;
/// The pause between two requests of a client.
const PAUSE: Duration = Duration::from_millis(5);
/// What a write may take for the restarts, beyond what it takes on this machine without them.
const LIMIT: Duration = Duration::from_millis(100);
/// So many rounds are judged, and so many are run for that at most. Where a process is not given its turn for a third of an election timeout, a leader
/// may be missed that lives, and a write waits for an election that no restart has caused: such a round shows nothing, whether it is good or bad.
const ROUNDS: u32 = 2;
const MOST_ROUNDS: u32 = 10;

#[derive(Default)]
struct Ledger {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// Microseconds.
    longest: AtomicU64,
}

impl Ledger {
    fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest.swap(0, Ordering::Relaxed))
    }

    async fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.acknowledged.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.acknowledged.load(Ordering::Relaxed) < goal {
            ensure!(Instant::now() < deadline, "{more} writes were not acknowledged within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

/// Writes a key after the other, and reads each back, until it is told to stop. Returns how many.
async fn client(n: usize, mut servers: Vec<String>, ledger: Arc<Ledger>) -> Result<u64> {
    let first = n % servers.len();
    servers.rotate_left(first);
    let client = Client::new(&servers, ClientOptions::default()).map_err(anyhow::Error::msg)?;
    let mut count = 0;
    while !ledger.stop.load(Ordering::Relaxed) {
        let (key, value) = (format!("rolling/{n}/{count:06}"), format!("{n}:{count}"));
        let sent = Instant::now();
        client.put(key.clone(), value.clone()).await.with_context(|| format!("writing {key}"))?;
        let took = u64::try_from(sent.elapsed().as_micros())?;
        ledger.longest.fetch_max(took, Ordering::Relaxed);
        ledger.acknowledged.fetch_add(1, Ordering::Relaxed);
        let found = client.get(key.clone()).await.with_context(|| format!("reading {key}"))?;
        ensure!(found.is_some_and(|kv| kv.value == value.as_bytes()), "{key} is not what was written");
        count += 1;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_not_noticed_by_clients() -> Result<()> {
    let _alone = exclusive().await?;
    let canary = Canary::start();
    let mut cluster = Cluster::start(three()).await?;
    let ledger = Arc::new(Ledger::default());
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(client(n, cluster.servers(), ledger.clone()));
    }
    // Connections are there, and this machine's own pauses are known.
    ledger.wait_for(300).await?;
    ledger.take_longest();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let calm = ledger.take_longest();
    let (mut led, mut longest, mut judged, mut round) = (0, Duration::ZERO, 0, 0);
    while judged < ROUNDS {
        round += 1;
        ensure!(round <= MOST_ROUNDS, "no {ROUNDS} of {MOST_ROUNDS} rounds can be judged: {}", canary.lateness());
        let (began, mut led_now, mut longest_now) = (Instant::now(), 0, Duration::ZERO);
        for id in cluster.ids() {
            ledger.wait_for(100).await?;
            let leader = cluster.leader().await?.id;
            led_now += u64::from(leader == id);
            let began = Instant::now();
            cluster.terminate(id).await?;
            let ended = began.elapsed();
            cluster.launch(id)?;
            cluster.caught_up(id).await?;
            ledger.wait_for(50).await?;
            let took = ledger.take_longest();
            longest_now = longest_now.max(took);
            let role = if leader == id { "leader" } else { "follower" };
            println!("round {round}: n{id}, a {role}, ended within {ended:.1?}; the longest write took {took:.1?}");
        }
        let lateness = canary.lateness_since(began);
        if lateness.times > 0 {
            notice(&format!("round {round} is not judged: {lateness}"));
            continue;
        }
        (judged, led, longest) = (judged + 1, led + led_now, longest.max(longest_now));
    }
    ledger.stop.store(true, Ordering::Relaxed);
    let mut count = 0;
    while let Some(ended) = clients.join_next().await {
        count += ended??;
    }
    println!(
        "{count} writes and as many reads, no error; the longest write took {longest:.1?}, and {calm:.1?} in calm"
    );
    ensure!(led > 0, "no leader was restarted");
    ensure!(longest <= LIMIT + calm, "a write took {longest:?}, and {calm:?} without restarts");
    cluster.converged().await?;
    cluster.same_contents().await?;
    cluster.finish()
}
