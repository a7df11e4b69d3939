//! What clients may take of this node: connections, requests, memory and time. Each limit is an option, and each refusal names it.
//!
//! ```text
//! connection ─ one of so many, begun in time ─ request ─ one of so many, here in time, not too large, room for it ─ services
//!                                                          └ answer: not too large, room for it until it has been taken ─┘
//! ```
//!
//! Nobody is to suffer from what others take, so one address may have only a part of everything ([`Shares`]). `body.rs` looks at what comes.

mod body;
mod census;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::ready;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use raftkv::transport_kit::listener::OUTWAITED;
use raftkv::transport_kit::{Entrance, Exhausted, Share, Shares, Visitor};
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Extensions, Status};
use tower_layer::Layer;
use tower_service::Service;
use tracing::warn;

use crate::config::Limits;
use crate::service::refused;
use crate::store;
use census::What;

/// What a request takes beside its bytes, estimated: a stream of HTTP/2, and a task.
const REQUEST_OVERHEAD: usize = 4 << 10;
/// How often the log is told of a limit.
const QUIET: Duration = Duration::from_secs(10);
/// Methods whose requests are streams: they may take as long as they like, and hold one message at a time.
const STREAMED: [&str; 2] = ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"];

/// The method whose answer has no end. It would keep the place of a request for as long as its client likes.
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// What was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    ClientConnections,
    MetricsConnections,
    /// An address has its part of something.
    AddressPercent,
    Handshake,
    HeaderSize,
    ConnectionRequests,
    Requests,
    HealthWatches,
    Memory,
    Receive,
    RequestSize,
    ResponseSize,
}

impl Limit {
    const ALL: [Self; 12] = [
        Self::ClientConnections,
        Self::MetricsConnections,
        Self::AddressPercent,
        Self::Handshake,
        Self::HeaderSize,
        Self::ConnectionRequests,
        Self::Requests,
        Self::HealthWatches,
        Self::Memory,
        Self::Receive,
        Self::RequestSize,
        Self::ResponseSize,
    ];

    /// The option that sets it.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::ClientConnections => "max-client-connections",
            Self::MetricsConnections => "max-metrics-connections",
            Self::AddressPercent => "max-address-percent",
            Self::Handshake => "handshake-timeout-ms",
            Self::HeaderSize => "max-header-bytes",
            Self::ConnectionRequests => "max-connection-requests",
            Self::Requests => "max-pending-requests",
            Self::HealthWatches => "max-health-watches",
            Self::Memory => "max-pending-mib",
            Self::Receive => "receive-timeout-ms",
            Self::RequestSize => "max-request-bytes",
            Self::ResponseSize => "max-response-mib",
        }
    }
}

/// Keeps the limits of one node.
#[derive(Debug)]
pub(crate) struct Gate {
    limits: Limits,
    /// The largest message that is looked at.
    max_message_bytes: usize,
    /// How many parts a message may have.
    max_parts: usize,
    clients: Entrance,
    metrics: Shares,
    requests: Shares,
    /// Requests that tell how the node is for as long as their clients like.
    watches: Shares,
    bytes: Shares,
    refused: [Count; Limit::ALL.len()],
}

#[derive(Debug, Default)]
struct Count {
    refusals: AtomicU64,
    logged: Mutex<Option<Instant>>,
}

impl Gate {
    /// `connections` is how many clients there may be, and `requests` how many requests of theirs; a message that is larger than a request may be is
    /// refused unread, or in etcd's words when it is not much larger.
    pub(crate) fn new(limits: Limits, connections: usize, requests: usize, of_request: store::Limits) -> Self {
        let shares = |limit: usize| Shares::new(limit, limits.of_address(limit));
        Self {
            max_message_bytes: of_request.request_bytes.saturating_add(refused::OVERSIZE),
            max_parts: of_request.txn_ops,
            // The other half is for those that have begun.
            clients: Entrance::new(connections, limits.of_address(connections), connections / 2),
            metrics: shares(limits.metrics_connections),
            requests: shares(requests),
            watches: shares(limits.health_watches),
            bytes: shares(limits.pending_bytes),
            refused: Default::default(),
            limits,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A place for a client's connection, which has yet to begin.
    pub(crate) fn client(&self, from: IpAddr) -> Option<Visitor> {
        let (visitor, made_room) = self.or_close(self.clients.enter(Some(from)), Limit::ClientConnections)?;
        if made_room {
            self.refuse(Limit::ClientConnections, OUTWAITED);
        }
        Some(visitor)
    }

    /// A place for a connection that asks for metrics.
    pub(crate) fn scraper(&self, from: IpAddr) -> Option<Share> {
        self.or_close(self.metrics.take(Some(from), 1), Limit::MetricsConnections)
    }

    fn or_close<T>(&self, place: Result<T, Exhausted>, limit: Limit) -> Option<T> {
        place.map_err(|full| self.refuse(which(limit, full), &format!("a connection was closed unheard: {full}"))).ok()
    }

    /// Counts a refusal, and tells the log of it now and then.
    pub(crate) fn refuse(&self, limit: Limit, words: &str) {
        let count = &self.refused[limit as usize];
        let refusals = count.refusals.fetch_add(1, Ordering::Relaxed) + 1;
        let mut logged = count.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= QUIET) {
            *logged = Some(Instant::now());
            warn!(refusals, "{words} (--{})", limit.option());
        }
    }

    /// How often each limit was exceeded since the start.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Limit::ALL.iter().zip(&self.refused).map(|(limit, count)| {
            let refusals = count.refusals.load(Ordering::Relaxed);
            (limit.option(), refusals)
        })
    }

    /// How many connections of clients are open.
    pub(crate) fn connections(&self) -> usize {
        self.clients.taken()
    }

    /// How many bytes requests and answers in progress hold.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes.taken()
    }

    /// Lets a request of this method in.
    fn admit(self: &Arc<Self>, from: Option<IpAddr>, path: &str, header_bytes: usize) -> Result<Ticket, Status> {
        let (places, limit, what) = if path == HEALTH_WATCH {
            (&self.watches, Limit::HealthWatches, "watches of health")
        } else {
            (&self.requests, Limit::Requests, "requests in progress")
        };
        let place = places.take(from, 1).map_err(|full| self.overloaded(limit, what, full))?;
        let bytes = self.bytes.take(from, REQUEST_OVERHEAD + header_bytes);
        let bytes = bytes.map_err(|full| self.overloaded(Limit::Memory, HELD, full))?;
        Ok(Ticket { gate: self.clone(), from, _place: place, bytes: Mutex::new(bytes) })
    }

    fn overloaded(&self, limit: Limit, what: &str, full: Exhausted) -> Status {
        let exceeded = which(limit, full);
        self.refuse(exceeded, &format!("a client was told to try again later; {what}: {full}"));
        let advice = match full {
            Exhausted::All(_) => format!("--{}; try again later, or at another node", limit.option()),
            Exhausted::Address(..) => format!("--{} of --{}; try again later", exceeded.option(), limit.option()),
        };
        refused::overloaded(&format!("{what}: {full} ({advice})"))
    }
}

