//! Every message survives its encoding, and no bytes at all do harm.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use raftkv::testing::{Random, messages};
use raftkv::transport_kit::numbers::ABSURD;
use raftkv::{
    AppendReply, Body, ChangeOutcome, ChangeRefused, Entry, EntryKind, ForwardOutcome, Index, RequestId, Term,
};
use serde_bytes::Bytes as Blob;

use super::*;

const WAY: Way = Way { cluster: ClusterId(5), from: NodeId(1), to: NodeId(2) };

fn batches() -> impl Strategy<Value = Vec<Envelope>> {
    (any::<u64>(), 0..8_usize).prop_map(|(seed, count)| {
        let random = &mut Random::new(seed);
        let Way { cluster, from, to } = WAY;
        (0..count).map(|_| messages::envelope(random, cluster, from, to)).collect()
    })
}

fn encoded(batch: &[Envelope]) -> Bytes {
    let mut bytes = BytesMut::new();
    encode(batch, &mut bytes).unwrap();
    bytes.freeze()
}

proptest! {
    #[test]
    fn a_batch_survives_its_encoding_and_keeps_within_its_bound(batch in batches()) {
        let bound: u64 = batch.iter().map(max_encoded_len).sum();
        let bytes = encoded(&batch);
        prop_assert!(bytes.len() as u64 <= bound + 1, "{} bytes, bound {bound}", bytes.len());
        prop_assert_eq!(decode(WAY, &bytes), Ok(batch));
    }

    #[test]
    fn random_bytes_are_a_batch_or_a_reason(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(WAY, &bytes.into());
    }

    #[test]
    fn damaged_bytes_are_a_batch_or_a_reason(
        batch in batches(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = encoded(&batch).to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = decode(WAY, &bytes.into());
    }

    /// No part of a message is left off by chance: a batch that ends early is none.
    #[test]
    fn a_batch_that_is_cut_is_refused(batch in batches(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&batch);
        prop_assert!(decode(WAY, &bytes.slice(..cut.index(bytes.len()))).is_err());
    }
}

fn envelope(body: Body) -> Envelope {
    let message = Message { term: Term(1), body };
    Envelope { cluster: WAY.cluster, group: GroupId(0), from: WAY.from, to: WAY.to, message }
}

/// The largest numbers that there are, so that the bound holds for any.
#[test]
fn the_bound_holds_for_the_largest_numbers() {
    let (far, at) = (LogId::new(ABSURD - 1, ABSURD - 1), Index(ABSURD - 1));
    let (lease, request) = (std::time::Duration::MAX, RequestId(u64::MAX));
    let entry = Entry { id: far, kind: EntryKind::Command, data: Bytes::from_static(b"x") };
    let bodies = [
        Body::PreVote { proposed: far.term, last: far },
        Body::Append { prev: far, entries: vec![entry; 3], commit: at },
        Body::AppendReply(AppendReply::Rejected { prev: far, hint: far }),
        Body::Heartbeat { commit: at, round: ABSURD - 1, lease },
        Body::HeartbeatReply { round: ABSURD - 1, matching: at, stored: at, priority: Some(u32::MAX), lease },
        Body::Forward { request, kind: EntryKind::Session, commands: vec![Bytes::new(); 3] },
        Body::ForwardReply { request, outcome: ForwardOutcome::Appended { first: far } },
        Body::ChangeReply {
            request,
            outcome: ChangeOutcome::Refused(ChangeRefused::NotCaughtUp { id: NodeId(u64::MAX), matched: at, last: at }),
        },
        Body::ChangeReply {
            request,
            outcome: ChangeOutcome::Refused(ChangeRefused::Unreachable { silent: vec![NodeId(u64::MAX); 9] }),
        },
    ];
    for body in bodies {
        let mut sent = envelope(body);
        (sent.group, sent.message.term) = (GroupId(u64::MAX), far.term);
        let (len, bound) = (encoded(std::slice::from_ref(&sent)).len() as u64, max_encoded_len(&sent));
        assert!(len <= bound, "{} takes {len} bytes, bound {bound}", sent.message.name());
    }
}

/// A batch of this one envelope.
fn wire(term: u64, body: v1::Body<'_>) -> Bytes {
    let mut bytes = BytesMut::new();
    put(&1_u64, &mut bytes).unwrap();
    put(&v1::Envelope { group: 0, term, body }, &mut bytes).unwrap();
    bytes.freeze()
}

fn reason(bytes: impl Into<Bytes>) -> String {
    decode(WAY, &bytes.into()).expect_err("bytes that must be refused")
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    assert!(reason(wire(1, v1::Body::Commit { index: ABSURD })).contains("an absurd index"));
    assert!(reason(wire(u64::MAX, v1::Body::VoteReply { granted: true })).contains("an absurd term"));
    let heartbeat = v1::Body::Heartbeat { commit: 0, round: 0, lease: ABSURD };
    assert!(reason(wire(1, heartbeat)).contains("an absurd lease"));
    let forward = v1::Body::Forward { request: 1, kind: 9, commands: Vec::new() };
    assert!(reason(wire(1, forward)).contains("a forward is of kind 9"));
    let data = Blob::new(b"");
    for kind in [0, 6, u8::MAX] {
        let entries = vec![v1::Entry { id: v1::Id(1, 8), kind, data }];
        let reason = reason(wire(1, v1::Body::Append { prev: v1::Id(1, 7), entries, commit: 0 }));
        assert!(reason.contains(&format!("entry 8 is of kind {kind}")), "{reason}");
    }
    // One message, group 0, term 1, and a statement that only a later version has.
    assert!(reason(vec![1, 0, 1, 99]).contains("of a kind that this version does not know"));
    let mut longer = wire(1, v1::Body::TimeoutNow).to_vec();
    longer.push(0);
    assert!(reason(longer).contains("1 bytes behind the last message"));
    // Four billion messages in three bytes.
    assert!(reason(vec![0xff, 0xff, 0xff, 0xff, 0x0f, 0, 1, 2]).contains("ends early"));
}

/// The first version's bytes are for ever.
#[test]
fn the_format_does_not_change_by_itself() {
    let entry = Entry { id: LogId::new(3, 300), kind: EntryKind::Command, data: Bytes::from_static(b"abc") };
    let append = Body::Append { prev: LogId::new(3, 299), entries: vec![entry], commit: Index(298) };
    let batch = [
        envelope(append),
        envelope(Body::HeartbeatReply {
            round: 1,
            matching: Index(2),
            stored: Index(3),
            priority: Some(4),
            lease: std::time::Duration::from_nanos(5),
        }),
        envelope(Body::TimeoutNow),
    ];
    let expected: &[u8] = &[
        3, // messages
        0, 1, 4, 3, 0xab, 2, 1, 3, 0xac, 2, 2, 3, b'a', b'b', b'c', 0xaa, 2, //
        0, 1, 8, 1, 2, 3, 1, 4, 5, //
        0, 1, 14,
    ];
    assert_eq!(encoded(&batch), expected);
}

#[test]
fn payloads_are_not_copied_out_of_the_received_bytes() {
    let entry = Entry { id: LogId::new(1, 1), kind: EntryKind::Command, data: Bytes::from(vec![7; 10_000]) };
    let sent = envelope(Body::Append { prev: LogId::ZERO, entries: vec![entry], commit: Index(0) });
    let received = encoded(&[sent]);
    let batch = decode(WAY, &received).unwrap();
    let Body::Append { entries, .. } = &batch[0].message.body else { panic!("an append") };
    assert!(received.as_ptr_range().contains(&entries[0].data.as_ptr()));
}
