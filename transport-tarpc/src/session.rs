//! One connection as its server has it: from the hello to its end.

use std::future::{Future, pending, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use raftkv::metrics::RefusedFor;
use raftkv::transport_kit::{Identity, Presence, Visitor, greet};
use raftkv::{Hello, Inbox, Lane, Peer};
use tarpc::ChannelError;
use tarpc::context::Context;
use tarpc::server::{BaseChannel, Channel, Config, InFlightRequest, serve};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::instrument::WithSubscriber;
use tracing::{Dispatch, debug};

use crate::answers::Answers;
use crate::codec::{ServerCodec, TOO_LARGE, framed};
use crate::line::Meter;
use crate::options::{PROTOCOL_VERSION, ServerOptions};
use crate::server::Shared;
use crate::service::{Batch, Greeting, Peers, PeersRequest, PeersResponse, Refusal, Welcome, quietly};
use crate::wire::{self, Way};

type Request = InFlightRequest<PeersRequest, PeersResponse>;
type Read = Result<Request, ChannelError<std::io::Error>>;
/// What comes on a connection. It has to be polled for answers to be written, too.
type Requests = Pin<Box<dyn Stream<Item = Read> + Send>>;

/// What a peer may say of how often it gives signs of life; a longer time is taken for this one.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// How often within the time allowed a silent peer is looked after.
const LOOKS: u32 = 4;

/// Why a connection ends.
enum End {
    /// The peer closed it.
    Closed,
    /// The bytes end, and the peer can't be told anything.
    Lost(String),
    /// The peer does something that it must not, or is somebody else, or there are too many.
    Refused(RefusedFor, Refusal),
    /// This node ends.
    Closing,
}

/// Serves one connection until it ends.
pub(crate) async fn attend<S>(
    shared: &Arc<Shared>,
    stream: S,
    remote: Option<SocketAddr>,
    identity: Option<Identity>,
    Visitor { place, eviction }: Visitor,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let meter = Arc::new(Meter::default());
    let codec = ServerCodec::new(meter.clone(), shared.options.max_message_bytes);
    let framed = framed(stream, codec, meter.clone());
    let answers = Answers::new(framed, meter.clone(), shared.options.window_bytes);
    let pending_response_buffer = shared.options.max_requests as usize;
    let channel = BaseChannel::new(Config { pending_response_buffer }, answers);
    let mut requests: Requests = Box::pin(channel.requests());
    let admitting = shared.admit(&mut requests, identity.as_ref());
    let admitted = tokio::select! {
        biased;
        // Whoever needed the room has told of it.
        () = eviction => return,
        admitted = timeout(shared.options.handshake_timeout, admitting) => admitted,
    };
    let Ok(admitted) = admitted else {
        shared.refusals.refused(RefusedFor::Silence, remote, "nobody said who it is in time");
        return;
    };
    match admitted {
        // Else it has just had to go.
        Ok(admitted) if place.begin() => {
            meter.admit();
            Session::new(shared.clone(), requests, meter, admitted, remote).run().await;
        }
        Ok(_) => {}
        Err(End::Refused(kind, why)) => {
            shared.refusals.refused(kind, remote, &why.reason);
            see_off(requests, FuturesUnordered::new(), shared.options.shutdown_grace).await;
        }
        Err(End::Lost(reason)) => shared.refusals.refused(RefusedFor::Error, remote, &reason),
        Err(End::Closed | End::Closing) => debug!("a connection ended before anybody said who it is"),
    }
}

/// A peer that was welcomed.
struct Admitted {
    sender: Peer,
    lane: Lane,
    /// How often it gives a sign of life.
    interval: Duration,
    seat: OwnedSemaphorePermit,
}

impl Shared {
    /// Waits for the hello, checks it, and answers it.
    async fn admit(&self, requests: &mut Requests, identity: Option<&Identity>) -> Result<Admitted, End> {
        let request = match next(requests).await {
            None => return Err(End::Closed),
            Some(Err(error)) => return Err(End::Lost(broken(&error))),
            Some(Ok(request)) => request,
        };
        let PeersRequest::Hello { greeting } = &request.get().message else {
            return Err(End::Lost("the connection does not begin with a hello".into()));
        };
        let outcome = self.greet(greeting, identity);
        let verdict = match &outcome {
            Ok(_) => Ok(Welcome {
                version: PROTOCOL_VERSION,
                window_bytes: self.options.window_bytes,
                max_message_bytes: self.options.max_message_bytes as u64,
                max_requests: self.options.max_requests,
            }),
            Err((_, why)) => Err(why.clone()),
        };
        let answer = serve(async move |_: Context, _: PeersRequest| Ok(PeersResponse::Hello(verdict)));
        request.execute(answer).with_subscriber(Dispatch::none()).await;
        outcome.map_err(|(kind, why)| End::Refused(kind, why))
    }

    fn greet(&self, greeting: &Greeting, identity: Option<&Identity>) -> Result<Admitted, (RefusedFor, Refusal)> {
        let unfit = |reason| (RefusedFor::Error, Refusal::lasting(reason));
        let (sender, lane, interval) = self.check(greeting).map_err(unfit)?;
        self.gate.vouches(identity, sender.id).map_err(unfit)?;
        if *self.closed.borrow() {
            return Err((RefusedFor::Error, self.closing()));
        }
        let limit = self.options.max_connections;
        let full = || Refusal::passing(format!("{limit} connections are open here already (`max_connections`)"));
        let seat = self.seat().ok_or_else(|| (RefusedFor::Limit, full()))?;
        Ok(Admitted { sender, lane, interval, seat })
    }

    /// Who it is.
    pub(crate) fn check(&self, greeting: &Greeting) -> Result<(Peer, Lane, Duration), String> {
        let Greeting { version, cluster, from, address, to, lane, probe_ms } = greeting;
        let from = Peer { id: *from, address: address.as_str().into() };
        let hello = Hello { version: *version, cluster: *cluster, from, to: *to };
        let interval = Duration::from_millis((*probe_ms).into()).min(LONGEST_INTERVAL);
        Ok((greet(&self.inbox, PROTOCOL_VERSION, hello)?, wire::lane(*lane)?, interval))
    }

    fn closing(&self) -> Refusal {
        Refusal::passing(format!("node {} is shutting down", self.inbox.node().0))
    }
}

/// A connection after its welcome.
struct Session {
    shared: Arc<Shared>,
    requests: Requests,
    meter: Arc<Meter>,
    service: Receiving,
    presence: Presence,
    remote: Option<SocketAddr>,
    /// How long the peer may be silent.
    silence: Duration,
    closed: watch::Receiver<bool>,
    _seat: OwnedSemaphorePermit,
}

/// Answers what is asked after the hello.
#[derive(Clone)]
struct Receiving(Arc<Received>);

struct Received {
    inbox: Inbox,
    sender: Peer,
    way: Way,
    /// Why the connection ends, once it does.
    ended: watch::Sender<Option<Refusal>>,
}

impl Peers for Receiving {
    async fn hello(self, _: Context, _: Greeting) -> Result<Welcome, Refusal> {
        Err(Refusal::lasting("a second hello on one connection"))
    }

    async fn deliver(self, _: Context, batch: Batch) -> Result<(), Refusal> {
        let taken = self.0.take(batch).await;
        if let Err(why) = &taken {
            self.0.ended.send_replace(Some(why.clone()));
        }
        taken
    }

    async fn probe(self, _: Context) {}

    async fn farewell(self, _: Context) -> Refusal {
        let mut ended = self.0.ended.subscribe();
        let why = match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone(),
            Err(_) => None,
        };
        why.unwrap_or_else(|| Refusal::passing("it closed the connection"))
    }
}

