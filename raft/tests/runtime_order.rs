//! What goes first.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use raftkv::testing::{Counter, MemLog, MemNetwork, MemSnapshots, MemTransport};
use raftkv::{Body, ClusterId, Consistency, Envelope, Index, Membership, Peer, Raft, Transport, TransportError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Answered(Index),
    CommitTold(Index),
}

/// Notes when it carries the news that something is committed.
struct Noting(MemTransport, Arc<Mutex<Vec<Event>>>);

#[async_trait]
impl Transport for Noting {
    async fn send(&self, to: &Peer, batch: Vec<Envelope>) -> Result<(), TransportError> {
        for envelope in &batch {
            if let Body::Commit { index } = envelope.message.body {
                self.1.lock().unwrap().push(Event::CommitTold(index));
            }
        }
        self.0.send(to, batch).await
    }
}

/// The others' threads woke up before the client's answer was written, and kept the cores from it: of one client's wait for a put that was a tenth.
#[tokio::test(start_paused = true)]
async fn a_client_is_answered_before_others_are_told_what_is_committed() {
    let (network, events) = (MemNetwork::new(1), Arc::<Mutex<Vec<Event>>>::default());
    let membership = Membership::new((1..=3).map(|id| Peer::new(id, format!("memory:{id}"))));
    let mut nodes = Vec::new();
    for peer in membership.voters.values() {
        let transport = Noting(network.transport(peer.clone()), events.clone());
        let builder = Raft::builder(peer.id, ClusterId(1)).transport(transport).log(MemLog::new());
        let raft = builder.snapshots(MemSnapshots::new()).state_machine(Counter::default()).start().await.unwrap();
        network.connect(raft.inbox());
        nodes.push(raft);
    }
    nodes[0].initialize(membership.clone()).await.unwrap();
    nodes[0].read(Consistency::Linearizable).await.unwrap();
    let leads = nodes[0].status().await.unwrap().leader.unwrap();
    let leader = &nodes[usize::try_from(leads.0).unwrap() - 1];
    for _ in 0..20 {
        let (client, answered) = (leader.clone(), events.clone());
        // A task of its own, as whoever serves clients has: that of a test has its turn only now and then.
        let write = tokio::spawn(async move {
            let (id, _) = client.write_with_id("1".into()).await.unwrap();
            answered.lock().unwrap().push(Event::Answered(id.index));
            id
        });
        let id = write.await.unwrap();
        // Without another write, and before a heartbeat, for which the clock would have to move, the others are told.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        let events = events.lock().unwrap();
        let at = |event| events.iter().position(|other| *other == event).unwrap();
        assert!(at(Event::Answered(id.index)) < at(Event::CommitTold(id.index)), "{events:?}");
        assert_eq!(events.iter().filter(|event| **event == Event::CommitTold(id.index)).count(), 2, "{events:?}");
    }
    for node in nodes {
        node.shutdown().await;
    }
}
