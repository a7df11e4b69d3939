//! How tarpc's requests and answers become frames and back, at both ends.
//!
//! tarpc could derive all of this from its own types. But then the format would be whatever its version of the day makes of them, and a peer could
//! name deadlines that can't be added to a clock, which tarpc's decoder does: that is a panic.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use raftkv::{ClusterId, NodeId};
use tarpc::context::Context;
use tarpc::{ClientMessage, Request, Response, ServerError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Decoder, Encoder, Framed, LengthDelimitedCodec};

use crate::line::{Line, Meter};
use crate::options::PROTOCOL_VERSION;
use crate::service::{Batch, Greeting, PeersRequest, PeersResponse, Refusal, Welcome};
use crate::wire::v1::{self, Answer, Ask, Call, MAGIC, Opening, Reply};
use crate::wire::{self, put};

/// The length in front of each frame.
const LEN: usize = 4;
/// What a frame takes beyond its batch, at most.
pub(crate) const FRAME_OVERHEAD: usize = 32;
/// The largest frame from somebody who has not said who it is. A hello that could be welcomed has at most 351 bytes, of which 300 are the address
/// ([`MAX_ADDRESS_BYTES`](raftkv::transport_kit::MAX_ADDRESS_BYTES)); the rest is for those that are told what is wrong with them: of later versions, or with an
/// address that is too long.
const MAX_OPENING: usize = 1 << 10;
/// What is told of a frame that is larger than its sender may send. (Other kinds of errors mean something else.)
pub(crate) const TOO_LARGE: io::ErrorKind = io::ErrorKind::QuotaExceeded;
/// The largest answer: a reason in words.
const MAX_ANSWER: usize = 16 << 10;
/// What is read at once, at least.
const BUFFER: usize = 16 << 10;
/// What waits to be written is written before more is added, from here on.
const ENOUGH: usize = 64 << 10;