const HELD: &str = "bytes of requests and answers in progress";

fn which(limit: Limit, full: Exhausted) -> Limit {
    match full {
        Exhausted::All(_) => limit,
        Exhausted::Address(..) => Limit::AddressPercent,
    }
}

/// A request that was let in, until its answer has been taken.
#[derive(Debug)]
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    from: Option<IpAddr>,
    _place: Share,
    bytes: Mutex<Share>,
}

impl Ticket {
    /// Takes room for so many bytes more.
    fn hold(&self, bytes: usize) -> Result<(), Status> {
        let held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner).grow(bytes);
        held.map_err(|full| self.gate.overloaded(Limit::Memory, HELD, full))
    }
}

/// Takes room for an answer of so many bytes, for as long as its request is in progress. Without a gate in front of the services there is no limit.
///
/// # Errors
/// There is no room: nothing was done, and the client may try again.
pub(crate) fn hold(request: &Extensions, bytes: usize) -> Result<(), Status> {
    request.get::<Arc<Ticket>>().map_or(Ok(()), |ticket| ticket.hold(bytes))
}

/// Room that is taken for an answer while it is gathered. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    ticket: Option<Arc<Ticket>>,
    taken: Arc<Mutex<Taken>>,
}

/// What was taken; and what the client is told, where there was no room.
#[derive(Debug, Default)]
struct Taken {
    share: Option<Share>,
    refused: Option<Status>,
}

impl Holding {
    /// None yet, for the answer to this request. Without a gate in front of the services there is room for everything.
    pub(crate) fn of(request: &Extensions) -> Self {
        Self { ticket: request.get::<Arc<Ticket>>().cloned(), taken: Arc::default() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so many bytes more, if there is room.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let Some(Ticket { gate, from, .. }) = self.ticket.as_deref() else { return true };
        let mut taken = self.taken();
        let more = match &mut taken.share {
            Some(share) => share.grow(bytes),
            none => gate.bytes.take(*from, bytes).map(|share| *none = Some(share)),
        };
        let refused = more.map_err(|full| gate.overloaded(Limit::Memory, HELD, full)).err();
        let there = refused.is_none();
        taken.refused = refused;
        there
    }

    /// What the client is told, where there was no room.
    pub(crate) fn refused(&self) -> Option<Status> {
        self.taken().refused.take()
    }

    /// The answer is made, and takes so much, for as long as its request is in progress. What was taken beyond that is given back.
    ///
    /// # Errors
    /// It takes more, for which there is no room.
    pub(crate) fn settle(self, bytes: usize) -> Result<(), Status> {
        self.taken().share = None;
        self.ticket.map_or(Ok(()), |ticket| ticket.hold(bytes))
    }
}

/// Counts an answer that is larger than any may be.
pub(crate) fn too_large(request: &Extensions) {
    if let Some(ticket) = request.get::<Arc<Ticket>>() {
        ticket.gate.refuse(Limit::ResponseSize, "an answer would have been too large");
    }
}

/// Puts the gate in front of a service.
#[derive(Clone, Debug)]
pub(crate) struct GateLayer(pub(crate) Arc<Gate>);

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated { inner, gate: self.0.clone() }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Gated<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let from = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
        let path = request.uri().path();
        let (is_streamed, counts) = (STREAMED.contains(&path), What::of(path));
        let ticket = match self.gate.admit(from.map(|from| from.ip()), path, headers.sum()) {
            Ok(ticket) => Arc::new(ticket),
            Err(status) => return Box::pin(ready(Ok(status.into_http()))),
        };
        let mut request = request.map(|body| body::received(body, ticket.clone(), is_streamed, counts));
        request.extensions_mut().insert(ticket.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if refused::is_too_large(answer.headers()) {
                ticket.gate.refuse(Limit::RequestSize, "a request was too large");
            }
            Ok(answer.map(|body| body::answered(body, ticket)))
        })
    }
}
