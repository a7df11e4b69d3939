use std::future::{Future, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use raftkv::metrics::RefusedFor;
use raftkv::transport_kit::http2::Http2Refusals;
use raftkv::transport_kit::listener::{OUTWAITED, connections, turned_away};
use raftkv::transport_kit::{
    Arrival, Entrance, Exhausted, Gate, Guarded, Identity, Presence, RefusalLog, Shares, Tls, Visitor, greet,
};
use raftkv::{ClusterId, Hello, Inbox, Lane, NodeId, Peer, Refusal};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::accept::{Incoming, Origin};
use crate::connection::ALPN;
use crate::explain::explain_status;
use crate::opening::PeerService;
use crate::options::{PROTOCOL_VERSION, ServerOptions};
use crate::wire::pb::peers_server::{Peers, PeersServer};
use crate::wire::{self, Way, pb};

/// Receives peers' streams, and delivers what they carry to an [`Inbox`]. Cheap to clone.
#[derive(Clone)]
pub struct GrpcServer {
    shared: Arc<Shared>,
}

struct Shared {
    inbox: Inbox,
    options: ServerOptions,
    /// For all who come to a listener of this server.
    entrance: Entrance,
    /// For streams on which nobody has said yet who it is. In all there can be no more than the connections may have.
    unnamed: Shares,
    /// For peers that have.
    streams: Arc<Semaphore>,
    closed: watch::Sender<bool>,
    gate: Gate,
    refusals: Arc<RefusalLog>,
}

/// Serves `inbox` on a listener until `shutdown` completes; then refuses new streams, ends the open ones, and returns.
///
/// # Errors
/// The HTTP server failed, or the listener can accept no connection any more: the node hears nobody then, and should end.
pub async fn serve(
    listener: TcpListener,
    inbox: Inbox,
    options: ServerOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    GrpcServer::new(inbox, options).serve(listener, shutdown).await
}

impl GrpcServer {
    /// A server for this letter box.
    #[must_use]
    pub fn new(inbox: Inbox, options: ServerOptions) -> Self {
        Self::behind(None, inbox, options)
    }

    /// A server for this letter box that demands TLS, and that each peer prove which node it is. (Feature `tls` of `raftkv` has what it takes to make a
    /// [`Tls`].)
    #[must_use]
    pub fn with_tls(inbox: Inbox, options: ServerOptions, tls: Tls) -> Self {
        Self::behind(Some(tls), inbox, options)
    }

    fn behind(tls: Option<Tls>, inbox: Inbox, options: ServerOptions) -> Self {
        let streams = Arc::new(Semaphore::new(options.max_streams.min(Semaphore::MAX_PERMITS)));
        let most = options.max_connections;
        // The other half is for peers that have said who they are.
        let entrance = Entrance::new(most, options.max_connections_per_address, most / 2);
        let unnamed = options.max_connections.saturating_mul(options.max_streams_per_connection as usize);
        let unnamed = Shares::new(unnamed, options.max_connections_per_address);
        let (closed, _) = watch::channel(false);
        let gate = Gate { tls, protocol: ALPN, limit: options.handshake_timeout };
        let refusals = Arc::new(RefusalLog::new(inbox.clone()));
        Self { shared: Arc::new(Shared { inbox, options, entrance, unnamed, streams, closed, gate, refusals }) }
    }

    /// The tonic service, with its limits on streams and on the size of frames.
    ///
    /// Whoever assembles a server of their own sets keep-alive, windows, the limits on connections and on what is in each, and `TCP_NODELAY` on it,
    /// and calls [`GrpcServer::close`] before it waits for open streams: peers never end theirs by themselves. A server with TLS is not for that: it
    /// refuses streams whose connections [`GrpcServer::serve`] has not accepted.
    #[must_use]
    pub fn service(&self) -> PeerService {
        PeerService(PeersServer::new(self.clone()).max_decoding_message_size(self.shared.options.max_message_bytes))
    }

    /// The peer that a stream's first frame names, for fuzzing.
    #[cfg(feature = "testing")]
    pub(crate) fn greet(&self, first: pb::Frame) -> Result<Peer, Status> {
        self.shared.greet(Some(first)).map(|(peer, _)| peer)
    }

    /// Ends all streams, and refuses new ones. The peers are told.
    pub fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    /// Serves on a listener until `shutdown` completes; see [`serve`].
    ///
    /// # Errors
    /// Those of [`serve`].
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let options = &self.shared.options;
        let (ended, mut end) = watch::channel(false);
        let (connections, hearing) = connections(listener);
        let (door, told, shared) = (self.shared.clone(), self.shared.refusals.clone(), self.shared.clone());
        let connections = connections
            .filter_map(move |(stream, remote)| ready(door.enter(remote).map(|visitor| (stream, remote, visitor))));
        let gate = self.shared.gate.clone();
        let arrivals = gate.all(connections, move |remote, why| told.denied(remote, &why));
        let connections = arrivals.map(move |(arrival, visitor)| io::Result::Ok(shared.let_in(arrival, visitor)));
        let shutdown = async {
            shutdown.await;
            self.close();
            ended.send_replace(true);
        };
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(options.keep_alive_interval))
            .http2_keepalive_timeout(Some(options.keep_alive_timeout))
            .initial_stream_window_size(options.window_bytes)
            .initial_connection_window_size(options.window_bytes)
            .max_frame_size(MAX_HTTP2_FRAME)
            .max_concurrent_streams(options.max_streams_per_connection)
            .http2_max_header_list_size(options.max_header_bytes)
            .add_service(self.service())
            .serve_with_incoming_shutdown(connections, shutdown);
        let overdue = async {
            // Fails only when the server has ended, and this is not polled again.
            let _ = end.wait_for(|ended| *ended).await;
            sleep(options.shutdown_grace).await;
        };
        tokio::select! {
            biased;
            outcome = hearing.serve(server) => {
                // Streams that are still open learn of it when the listener has failed.
                self.close();
                outcome
            }
            () = overdue => Ok(()),
        }
    }
}

