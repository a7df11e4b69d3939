//! One connection with its stream: from the address to the peer's welcome, and on to its end.

use std::future::{Future, Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::Stream;
use hyper_util::rt::TokioIo;
use raftkv::transport_kit::{self, Dial, Failure, Link, Local, Outgoing, Tls, connect, connect_link};
use raftkv::{Envelope, Lane as Kind, Peer};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::explain::{CLOSED_OR_SILENT, explain, explain_status};
use crate::options::{Options, PROTOCOL_VERSION};
use crate::wire::pb::peers_client::PeersClient;
use crate::wire::{self, pb};

/// Opens connections in the name of the local node.
pub(crate) struct Dialer {
    pub(crate) local: Local,
    pub(crate) options: Options,
    pub(crate) tls: Option<Tls>,
}

/// What is spoken on TLS.
pub(crate) const ALPN: &[u8] = b"h2";

/// What a connection sends, hello first.
struct Frames {
    hello: Option<pb::Hello>,
    outgoing: Outgoing,
}

impl Stream for Frames {
    type Item = pb::Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<pb::Frame>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(pb::Frame { hello: Some(hello), envelopes: Vec::new() }));
        }
        self.outgoing.poll_next(cx).map(|next| next.map(|parcel| wire::encode(parcel.batch)))
    }
}

/// A stream that the peer has welcomed. Dropping it ends all that belongs to it, whatever the peer does.
pub(crate) struct Connection {
    replies: Streaming<pb::Welcome>,
    _tasks: Tasks,
}

impl Dial for Dialer {
    type Connection = Connection;

    async fn dial(&self, peer: &Peer, lane: Kind, outgoing: Outgoing, patience: u32) -> Result<Connection, Failure> {
        let frames = Frames { hello: Some(self.hello(peer, lane)), outgoing };
        let tasks = Tasks::new();
        let endpoint = self.endpoint(peer, lane, patience)?.executor(tasks.executor());
        let limit = self.options.connect_timeout;
        let stream = match timeout(limit, connect(&peer.address)).await {
            Ok(connected) => connected?,
            Err(_) => return Err(Failure::unreachable(format!("no answer within {limit:?}"))),
        };
        let limit = limit * patience;
        match timeout(limit, self.open(stream, &endpoint, peer, frames)).await {
            Ok(welcomed) => welcomed.map(|replies| Connection { replies, _tasks: tasks }),
            Err(_) => Err(Failure::silent(format!("no answer within {limit:?}"))),
        }
    }

    fn max_encoded_len(&self, envelope: &Envelope) -> u64 {
        wire::max_encoded_len(envelope)
    }
}

impl Dialer {
    /// TLS where it is wanted, HTTP/2, and our own handshake.
    async fn open(
        &self,
        stream: TcpStream,
        endpoint: &Endpoint,
        peer: &Peer,
        frames: Frames,
    ) -> Result<Streaming<pb::Welcome>, Failure> {
        let link = connect_link(self.tls.as_ref(), stream, peer.id, ALPN).await?;
        let trouble = link.trouble();
        let welcomed = match endpoint.connect_with_connector(Opened(Some(link))).await {
            Ok(channel) => welcome(channel, frames).await,
            Err(error) => Err(Failure::unreachable(explain(&error))),
        };
        welcomed.map_err(|failure| trouble.behind(failure))
    }

    fn hello(&self, peer: &Peer, lane: Kind) -> pb::Hello {
        let lane = match lane {
            Kind::Control => pb::Lane::Control,
            Kind::Bulk => pb::Lane::Bulk,
        };
        pb::Hello {
            version: PROTOCOL_VERSION,
            cluster: self.local.cluster.0,
            from: self.local.node.id.0,
            from_address: self.local.node.address.as_ref().to_owned(),
            to: peer.id.0,
            lane: lane as i32,
        }
    }

