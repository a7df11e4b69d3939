//! From messages to protobuf and back.
//!
//! Encoding is total. Decoding trusts nothing: whatever a peer sends becomes a message or a reason, never a panic.
//! Payloads move as shared [`Bytes`](bytes::Bytes) both ways.

mod change;
mod image;

use raftkv::transport_kit::numbers::{index, lease, log_id as log_id_of, nanos, sane, term};
use raftkv::{
    AppendReply, Body, ClusterId, Entry, EntryKind, Envelope, ForwardOutcome, GroupId, LogId, Message, NodeId,
    RequestId, SnapshotId,
};

/// The code generated from `proto/raft.proto`.
#[allow(clippy::pedantic, clippy::nursery, missing_docs, unreachable_pub, clippy::wildcard_enum_match_arm)]
pub(crate) mod pb {
    include!("generated/raftkv.v1.rs");
}

use pb::append_reply::Outcome;
use pb::envelope::Body as Wire;
use pb::forward_reply::Outcome as Forwarded;

/// What an envelope takes at most beyond its message's cost: the numbers and tags of the largest fixed part.
const ENVELOPE_OVERHEAD: u64 = 64;

/// A bound on the encoded size of an envelope. Cheap: it looks at lengths alone.
pub(crate) fn max_encoded_len(envelope: &Envelope) -> u64 {
    envelope.message.cost() + ENVELOPE_OVERHEAD
}

/// Who speaks to whom on a stream, which its envelopes therefore need not say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) cluster: ClusterId,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
}

pub(crate) fn encode(batch: Vec<Envelope>) -> pb::Frame {
    pb::Frame { hello: None, envelopes: batch.into_iter().map(encode_envelope).collect() }
}

fn encode_envelope(envelope: Envelope) -> pb::Envelope {
    let Envelope { cluster: _, group, from: _, to: _, message } = envelope;
    pb::Envelope { group: group.0, term: message.term.0, body: Some(encode_body(message.body)) }
}

fn encode_body(body: Body) -> Wire {
    match body {
        Body::PreVote { proposed, last } => Wire::PreVote(pb::PreVote { proposed: proposed.0, last: log_id(last) }),
        Body::PreVoteReply { proposed, granted } => {
            Wire::PreVoteReply(pb::PreVoteReply { proposed: proposed.0, granted })
        }
        Body::Vote { last, transfer } => Wire::Vote(pb::Vote { last: log_id(last), transfer }),
        Body::VoteReply { granted } => Wire::VoteReply(pb::VoteReply { granted }),
        Body::Append { prev, entries, commit } => Wire::Append(pb::Append {
            prev: log_id(prev),
            entries: entries.into_iter().map(encode_entry).collect(),
            commit: commit.0,
        }),
        Body::AppendReply(reply) => Wire::AppendReply(pb::AppendReply { outcome: Some(encode_outcome(reply)) }),
        Body::Heartbeat { commit, round, lease } => {
            Wire::Heartbeat(pb::Heartbeat { commit: commit.0, round, lease: nanos(lease) })
        }
        Body::HeartbeatReply { round, matching, stored, priority, lease } => {
            let (matching, stored, lease) = (matching.0, stored.0, nanos(lease));
            Wire::HeartbeatReply(pb::HeartbeatReply { round, matching, stored, priority, lease })
        }
        Body::ReadIndex { request, lease } => Wire::ReadIndex(pb::ReadIndex { request: request.0, lease }),
        Body::ReadIndexReply { request, index } => {
            Wire::ReadIndexReply(pb::ReadIndexReply { request: request.0, index: index.map(|i| i.0) })
        }
        Body::Forward { request, kind, commands } => {
            Wire::Forward(pb::Forward { request: request.0, commands, kind: encode_kind(kind) as i32 })
        }
        Body::ForwardReply { request, outcome } => {
            Wire::ForwardReply(pb::ForwardReply { request: request.0, outcome: Some(encode_forwarded(outcome)) })
        }
        Body::Commit { index } => Wire::Commit(pb::Commit { index: index.0 }),
        Body::Change { request, change } => Wire::Change(change::encode(request.0, change)),
        Body::ChangeReply { request, outcome } => Wire::ChangeReply(change::encode_reply(request.0, outcome)),
        Body::Offer { image } => Wire::Offer(image::encode_offer(image)),
        Body::Fetch { image, offset, max } => Wire::Fetch(pb::Fetch { image: image.0, offset, max }),
        Body::Chunk { image, offset, part } => Wire::Chunk(image::encode_chunk(image, offset, part)),
        Body::TimeoutNow => Wire::TimeoutNow(pb::TimeoutNow {}),
    }
}

