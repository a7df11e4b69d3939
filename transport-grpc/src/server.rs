use std::collections::HashMap;
use std::future::{Future, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt, stream};
use raftkv::{ClusterId, Inbox, Lane, NodeId, Peer, Refusal};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use crate::accept::{Guarded, Origin};
use crate::lane::explain_status;
use crate::listener::connections;
use crate::options::{PROTOCOL_VERSION, ServerOptions};
use crate::wire::pb::peers_server::{Peers, PeersServer};
use crate::wire::{self, Way, pb};

/// The tonic service, for those who assemble their own router.
pub type PeerService = PeersServer<GrpcServer>;

/// Receives peers' streams, and delivers what they carry to an [`Inbox`]. Cheap to clone.
#[derive(Clone)]
pub struct GrpcServer {
    shared: Arc<Shared>,
}

struct Shared {
    inbox: Inbox,
    options: ServerOptions,
    streams: Arc<Semaphore>,
    closed: watch::Sender<bool>,
    refusals: Mutex<HashMap<(Option<IpAddr>, String), Instant>>,
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
        let streams = Arc::new(Semaphore::new(options.max_streams.min(Semaphore::MAX_PERMITS)));
        let (closed, _) = watch::channel(false);
        Self { shared: Arc::new(Shared { inbox, options, streams, closed, refusals: Mutex::default() }) }
    }

    /// The tonic service, with its limit on the size of frames.
    ///
    /// Whoever assembles a server of their own sets keep-alive, windows and `TCP_NODELAY` on it, and calls
    /// [`GrpcServer::close`] before it waits for open streams: peers never end theirs by themselves.
    #[must_use]
    pub fn service(&self) -> PeerService {
        PeersServer::new(self.clone()).max_decoding_message_size(self.shared.options.max_message_bytes)
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
        // Who is a peer has to say so within this.
        let limit = options.handshake_timeout * 2;
        let connections = connections.map(move |(stream, remote)| io::Result::Ok(Guarded::new(stream, remote, limit)));
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
            .max_concurrent_streams(MAX_STREAMS_OF_A_CONNECTION)
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
/// A transport opens one.
const MAX_STREAMS_OF_A_CONNECTION: u32 = 8;
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
        let session = self.shared.admit(request.into_inner(), remote).await;
        let session = session.inspect_err(|status| self.shared.log_refusal(remote, status))?;
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
    /// Waits for the hello, and checks it.
    async fn admit(
        self: &Arc<Self>,
        mut frames: Streaming<pb::Frame>,
        remote: Option<SocketAddr>,
    ) -> Result<Session, Status> {
        let limit = self.options.max_streams;
        let permit = self.streams.clone().try_acquire_owned();
        let permit =
            permit.map_err(|_| Status::resource_exhausted(format!("{limit} streams are open here already")))?;
        let first = timeout(self.options.handshake_timeout, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let (sender, lane) = self.greet(first)?;
        let closed = self.closed.subscribe();
        if *closed.borrow() {
            return Err(self.closing());
        }
        let way = Way { cluster: self.inbox.cluster(), from: sender.id, to: self.inbox.node() };
        info!(peer = %sender, %lane, remote = remote.map(tracing::field::display), "peer connected");
        Ok(Session { shared: self.clone(), frames, closed, sender, way, lane, remote, ended: None, _permit: permit })
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
        if hello.version != PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "this node speaks version {PROTOCOL_VERSION} of the protocol, not {}: upgrade the older one",
                hello.version
            )));
        }
        let (ours, theirs) = (self.inbox.cluster(), ClusterId(hello.cluster));
        if ours != theirs {
            return Err(refused(&Refusal::WrongCluster { ours, theirs }));
        }
        let (ours, wanted) = (self.inbox.node(), NodeId(hello.to));
        if ours != wanted {
            return Err(refused(&Refusal::WrongNode { ours, wanted }));
        }
        if hello.from == 0 || hello.from_address.is_empty() || hello.from_address.len() > MAX_ADDRESS_BYTES {
            return Err(Status::invalid_argument("the hello names no node, or no address that could be one"));
        }
        let lane = match pb::Lane::try_from(hello.lane) {
            Ok(pb::Lane::Control) => Lane::Control,
            Ok(pb::Lane::Bulk) => Lane::Bulk,
            Ok(pb::Lane::Unspecified) | Err(_) => {
                return Err(Status::invalid_argument(format!("the hello names no lane, but {}", hello.lane)));
            }
        };
        Ok((Peer::new(hello.from, hello.from_address.as_str()), lane))
    }

    fn closing(&self) -> Status {
        Status::unavailable(format!("node {} is shutting down", self.inbox.node().0))
    }

    /// Peers that are refused come back every few seconds; the log is told once in a while.
    fn log_refusal(&self, remote: Option<SocketAddr>, status: &Status) {
        let reason = status.message();
        let mut known = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN_REFUSALS {
            known.retain(|_, at| at.elapsed() < REPEAT_REFUSAL_AFTER);
        }
        let key = (remote.map(|addr| addr.ip()), reason.to_owned());
        let fresh = known.get(&key).is_none_or(|at| at.elapsed() >= REPEAT_REFUSAL_AFTER);
        if fresh && known.len() < MAX_KNOWN_REFUSALS {
            known.insert(key, Instant::now());
            drop(known);
            warn!(remote = remote.map(tracing::field::display), reason, "refused a peer");
        } else {
            debug!(remote = remote.map(tracing::field::display), reason, "refused a peer again");
        }
    }
}

/// Host names have at most 253 bytes.
const MAX_ADDRESS_BYTES: usize = 300;
const MAX_KNOWN_REFUSALS: usize = 256;
const REPEAT_REFUSAL_AFTER: Duration = Duration::from_secs(60);

/// A peer's stream after its welcome.
struct Session {
    shared: Arc<Shared>,
    frames: Streaming<pb::Frame>,
    closed: watch::Receiver<bool>,
    sender: Peer,
    way: Way,
    lane: Lane,
    remote: Option<SocketAddr>,
    /// Why it ended, once it did.
    ended: Option<String>,
    _permit: OwnedSemaphorePermit,
}

impl Session {
    /// Delivers until the stream ends. An error is what the peer is told.
    async fn receive(mut self) -> Result<(), Status> {
        let outcome = self.deliver_all().await;
        if let Err(status) = &outcome {
            self.ended = Some(explain_status(status));
            if matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument | Code::OutOfRange) {
                self.shared.log_refusal(self.remote, status);
            }
        }
        outcome
    }

    async fn deliver_all(&mut self) -> Result<(), Status> {
        let Self { shared, frames, closed, sender, way, .. } = self;
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
                delivered = shared.inbox.deliver(sender, batch) => delivered.map_err(|r| refused(&r))?,
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let reason = self.ended.as_deref().unwrap_or("closed by the peer");
        info!(peer = %self.sender, lane = %self.lane, reason, "peer disconnected");
        // A stream that ends is a hint that its sender did, unless this node ended it. A leader never leaves the control lane
        // idle; the other may be for long, and ends then.
        if self.lane == Lane::Control && !*self.closed.borrow() {
            self.shared.inbox.peer_lost(self.sender.id);
        }
    }
}

/// A node that has stopped may come back at this address; the other reasons need an operator.
fn refused(refusal: &Refusal) -> Status {
    let code = if *refusal == Refusal::Stopped { Code::Unavailable } else { Code::FailedPrecondition };
    Status::new(code, refusal.to_string())
}