impl Received {
    async fn take(&self, batch: Batch) -> Result<(), Refusal> {
        let batch = match batch {
            Batch::Incoming(bytes) => wire::decode(self.way, &bytes).map_err(Refusal::lasting)?,
            Batch::Outgoing(batch) => batch,
        };
        self.inbox.deliver(&self.sender, batch).await.map_err(|why| {
            // A node that has stopped may come back at this address; the other reasons need an operator.
            Refusal { lasting: why != raftkv::Refusal::Stopped, reason: why.to_string() }
        })
    }
}

impl Session {
    fn new(
        shared: Arc<Shared>,
        requests: Requests,
        meter: Arc<Meter>,
        admitted: Admitted,
        remote: Option<SocketAddr>,
    ) -> Self {
        let Admitted { sender, lane, interval, seat } = admitted;
        let inbox = shared.inbox.clone();
        let way = Way { cluster: inbox.cluster(), from: sender.id, to: inbox.node() };
        let presence = Presence::begin(inbox.clone(), sender.clone(), lane, remote);
        let (ended, _) = watch::channel(None);
        let service = Receiving(Arc::new(Received { inbox, sender, way, ended }));
        let silence = interval + shared.options.keep_alive_timeout;
        let closed = shared.closed.subscribe();
        Self { shared, requests, meter, service, presence, remote, silence, closed, _seat: seat }
    }

