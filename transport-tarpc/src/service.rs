//! What a node can ask of another one, as a tarpc service, and how tarpc is kept from filling the log.

use std::time::Duration;

use bytes::Bytes;
use raftkv::{ClusterId, Envelope, NodeId};
use tracing::Dispatch;
use tracing::dispatcher::with_default;

/// One connection, which is one lane. Requests are answered by [`session`](crate::session) and asked by [`connection`](crate::connection).
#[tarpc::service]
pub(crate) trait Peers {
    /// Who speaks to whom. The first request, and only the first.
    async fn hello(greeting: Greeting) -> Result<Welcome, Refusal>;
    /// Answered when the batch is in the receiver's inbox, and batches get there in order: this is what holds a sender back.
    async fn deliver(batch: Batch) -> Result<(), Refusal>;
    /// Answered at once, whatever else is waiting: the sign of life.
    async fn probe();
    /// Answered when the receiver ends the connection, with the reason.
    async fn farewell() -> Refusal;
}

/// How long a request may wait for its answer before tarpc gives it up at both ends: long enough never to decide anything while both ends live.
///
/// It is not this that finds out about a dead peer (probes are), nor what holds a sender back (the window is). An answer comes as soon as there is
/// room, however long that takes on a slow link or at a busy node. A receiver that lives and takes nothing for an hour is stuck: then the
/// handler is dropped with its batch there, and here the connection is given up, and a new one begins.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3600);

/// How a connection begins. What another version says beyond its number is its own, and empty here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) version: u32,
    pub(crate) cluster: ClusterId,
    pub(crate) from: NodeId,
    pub(crate) address: String,
    pub(crate) to: NodeId,
    /// See [`lane_number`](crate::wire::lane_number).
    pub(crate) lane: u8,
    /// How often it will give a sign of life, in milliseconds.
    pub(crate) probe_ms: u32,
}

/// The receiver's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) version: u32,
    pub(crate) window_bytes: u32,
    pub(crate) max_message_bytes: u64,
    pub(crate) max_requests: u32,
}

/// Why the receiver does not want a connection, or not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Whether that will be so until an operator changes something.
    pub(crate) lasting: bool,
    pub(crate) reason: String,
}

impl Refusal {
    pub(crate) fn lasting(reason: impl Into<String>) -> Self {
        Self { lasting: true, reason: reason.into() }
    }

    pub(crate) fn passing(reason: impl Into<String>) -> Self {
        Self { lasting: false, reason: reason.into() }
    }
}

/// Messages at either end: they are encoded where they are written, and decoded by whoever knows who sent them.
#[derive(Debug)]
pub(crate) enum Batch {
    Outgoing(Vec<Envelope>),
    Incoming(Bytes),
}

impl Batch {
    /// What it occupies of the receiver's window.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Outgoing(_) => 0,
            Self::Incoming(bytes) => bytes.len(),
        }
    }
}

/// Runs a piece of tarpc without its spans and events: there are a dozen for each request, spans at level INFO among them, and warnings about
/// requests of connections that are lost. What an operator needs to know is logged by the lanes and sessions.
pub(crate) fn quietly<T>(tarpc: impl FnOnce() -> T) -> T {
    with_default(&Dispatch::none(), tarpc)
}