/// A connection as tarpc wants it: a stream and a sink of messages.
pub(crate) fn framed<S: AsyncRead + AsyncWrite, C>(stream: S, codec: C, meter: Arc<Meter>) -> Framed<Line<S>, C>
where
    C: Decoder,
{
    let mut framed = Framed::with_capacity(Line::new(stream, meter), codec, BUFFER);
    framed.set_backpressure_boundary(ENOUGH);
    framed
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// A member's frame is too large.
fn beyond(bytes: u32, max_message: usize) -> io::Error {
    let words = format!(
        "what came is no frame of raftkv's tarpc transport, or is larger than the limit of {max_message} bytes (`max_message_bytes`): it has {bytes}"
    );
    io::Error::new(TOO_LARGE, words)
}

/// A stranger's is.
fn no_hello(bytes: u32) -> io::Error {
    let words = "the connection does not begin with a hello: its first frame has";
    invalid(format!("{words} {bytes} bytes, and a hello at most {MAX_OPENING}"))
}

/// Takes frames off a buffer, none of them larger than a limit.
struct Frames(LengthDelimitedCodec);

impl Frames {
    fn new() -> Self {
        Self(LengthDelimitedCodec::builder().length_field_length(LEN).new_codec())
    }

    /// The next one; `too_large` says what it means that one is larger, of so many bytes.
    fn next(
        &mut self,
        from: &mut BytesMut,
        limit: usize,
        too_large: impl FnOnce(u32) -> io::Error,
    ) -> io::Result<Option<Bytes>> {
        if self.0.max_frame_length() != limit {
            self.0.set_max_frame_length(limit);
        }
        let length = from.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        // The length is all that can be wrong with it.
        let frame = self.0.decode(from).map_err(|_| too_large(length))?;
        Ok(frame.map(BytesMut::freeze))
    }
}

/// Appends a frame; what it holds is written by `fill`.
fn put_frame(
    to: &mut BytesMut,
    meter: &Meter,
    fill: impl FnOnce(&mut BytesMut) -> postcard::Result<()>,
) -> io::Result<()> {
    let start = to.len();
    to.put_bytes(0, LEN);
    fill(to).map_err(|e| invalid(format!("a frame can't be encoded: {e}")))?;
    let len = u32::try_from(to.len() - start - LEN).map_err(|_| invalid("a frame is too long for its length field"))?;
    if let Some(field) = to.get_mut(start..start + LEN) {
        field.copy_from_slice(&len.to_be_bytes());
    }
    meter.encoded(LEN + len as usize);
    Ok(())
}

/// What both directions begin with.
fn put_opening(to: &mut BytesMut) -> postcard::Result<()> {
    to.put_slice(&MAGIC);
    put(&PROTOCOL_VERSION, to)
}

/// The version at the beginning of a direction, and what follows it.
fn opening(frame: &[u8]) -> Option<(u32, &[u8])> {
    postcard::take_from_bytes(frame.strip_prefix(&MAGIC)?).ok()
}

/// The end of whoever connects.
pub(crate) struct ClientCodec {
    frames: Frames,
    meter: Arc<Meter>,
    welcomed: bool,
}

impl ClientCodec {
    pub(crate) fn new(meter: Arc<Meter>) -> Self {
        Self { frames: Frames::new(), meter, welcomed: false }
    }
}

impl Encoder<ClientMessage<PeersRequest>> for ClientCodec {
    type Error = io::Error;

    fn encode(&mut self, message: ClientMessage<PeersRequest>, to: &mut BytesMut) -> io::Result<()> {
        match message {
            ClientMessage::Request(request) => {
                self.meter.turn_came();
                put_request(&request, to, &self.meter)
            }
            ClientMessage::Cancel { request_id, .. } => {
                put_frame(to, &self.meter, |to| put(&Ask { id: request_id, patience_ms: 0, call: Call::Cancel }, to))
            }
            _ => Err(invalid("tarpc has something to say that this version has no word for")),
        }
    }
}

fn put_request(request: &Request<PeersRequest>, to: &mut BytesMut, meter: &Meter) -> io::Result<()> {
    let patience = request.context.deadline.saturating_duration_since(Instant::now());
    let patience_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    let ask = |call| Ask { id: request.id, patience_ms, call };
    match &request.message {
        PeersRequest::Hello { greeting } => put_frame(to, meter, |to| {
            put_opening(to)?;
            put_greeting(greeting, to)
        }),
        PeersRequest::Deliver { batch } => put_frame(to, meter, |to| {
            put(&ask(Call::Deliver), to)?;
            match batch {
                Batch::Outgoing(batch) => wire::encode(batch, to),
                Batch::Incoming(bytes) => {
                    to.put_slice(bytes);
                    Ok(())
                }
            }
        }),
        PeersRequest::Probe {} => put_frame(to, meter, |to| put(&ask(Call::Probe), to)),
        PeersRequest::Farewell {} => put_frame(to, meter, |to| put(&ask(Call::Farewell), to)),
    }
}

fn put_greeting(greeting: &Greeting, to: &mut BytesMut) -> postcard::Result<()> {
    let Greeting { version: _, cluster, from, address, to: wanted, lane, probe_ms } = greeting;
    let (lane, probe_ms) = (*lane, *probe_ms);
    put(&Opening { cluster: cluster.0, from: from.0, address, to: wanted.0, lane, probe_ms }, to)
}

impl Decoder for ClientCodec {
    type Item = Response<PeersResponse>;
    type Error = io::Error;

    fn decode(&mut self, from: &mut BytesMut) -> io::Result<Option<Response<PeersResponse>>> {
        let no_frame = |bytes| {
            let words = "what came is no frame of raftkv's tarpc transport, or is larger than the limit of";
            invalid(format!("{words} {MAX_ANSWER} bytes: it has {bytes}"))
        };
        let Some(frame) = self.frames.next(from, MAX_ANSWER, no_frame)? else { return Ok(None) };
        if self.welcomed {
            return answer(&frame, PROTOCOL_VERSION).map(Some);
        }
        self.welcomed = true;
        let (version, rest) = opening(&frame).ok_or_else(|| invalid("what answers is no raftkv node"))?;
        if version == PROTOCOL_VERSION {
            return answer(rest, version).map(Some);
        }
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "it speaks version {version} of the protocol, and this node version {PROTOCOL_VERSION}: upgrade the older one"
            ),
        ))
    }
}

pub(crate) fn answer(bytes: &[u8], version: u32) -> io::Result<Response<PeersResponse>> {
    let unread = |e| invalid(format!("an answer that can't be decoded: {e}"));
    let (Answer { id, reply }, rest) = postcard::take_from_bytes(bytes).map_err(unread)?;
    let refusal = |v1::Refusal { lasting, reason }| Refusal { lasting, reason: reason.to_owned() };
    let message = match reply {
        Reply::Welcome { window_bytes, max_message_bytes } => {
            let max_requests =
                if rest.is_empty() { v1::UNSAID_REQUESTS } else { postcard::from_bytes(rest).map_err(unread)? };
            Ok(PeersResponse::Hello(Ok(Welcome { version, window_bytes, max_message_bytes, max_requests })))
        }
        Reply::Refused(why) => Ok(PeersResponse::Hello(Err(refusal(why)))),
        Reply::Taken => Ok(PeersResponse::Deliver(Ok(()))),
        Reply::NotTaken(why) => Ok(PeersResponse::Deliver(Err(refusal(why)))),
        Reply::Alive => Ok(PeersResponse::Probe(())),
        Reply::Farewell(why) => Ok(PeersResponse::Farewell(refusal(why))),
        Reply::Failed(reason) => Err(ServerError::new(io::ErrorKind::Other, reason.to_owned())),
    };
    Ok(Response { request_id: id, message })
}