    async fn run(mut self) {
        let mut answers = FuturesUnordered::new();
        let why = match self.receive(&mut answers).await {
            End::Closed => return,
            End::Lost(reason) => {
                self.presence.ends(reason);
                return;
            }
            End::Refused(kind, why) => {
                if why.lasting {
                    self.shared.refusals.refused(kind, self.remote, &why.reason);
                }
                why
            }
            End::Closing => {
                self.presence.ends_here();
                self.shared.closing()
            }
        };
        self.presence.ends(why.reason.clone());
        self.service.0.ended.send_replace(Some(why));
        see_off(self.requests, answers, self.shared.options.shutdown_grace).await;
    }

    /// Takes what comes until the connection has to end. Batches are delivered one after the other; everything else is answered meanwhile.
    async fn receive(&mut self, answers: &mut FuturesUnordered<Answer>) -> End {
        let Self { shared, requests, meter, service, silence, closed, .. } = self;
        let (to_deliver, ordered) = mpsc::unbounded_channel();
        let mut delivering = std::pin::pin!(deliver_in_order(service.clone(), ordered));
        let mut closing = std::pin::pin!(closed.wait_for(|closed| *closed));
        let mut listening = std::pin::pin!(silent(meter, *silence));
        let waiting = Waiting::new(&shared.options, meter.clone());
        loop {
            tokio::select! {
                biased;
                _ = &mut closing => return End::Closing,
                why = &mut delivering => return End::Refused(RefusedFor::Error, why),
                Some(()) = answers.next(), if !answers.is_empty() => {}
                request = next(requests) => match request {
                    None => return End::Closed,
                    Some(Err(error)) => return ended_by(&error),
                    Some(Ok(request)) => match waiting.admit(&request, answers.len()) {
                        // Fails only when its other end is gone, with this function.
                        Ok(Some(place)) => drop(to_deliver.send((request, place))),
                        Ok(None) => answers.push(answer(request, service.clone())),
                        Err(why) => return End::Refused(RefusedFor::Limit, why),
                    },
                },
                reason = &mut listening => return End::Lost(reason),
            }
        }
    }
}

/// A request that is being answered.
type Answer = Pin<Box<dyn Future<Output = ()> + Send>>;

fn answer(request: Request, service: Receiving) -> Answer {
    Box::pin(request.execute(service.serve()).with_subscriber(Dispatch::none()))
}

/// Delivers batches as they came; ends with the first that is not taken.
async fn deliver_in_order(service: Receiving, mut requests: mpsc::UnboundedReceiver<(Request, Place)>) -> Refusal {
    let ended = service.0.ended.subscribe();
    while let Some((request, place)) = requests.recv().await {
        request.execute(service.clone().serve()).with_subscriber(Dispatch::none()).await;
        drop(place);
        if let Some(why) = &*ended.borrow() {
            return why.clone();
        }
    }
    pending().await
}

