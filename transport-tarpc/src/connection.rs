//! One connection as its client has it: from the address to the peer's welcome, and on to its end.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use raftkv::transport_kit::{self, Dial, Failure, Local, Outgoing, Parcel, Tls, connect, connect_link};
use raftkv::{Envelope, Lane, Peer};
use tarpc::ChannelError;
use tarpc::client::{Channel, Config, NewClient, RpcError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::codec::{ClientCodec, framed};
use crate::line::Meter;
use crate::options::{Options, PROTOCOL_VERSION};
use crate::probe::{Probing, Verdict};
use crate::service::{Batch, DEADLINE, Greeting, PeersRequest, PeersResponse, Refusal, Welcome, quietly};
use crate::wire;

/// How many requests are under way at most, however many the other end takes: probes are among them.
const MAX_REQUESTS: usize = 1024;

/// Parcels that wait are sent as one batch, which is enough at this many bytes. What tarpc does for a request costs as much as some hundred entries.
const MERGED: usize = 128 << 10;

/// Opens connections in the name of the local node.
pub(crate) struct Dialer {
    pub(crate) local: Local,
    pub(crate) options: Options,
    pub(crate) tls: Option<Tls>,
}

/// What is spoken on TLS.
pub(crate) const ALPN: &[u8] = b"raftkv-tarpc";

impl Dial for Dialer {
    type Connection = Connection;

    async fn dial(&self, peer: &Peer, lane: Lane, outgoing: Outgoing, patience: u32) -> Result<Connection, Failure> {
        let limit = self.options.connect_timeout;
        let stream = match timeout(limit, connect(&peer.address)).await {
            Ok(connected) => connected?,
            Err(_) => return Err(Failure::unreachable(format!("no answer within {limit:?}"))),
        };
        let limit = limit * patience;
        match timeout(limit, self.begin(stream, peer, lane, outgoing, patience)).await {
            Ok(opened) => opened,
            Err(_) => Err(Failure::silent(format!("no answer within {limit:?}"))),
        }
    }

    fn max_encoded_len(&self, envelope: &Envelope) -> u64 {
        wire::max_encoded_len(envelope)
    }
}

/// Where requests go in. The stub that tarpc generates would panic over an answer of another kind than was asked for, and a peer can send one.
type Client = Channel<PeersRequest, PeersResponse>;

/// What drives a connection's bytes.
type Dispatch = Pin<Box<dyn Future<Output = Result<(), ChannelError<io::Error>>> + Send>>;

impl Dialer {
    /// TLS where it is wanted, and our own handshake.
    async fn begin(
        &self,
        stream: TcpStream,
        peer: &Peer,
        lane: Lane,
        outgoing: Outgoing,
        patience: u32,
    ) -> Result<Connection, Failure> {
        let link = connect_link(self.tls.as_ref(), stream, peer.id, ALPN).await?;
        let trouble = link.trouble();
        let opened = self.open(link, peer, lane, outgoing, patience).await;
        opened.map_err(|failure| trouble.behind(failure))
    }

    /// Says hello on any byte stream that leads to the peer, and waits for the welcome.
    async fn open<S>(
        &self,
        stream: S,
        peer: &Peer,
        lane: Lane,
        outgoing: Outgoing,
        patience: u32,
    ) -> Result<Connection, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let meter = Arc::new(Meter::default());
        let wire = framed(stream, ClientCodec::new(meter.clone()), meter.clone());
        let mut config = Config::default();
        (config.max_in_flight_requests, config.pending_request_buffer) = (MAX_REQUESTS, MAX_REQUESTS);
        let NewClient { client, dispatch } = tarpc::client::new(config, wire);
        let mut dispatch: Dispatch = Box::pin(dispatch);
        let context = tarpc::context::current();
        meter.asked();
        let hello = PeersRequest::Hello { greeting: self.greeting(peer, lane) };
        let mut hello = Box::pin(client.call(until(context), hello));
        let welcomed = poll_fn(|cx| {
            quietly(|| {
                if let Poll::Ready(answer) = hello.as_mut().poll(cx) {
                    return Poll::Ready(welcome(answer));
                }
                match dispatch.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => Poll::Ready(Err(closed("it closed the connection without a welcome"))),
                    Poll::Ready(Err(error)) => Poll::Ready(Err(broken(&error))),
                    Poll::Pending => hello.as_mut().poll(cx).map(welcome),
                }
            })
        })
        .await?;
        drop(hello);
        Ok(Connection::new(client, context, dispatch, outgoing, meter, welcomed, self.probing(lane, patience)))
    }

    fn greeting(&self, peer: &Peer, lane: Lane) -> Greeting {
        let Local { cluster, node } = &self.local;
        Greeting {
            version: PROTOCOL_VERSION,
            cluster: *cluster,
            from: node.id,
            address: node.address.as_ref().to_owned(),
            to: peer.id,
            lane: wire::lane_number(lane),
            probe_ms: u32::try_from(self.options.keep_alive_interval.as_millis()).unwrap_or(u32::MAX),
        }
    }

    fn probing(&self, lane: Lane, patience: u32) -> Probing {
        let timeout = match lane {
            Lane::Control => self.options.control_keep_alive_timeout,
            Lane::Bulk => self.options.bulk_keep_alive_timeout,
        };
        Probing::new(self.options.keep_alive_interval, timeout * patience)
    }
}

