//! Changes of the configuration, and what becomes of them.

use std::borrow::Cow;

use raftkv::transport_kit::numbers::index;
use raftkv::{Change, ChangeOutcome, ChangeRefused, Edit, LogId, Membership, NodeId, Peer};

use super::{id, put_id, v1};

pub(super) fn encode(request: u64, change: &Change) -> v1::Body<'_> {
    let edits = change.edits.iter().map(encode_edit).collect();
    v1::Body::Change { request, edits, expected: change.expected.map(put_id) }
}

fn encode_edit(edit: &Edit) -> v1::Edit<'_> {
    match edit {
        Edit::AddVoter(new) => v1::Edit::AddVoter(peer(new)),
        Edit::AddLearner(new) => v1::Edit::AddLearner(peer(new)),
        Edit::Promote(id) => v1::Edit::Promote(id.0),
        Edit::Demote(id) => v1::Edit::Demote(id.0),
        Edit::Remove(id) => v1::Edit::Remove(id.0),
        Edit::Replace { old, new } => v1::Edit::Replace { old: old.0, new: peer(new) },
        Edit::SetAddress(moved) => v1::Edit::SetAddress(peer(moved)),
        // As it is in the log.
        Edit::Set(target) => v1::Edit::Set(Cow::Owned(target.encode().into())),
    }
}

fn peer(peer: &Peer) -> v1::Peer<'_> {
    v1::Peer { id: peer.id.0, address: &peer.address }
}

pub(super) fn decode(edits: Vec<v1::Edit<'_>>, expected: Option<v1::Id>) -> Result<Change, String> {
    let expected: Option<LogId> = expected.map(id).transpose()?;
    Ok(Change { edits: edits.into_iter().map(decode_edit).collect::<Result<_, _>>()?, expected })
}

fn decode_edit(edit: v1::Edit<'_>) -> Result<Edit, String> {
    Ok(match edit {
        v1::Edit::AddVoter(new) => Edit::AddVoter(decode_peer(&new)),
        v1::Edit::AddLearner(new) => Edit::AddLearner(decode_peer(&new)),
        v1::Edit::Promote(id) => Edit::Promote(NodeId(id)),
        v1::Edit::Demote(id) => Edit::Demote(NodeId(id)),
        v1::Edit::Remove(id) => Edit::Remove(NodeId(id)),
        v1::Edit::Replace { old, new } => Edit::Replace { old: NodeId(old), new: decode_peer(&new) },
        v1::Edit::SetAddress(moved) => Edit::SetAddress(decode_peer(&moved)),
        v1::Edit::Set(target) => Edit::Set(Membership::decode(&target)?),
    })
}

fn decode_peer(peer: &v1::Peer<'_>) -> Peer {
    Peer::new(peer.id, peer.address)
}

pub(super) fn encode_outcome(outcome: &ChangeOutcome) -> v1::Changed<'_> {
    match outcome {
        ChangeOutcome::Done { id } => v1::Changed::Done(put_id(*id)),
        ChangeOutcome::Refused(refused) => encode_refused(refused),
        ChangeOutcome::NotLeader => v1::Changed::NotLeader,
        ChangeOutcome::Unknown => v1::Changed::Unknown,
    }
}

fn encode_refused(refused: &ChangeRefused) -> v1::Changed<'_> {
    match refused {
        ChangeRefused::InProgress { at } => v1::Changed::InProgress { at: put_id(*at) },
        ChangeRefused::NotReady => v1::Changed::NotReady,
        ChangeRefused::Mismatch { actual } => v1::Changed::Mismatch { actual: put_id(*actual) },
        ChangeRefused::UnknownNode { id } => v1::Changed::UnknownNode(id.0),
        ChangeRefused::NoVoters => v1::Changed::NoVoters,
        ChangeRefused::NoDifference => v1::Changed::NoDifference,
        ChangeRefused::AddressConflict { address, nodes: [one, other] } => {
            v1::Changed::AddressConflict { address: Cow::Borrowed(address), nodes: (one.0, other.0) }
        }
        ChangeRefused::NotCaughtUp { id, matched, last } => {
            v1::Changed::NotCaughtUp { id: id.0, matched: matched.0, last: last.0 }
        }
        ChangeRefused::Unreachable { silent } => {
            v1::Changed::Unreachable { silent: silent.iter().map(|id| id.0).collect() }
        }
        ChangeRefused::Invalid { reason } => v1::Changed::Invalid { reason: Cow::Borrowed(reason) },
        // A later version's reason, in its words.
        other => v1::Changed::Invalid { reason: Cow::Owned(other.to_string()) },
    }
}

pub(super) fn decode_outcome(outcome: v1::Changed<'_>) -> Result<ChangeOutcome, String> {
    let refused = match outcome {
        v1::Changed::Done(at) => return Ok(ChangeOutcome::Done { id: id(at)? }),
        v1::Changed::NotLeader => return Ok(ChangeOutcome::NotLeader),
        v1::Changed::Unknown => return Ok(ChangeOutcome::Unknown),
        v1::Changed::InProgress { at } => ChangeRefused::InProgress { at: id(at)? },
        v1::Changed::NotReady => ChangeRefused::NotReady,
        v1::Changed::Mismatch { actual } => ChangeRefused::Mismatch { actual: id(actual)? },
        v1::Changed::UnknownNode(id) => ChangeRefused::UnknownNode { id: NodeId(id) },
        v1::Changed::NoVoters => ChangeRefused::NoVoters,
        v1::Changed::NoDifference => ChangeRefused::NoDifference,
        v1::Changed::AddressConflict { address, nodes: (one, other) } => {
            ChangeRefused::AddressConflict { address: address.into_owned(), nodes: [NodeId(one), NodeId(other)] }
        }
        v1::Changed::NotCaughtUp { id, matched, last } => {
            ChangeRefused::NotCaughtUp { id: NodeId(id), matched: index(matched)?, last: index(last)? }
        }
        v1::Changed::Unreachable { silent } => {
            ChangeRefused::Unreachable { silent: silent.into_iter().map(NodeId).collect() }
        }
        v1::Changed::Invalid { reason } => ChangeRefused::Invalid { reason: reason.into_owned() },
    };
    Ok(ChangeOutcome::Refused(refused))
}