fn encode_outcome(reply: AppendReply) -> Outcome {
    match reply {
        AppendReply::Accepted { stored } => Outcome::Accepted(pb::AppendAccepted { stored: stored.0 }),
        AppendReply::Rejected { prev, hint } => {
            Outcome::Rejected(pb::AppendRejected { prev: log_id(prev), hint: log_id(hint) })
        }
    }
}

fn encode_forwarded(outcome: ForwardOutcome) -> Forwarded {
    match outcome {
        ForwardOutcome::Appended { first } => {
            Forwarded::Appended(pb::LogId { term: first.term.0, index: first.index.0 })
        }
        ForwardOutcome::Overloaded => Forwarded::Refused(pb::ForwardRefusal::Overloaded as i32),
        ForwardOutcome::NotLeader => Forwarded::Refused(pb::ForwardRefusal::NotLeader as i32),
        ForwardOutcome::Moved => Forwarded::Refused(pb::ForwardRefusal::Moved as i32),
    }
}

fn encode_kind(kind: EntryKind) -> pb::EntryKind {
    match kind {
        EntryKind::Noop => pb::EntryKind::Noop,
        EntryKind::Command => pb::EntryKind::Command,
        EntryKind::Config => pb::EntryKind::Config,
        EntryKind::Session => pb::EntryKind::Session,
        EntryKind::Clock => pb::EntryKind::Clock,
    }
}

fn encode_entry(entry: Entry) -> pb::Entry {
    let kind = encode_kind(entry.kind);
    pb::Entry { term: entry.id.term.0, index: entry.id.index.0, kind: kind as i32, data: entry.data }
}

#[expect(clippy::unnecessary_wraps, reason = "the fields of generated messages are optional")]
fn log_id(id: LogId) -> Option<pb::LogId> {
    Some(pb::LogId { term: id.term.0, index: id.index.0 })
}

/// The batch that a frame carries, or why it can't be one.
pub(crate) fn decode(way: Way, frame: pb::Frame) -> Result<Vec<Envelope>, String> {
    if frame.hello.is_some() {
        return Err("a second hello on one stream".into());
    }
    frame.envelopes.into_iter().map(|envelope| decode_envelope(way, envelope)).collect()
}

fn decode_envelope(way: Way, envelope: pb::Envelope) -> Result<Envelope, String> {
    let Way { cluster, from, to } = way;
    let body = envelope.body.ok_or("a message of a kind that this version does not know, or of none")?;
    let message = Message { term: term(envelope.term)?, body: decode_body(body)? };
    Ok(Envelope { cluster, group: GroupId(envelope.group), from, to, message })
}

