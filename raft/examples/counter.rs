//! A replicated counter: three nodes in one process. Any of them counts, and the count survives the loss of one.
//!
//! `cargo run -p raftkv --features testing --example counter`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::{MemLog, MemNetwork, MemSnapshots};
use raftkv::{Chunks, ClusterId, Consistency, Fatal, LogId, Membership, NodeId, Peer, Raft, StateMachine};

#[derive(Clone, Default)]
struct Counter(Arc<AtomicU64>);

#[async_trait]
impl StateMachine for Counter {
    async fn apply(&mut self, _at: LogId, _command: Bytes) -> Result<Bytes, Fatal> {
        let count = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(count.to_string().into())
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        let image = Bytes::from(self.0.load(Ordering::SeqCst).to_be_bytes().to_vec());
        Ok(Box::new(vec![image].into_iter()))
    }

    async fn restore(&mut self, mut image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let bytes = image.next().await?.and_then(|bytes| bytes[..].try_into().ok());
        let count = bytes.map(u64::from_be_bytes).ok_or_else(|| Fatal::state_machine("not a counter's image"))?;
        self.0.store(count, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let network = MemNetwork::new(0);
    let members = [1, 2, 3].map(|id| Peer::new(id, format!("node-{id}")));
    let mut nodes = Vec::new();
    for peer in members.clone() {
        let counter = Counter::default();
        let node = Raft::builder(peer.id, ClusterId(1)).transport(network.transport(peer)).log(MemLog::new());
        let raft = node.snapshots(MemSnapshots::new()).state_machine(counter.clone()).start().await?;
        network.connect(raft.inbox());
        nodes.push((raft, counter));
    }
    nodes[0].0.initialize(Membership::new(members)).await?;
    for (raft, _) in &nodes {
        println!("{} counts to {:?}", raft.id(), raft.write(Bytes::new()).await?);
    }
    nodes.remove(0).0.shutdown().await;
    network.disconnect(NodeId(1));
    let (raft, counter) = &nodes[0];
    raft.read(Consistency::Linearizable).await?;
    println!("{} has {} without node 1", raft.id(), counter.0.load(Ordering::SeqCst));
    Ok(())
}
