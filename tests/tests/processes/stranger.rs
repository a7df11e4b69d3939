//! A node of another cluster that has the addresses of this one.

use anyhow::{Result, ensure};
use raftkv_tests::process::exclusive;
use raftkv_tests::{Cluster, PATIENCE};

use crate::three;

/// Both sides refuse each other, and say why; the cluster goes on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused_by_both_sides() -> Result<()> {
    let _alone = exclusive().await?;
    let mut cluster = Cluster::prepare(&three())?;
    let stranger = 3;
    let mut args = cluster.process(stranger)?.args().to_vec();
    args.extend(["--cluster-name".into(), "another".into()]);
    cluster.process_mut(stranger)?.set_args(args);
    for id in cluster.ids() {
        cluster.launch(id)?;
    }
    let leader = cluster.leader_among(&[1, 2]).await?;
    ensure!(leader.id != stranger, "the stranger leads");

    // Who dials is told "refused by the peer"; who is dialled tells that it "refused a peer". Followers may do only the latter.
    for (id, text) in [(stranger, "refused by the peer"), (leader.id, "refused by the peer")] {
        cluster.process(id)?.wait_for_log(text, PATIENCE).await?;
    }
    for id in cluster.ids() {
        let process = cluster.process(id)?;
        process.wait_for_log("refused a peer", PATIENCE).await?;
        let log = process.log();
        let mut refusals = log.lines().filter(|line| line.contains("refused"));
        ensure!(
            refusals.any(|line| line.contains("check the addresses and the cluster name")),
            "n{id} gives no reason:\n{log}"
        );
    }
    cluster.client(1)?.put("k", "v", PATIENCE).await?;
    let found = cluster.client(2)?.get("k", false, PATIENCE).await?;
    ensure!(found.kvs.len() == 1, "{found:?}");
    let own = cluster.status(stranger).await?;
    ensure!(own.keys == 0 && own.role != "leader", "the stranger took part: {own:?}");
    cluster.finish()
}
