//! The statements.

use std::borrow::Cow;

use bytes::Bytes;
use raftkv::transport_kit::numbers::{index, lease as duration, nanos, sane, term};
use raftkv::{
    AppendReply, Body, Entry, EntryKind, ForwardOutcome, Membership, Part, Published, RequestId, SnapshotId,
    SnapshotMeta,
};
use serde_bytes::Bytes as Blob;

use super::{change, id, put_id, slice, v1};

pub(super) fn encode(body: &Body) -> v1::Body<'_> {
    match body {
        Body::PreVote { proposed, last } => v1::Body::PreVote { proposed: proposed.0, last: put_id(*last) },
        Body::PreVoteReply { proposed, granted } => v1::Body::PreVoteReply { proposed: proposed.0, granted: *granted },
        Body::Vote { last, transfer } => v1::Body::Vote { last: put_id(*last), transfer: *transfer },
        Body::VoteReply { granted } => v1::Body::VoteReply { granted: *granted },
        Body::Append { prev, entries, commit } => {
            let entries = entries.iter().map(encode_entry).collect();
            v1::Body::Append { prev: put_id(*prev), entries, commit: commit.0 }
        }
        Body::AppendReply(AppendReply::Accepted { stored }) => v1::Body::AppendAccepted { stored: stored.0 },
        Body::AppendReply(AppendReply::Rejected { prev, hint }) => {
            v1::Body::AppendRejected { prev: put_id(*prev), hint: put_id(*hint) }
        }
        Body::Heartbeat { commit, round, lease } => {
            v1::Body::Heartbeat { commit: commit.0, round: *round, lease: nanos(*lease) }
        }
        Body::HeartbeatReply { round, matching, stored, priority, lease } => {
            let (matching, stored, lease) = (matching.0, stored.0, nanos(*lease));
            v1::Body::HeartbeatReply { round: *round, matching, stored, priority: *priority, lease }
        }
        Body::ReadIndex { request, lease } => v1::Body::ReadIndex { request: request.0, lease: *lease },
        Body::ReadIndexReply { request, index } => {
            v1::Body::ReadIndexReply { request: request.0, index: index.map(|index| index.0) }
        }
        Body::Forward { request, kind, commands } => {
            let commands = commands.iter().map(|command| Blob::new(command)).collect();
            v1::Body::Forward { request: request.0, kind: encode_kind(*kind), commands }
        }
        Body::ForwardReply { request, outcome } => {
            v1::Body::ForwardReply { request: request.0, outcome: encode_forwarded(*outcome) }
        }
        Body::Commit { index } => v1::Body::Commit { index: index.0 },
        Body::TimeoutNow => v1::Body::TimeoutNow,
        Body::Change { request, change } => change::encode(request.0, change),
        Body::ChangeReply { request, outcome } => {
            v1::Body::ChangeReply { request: request.0, outcome: change::encode_outcome(outcome) }
        }
        Body::Offer { image } => encode_offer(image),
        Body::Fetch { image, offset, max } => v1::Body::Fetch { image: image.0, offset: *offset, max: *max },
        Body::Chunk { image, offset, part } => {
            let part = part.as_ref().map(|part| v1::Part { data: Blob::new(&part.data), checksum: part.checksum });
            v1::Body::Chunk { image: image.0, offset: *offset, part }
        }
    }
}

