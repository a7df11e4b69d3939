//! Changes of the configuration, and what becomes of them.

use raftkv::transport_kit::numbers::index;
use raftkv::{Change, ChangeOutcome, ChangeRefused, Edit, Membership, NodeId, Peer};

use super::id;
use super::pb::change_reply::Outcome;
use super::pb::edit::Edit as Wire;
use super::pb::{self, ChangeRefusal as Kind};

pub(super) fn encode(request: u64, change: Change) -> pb::Change {
    let expected = change.expected.and_then(super::log_id);
    let edits = change.edits.into_iter().map(|edit| pb::Edit { edit: Some(encode_edit(edit)) }).collect();
    pb::Change { request, edits, expected }
}

fn encode_edit(edit: Edit) -> Wire {
    match edit {
        Edit::AddVoter(new) => Wire::AddVoter(peer(&new)),
        Edit::AddLearner(new) => Wire::AddLearner(peer(&new)),
        Edit::Promote(id) => Wire::Promote(id.0),
        Edit::Demote(id) => Wire::Demote(id.0),
        Edit::Remove(id) => Wire::Remove(id.0),
        Edit::Replace { old, new } => Wire::Replace(pb::Replace { old: old.0, new: Some(peer(&new)) }),
        Edit::SetAddress(moved) => Wire::SetAddress(peer(&moved)),
        // As it is in the log.
        Edit::Set(target) => Wire::Set(target.encode()),
    }
}

fn peer(peer: &Peer) -> pb::Peer {
    pb::Peer { id: peer.id.0, address: peer.address.as_ref().to_owned() }
}

pub(super) fn decode(change: pb::Change) -> Result<Change, String> {
    let expected = change.expected.map(|wire| id("expected", Some(wire))).transpose()?;
    let edits = change.edits.into_iter().map(|edit| decode_edit(edit.edit)).collect::<Result<_, _>>()?;
    Ok(Change { edits, expected })
}

fn decode_edit(edit: Option<Wire>) -> Result<Edit, String> {
    let known = |peer: Option<pb::Peer>| peer.map(decode_peer).ok_or("a replacement by nobody");
    Ok(match edit.ok_or("an edit of a kind that this version does not know, or of none")? {
        Wire::AddVoter(new) => Edit::AddVoter(decode_peer(new)),
        Wire::AddLearner(new) => Edit::AddLearner(decode_peer(new)),
        Wire::Promote(id) => Edit::Promote(NodeId(id)),
        Wire::Demote(id) => Edit::Demote(NodeId(id)),
        Wire::Remove(id) => Edit::Remove(NodeId(id)),
        Wire::Replace(wire) => Edit::Replace { old: NodeId(wire.old), new: known(wire.new)? },
        Wire::SetAddress(moved) => Edit::SetAddress(decode_peer(moved)),
        Wire::Set(target) => Edit::Set(Membership::decode(&target)?),
    })
}

fn decode_peer(peer: pb::Peer) -> Peer {
    Peer::new(peer.id, peer.address)
}

pub(super) fn encode_reply(request: u64, outcome: ChangeOutcome) -> pb::ChangeReply {
    let outcome = match outcome {
        ChangeOutcome::Done { id } => Outcome::Done(pb::LogId { term: id.term.0, index: id.index.0 }),
        ChangeOutcome::Refused(refused) => Outcome::Refused(encode_refused(refused)),
        ChangeOutcome::NotLeader => Outcome::Refused(bare(Kind::NotLeader)),
        ChangeOutcome::Unknown => Outcome::Refused(bare(Kind::OutcomeUnknown)),
    };
    pb::ChangeReply { request, outcome: Some(outcome) }
}

fn bare(kind: Kind) -> pb::ChangeRefused {
    pb::ChangeRefused { kind: kind as i32, ..pb::ChangeRefused::default() }
}

fn encode_refused(refused: ChangeRefused) -> pb::ChangeRefused {
    match refused {
        ChangeRefused::InProgress { at } => pb::ChangeRefused { at: super::log_id(at), ..bare(Kind::InProgress) },
        ChangeRefused::NotReady => bare(Kind::NotReady),
        ChangeRefused::Mismatch { actual } => pb::ChangeRefused { at: super::log_id(actual), ..bare(Kind::Mismatch) },
        ChangeRefused::UnknownNode { id } => pb::ChangeRefused { nodes: vec![id.0], ..bare(Kind::UnknownNode) },
        ChangeRefused::NoVoters => bare(Kind::NoVoters),
        ChangeRefused::NoDifference => bare(Kind::NoDifference),
        ChangeRefused::AddressConflict { address, nodes } => {
            let nodes = nodes.iter().map(|id| id.0).collect();
            pb::ChangeRefused { text: address, nodes, ..bare(Kind::AddressConflict) }
        }
        ChangeRefused::NotCaughtUp { id, matched, last } => {
            let (matched, last) = (matched.0, last.0);
            pb::ChangeRefused { nodes: vec![id.0], matched, last, ..bare(Kind::NotCaughtUp) }
        }
        ChangeRefused::Unreachable { silent } => {
            pb::ChangeRefused { nodes: silent.iter().map(|id| id.0).collect(), ..bare(Kind::Unreachable) }
        }
        ChangeRefused::Invalid { reason } => pb::ChangeRefused { text: reason, ..bare(Kind::Invalid) },
        // A later version's reason, in its words.
        other => pb::ChangeRefused { text: other.to_string(), ..bare(Kind::Invalid) },
    }
}

pub(super) fn decode_reply(outcome: Option<Outcome>) -> Result<ChangeOutcome, String> {
    let refused = match outcome {
        Some(Outcome::Done(at)) => return Ok(ChangeOutcome::Done { id: id("done", Some(at))? }),
        Some(Outcome::Refused(refused)) => refused,
        None => return Err("an answer to a change without an outcome".into()),
    };
    let pb::ChangeRefused { kind, at, nodes, text, matched, last } = refused;
    let first = || nodes.first().map(|id| NodeId(*id)).ok_or("a refusal that names no node");
    let refused = match Kind::try_from(kind) {
        Ok(Kind::NotLeader) => return Ok(ChangeOutcome::NotLeader),
        Ok(Kind::OutcomeUnknown) => return Ok(ChangeOutcome::Unknown),
        Ok(Kind::InProgress) => ChangeRefused::InProgress { at: id("at", at)? },
        Ok(Kind::NotReady) => ChangeRefused::NotReady,
        Ok(Kind::Mismatch) => ChangeRefused::Mismatch { actual: id("at", at)? },
        Ok(Kind::UnknownNode) => ChangeRefused::UnknownNode { id: first()? },
        Ok(Kind::NoVoters) => ChangeRefused::NoVoters,
        Ok(Kind::NoDifference) => ChangeRefused::NoDifference,
        Ok(Kind::AddressConflict) => match nodes[..] {
            [one, other] => ChangeRefused::AddressConflict { address: text, nodes: [NodeId(one), NodeId(other)] },
            _ => return Err("a conflict of addresses without two nodes".into()),
        },
        Ok(Kind::NotCaughtUp) => {
            ChangeRefused::NotCaughtUp { id: first()?, matched: index(matched)?, last: index(last)? }
        }
        Ok(Kind::Unreachable) => ChangeRefused::Unreachable { silent: nodes.into_iter().map(NodeId).collect() },
        Ok(Kind::Invalid) => ChangeRefused::Invalid { reason: text },
        Ok(Kind::Unspecified) | Err(_) => return Err(format!("an unknown reason to refuse a change: {kind}")),
    };
    Ok(ChangeOutcome::Refused(refused))
}
