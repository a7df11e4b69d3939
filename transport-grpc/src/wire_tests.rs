//! Every message survives its encoding, and no bytes at all do harm.

use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use raftkv::transport_kit::numbers::ABSURD;
use raftkv::{
    Change, ChangeOutcome, ChangeRefused, Edit, Index, Membership, Part, Peer, Published, SnapshotMeta, Term,
};

const WAY: Way = Way { cluster: ClusterId(5), from: NodeId(1), to: NodeId(2) };

/// Numbers with all lengths of their encoding, as far as they are allowed.
fn number() -> impl Strategy<Value = u64> {
    (0..62_u32, any::<u64>()).prop_map(|(bits, n)| n & ((1 << bits) - 1))
}

fn log_ids() -> impl Strategy<Value = LogId> {
    (number(), number()).prop_map(|(term, index)| LogId::new(term, index))
}

fn payload() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn kind() -> impl Strategy<Value = EntryKind> {
    prop_oneof![
        Just(EntryKind::Noop),
        Just(EntryKind::Command),
        Just(EntryKind::Config),
        Just(EntryKind::Session),
        Just(EntryKind::Clock),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (log_ids(), kind(), payload()).prop_map(|(id, kind, data)| Entry { id, kind, data })
}

fn outcome() -> impl Strategy<Value = ForwardOutcome> {
    prop_oneof![
        log_ids().prop_map(|first| ForwardOutcome::Appended { first }),
        Just(ForwardOutcome::Overloaded),
        Just(ForwardOutcome::NotLeader),
        Just(ForwardOutcome::Moved),
    ]
}

fn request() -> impl Strategy<Value = RequestId> {
    any::<u64>().prop_map(RequestId)
}

fn at() -> impl Strategy<Value = Index> {
    number().prop_map(Index)
}

fn peer() -> impl Strategy<Value = Peer> {
    (any::<u64>(), "[a-z]{1,20}").prop_map(|(id, address)| Peer::new(id, address))
}

fn node() -> impl Strategy<Value = NodeId> {
    any::<u64>().prop_map(NodeId)
}

fn edit() -> impl Strategy<Value = Edit> {
    let target = (vec(peer(), 1..5), vec(peer(), 0..3)).prop_map(|(voters, learners)| {
        let mut target = Membership::new(voters.into_iter().filter(|peer| peer.id.0 > 0)).with_learners(learners);
        target.voters.insert(NodeId(1), Peer::new(1, "a"));
        target.learners.retain(|id, _| id.0 > 0 && !target.voters.contains_key(id));
        target
    });
    prop_oneof![
        peer().prop_map(Edit::AddVoter),
        peer().prop_map(Edit::AddLearner),
        node().prop_map(Edit::Promote),
        node().prop_map(Edit::Demote),
        node().prop_map(Edit::Remove),
        (node(), peer()).prop_map(|(old, new)| Edit::Replace { old, new }),
        peer().prop_map(Edit::SetAddress),
        target.prop_map(Edit::Set),
    ]
}

fn change_outcome() -> impl Strategy<Value = ChangeOutcome> {
    use ChangeRefused as No;
    let refused = prop_oneof![
        log_ids().prop_map(|at| No::InProgress { at }),
        Just(No::NotReady),
        log_ids().prop_map(|actual| No::Mismatch { actual }),
        node().prop_map(|id| No::UnknownNode { id }),
        Just(No::NoVoters),
        Just(No::NoDifference),
        (any::<String>(), node(), node()).prop_map(|(address, a, b)| No::AddressConflict { address, nodes: [a, b] }),
        (node(), at(), at()).prop_map(|(id, matched, last)| No::NotCaughtUp { id, matched, last }),
        vec(node(), 0..5).prop_map(|silent| No::Unreachable { silent }),
        any::<String>().prop_map(|reason| No::Invalid { reason }),
    ];
    prop_oneof![
        log_ids().prop_map(|id| ChangeOutcome::Done { id }),
        refused.prop_map(ChangeOutcome::Refused),
        Just(ChangeOutcome::NotLeader),
        Just(ChangeOutcome::Unknown),
    ]
}

fn published() -> impl Strategy<Value = Published> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u32>());
    (numbers, log_ids(), vec(peer(), 0..4), log_ids()).prop_map(|((id, len, checksum), last, peers, membership_at)| {
        let membership = Membership::new(peers.into_iter().chain([Peer::new(1, "a")]).filter(|peer| peer.id.0 > 0));
        let meta = SnapshotMeta { id: SnapshotId(id), last, membership, membership_at };
        Published { meta, len, checksum }
    })
}

fn lease() -> impl Strategy<Value = Duration> {
    number().prop_map(Duration::from_nanos)
}