/// Larger frames mean fewer headers and wake-ups for bulk data.
const MAX_HTTP2_FRAME: u32 = 256 << 10;

#[tonic::async_trait]
impl Peers for GrpcServer {
    type OpenLaneStream = Pin<Box<dyn Stream<Item = Result<pb::Welcome, Status>> + Send>>;

    async fn open_lane(
        &self,
        request: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<Self::OpenLaneStream>, Status> {
        // A router of one's own accepts its connections in its own way.
        let origin = request.extensions().get::<Origin>().cloned();
        let remote = origin.as_ref().map_or_else(|| request.remote_addr(), |origin| Some(origin.remote));
        let identity = origin.as_ref().and_then(|origin| origin.identity.clone());
        let session = self.shared.admit(request.into_inner(), remote, identity.as_ref()).await;
        let session =
            session.inspect_err(|status| self.shared.refusals.refused(why(status), remote, status.message()))?;
        if let Some(origin) = origin {
            origin.admit();
        }
        // The stream of replies does the receiving, so that it runs where the frames arrive, and ends with the connection.
        let welcome = stream::once(ready(Ok(pb::Welcome { version: PROTOCOL_VERSION })));
        let receiving = stream::once(session.receive()).filter_map(|end| ready(end.err().map(Err)));
        Ok(Response::new(Box::pin(welcome.chain(receiving))))
    }
}

impl Shared {
    /// A place for a connection, if there may be another one.
    fn enter(&self, remote: SocketAddr) -> Option<Visitor> {
        match self.entrance.enter(Some(remote.ip())) {
            Ok((visitor, made_room)) => {
                if made_room {
                    self.refusals.refused(RefusedFor::Limit, None, OUTWAITED);
                }
                Some(visitor)
            }
            Err(full) => {
                let reason = turned_away(full, "`max_connections`", "`max_connections_per_address`");
                self.refusals.refused(RefusedFor::Limit, Some(remote), &reason);
                None
            }
        }
    }

    /// A connection on which somebody has to say soon who it is.
    fn let_in(self: &Arc<Self>, arrival: Arrival, Visitor { place, eviction }: Visitor) -> Incoming {
        let Arrival { link, identity, remote } = arrival;
        let refusals = self.refusals.clone();
        let late = {
            let refusals = refusals.clone();
            move || refusals.refused(RefusedFor::Silence, Some(remote), "nobody said who it is in time")
        };
        // Who is a peer has to say so within this; as long as probes may stay unanswered, so long may bytes wait.
        let entry = self.options.handshake_timeout * 2;
        let max_stall = self.options.keep_alive_interval + self.options.keep_alive_timeout;
        let link = Guarded::new(link, place.clone(), entry, max_stall, late).until(eviction);
        Incoming { link, place, remote, identity, refusals, http2: Http2Refusals::default() }
    }

