//! Links between nodes that carry nothing, in both directions or in one.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use raftkv_tests::process::{exclusive, notice};
use raftkv_tests::{Cluster, ClusterOptions, Leader, Load, LoadOptions, Network, PATIENCE};

use crate::three;

/// How long a cut lasts at least: more than ten election timeouts.
const CUT: Duration = Duration::from_secs(4);
/// How long a request waits at a node that can't answer it: longer than the node itself waits.
const LONG: Duration = Duration::from_secs(8);
/// Elections that a busy machine may cause by itself. Without pre-vote, a node that is cut off for ten timeouts and more comes
/// back with a term that is higher by about as many.
const TOLERATED_ELECTIONS: u64 = 2;

/// Fails if there were elections that nobody needed.
pub(crate) fn ensure_calm(before: u64, after: u64) -> Result<()> {
    ensure!(
        after <= before + TOLERATED_ELECTIONS,
        "the term rose from {before} to {after}: somebody disturbed the others with elections"
    );
    Ok(())
}

/// A cluster on a network that can be cut, with load on all nodes.
struct Scene {
    cluster: Cluster,
    load: Load,
    leader: Leader,
}

impl Scene {
    /// None where the system can't do it, with a notice.
    async fn set() -> Result<Option<Self>> {
        if !Network::is_supported() {
            notice("SKIPPED: cutting links needs Linux, which tells in /proc who opened a connection");
            return Ok(None);
        }
        let cluster = Cluster::start(ClusterOptions { network: true, ..three() }).await?;
        let load = cluster.load(LoadOptions::default())?;
        load.wait_for(50, PATIENCE).await?;
        let leader = cluster.leader().await?;
        Ok(Some(Self { cluster, load, leader }))
    }

    fn network(&self) -> Result<&Network> {
        self.cluster.network()
    }

    fn follower(&self) -> u64 {
        self.cluster.others(self.leader.id)[0]
    }

    /// The others have a leader of their own, and serve; the old one does neither lead nor give stale answers.
    async fn succession(&self) -> Result<Leader> {
        let old = self.leader.id;
        let others = self.cluster.others(old);
        let new = self.cluster.leader_among(&others).await?;
        ensure!(new.id != old && new.term > self.leader.term, "{new:?} after {:?}", self.leader);
        let written = self.cluster.client(new.id)?.put("mark", "new", PATIENCE).await?;
        let cut_off = self.cluster.client(old)?;
        let (read, write) =
            tokio::join!(cut_off.get("mark", false, LONG), cut_off.put("mark", "from the minority", LONG));
        if let Ok(found) = read {
            bail!("STALE: a node without a majority answered {found:?} after \"new\" was acknowledged at {written}");
        }
        if let Ok(revision) = write {
            bail!("a node without a majority acknowledged a write, at {revision}");
        }
        ensure!(self.cluster.status(old).await?.role != "leader", "the old leader still leads");
        self.load.wait_for(100, PATIENCE).await?;
        Ok(new)
    }

    /// The same leader serves on, all the while.
    async fn undisturbed(&self) -> Result<()> {
        tokio::time::sleep(CUT).await;
        self.load.wait_for(100, PATIENCE).await
    }

    /// Ends the cut; all come to the same state, without more elections than needed since `before`.
    async fn heal(self, before: u64) -> Result<()> {
        self.network()?.heal();
        self.load.wait_for(50, PATIENCE).await?;
        let history = self.load.stop().await?;
        let now = self.cluster.converged().await?;
        ensure_calm(before, now.term)?;
        self.cluster.verify(&history).await?;
        self.cluster.finish()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_all() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(scene) = Scene::set().await? else { return Ok(()) };
    let old = scene.leader.id;
    scene.cluster.client(old)?.put("mark", "old", PATIENCE).await?;
    scene.cluster.caught_up(old).await?;
    scene.network()?.isolate(old);
    let new = scene.succession().await?;
    // Who asks for no more than what this node has gets it.
    let own = scene.cluster.client(old)?.get("mark", true, PATIENCE).await?;
    ensure!(own.kvs.first().is_some_and(|kv| kv.value == "old"), "{own:?}");
    scene.heal(new.term).await
}

/// Its heartbeats are lost; it hears that the others elect another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_not_heard() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(scene) = Scene::set().await? else { return Ok(()) };
    scene.network()?.mute(scene.leader.id);
    let new = scene.succession().await?;
    scene.heal(new.term).await
}

/// Its heartbeats keep the others quiet, and it hears no answer: it must give way by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(scene) = Scene::set().await? else { return Ok(()) };
    scene.network()?.deafen(scene.leader.id);
    let new = scene.succession().await?;
    scene.heal(new.term).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_cut_off_from_all() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(scene) = Scene::set().await? else { return Ok(()) };
    let follower = scene.follower();
    scene.network()?.isolate(follower);
    let written = scene.cluster.client(scene.leader.id)?.put("mark", "new", PATIENCE).await?;
    let read = scene.cluster.client(follower)?.get("mark", false, LONG).await;
    ensure!(read.is_err(), "STALE: {read:?} after a write was acknowledged at {written}");
    scene.undisturbed().await?;
    let before = scene.leader.term;
    scene.heal(before).await
}

/// It hears the leader and has nothing to complain of; nobody hears its acknowledgements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_not_heard() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(scene) = Scene::set().await? else { return Ok(()) };
    scene.network()?.mute(scene.follower());
    scene.undisturbed().await?;
    let before = scene.leader.term;
    scene.heal(before).await
}

/// It misses the leader and asks the others whether they do too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_hears_nobody() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(scene) = Scene::set().await? else { return Ok(()) };
    scene.network()?.deafen(scene.follower());
    scene.undisturbed().await?;
    let before = scene.leader.term;
    scene.heal(before).await
}

/// One link fails, and the third node sees both ends of it: the leader stays, and the follower that lost it disturbs nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_link_cut_between_leader_and_follower() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(scene) = Scene::set().await? else { return Ok(()) };
    scene.network()?.cut(scene.leader.id, scene.follower());
    scene.undisturbed().await?;
    let before = scene.leader.term;
    scene.heal(before).await
}

/// A slow link to one follower, and connections that break: nobody else notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_far_away_with_breaking_connections() -> Result<()> {
    let _alone = exclusive().await?;
    let Some(scene) = Scene::set().await? else { return Ok(()) };
    let follower = scene.follower();
    scene.network()?.delay(follower, Duration::from_millis(60));
    for _ in 0..4 {
        scene.load.wait_for(50, PATIENCE).await?;
        scene.network()?.reset(follower);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let before = scene.leader.term;
    scene.heal(before).await
}
