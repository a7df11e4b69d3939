//! What every [`Transport`] must do.
//!
//! Say how nodes of your network come to be ([`Network`]), and expand [`transport_conformance!`](crate::transport_conformance) in a
//! test file:
//!
//! ```text
//! raftkv::transport_conformance!(MyNetwork::new());
//! ```
//!
//! [`MemNetwork`](crate::testing::MemNetwork) is put through it in `raft/tests/conformance.rs`, the gRPC transport in
//! `transport-grpc/tests/conformance.rs`, the tarpc transport in `transport-tarpc/tests/conformance.rs`.
//!
//! # What is tested
//!
//! * Messages of every kind arrive unchanged, in order within their lane, up to the largest that `Config` allows by default.
//! * A receiver that takes nothing holds its sender back, within bounded memory, while control messages overtake bulk ones.
//! * Receivers restart and move, and are found again; strangers are refused with a reason that names both sides.
//! * Neither a dead peer nor the end of everything under load holds anyone up.

#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

mod delivery;
mod failures;
mod flow;

pub use delivery::*;
pub use failures::*;
pub use flow::*;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    AppendReply, Arrivals, Body, ClusterId, Entry, EntryKind, Envelope, ForwardOutcome, GroupId, Inbox, Index, LogId,
    Message, NodeId, Peer, RequestId, Term, Transport, TransportError,
};

/// How the two halves of your transport come to be. All nodes of a test share one network.
#[async_trait]
pub trait Network: Send + Sync {
    /// Starts the receiving half of a node, which delivers to `inbox`: at this address, where an earlier one was
    /// stopped, or at a free one.
    async fn listen(&self, inbox: Inbox, address: Option<&str>) -> Listener;

    /// The sending half of a node, with default limits.
    fn transport(&self, cluster: ClusterId, node: Peer) -> Arc<dyn Transport>;
}

/// A running receiving half.
pub struct Listener {
    /// Where it is.
    pub address: Arc<str>,
    /// Ends it and its connections, and completes when the address is free again.
    pub stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Defines one `#[test]` for each case; the argument is an expression that makes a [`Network`].
#[macro_export]
macro_rules! transport_conformance {
    ($network:expr) => {
        $crate::transport_conformance! { @cases $network;
            every_kind_of_message_arrives_unchanged
            the_receiver_learns_where_to_answer
            messages_of_a_lane_arrive_in_order
            many_senders_share_one_receiver
            an_empty_batch_does_nothing
            a_large_command_arrives
            a_message_beyond_the_limit_is_dropped_alone
            a_receiver_that_takes_nothing_holds_the_sender_back
            control_passes_while_bulk_is_blocked
            delivery_resumes_after_the_receiver_restarts
            a_peer_that_moved_is_found_at_its_new_address
            another_cluster_is_refused_with_a_reason
            another_node_is_refused_with_a_reason
            an_unreachable_peer_fails_and_delays_nobody
            dropping_everything_under_load_does_not_hang
        }
    };
    (@cases $network:expr; $($case:ident)+) => {$(
        #[test]
        fn $case() {
            $crate::testing::conformance::run(async {
                $crate::testing::conformance::transport::$case(&$network).await;
            });
        }
    )+};
}

const CLUSTER: ClusterId = ClusterId(0xfeed_f00d);
const GROUP: GroupId = GroupId(0);
/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nothing moves for this long: it is blocked.
const STILL: Duration = Duration::from_millis(700);

/// A node of a test: both halves, and what arrived.
struct Node {
    peer: Peer,
    transport: Arc<dyn Transport>,
    arrivals: Arrivals,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Node {
    async fn start(network: &dyn Network, id: u64) -> Self {
        Self::start_at(network, CLUSTER, id, None).await
    }

    async fn start_at(network: &dyn Network, cluster: ClusterId, id: u64, address: Option<&str>) -> Self {
        let (inbox, arrivals) = Inbox::channel(cluster, GROUP, NodeId(id));
        let Listener { address, stop } = network.listen(inbox, address).await;
        let peer = Peer::new(id, address);
        Self { transport: network.transport(cluster, peer.clone()), peer, arrivals, stop }
    }

    fn envelope(&self, to: &Peer, body: Body) -> Envelope {
        envelope(CLUSTER, &self.peer, to, body)
    }

    async fn send(&self, to: &Peer, bodies: Vec<Body>) -> Result<(), TransportError> {
        let batch = bodies.into_iter().map(|body| self.envelope(to, body)).collect();
        within("a send", self.transport.send(to, batch)).await
    }

    /// Everything that arrived, up to `count` messages.
    async fn receive(&mut self, count: usize) -> Vec<Envelope> {
        let mut all = Vec::new();
        while all.len() < count {
            let (_, batch) = within("the next arrival", self.arrivals.next()).await.expect("an open inbox");
            all.extend(batch);
        }
        all
    }

    async fn assert_nothing_arrives(&mut self) {
        if let Ok(Some((sender, batch))) = timeout(STILL, self.arrivals.next()).await {
            panic!("{} messages of {sender} arrived where none should", batch.len());
        }
    }
}

fn envelope(cluster: ClusterId, from: &Peer, to: &Peer, body: Body) -> Envelope {
    Envelope { cluster, group: GROUP, from: from.id, to: to.id, message: Message { term: Term(7), body } }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come to an end"),
    }
}

/// A control message with a number.
fn tick(round: u64) -> Body {
    Body::Heartbeat { commit: Index(3), round, lease: Duration::ZERO }
}

fn round(envelope: &Envelope) -> Option<u64> {
    if let Body::Heartbeat { round, .. } = envelope.message.body { Some(round) } else { None }
}

/// A bulk message with a number and `size` bytes.
fn load(number: u64, size: usize) -> Body {
    let entry =
        Entry { id: LogId::new(7, number + 1), kind: EntryKind::Command, data: Bytes::from(vec![number as u8; size]) };
    Body::Append { prev: LogId::new(7, number), entries: vec![entry], commit: Index(number) }
}

fn number(envelope: &Envelope) -> Option<u64> {
    if let Body::Append { prev, .. } = &envelope.message.body { Some(prev.index.0) } else { None }
}