fn body() -> impl Strategy<Value = Body> {
    let term = || number().prop_map(Term);
    prop_oneof![
        (term(), log_ids()).prop_map(|(proposed, last)| Body::PreVote { proposed, last }),
        (term(), any::<bool>()).prop_map(|(proposed, granted)| Body::PreVoteReply { proposed, granted }),
        (log_ids(), any::<bool>()).prop_map(|(last, transfer)| Body::Vote { last, transfer }),
        any::<bool>().prop_map(|granted| Body::VoteReply { granted }),
        (log_ids(), vec(entry(), 0..5), at()).prop_map(|(prev, entries, commit)| Body::Append {
            prev,
            entries,
            commit
        }),
        at().prop_map(|stored| Body::AppendReply(AppendReply::Accepted { stored })),
        (log_ids(), log_ids()).prop_map(|(prev, hint)| Body::AppendReply(AppendReply::Rejected { prev, hint })),
        (at(), number(), lease()).prop_map(|(commit, round, lease)| Body::Heartbeat { commit, round, lease }),
        (number(), at(), at(), any::<Option<u32>>(), lease()).prop_map(|(round, matching, stored, priority, lease)| {
            Body::HeartbeatReply { round, matching, stored, priority, lease }
        }),
        (request(), any::<bool>()).prop_map(|(request, lease)| Body::ReadIndex { request, lease }),
        (request(), option::of(at())).prop_map(|(request, index)| Body::ReadIndexReply { request, index }),
        (request(), kind(), vec(payload(), 0..5)).prop_map(|(request, kind, commands)| Body::Forward {
            request,
            kind,
            commands
        }),
        (request(), outcome()).prop_map(|(request, outcome)| Body::ForwardReply { request, outcome }),
        at().prop_map(|index| Body::Commit { index }),
        (request(), vec(edit(), 0..5), option::of(log_ids()))
            .prop_map(|(request, edits, expected)| Body::Change { request, change: Change { edits, expected } }),
        (request(), change_outcome()).prop_map(|(request, outcome)| Body::ChangeReply { request, outcome }),
        published().prop_map(|image| Body::Offer { image }),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(image, offset, max)| Body::Fetch {
            image: SnapshotId(image),
            offset,
            max
        }),
        (any::<u64>(), any::<u64>(), option::of((payload(), any::<u32>()))).prop_map(|(image, offset, part)| {
            let part = part.map(|(data, checksum)| Part { data, checksum });
            Body::Chunk { image: SnapshotId(image), offset, part }
        }),
        Just(Body::TimeoutNow),
    ]
}

fn envelope() -> impl Strategy<Value = Envelope> {
    (any::<u64>(), number(), body()).prop_map(|(group, term, body)| Envelope {
        cluster: WAY.cluster,
        group: GroupId(group),
        from: WAY.from,
        to: WAY.to,
        message: Message { term: Term(term), body },
    })
}

fn receive(bytes: impl Into<Bytes>) -> Result<Vec<Envelope>, String> {
    decode(WAY, pb::Frame::decode(bytes.into()).map_err(|e| e.to_string())?)
}

proptest! {
    #[test]
    fn a_batch_survives_its_encoding_and_keeps_within_its_bound(batch in vec(envelope(), 0..8)) {
        let bound: u64 = batch.iter().map(max_encoded_len).sum();
        let bytes = encode(batch.clone()).encode_to_vec();
        prop_assert!(bytes.len() as u64 <= bound, "{} bytes, bound {bound}", bytes.len());
        prop_assert_eq!(receive(bytes), Ok(batch));
    }

    #[test]
    fn random_bytes_are_a_batch_or_a_reason(bytes in vec(any::<u8>(), 0..200)) {
        let _ = receive(bytes);
    }

    #[test]
    fn damaged_bytes_are_a_batch_or_a_reason(
        batch in vec(envelope(), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = encode(batch).encode_to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = receive(bytes);
    }
}

fn sample(body: Option<Wire>) -> pb::Frame {
    pb::Frame { hello: None, envelopes: vec![pb::Envelope { group: 0, term: 1, body }] }
}

fn reason(frame: pb::Frame) -> String {
    decode(WAY, frame).expect_err("a frame that must be refused")
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    assert!(reason(pb::Frame { hello: Some(pb::Hello::default()), envelopes: vec![] }).contains("second hello"));
    assert!(reason(sample(None)).contains("a kind that this version does not know"));
    assert!(reason(sample(Some(Wire::Vote(pb::Vote { last: None, transfer: false })))).contains("without `last`"));
    assert!(reason(sample(Some(Wire::Append(pb::Append::default())))).contains("without `prev`"));
    assert!(reason(sample(Some(Wire::AppendReply(pb::AppendReply { outcome: None })))).contains("without an outcome"));
    assert!(reason(sample(Some(Wire::ForwardReply(pb::ForwardReply::default())))).contains("without an outcome"));
    let refused = Some(Forwarded::Refused(9));
    let reply = pb::ForwardReply { request: 1, outcome: refused };
    assert!(reason(sample(Some(Wire::ForwardReply(reply)))).contains("unknown reason to refuse a forward: 9"));
    let absurd = Some(Wire::Commit(pb::Commit { index: ABSURD }));
    assert!(reason(sample(absurd)).contains("an absurd index"));
    let mut frame = sample(Some(Wire::VoteReply(pb::VoteReply { granted: true })));
    frame.envelopes[0].term = u64::MAX;
    assert!(reason(frame).contains("an absurd term"));
}

#[test]
fn an_entry_of_an_unknown_kind_is_refused() {
    for kind in [0, 6, -1, i32::MAX] {
        let entry = pb::Entry { term: 1, index: 8, kind, data: Bytes::new() };
        let append = pb::Append { prev: log_id(LogId::new(1, 7)), entries: vec![entry], commit: 0 };
        let reason = reason(sample(Some(Wire::Append(append))));
        assert!(reason.contains("entry 8 is of kind"), "{reason}");
    }
}

#[test]
fn payloads_are_not_copied_out_of_the_received_bytes() {
    let entry = Entry { id: LogId::new(1, 1), kind: EntryKind::Command, data: Bytes::from(vec![7; 10_000]) };
    let body = Body::Append { prev: LogId::ZERO, entries: vec![entry], commit: Index(0) };
    let message = Message { term: Term(1), body };
    let sent = Envelope { cluster: WAY.cluster, group: GroupId(0), from: WAY.from, to: WAY.to, message };
    let received = Bytes::from(encode(vec![sent]).encode_to_vec());
    let batch = receive(received.clone()).unwrap();
    let Body::Append { entries, .. } = &batch[0].message.body else { panic!("an append") };
    assert!(received.as_ptr_range().contains(&entries[0].data.as_ptr()));
}