    fn endpoint(&self, peer: &Peer, kind: Kind, patience: u32) -> Result<Endpoint, Failure> {
        let options = &self.options;
        let keep_alive_timeout = match kind {
            Kind::Control => options.control_keep_alive_timeout,
            Kind::Bulk => options.bulk_keep_alive_timeout,
        };
        let no_address = |e: &tonic::transport::Error| {
            Failure::unreachable(format!("{:?} is no host:port: {}", peer.address, explain(e)))
        };
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.address)).map_err(|e| no_address(&e))?;
        let endpoint = match (&self.tls, format!("https://{}", peer.address).parse()) {
            (Some(_), Ok(origin)) => endpoint.origin(origin),
            (Some(_), Err(_)) | (None, _) => endpoint,
        };
        Ok(endpoint
            .http2_keep_alive_interval(options.keep_alive_interval)
            .keep_alive_timeout(keep_alive_timeout * patience)
            .keep_alive_while_idle(true))
    }
}

/// Hands over the connection that is open already. There is no second one.
struct Opened(Option<Link>);

impl Service<Uri> for Opened {
    type Response = TokioIo<Link>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Link>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let link = self.0.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection was lost"));
        ready(link.map(TokioIo::new))
    }
}

/// Says hello, and waits for the welcome.
async fn welcome(channel: Channel, frames: Frames) -> Result<Streaming<pb::Welcome>, Failure> {
    let mut client = PeersClient::new(channel);
    let mut replies = client.open_lane(frames).await.map_err(|s| failure(&s))?.into_inner();
    match replies.message().await {
        Ok(Some(welcome)) if welcome.version == PROTOCOL_VERSION => Ok(replies),
        Ok(Some(welcome)) => Err(Failure::refused(format!(
            "it speaks version {} of the protocol, and this node version {PROTOCOL_VERSION}: upgrade the older one",
            welcome.version
        ))),
        Ok(None) => Err(Failure::unreachable("it closed the stream without a welcome")),
        Err(status) => Err(failure(&status)),
    }
}

impl transport_kit::Connection for Connection {
    async fn lost(&mut self) -> Failure {
        loop {
            match self.replies.message().await {
                // A later version may have more to say; nothing that this one needs.
                Ok(Some(_)) => {}
                Ok(None) => return Failure::unreachable("it closed the stream"),
                Err(status) => return failure(&status),
            }
        }
    }
}

/// What the server answers when it does not want us: it is somebody else, or cannot make sense of what we say.
const REFUSALS: [Code; 5] =
    [Code::FailedPrecondition, Code::InvalidArgument, Code::OutOfRange, Code::PermissionDenied, Code::Unauthenticated];

fn failure(status: &Status) -> Failure {
    if status.code() == Code::Unimplemented {
        let reason = "there is a gRPC server at this address, but it serves no raftkv peers: check the address";
        return Failure::refused(reason);
    }
    if REFUSALS.contains(&status.code()) {
        return Failure::refused(status.message());
    }
    let reason = explain_status(status);
    if reason == CLOSED_OR_SILENT { Failure::silent(reason) } else { Failure::unreachable(reason) }
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The tasks behind a connection. With a peer that takes nothing they would last for ever; so they end with their owner.
struct Tasks(Handles);

/// Where the connection's parts start their tasks. Nothing starts any more once the owner is gone.
#[derive(Clone)]
struct Handles(Arc<Mutex<Option<Vec<AbortHandle>>>>);

impl Tasks {
    fn new() -> Self {
        Self(Handles(Arc::new(Mutex::new(Some(Vec::new())))))
    }

    fn executor(&self) -> Handles {
        self.0.clone()
    }
}

impl hyper::rt::Executor<Task> for Handles {
    fn execute(&self, task: Task) {
        if let Some(handles) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            handles.push(tokio::spawn(task).abort_handle());
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let handles = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        handles.into_iter().flatten().for_each(|task| task.abort());
    }
}