pub(super) fn decode(body: v1::Body<'_>, of: &Bytes) -> Result<Body, String> {
    Ok(match body {
        v1::Body::PreVote { proposed, last } => Body::PreVote { proposed: term(proposed)?, last: id(last)? },
        v1::Body::PreVoteReply { proposed, granted } => Body::PreVoteReply { proposed: term(proposed)?, granted },
        v1::Body::Vote { last, transfer } => Body::Vote { last: id(last)?, transfer },
        v1::Body::VoteReply { granted } => Body::VoteReply { granted },
        v1::Body::Append { prev, entries, commit } => {
            let entries = entries.into_iter().map(|entry| decode_entry(&entry, of)).collect::<Result<_, _>>()?;
            Body::Append { prev: id(prev)?, entries, commit: index(commit)? }
        }
        v1::Body::AppendAccepted { stored } => Body::AppendReply(AppendReply::Accepted { stored: index(stored)? }),
        v1::Body::AppendRejected { prev, hint } => {
            Body::AppendReply(AppendReply::Rejected { prev: id(prev)?, hint: id(hint)? })
        }
        v1::Body::Heartbeat { commit, round, lease } => {
            Body::Heartbeat { commit: index(commit)?, round: sane("round", round)?, lease: duration(lease)? }
        }
        v1::Body::HeartbeatReply { round, matching, stored, priority, lease } => {
            let (round, lease) = (sane("round", round)?, duration(lease)?);
            Body::HeartbeatReply { round, matching: index(matching)?, stored: index(stored)?, priority, lease }
        }
        v1::Body::ReadIndex { request, lease } => Body::ReadIndex { request: RequestId(request), lease },
        v1::Body::ReadIndexReply { request, index: at } => {
            Body::ReadIndexReply { request: RequestId(request), index: at.map(index).transpose()? }
        }
        v1::Body::Forward { request, kind, commands } => {
            let commands = commands.into_iter().map(|command| slice(command, of)).collect();
            let kind = decode_kind(kind).ok_or_else(|| unknown_kind("a forward", kind))?;
            Body::Forward { request: RequestId(request), kind, commands }
        }
        v1::Body::ForwardReply { request, outcome } => {
            Body::ForwardReply { request: RequestId(request), outcome: decode_forwarded(outcome)? }
        }
        v1::Body::Commit { index: at } => Body::Commit { index: index(at)? },
        v1::Body::TimeoutNow => Body::TimeoutNow,
        v1::Body::Change { request, edits, expected } => {
            Body::Change { request: RequestId(request), change: change::decode(edits, expected)? }
        }
        v1::Body::ChangeReply { request, outcome } => {
            Body::ChangeReply { request: RequestId(request), outcome: change::decode_outcome(outcome)? }
        }
        v1::Body::Offer { image, last, membership, membership_at, len, checksum } => {
            let (membership, membership_at) = (Membership::decode(&membership)?, id(membership_at)?);
            let meta = SnapshotMeta { id: SnapshotId(image), last: id(last)?, membership, membership_at };
            Body::Offer { image: Published { meta, len, checksum } }
        }
        v1::Body::Fetch { image, offset, max } => Body::Fetch { image: SnapshotId(image), offset, max },
        v1::Body::Chunk { image, offset, part } => {
            let part = part.map(|part| Part { data: slice(part.data, of), checksum: part.checksum });
            Body::Chunk { image: SnapshotId(image), offset, part }
        }
    })
}

fn encode_offer(image: &Published) -> v1::Body<'_> {
    let Published { meta: SnapshotMeta { id, last, membership, membership_at }, len, checksum } = image;
    v1::Body::Offer {
        image: id.0,
        last: put_id(*last),
        membership: Cow::Owned(membership.encode().into()),
        membership_at: put_id(*membership_at),
        len: *len,
        checksum: *checksum,
    }
}

fn encode_entry(entry: &Entry) -> v1::Entry<'_> {
    v1::Entry { id: put_id(entry.id), kind: encode_kind(entry.kind), data: Blob::new(&entry.data) }
}

fn decode_entry(entry: &v1::Entry<'_>, of: &Bytes) -> Result<Entry, String> {
    let kind = decode_kind(entry.kind).ok_or_else(|| unknown_kind(&format!("entry {}", entry.id.1), entry.kind))?;
    Ok(Entry { id: id(entry.id)?, kind, data: slice(entry.data, of) })
}

fn encode_kind(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Noop => 1,
        EntryKind::Command => 2,
        EntryKind::Config => 3,
        EntryKind::Session => 4,
        EntryKind::Clock => 5,
    }
}

fn decode_kind(number: u8) -> Option<EntryKind> {
    Some(match number {
        1 => EntryKind::Noop,
        2 => EntryKind::Command,
        3 => EntryKind::Config,
        4 => EntryKind::Session,
        5 => EntryKind::Clock,
        _ => return None,
    })
}

fn unknown_kind(of: &str, number: u8) -> String {
    format!("{of} is of kind {number}, which this version does not know")
}

fn encode_forwarded(outcome: ForwardOutcome) -> v1::Forwarded {
    match outcome {
        ForwardOutcome::Appended { first } => v1::Forwarded::Appended(put_id(first)),
        ForwardOutcome::Overloaded => v1::Forwarded::Overloaded,
        ForwardOutcome::NotLeader => v1::Forwarded::NotLeader,
        ForwardOutcome::Moved => v1::Forwarded::Moved,
    }
}

fn decode_forwarded(outcome: v1::Forwarded) -> Result<ForwardOutcome, String> {
    Ok(match outcome {
        v1::Forwarded::Appended(first) => ForwardOutcome::Appended { first: id(first)? },
        v1::Forwarded::Overloaded => ForwardOutcome::Overloaded,
        v1::Forwarded::NotLeader => ForwardOutcome::NotLeader,
        v1::Forwarded::Moved => ForwardOutcome::Moved,
    })
}