    /// Waits for the hello, and checks it.
    async fn admit(
        self: &Arc<Self>,
        mut frames: Streaming<pb::Frame>,
        remote: Option<SocketAddr>,
        identity: Option<&Identity>,
    ) -> Result<Session, Status> {
        let unnamed = self.unnamed.take(remote.map(|remote| remote.ip()), 1).map_err(|full| too_many_unnamed(&full))?;
        let first = timeout(self.options.handshake_timeout, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let (sender, lane) = self.greet(first)?;
        self.gate.vouches(identity, sender.id).map_err(Status::unauthenticated)?;
        let closed = self.closed.subscribe();
        if *closed.borrow() {
            return Err(self.closing());
        }
        // Now that it is a peer: strangers could have taken all of them, and would have nothing to do for it but be silent.
        drop(unnamed);
        let limit = self.options.max_streams;
        let permit = self.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            Status::resource_exhausted(format!("{limit} streams are open here already (`max_streams`)"))
        })?;
        let way = Way { cluster: self.inbox.cluster(), from: sender.id, to: self.inbox.node() };
        let presence = Presence::begin(self.inbox.clone(), sender, lane, remote);
        Ok(Session { shared: self.clone(), frames, closed, presence, way, remote, _permit: permit })
    }

    /// The peer that a stream's first frame names, and its lane.
    fn greet(&self, first: Option<pb::Frame>) -> Result<(Peer, Lane), Status> {
        let hello = first
            .filter(|frame| frame.envelopes.is_empty())
            .and_then(|frame| frame.hello)
            .ok_or_else(|| Status::invalid_argument("the stream does not begin with a hello"))?;
        self.check(&hello)
    }

    fn check(&self, hello: &pb::Hello) -> Result<(Peer, Lane), Status> {
        let said = Hello {
            version: hello.version,
            cluster: ClusterId(hello.cluster),
            from: Peer::new(hello.from, hello.from_address.as_str()),
            to: NodeId(hello.to),
        };
        let sender = greet(&self.inbox, PROTOCOL_VERSION, said).map_err(Status::failed_precondition)?;
        let lane = match pb::Lane::try_from(hello.lane) {
            Ok(pb::Lane::Control) => Lane::Control,
            Ok(pb::Lane::Bulk) => Lane::Bulk,
            Ok(pb::Lane::Unspecified) | Err(_) => {
                return Err(Status::invalid_argument(format!("the hello names no lane, but {}", hello.lane)));
            }
        };
        Ok((sender, lane))
    }

    fn closing(&self) -> Status {
        Status::unavailable(format!("node {} is shutting down", self.inbox.node().0))
    }
}

/// A peer's stream after its welcome.
struct Session {
    shared: Arc<Shared>,
    frames: Streaming<pb::Frame>,
    closed: watch::Receiver<bool>,
    presence: Presence,
    way: Way,
    remote: Option<SocketAddr>,
    _permit: OwnedSemaphorePermit,
}

impl Session {
    /// Delivers until the stream ends. An error is what the peer is told.
    async fn receive(mut self) -> Result<(), Status> {
        let outcome = self.deliver_all().await;
        if let Err(status) = &outcome {
            self.presence.ends(explain_status(status));
            if matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument | Code::OutOfRange) {
                self.shared.refusals.refused(why(status), self.remote, status.message());
            }
        }
        outcome
    }

    async fn deliver_all(&mut self) -> Result<(), Status> {
        let Self { shared, frames, closed, presence, way, .. } = self;
        let mut closing = std::pin::pin!(closed.wait_for(|closed| *closed));
        loop {
            let frame = tokio::select! {
                biased;
                _ = &mut closing => return Err(shared.closing()),
                frame = frames.message() => frame?,
            };
            let Some(frame) = frame else { return Ok(()) };
            let batch = wire::decode(*way, frame).map_err(Status::invalid_argument)?;
            tokio::select! {
                biased;
                _ = &mut closing => return Err(shared.closing()),
                delivered = shared.inbox.deliver(presence.sender(), batch) => delivered.map_err(|r| refused(&r))?,
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if *self.closed.borrow() {
            self.presence.ends_here();
        }
    }
}

/// A node that has stopped may come back at this address; the other reasons need an operator.
fn refused(refusal: &Refusal) -> Status {
    let code = if *refusal == Refusal::Stopped { Code::Unavailable } else { Code::FailedPrecondition };
    Status::new(code, refusal.to_string())
}

fn too_many_unnamed(full: &Exhausted) -> Status {
    Status::resource_exhausted(match full {
        Exhausted::All(limit) => format!("{limit} streams are open here on which nobody has said who it is"),
        Exhausted::Address(address, limit) => format!(
            "{address} has {limit} streams open here on which nobody has said who it is (`max_connections_per_address`)"
        ),
    })
}

/// For whoever counts.
fn why(status: &Status) -> RefusedFor {
    if matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange) {
        RefusedFor::Limit
    } else if status.code() == Code::DeadlineExceeded {
        RefusedFor::Silence
    } else {
        RefusedFor::Error
    }
}
