//! The service with a limit on what strangers may say: the first message of a stream is a hello, which is short.
//!
//! Without it whoever opens a stream could make this node gather a message of full size before it knows who that is.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Bytes, Service};
use tonic::server::NamedService;
use tonic::{Code, Status};

use crate::server::GrpcServer;
use crate::wire::pb::peers_server::PeersServer;

/// The largest hello: more than an address of full length takes.
pub(crate) const MAX_HELLO_BYTES: u32 = 1 << 10;
/// In front of each message: a flag, and the message's length.
const PREFIX: usize = 5;

/// The tonic service, for those who assemble their own router.
#[derive(Clone)]
pub struct PeerService(pub(crate) PeersServer<GrpcServer>);

impl NamedService for PeerService {
    const NAME: &'static str = <PeersServer<GrpcServer> as NamedService>::NAME;
}

impl Service<Request<Body>> for PeerService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request.map(|body| Body::new(Opening { body, prefix: [0; PREFIX], seen: 0 })))
    }
}

/// What comes on a stream, looked at until the length of its first message is known.
struct Opening {
    body: Body,
    prefix: [u8; PREFIX],
    seen: usize,
}

impl Opening {
    fn look(&mut self, data: &Bytes) -> Result<(), Status> {
        let now = data.len().min(PREFIX - self.seen);
        self.prefix[self.seen..self.seen + now].copy_from_slice(&data[..now]);
        self.seen += now;
        if self.seen < PREFIX {
            return Ok(());
        }
        let length = (&self.prefix[1..]).get_u32();
        if length > MAX_HELLO_BYTES {
            let words = format!(
                "the stream does not begin with a hello: its first message has {length} bytes, and a hello at most {MAX_HELLO_BYTES}"
            );
            return Err(Status::new(Code::InvalidArgument, words));
        }
        Ok(())
    }
}

impl HttpBody for Opening {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        if self.seen < PREFIX
            && let Some(data) = frame.data_ref()
        {
            self.look(data)?;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