fn welcome(answer: Result<PeersResponse, RpcError>) -> Result<Welcome, Failure> {
    match answer.map_err(|e| failed(&e))? {
        PeersResponse::Hello(welcomed) => welcomed.map_err(refused),
        PeersResponse::Deliver(_) | PeersResponse::Probe(()) | PeersResponse::Farewell(_) => Err(beside_the_point()),
    }
}

fn until(mut context: tarpc::context::Context) -> tarpc::context::Context {
    context.deadline = Instant::now() + DEADLINE;
    context
}

/// A connection that the peer has welcomed. It has no task of its own: the lane's runs it.
pub(crate) struct Connection {
    client: Client,
    context: tarpc::context::Context,
    dispatch: Dispatch,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    outgoing: Outgoing,
    /// Taken from there, and waits for room.
    next: Option<Parcel>,
    meter: Arc<Meter>,
    probing: Probing,
    /// The receiver's limits.
    window: usize,
    max_message: usize,
    /// As many batches may be under way: half of the requests that the receiver takes.
    max_batches: usize,
    /// Bytes and batches that are under way.
    held: usize,
    batches: usize,
}

/// What came back, and what was asked.
struct Answer {
    asked: Asked,
    outcome: Result<PeersResponse, RpcError>,
}

enum Asked {
    /// To take a batch of so many bytes.
    Deliver(usize),
    Probe,
    Farewell,
}

impl transport_kit::Connection for Connection {
    async fn lost(&mut self) -> Failure {
        poll_fn(|cx| quietly(|| self.poll_lost(cx))).await
    }
}

impl Connection {
    fn new(
        client: Client,
        context: tarpc::context::Context,
        dispatch: Dispatch,
        outgoing: Outgoing,
        meter: Arc<Meter>,
        limits: Welcome,
        probing: Probing,
    ) -> Self {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (window, max_message) = (size(limits.window_bytes.into()), size(limits.max_message_bytes));
        let max_batches = (size(limits.max_requests.into()).min(MAX_REQUESTS) / 2).max(1);
        let answers = FuturesUnordered::new();
        let next = None;
        let (held, batches) = (0, 0);
        let mut connection = Self {
            client,
            context,
            dispatch,
            answers,
            outgoing,
            next,
            meter,
            probing,
            window,
            max_message,
            max_batches,
            held,
            batches,
        };
        connection.ask_for_farewell();
        connection
    }