/// The end of whoever is connected to.
pub(crate) struct ServerCodec {
    frames: Frames,
    meter: Arc<Meter>,
    max_message_bytes: usize,
    greeted: bool,
    answered: bool,
    /// Carries a trace's names, which are of no use here; made once, since that is not cheap.
    context: Context,
}

impl ServerCodec {
    pub(crate) fn new(meter: Arc<Meter>, max_message_bytes: usize) -> Self {
        let context = Context::current();
        Self { frames: Frames::new(), meter, max_message_bytes, greeted: false, answered: false, context }
    }

    fn request(&self, id: u64, patience: Duration, message: PeersRequest) -> ClientMessage<PeersRequest> {
        let mut context = self.context;
        context.deadline = Instant::now() + patience;
        ClientMessage::Request(Request { context, id, message })
    }
}

impl Decoder for ServerCodec {
    type Item = ClientMessage<PeersRequest>;
    type Error = io::Error;

    fn decode(&mut self, from: &mut BytesMut) -> io::Result<Option<ClientMessage<PeersRequest>>> {
        let (max_message, is_admitted) = (self.max_message_bytes, self.meter.is_admitted());
        let limit = if is_admitted { max_message.saturating_add(FRAME_OVERHEAD) } else { MAX_OPENING };
        let too_large = |bytes| if is_admitted { beyond(bytes, max_message) } else { no_hello(bytes) };
        let Some(frame) = self.frames.next(from, limit, too_large)? else { return Ok(None) };
        if !self.greeted {
            self.greeted = true;
            let message = PeersRequest::Hello { greeting: greeting(&frame)? };
            return Ok(Some(self.request(0, crate::service::DEADLINE, message)));
        }
        let (ask, rest) = ask(&frame)?;
        // A number of milliseconds this small can be added to any clock.
        let patience = Duration::from_millis(ask.patience_ms.into());
        let message = match ask.call {
            Call::Deliver => {
                let bytes = if rest.is_empty() { Bytes::new() } else { frame.slice_ref(rest) };
                PeersRequest::Deliver { batch: Batch::Incoming(bytes) }
            }
            Call::Probe => PeersRequest::Probe {},
            Call::Farewell => PeersRequest::Farewell {},
            Call::Cancel => {
                let trace_context = self.context.trace_context;
                return Ok(Some(ClientMessage::Cancel { trace_context, request_id: ask.id }));
            }
        };
        Ok(Some(self.request(ask.id, patience, message)))
    }
}

/// A request, and what is behind it.
pub(crate) fn ask(frame: &[u8]) -> io::Result<(Ask, &[u8])> {
    postcard::take_from_bytes(frame).map_err(|e| invalid(format!("a request that can't be decoded: {e}")))
}

/// How a connection begins.
pub(crate) fn greeting(frame: &[u8]) -> io::Result<Greeting> {
    let (version, rest) = opening(frame).ok_or_else(|| invalid("the connection does not begin with a hello"))?;
    if version != PROTOCOL_VERSION {
        return Ok(Greeting { version, ..Greeting::default() });
    }
    let Opening { cluster, from, address, to, lane, probe_ms } =
        postcard::from_bytes(rest).map_err(|e| invalid(format!("a hello that can't be decoded: {e}")))?;
    let (cluster, from, to) = (ClusterId(cluster), NodeId(from), NodeId(to));
    Ok(Greeting { version, cluster, from, address: address.to_owned(), to, lane, probe_ms })
}

impl Encoder<Response<PeersResponse>> for ServerCodec {
    type Error = io::Error;

    fn encode(&mut self, response: Response<PeersResponse>, to: &mut BytesMut) -> io::Result<()> {
        let first = !std::mem::replace(&mut self.answered, true);
        let reply = match &response.message {
            Ok(PeersResponse::Hello(Ok(welcome))) => {
                Reply::Welcome { window_bytes: welcome.window_bytes, max_message_bytes: welcome.max_message_bytes }
            }
            Ok(PeersResponse::Hello(Err(why))) => Reply::Refused(in_short(why)),
            Ok(PeersResponse::Deliver(Ok(()))) => Reply::Taken,
            Ok(PeersResponse::Deliver(Err(why))) => Reply::NotTaken(in_short(why)),
            Ok(PeersResponse::Probe(())) => Reply::Alive,
            Ok(PeersResponse::Farewell(why)) => Reply::Farewell(in_short(why)),
            Err(error) => Reply::Failed(short(&error.detail)),
        };
        put_frame(to, &self.meter, |to| {
            if first {
                put_opening(to)?;
            }
            put(&Answer { id: response.request_id, reply }, to)?;
            match &response.message {
                Ok(PeersResponse::Hello(Ok(welcome))) => put(&welcome.max_requests, to),
                Ok(_) | Err(_) => Ok(()),
            }
        })
    }
}

fn in_short(why: &Refusal) -> v1::Refusal<'_> {
    v1::Refusal { lasting: why.lasting, reason: short(&why.reason) }
}

/// As much of a reason as an answer may hold.
fn short(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_ANSWER / 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}