fn decode_body(body: Wire) -> Result<Body, String> {
    Ok(match body {
        Wire::PreVote(m) => Body::PreVote { proposed: term(m.proposed)?, last: id("last", m.last)? },
        Wire::PreVoteReply(m) => Body::PreVoteReply { proposed: term(m.proposed)?, granted: m.granted },
        Wire::Vote(m) => Body::Vote { last: id("last", m.last)?, transfer: m.transfer },
        Wire::VoteReply(m) => Body::VoteReply { granted: m.granted },
        Wire::Append(m) => Body::Append {
            prev: id("prev", m.prev)?,
            entries: m.entries.into_iter().map(decode_entry).collect::<Result<_, _>>()?,
            commit: index(m.commit)?,
        },
        Wire::AppendReply(m) => Body::AppendReply(decode_outcome(m.outcome)?),
        Wire::Heartbeat(m) => {
            Body::Heartbeat { commit: index(m.commit)?, round: sane("round", m.round)?, lease: lease(m.lease)? }
        }
        Wire::HeartbeatReply(m) => Body::HeartbeatReply {
            round: sane("round", m.round)?,
            matching: index(m.matching)?,
            stored: index(m.stored)?,
            priority: m.priority,
            lease: lease(m.lease)?,
        },
        Wire::ReadIndex(m) => Body::ReadIndex { request: RequestId(m.request), lease: m.lease },
        Wire::ReadIndexReply(m) => {
            Body::ReadIndexReply { request: RequestId(m.request), index: m.index.map(index).transpose()? }
        }
        Wire::Forward(m) => {
            let said = m.kind != pb::EntryKind::Unspecified as i32;
            let kind = if said { decode_kind("a forward", m.kind)? } else { EntryKind::Command };
            Body::Forward { request: RequestId(m.request), kind, commands: m.commands }
        }
        Wire::ForwardReply(m) => {
            Body::ForwardReply { request: RequestId(m.request), outcome: decode_forwarded(m.outcome)? }
        }
        Wire::Commit(m) => Body::Commit { index: index(m.index)? },
        Wire::Change(m) => Body::Change { request: RequestId(m.request), change: change::decode(m)? },
        Wire::ChangeReply(m) => {
            Body::ChangeReply { request: RequestId(m.request), outcome: change::decode_reply(m.outcome)? }
        }
        Wire::Offer(m) => image::decode_offer(m)?,
        Wire::Fetch(m) => Body::Fetch { image: SnapshotId(m.image), offset: m.offset, max: m.max },
        Wire::Chunk(m) => image::decode_chunk(m),
        Wire::TimeoutNow(pb::TimeoutNow {}) => Body::TimeoutNow,
    })
}

fn decode_outcome(outcome: Option<Outcome>) -> Result<AppendReply, String> {
    match outcome {
        Some(Outcome::Accepted(m)) => Ok(AppendReply::Accepted { stored: index(m.stored)? }),
        Some(Outcome::Rejected(m)) => {
            Ok(AppendReply::Rejected { prev: id("prev", m.prev)?, hint: id("hint", m.hint)? })
        }
        None => Err("an append reply without an outcome".into()),
    }
}

fn decode_forwarded(outcome: Option<Forwarded>) -> Result<ForwardOutcome, String> {
    let refusal = match outcome {
        Some(Forwarded::Appended(first)) => return Ok(ForwardOutcome::Appended { first: id("first", Some(first))? }),
        Some(Forwarded::Refused(refusal)) => refusal,
        None => return Err("a forward reply without an outcome".into()),
    };
    match pb::ForwardRefusal::try_from(refusal) {
        Ok(pb::ForwardRefusal::Overloaded) => Ok(ForwardOutcome::Overloaded),
        Ok(pb::ForwardRefusal::NotLeader) => Ok(ForwardOutcome::NotLeader),
        Ok(pb::ForwardRefusal::Moved) => Ok(ForwardOutcome::Moved),
        Ok(pb::ForwardRefusal::Unspecified) | Err(_) => {
            Err(format!("an unknown reason to refuse a forward: {refusal}"))
        }
    }
}

fn decode_kind(of: &str, kind: i32) -> Result<EntryKind, String> {
    match pb::EntryKind::try_from(kind) {
        Ok(pb::EntryKind::Noop) => Ok(EntryKind::Noop),
        Ok(pb::EntryKind::Command) => Ok(EntryKind::Command),
        Ok(pb::EntryKind::Config) => Ok(EntryKind::Config),
        Ok(pb::EntryKind::Session) => Ok(EntryKind::Session),
        Ok(pb::EntryKind::Clock) => Ok(EntryKind::Clock),
        Ok(pb::EntryKind::Unspecified) | Err(_) => {
            Err(format!("{of} is of kind {kind}, which this version does not know"))
        }
    }
}

fn decode_entry(entry: pb::Entry) -> Result<Entry, String> {
    let kind = decode_kind(&format!("entry {}", entry.index), entry.kind)?;
    let id = LogId { term: term(entry.term)?, index: index(entry.index)? };
    Ok(Entry { id, kind, data: entry.data })
}

fn id(field: &str, wire: Option<pb::LogId>) -> Result<LogId, String> {
    let wire = wire.ok_or_else(|| format!("a message without `{field}`"))?;
    log_id_of(wire.term, wire.index)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
