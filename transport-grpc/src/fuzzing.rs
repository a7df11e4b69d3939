//! The decoders of this crate as functions of bytes; see `raftkv::testing::fuzzing`.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use raftkv::testing::Random;
use raftkv::testing::fuzzing::{Target, within};
use raftkv::{
    AppendReply, Body, ClusterId, Entry, EntryKind, Envelope, ForwardOutcome, GroupId, Inbox, Index, LogId, Membership,
    Message, NodeId, Part, Peer, Published, RequestId, SnapshotId, SnapshotMeta, Term,
};

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
    let batch = (0..random.between(1, 4)).map(|_| envelope(random)).collect();
    encode(batch).encode_to_vec()
}

fn envelope(random: &mut Random) -> Envelope {
    let Way { cluster, from, to } = WAY;
    let message = Message { term: Term(number(random)), body: body(random) };
    Envelope { cluster, group: GroupId(number(random)), from, to, message }
}

/// Of any length that is allowed.
fn number(random: &mut Random) -> u64 {
    random.any() >> random.between(2, 63)
}

fn log_id(random: &mut Random) -> LogId {
    LogId::new(number(random), number(random))
}

fn payload(random: &mut Random) -> Bytes {
    vec![7; usize::try_from(random.below(40)).unwrap_or(0)].into()
}

fn kind(random: &mut Random) -> EntryKind {
    let kinds = [EntryKind::Noop, EntryKind::Command, EntryKind::Config, EntryKind::Session, EntryKind::Clock];
    random.pick(&kinds).unwrap_or(EntryKind::Noop)
}

fn body(random: &mut Random) -> Body {
    let (term, index, request) = (Term(number(random)), Index(number(random)), RequestId(random.any()));
    match random.below(18) {
        0 => Body::PreVote { proposed: term, last: log_id(random) },
        1 => Body::PreVoteReply { proposed: term, granted: random.percent(50) },
        2 => Body::Vote { last: log_id(random), transfer: random.percent(50) },
        3 => Body::VoteReply { granted: random.percent(50) },
        4 => {
            let kind = kind(random);
            let entries = (0..random.below(4)).map(|_| Entry { id: log_id(random), kind, data: payload(random) });
            let entries = entries.collect();
            Body::Append { prev: log_id(random), entries, commit: index }
        }
        5 => Body::AppendReply(AppendReply::Accepted { stored: index }),
        6 => Body::AppendReply(AppendReply::Rejected { prev: log_id(random), hint: log_id(random) }),
        7 => Body::Heartbeat { commit: index, round: number(random), lease: Duration::from_nanos(number(random)) },
        8 => Body::HeartbeatReply {
            round: number(random),
            matching: index,
            stored: index,
            priority: u32::try_from(number(random)).ok(),
            lease: Duration::from_nanos(number(random)),
        },
        9 => Body::ReadIndex { request, lease: random.percent(50) },
        10 => Body::ReadIndexReply { request, index: random.percent(50).then_some(index) },
        11 => Body::Forward {
            request,
            kind: kind(random),
            commands: (0..random.below(4)).map(|_| payload(random)).collect(),
        },
        12 => {
            let outcomes = [ForwardOutcome::Overloaded, ForwardOutcome::NotLeader, ForwardOutcome::Moved];
            let first = ForwardOutcome::Appended { first: log_id(random) };
            Body::ForwardReply {
                request,
                outcome: random.pick(&outcomes).filter(|_| random.percent(50)).unwrap_or(first),
            }
        }
        13 => Body::Commit { index },
        14 => {
            let membership = Membership::new((1..=random.between(1, 4)).map(|id| Peer::new(id, "host:1")));
            let (last, membership_at) = (log_id(random), log_id(random));
            let meta = SnapshotMeta { id: SnapshotId(random.any()), last, membership, membership_at };
            Body::Offer { image: Published { meta, len: random.any(), checksum: 7 } }
        }
        15 => Body::Fetch { image: SnapshotId(random.any()), offset: random.any(), max: random.any() },
        16 => {
            let part = random.percent(50).then(|| Part { data: payload(random), checksum: 7 });
            Body::Chunk { image: SnapshotId(random.any()), offset: random.any(), part }
        }
        _ => Body::TimeoutNow,
    }
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
