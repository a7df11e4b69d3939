//! The decoders of this crate as functions of bytes; see `raftkv::testing::fuzzing`.

use bytes::Bytes;
use prost::Message as _;
use raftkv::testing::fuzzing::{Target, within};
use raftkv::testing::{Random, messages};
use raftkv::{ClusterId, Envelope, GroupId, Inbox, NodeId};

use crate::options::{PROTOCOL_VERSION, ServerOptions};
use crate::server::GrpcServer;
use crate::wire::{Way, decode, encode, max_encoded_len, pb};

/// The targets of this package.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frame, sample: sample_frame },
    Target { name: "hello", run: hello, sample: sample_hello },
];

const WAY: Way = Way { cluster: ClusterId(5), from: NodeId(1), to: NodeId(2) };

fn receive(bytes: Bytes) -> Result<Vec<Envelope>, String> {
    decode(WAY, pb::Frame::decode(bytes).map_err(|e| e.to_string())?)
}

/// What a peer sends after its hello.
fn frame(bytes: &[u8]) {
    let input = Bytes::copy_from_slice(bytes);
    let Ok(batch) = within(bytes.len(), || receive(input)) else { return };
    let bound: u64 = batch.iter().map(max_encoded_len).sum();
    let again = encode(batch.clone()).encode_to_vec();
    assert!(again.len() as u64 <= bound, "{} bytes, bound {bound}", again.len());
    assert_eq!(receive(again.into()).as_ref(), Ok(&batch), "it changes when it is sent on");
}

fn sample_frame(random: &mut Random) -> Vec<u8> {
    let Way { cluster, from, to } = WAY;
    let batch = (0..random.between(1, 4)).map(|_| messages::envelope(random, cluster, from, to)).collect();
    encode(batch).encode_to_vec()
}

/// How a stream begins, as a listener takes it, and the answer, as a sender takes it.
fn hello(bytes: &[u8]) {
    let input = Bytes::copy_from_slice(bytes);
    let _ = within(bytes.len(), || pb::Welcome::decode(input.clone()));
    let Ok(first) = within(bytes.len(), || pb::Frame::decode(input)) else { return };
    let (inbox, _arrivals) = Inbox::channel(WAY.cluster, GroupId(0), WAY.to);
    let server = GrpcServer::new(inbox, ServerOptions::default());
    if let Ok(sender) = server.greet(first) {
        assert!(sender.id.0 > 0 && !sender.address.is_empty(), "{sender} was let in");
    }
}

fn sample_hello(random: &mut Random) -> Vec<u8> {
    let hello = pb::Hello {
        version: if random.percent(90) { PROTOCOL_VERSION } else { 99 },
        cluster: if random.percent(90) { WAY.cluster.0 } else { random.any() },
        from: random.any(),
        from_address: format!("host-{}:1", random.below(100)),
        to: if random.percent(90) { WAY.to.0 } else { random.any() },
        lane: i32::try_from(random.below(4)).unwrap_or(0),
    };
    pb::Frame { hello: Some(hello), envelopes: Vec::new() }.encode_to_vec()
}