/// What waits to be delivered, and the limits on that. The peer knows them.
struct Waiting {
    window: usize,
    max_requests: usize,
    held: Arc<Held>,
}

struct Held {
    bytes: AtomicUsize,
    batches: AtomicUsize,
    meter: Arc<Meter>,
}

/// A batch's place among those that wait.
struct Place {
    held: Arc<Held>,
    bytes: usize,
}

impl Waiting {
    fn new(options: &ServerOptions, meter: Arc<Meter>) -> Self {
        let held = Held { bytes: AtomicUsize::new(0), batches: AtomicUsize::new(0), meter };
        let (window, max_requests) = (options.window_bytes as usize, options.max_requests as usize);
        Self { window, max_requests, held: Arc::new(held) }
    }

    /// A place for this request if it is a batch.
    fn admit(&self, request: &Request, answers: usize) -> Result<Option<Place>, Refusal> {
        let most = self.max_requests;
        let too_many = || Refusal::lasting(format!("more than {most} requests are under way at once (`max_requests`)"));
        let PeersRequest::Deliver { batch } = &request.get().message else {
            return if answers < most { Ok(None) } else { Err(too_many()) };
        };
        let bytes = batch.len();
        let before = self.held.bytes.fetch_add(bytes, Ordering::Relaxed);
        let batches = self.held.batches.fetch_add(1, Ordering::Relaxed);
        let place = Place { held: self.held.clone(), bytes };
        if batches >= most {
            return Err(too_many());
        }
        // A larger one than the whole window passes alone.
        if before > 0 && before + bytes > self.window {
            return Err(Refusal::lasting(format!(
                "more than {} bytes are under way at once (`window_bytes`)",
                self.window
            )));
        }
        Ok(Some(place))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.held.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.held.batches.fetch_sub(1, Ordering::Relaxed);
        self.held.meter.owe(self.bytes);
    }
}

/// Waits until nothing was read for this long; says so.
async fn silent(meter: &Meter, silence: Duration) -> String {
    let (mut last, mut looks) = (meter.read(), 0);
    while looks <= LOOKS {
        sleep(silence / LOOKS).await;
        let read = meter.read();
        looks = if read == last { looks + 1 } else { 1 };
        last = read;
    }
    format!("nothing was heard from it for {silence:?}")
}

/// Lets the peer learn why the connection ends, and waits until it has closed it: if this node did so first, the reason could be lost on the way.
async fn see_off(mut requests: Requests, mut answers: FuturesUnordered<Answer>, grace: Duration) {
    let leaving = async {
        loop {
            tokio::select! {
                biased;
                Some(()) = answers.next(), if !answers.is_empty() => {}
                request = next(&mut requests) => match request {
                    // Nobody deals with it any more.
                    Some(Ok(request)) => drop(request),
                    Some(Err(_)) | None => return,
                },
            }
        }
    };
    let _ = timeout(grace, leaving).await;
}

async fn next(requests: &mut Requests) -> Option<Read> {
    poll_fn(|cx| quietly(|| requests.as_mut().poll_next(cx))).await
}

fn broken(error: &ChannelError<std::io::Error>) -> String {
    crate::connection::cause(error).to_string()
}

/// Bytes that make no sense, or are too many, are the peer's fault, and it may learn of it; after other errors there is nobody to tell.
fn ended_by(error: &ChannelError<std::io::Error>) -> End {
    let cause = crate::connection::cause(error);
    let refused = |kind| End::Refused(kind, Refusal::lasting(cause.to_string()));
    if cause.kind() == std::io::ErrorKind::InvalidData {
        refused(RefusedFor::Error)
    } else if cause.kind() == TOO_LARGE {
        refused(RefusedFor::Limit)
    } else {
        End::Lost(cause.to_string())
    }
}
