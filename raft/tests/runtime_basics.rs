//! Writes and reads on every node of a cluster.

use raftkv::testing::{Cluster, Counter};
use raftkv::{Consistency, NodeId};

#[tokio::test(start_paused = true)]
async fn any_node_takes_writes_and_serves_linearizable_reads() {
    let cluster = Cluster::builder(3).start(|_| Counter::default()).await;
    cluster.leader().await;
    let mut sum = 0;
    for id in [1, 2, 3, 1, 2, 3].map(NodeId) {
        sum += id.0;
        let answer = cluster.node(id).write(id.0.to_string().into()).await.unwrap();
        assert_eq!(answer, sum.to_string());
        for reader in cluster.ids() {
            cluster.node(reader).read(Consistency::Linearizable).await.unwrap();
            assert_eq!(cluster.machine(reader).value(), sum, "{reader} reads what was just written at {id}");
        }
    }
    cluster.shutdown().await;
}
