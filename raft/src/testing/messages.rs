//! Messages at random, of all kinds: for tests and fuzzing of what puts them on a wire.

use std::time::Duration;

use bytes::Bytes;

use super::Random;
use crate::change::{Change, ChangeRefused, Edit};
use crate::message::{AppendReply, Body, ChangeOutcome, Envelope, ForwardOutcome, Message, Part, RequestId};
use crate::traits::{Published, SnapshotId, SnapshotMeta};
use crate::types::{ClusterId, Entry, EntryKind, GroupId, Index, LogId, Membership, NodeId, Peer, Term};

/// A message that makes sense on a wire, if not to a node: terms, indexes, rounds and leases are below 2⁶².
pub fn envelope(random: &mut Random, cluster: ClusterId, from: NodeId, to: NodeId) -> Envelope {
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

fn node(random: &mut Random) -> NodeId {
    NodeId(random.any())
}

fn peer(random: &mut Random) -> Peer {
    Peer::new(random.any(), format!("host-{}:1", number(random)))
}

fn payload(random: &mut Random) -> Bytes {
    vec![7; usize::try_from(random.below(40)).unwrap_or(0)].into()
}

fn kind(random: &mut Random) -> EntryKind {
    let kinds = [EntryKind::Noop, EntryKind::Command, EntryKind::Config, EntryKind::Session, EntryKind::Clock];
    random.pick(&kinds).unwrap_or(EntryKind::Noop)
}

fn membership(random: &mut Random) -> Membership {
    Membership::new((1..=random.between(1, 4)).map(|id| Peer::new(id, "host:1")))
}

fn body(random: &mut Random) -> Body {
    let (term, index, request) = (Term(number(random)), Index(number(random)), RequestId(random.any()));
    match random.below(20) {
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
        11 => {
            let commands = (0..random.below(4)).map(|_| payload(random)).collect();
            Body::Forward { request, kind: kind(random), commands }
        }
        12 => Body::ForwardReply { request, outcome: forwarded(random) },
        13 => Body::Commit { index },
        14 => {
            let (last, membership_at) = (log_id(random), log_id(random));
            let meta =
                SnapshotMeta { id: SnapshotId(random.any()), last, membership: membership(random), membership_at };
            Body::Offer { image: Published { meta, len: random.any(), checksum: 7 } }
        }
        15 => Body::Fetch { image: SnapshotId(random.any()), offset: random.any(), max: random.any() },
        16 => {
            let part = random.percent(50).then(|| Part { data: payload(random), checksum: 7 });
            Body::Chunk { image: SnapshotId(random.any()), offset: random.any(), part }
        }
        17 => {
            let edits = (0..random.below(4)).map(|_| edit(random)).collect();
            let expected = random.percent(50).then(|| log_id(random));
            Body::Change { request, change: Change { edits, expected } }
        }
        18 => Body::ChangeReply { request, outcome: changed(random) },
        _ => Body::TimeoutNow,
    }
}

fn forwarded(random: &mut Random) -> ForwardOutcome {
    let outcomes = [ForwardOutcome::Overloaded, ForwardOutcome::NotLeader, ForwardOutcome::Moved];
    let first = ForwardOutcome::Appended { first: log_id(random) };
    random.pick(&outcomes).filter(|_| random.percent(50)).unwrap_or(first)
}

fn edit(random: &mut Random) -> Edit {
    match random.below(8) {
        0 => Edit::AddVoter(peer(random)),
        1 => Edit::AddLearner(peer(random)),
        2 => Edit::Promote(node(random)),
        3 => Edit::Demote(node(random)),
        4 => Edit::Remove(node(random)),
        5 => Edit::Replace { old: node(random), new: peer(random) },
        6 => Edit::SetAddress(peer(random)),
        _ => Edit::Set(membership(random)),
    }
}

fn changed(random: &mut Random) -> ChangeOutcome {
    let refused = match random.below(13) {
        0 => return ChangeOutcome::Done { id: log_id(random) },
        1 => return ChangeOutcome::NotLeader,
        2 => return ChangeOutcome::Unknown,
        3 => ChangeRefused::InProgress { at: log_id(random) },
        4 => ChangeRefused::NotReady,
        5 => ChangeRefused::Mismatch { actual: log_id(random) },
        6 => ChangeRefused::UnknownNode { id: node(random) },
        7 => ChangeRefused::NoVoters,
        8 => ChangeRefused::NoDifference,
        9 => ChangeRefused::AddressConflict {
            address: peer(random).address.as_ref().to_owned(),
            nodes: [node(random), node(random)],
        },
        10 => {
            ChangeRefused::NotCaughtUp { id: node(random), matched: Index(number(random)), last: Index(number(random)) }
        }
        11 => ChangeRefused::Unreachable { silent: (0..random.below(4)).map(|_| node(random)).collect() },
        _ => ChangeRefused::Invalid { reason: format!("reason {}", number(random)) },
    };
    ChangeOutcome::Refused(refused)
}