    /// Does all that can be done now, in the order in which one thing makes the next one possible.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        loop {
            let mut again = match self.hand_over(cx) {
                Ok(handed) => handed,
                Err(failure) => return Poll::Ready(failure),
            };
            while let Poll::Ready(Some(answer)) = self.answers.poll_next_unpin(cx) {
                if let Err(failure) = self.take(answer) {
                    return Poll::Ready(failure);
                }
                again = true;
            }
            match self.dispatch.as_mut().poll(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(closed("it closed the connection")),
                Poll::Ready(Err(error)) => return Poll::Ready(broken(&error)),
                Poll::Pending => {}
            }
            match self.probing.poll(cx, &self.meter) {
                Poll::Ready(Verdict::Probe) => {
                    self.probe();
                    again = true;
                }
                Poll::Ready(Verdict::Dead(timeout)) => {
                    let reason = format!("it left a keep-alive probe unanswered for {timeout:?}");
                    return Poll::Ready(Failure::silent(reason));
                }
                Poll::Pending => {}
            }
            if !again {
                return Poll::Pending;
            }
        }
    }

    /// Gives tarpc the next batch, if the one before is written and the receiver has room; whether it did. One at a time, so that a probe never has
    /// to wait for more than what the system holds already.
    fn hand_over(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        if self.meter.is_waiting() || self.batches >= self.max_batches {
            return Ok(false);
        }
        if self.next.is_none() {
            let Poll::Ready(Some(parcel)) = self.outgoing.poll_next(cx) else { return Ok(false) };
            self.next = Some(parcel);
        }
        // A larger one than the whole window passes alone.
        let room = if self.held == 0 { usize::MAX } else { self.window.saturating_sub(self.held) };
        let Some(mut parcel) = self.next.take_if(|next| next.bytes <= room) else { return Ok(false) };
        if parcel.bytes > self.max_message {
            return Err(Failure::refused(format!(
                "it takes messages of at most {} bytes, and one of up to {} is to be sent: give both nodes the same limit",
                self.max_message, parcel.bytes
            )));
        }
        while parcel.bytes < MERGED
            && let Some(more) = self.outgoing.take()
        {
            let bytes = parcel.bytes.saturating_add(more.bytes);
            if bytes > self.window.saturating_sub(self.held).min(self.max_message) {
                self.next = Some(more);
                break;
            }
            parcel.batch.extend(more.batch);
            parcel.bytes = bytes;
        }
        self.deliver(parcel);
        Ok(true)
    }

    fn deliver(&mut self, Parcel { batch, bytes }: Parcel) {
        self.held += bytes;
        self.batches += 1;
        self.ask(Asked::Deliver(bytes), PeersRequest::Deliver { batch: Batch::Outgoing(batch) });
    }

    fn probe(&mut self) {
        self.ask(Asked::Probe, PeersRequest::Probe {});
    }

    fn ask_for_farewell(&mut self) {
        self.ask(Asked::Farewell, PeersRequest::Farewell {});
    }

    fn ask(&mut self, asked: Asked, request: PeersRequest) {
        self.meter.asked();
        let (client, context) = (self.client.clone(), until(self.context));
        self.answers.push(Box::pin(async move { Answer { asked, outcome: client.call(context, request).await } }));
    }

    fn take(&mut self, answer: Answer) -> Result<(), Failure> {
        let Answer { asked, outcome } = answer;
        match (asked, outcome) {
            (Asked::Farewell, Err(RpcError::DeadlineExceeded)) => self.ask_for_farewell(),
            (_, Err(error)) => return Err(failed(&error)),
            (Asked::Deliver(bytes), Ok(PeersResponse::Deliver(taken))) => {
                self.held = self.held.saturating_sub(bytes);
                self.batches = self.batches.saturating_sub(1);
                return taken.map_err(refused);
            }
            (Asked::Probe, Ok(PeersResponse::Probe(()))) => self.probing.answered(),
            (Asked::Farewell, Ok(PeersResponse::Farewell(why))) => return Err(refused(why)),
            (Asked::Deliver(_) | Asked::Probe | Asked::Farewell, Ok(_)) => return Err(beside_the_point()),
        }
        Ok(())
    }
}

fn beside_the_point() -> Failure {
    Failure::unreachable("it answered something else than it was asked")
}

fn refused(Refusal { lasting, reason }: Refusal) -> Failure {
    if lasting { Failure::refused(reason) } else { Failure::unreachable(reason) }
}

fn closed(reason: &str) -> Failure {
    Failure::unreachable(reason)
}

/// What became of the bytes.
pub(crate) fn cause(error: &ChannelError<io::Error>) -> &io::Error {
    let (ChannelError::Read(cause)
    | ChannelError::Ready(cause)
    | ChannelError::Write(cause)
    | ChannelError::Flush(cause)
    | ChannelError::Close(cause)) = error;
    cause
}

fn broken(error: &ChannelError<io::Error>) -> Failure {
    let cause = cause(error);
    if cause.kind() == io::ErrorKind::Unsupported {
        // Another version.
        Failure::refused(cause.to_string())
    } else if cause.kind() == io::ErrorKind::InvalidData {
        Failure::unreachable(format!("{cause}: check the address, and which transport is used there"))
    } else {
        Failure::unreachable(cause.to_string())
    }
}

/// What became of one request, while the connection itself is well as far as is known.
fn failed(error: &RpcError) -> Failure {
    match error {
        RpcError::DeadlineExceeded => Failure::silent(format!("it took nothing for {DEADLINE:?}")),
        RpcError::Server(error) => Failure::refused(error.detail.as_str()),
        RpcError::Send(cause) => Failure::unreachable(cause.to_string()),
        RpcError::Shutdown | RpcError::Channel(_) => closed("the connection was lost"),
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
