//! The decoders of this crate as functions of bytes; see `raftkv::testing::fuzzing`.

#![allow(clippy::expect_used, clippy::panic, reason = "a target reports by panicking")]

use bytes::{Bytes, BytesMut};
use raftkv::testing::fuzzing::{Target, within};
use raftkv::testing::{Random, messages};
use raftkv::{ClusterId, Envelope, GroupId, Inbox, NodeId};
use tarpc::{ClientMessage, Request, Response};
use tokio_util::codec::{Decoder, Encoder};

use crate::codec::{ClientCodec, ServerCodec, greeting};
use crate::line::Meter;
use crate::options::{PROTOCOL_VERSION, ServerOptions};
use crate::server::TarpcServer;
use crate::service::{Batch, Greeting, PeersRequest, PeersResponse, Refusal, Welcome};
use crate::wire::{self, Way};

/// The targets of this package.
pub const TARGETS: &[Target] = &[
    Target { name: "batch", run: batch, sample: sample_batch },
    Target { name: "requests", run: requests, sample: sample_requests },
    Target { name: "answers", run: answers, sample: sample_answers },
];

const WAY: Way = Way { cluster: ClusterId(5), from: NodeId(1), to: NodeId(2) };
/// What a server of this target takes at most.
const LIMIT: usize = 1 << 20;

fn some_envelopes(random: &mut Random) -> Vec<Envelope> {
    let Way { cluster, from, to } = WAY;
    (0..random.between(1, 4)).map(|_| messages::envelope(random, cluster, from, to)).collect()
}

fn encoded(batch: &[Envelope]) -> Bytes {
    let mut bytes = BytesMut::new();
    wire::encode(batch, &mut bytes).expect("encoding is total");
    bytes.freeze()
}

/// What a peer sends after its hello.
fn batch(bytes: &[u8]) {
    let input = Bytes::copy_from_slice(bytes);
    let Ok(batch) = within(bytes.len(), || wire::decode(WAY, &input)) else { return };
    let bound: u64 = batch.iter().map(wire::max_encoded_len).sum();
    let again = encoded(&batch);
    assert!(again.len() as u64 <= bound + 10, "{} bytes, bound {bound}", again.len());
    assert_eq!(wire::decode(WAY, &again).as_ref(), Ok(&batch), "it changes when it is sent on");
}

fn sample_batch(random: &mut Random) -> Vec<u8> {
    encoded(&some_envelopes(random)).to_vec()
}

/// All that comes on a connection, as a listener takes it.
fn requests(bytes: &[u8]) {
    let meter = std::sync::Arc::new(Meter::default());
    let mut codec = ServerCodec::new(meter.clone(), LIMIT);
    let mut input = BytesMut::from(bytes);
    let (inbox, _arrivals) = Inbox::channel(WAY.cluster, GroupId(0), WAY.to);
    let server = TarpcServer::new(inbox, ServerOptions { max_message_bytes: LIMIT, ..ServerOptions::default() });
    // A frame's room is made when its length is known.
    while let Ok(Some(message)) = within(bytes.len() + LIMIT, || codec.decode(&mut input)) {
        let ClientMessage::Request(Request { message, .. }) = message else { continue };
        match message {
            PeersRequest::Hello { greeting } => {
                if let Ok(sender) = server.check(&greeting) {
                    assert!(sender.id.0 > 0 && !sender.address.is_empty(), "{sender} was let in");
                    meter.admit();
                }
            }
            PeersRequest::Deliver { batch } => {
                let Batch::Incoming(bytes) = batch else { panic!("it was not decoded") };
                let _ = within(bytes.len(), || wire::decode(WAY, &bytes));
            }
            PeersRequest::Probe {} | PeersRequest::Farewell {} => {}
        }
    }
}

fn sample_requests(random: &mut Random) -> Vec<u8> {
    let mut codec = ClientCodec::new(std::sync::Arc::default());
    let mut bytes = BytesMut::new();
    let mut put = |id, message| {
        let context = tarpc::context::Context::current();
        let request = ClientMessage::Request(Request { context, id, message });
        codec.encode(request, &mut bytes).expect("encoding is total");
    };
    put(0, PeersRequest::Hello { greeting: sample_greeting(random) });
    for id in 1..random.between(1, 4) {
        put(
            id,
            match random.below(3) {
                0 => PeersRequest::Probe {},
                1 => PeersRequest::Farewell {},
                _ => PeersRequest::Deliver { batch: Batch::Outgoing(some_envelopes(random)) },
            },
        );
    }
    bytes.to_vec()
}

fn sample_greeting(random: &mut Random) -> Greeting {
    Greeting {
        version: if random.percent(90) { PROTOCOL_VERSION } else { 99 },
        cluster: if random.percent(90) { WAY.cluster } else { ClusterId(random.any()) },
        from: NodeId(random.any()),
        address: format!("host-{}:1", random.below(100)),
        to: if random.percent(90) { WAY.to } else { NodeId(random.any()) },
        lane: random.below(4) as u8,
        probe_ms: random.any() as u32,
    }
}

/// What a listener answers, as a sender takes it.
fn answers(bytes: &[u8]) {
    let _ = within(bytes.len(), || greeting(bytes));
    let mut codec = ClientCodec::new(std::sync::Arc::default());
    let mut input = BytesMut::from(bytes);
    while let Ok(Some(_)) = within(bytes.len(), || codec.decode(&mut input)) {}
}

fn sample_answers(random: &mut Random) -> Vec<u8> {
    let mut codec = ServerCodec::new(std::sync::Arc::default(), LIMIT);
    let mut bytes = BytesMut::new();
    let why = |random: &mut Random| Refusal { lasting: random.percent(50), reason: format!("reason {}", random.any()) };
    let (max_message_bytes, max_requests) = (random.any(), random.any() as u32);
    let welcome = Welcome { version: PROTOCOL_VERSION, window_bytes: 1 << 20, max_message_bytes, max_requests };
    let first = if random.percent(80) { Ok(welcome) } else { Err(why(random)) };
    let mut messages = vec![Ok(PeersResponse::Hello(first))];
    for _ in 0..random.below(4) {
        messages.push(match random.below(5) {
            0 => Ok(PeersResponse::Deliver(Ok(()))),
            1 => Ok(PeersResponse::Deliver(Err(why(random)))),
            2 => Ok(PeersResponse::Probe(())),
            3 => Ok(PeersResponse::Farewell(why(random))),
            _ => Err(tarpc::ServerError::new(std::io::ErrorKind::Other, "failed".into())),
        });
    }
    for (request_id, message) in (0..).zip(messages) {
        codec.encode(Response { request_id, message }, &mut bytes).expect("encoding is total");
    }
    bytes.to_vec()
}
