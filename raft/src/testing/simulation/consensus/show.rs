//! Short texts for transcripts: one line for everything that happens.

#[cfg(test)]
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;

use super::disk::Disk;
use crate::change::{Change, Edit};
use crate::consensus::{InitializeRefused, Note, RefusedReason, Reply, TransferRefused, Write};
use crate::message::{AppendReply, Body, ChangeOutcome, ForwardOutcome, Message};
#[cfg(test)]
use crate::metrics::{ReplicationState, Status};
use crate::traits::{HardState, SnapshotId};
use crate::types::{Entry, EntryKind, NodeId};

/// Payloads longer than this are shown by their length.
const MAX_SHOWN: usize = 24;

pub(crate) fn data(bytes: &Bytes) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= MAX_SHOWN => format!("{text:?}"),
        _ => format!("<{} bytes>", bytes.len()),
    }
}

pub(crate) fn entry(entry: &Entry) -> String {
    match entry.kind {
        EntryKind::Noop => format!("{} noop", entry.id),
        EntryKind::Config => format!("{} config", entry.id),
        EntryKind::Command => format!("{} {}", entry.id, data(&entry.data)),
        EntryKind::Session => format!("{} session {}", entry.id, data(&entry.data)),
        EntryKind::Clock => format!("{} clock {}ms", entry.id, led(&entry.data)),
    }
}

/// What an entry of kind `Clock` says.
fn led(bytes: &Bytes) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

pub(crate) fn entries(list: &[Entry]) -> String {
    format!("[{}]", list.iter().map(entry).collect::<Vec<_>>().join(", "))
}

pub(crate) fn hard_state(state: HardState) -> String {
    state.voted_for.map_or_else(|| format!("{}", state.term), |vote| format!("{} vote={vote}", state.term))
}

pub(crate) fn write(Write { compact, write, .. }: &Write) -> String {
    let cut = compact.map(|upto| format!("cut upto {upto}"));
    let state = write.hard_state.map(hard_state);
    let list = (!write.entries.is_empty()).then(|| entries(&write.entries));
    [cut, state, list].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

pub(crate) fn message(message: &Message) -> String {
    let granted = |granted: bool| if granted { "granted" } else { "refused" };
    let text = match &message.body {
        Body::PreVote { proposed, last } => format!("for={proposed} last={last}"),
        Body::PreVoteReply { proposed, granted: yes } => format!("for={proposed} {}", granted(*yes)),
        Body::Vote { last, transfer } => format!("last={last}{}", if *transfer { " transfer" } else { "" }),
        Body::VoteReply { granted: yes } => granted(*yes).into(),
        Body::Append { prev, entries: list, commit } => format!("prev={prev} {} commit={}", entries(list), commit.0),
        Body::AppendReply(AppendReply::Accepted { stored }) => format!("stored={}", stored.0),
        Body::AppendReply(AppendReply::Rejected { prev, hint }) => format!("rejected prev={prev} hint={hint}"),
        Body::Heartbeat { commit, round, lease: asked } => {
            format!("round={round} commit={}{}", commit.0, lease(*asked))
        }
        Body::HeartbeatReply { round, matching, stored, priority, lease: promised } => {
            let priority = match priority {
                Some(0) => String::new(),
                Some(priority) => format!(" priority={priority}"),
                None => " would not lead".into(),
            };
            format!("round={round} matching={} stored={}{priority}{}", matching.0, stored.0, lease(*promised))
        }
        Body::ReadIndex { request, lease } => format!("r{}{}", request.0, if *lease { " lease" } else { "" }),
        Body::ReadIndexReply { request, index } => {
            format!("r{} {}", request.0, index.map_or_else(|| "none".into(), |index| format!("index={}", index.0)))
        }
        Body::Forward { request, kind, commands } => {
            let kind = match kind {
                EntryKind::Command => "",
                EntryKind::Session => "session ",
                EntryKind::Noop | EntryKind::Config | EntryKind::Clock => "leader's own ",
            };
            format!("r{} {kind}[{}]", request.0, commands.iter().map(data).collect::<Vec<_>>().join(", "))
        }
        Body::ForwardReply { request, outcome: ForwardOutcome::Appended { first } } => {
            format!("r{} first={first}", request.0)
        }
        Body::ForwardReply { request, outcome: ForwardOutcome::Overloaded } => format!("r{} overloaded", request.0),
        Body::ForwardReply { request, outcome: ForwardOutcome::NotLeader } => format!("r{} not leader", request.0),
        Body::Change { request, change } => format!("r{} {}", request.0, self::change(change)),
        Body::ChangeReply { request, outcome } => {
            let outcome = match outcome {
                ChangeOutcome::Done { id } => format!("done at {id}"),
                ChangeOutcome::Refused(refused) => format!("refused: {refused}"),
                ChangeOutcome::NotLeader => "not leader".into(),
                ChangeOutcome::Unknown => "outcome unknown".into(),
            };
            format!("r{} {outcome}", request.0)
        }
        Body::ForwardReply { request, outcome: ForwardOutcome::Moved } => format!("r{} moved", request.0),
        Body::Offer { image } => format!("image of {}, {} bytes", image.meta.last, image.len),
        Body::Fetch { image, offset, max } => format!("{}..{} of {}", offset, offset + max, short(*image)),
        Body::Chunk { image, offset, part } => match part {
            Some(part) => format!("{}..{} of {}", offset, offset + part.data.len() as u64, short(*image)),
            None => format!("there is no {}", short(*image)),
        },
        Body::Commit { index } => format!("commit={}", index.0),
        Body::TimeoutNow => return format!("TimeoutNow ({})", message.term),
    };
    format!("{} {text} ({})", message.name(), message.term)
}

/// A promise, if there is one.
fn lease(length: Duration) -> String {
    if length.is_zero() { String::new() } else { format!(" lease={}ms", length.as_millis()) }
}

/// Enough of an image's name.
pub(crate) fn short(image: SnapshotId) -> String {
    format!("#{:04x}", image.0 >> 48)
}

pub(crate) fn change(change: &Change) -> String {
    let edit = |edit: &Edit| match edit {
        Edit::AddVoter(peer) => format!("voter {peer}"),
        Edit::AddLearner(peer) => format!("learner {peer}"),
        Edit::Promote(id) => format!("promote {}", id.0),
        Edit::Demote(id) => format!("demote {}", id.0),
        Edit::Remove(id) => format!("remove {}", id.0),
        Edit::Replace { old, new } => format!("replace {} by {new}", old.0),
        Edit::SetAddress(peer) => format!("move {peer}"),
        Edit::Set(target) => format!("set {target}"),
    };
    let list: Vec<_> = change.edits.iter().map(edit).collect();
    let only_if = change.expected.map(|id| format!(" if {id}")).unwrap_or_default();
    format!("[{}]{only_if}", list.join(", "))
}

fn leader(leader: Option<NodeId>) -> String {
    leader.map_or_else(|| "nobody".into(), |id| id.to_string())
}

pub(crate) fn note(note: &Note) -> String {
    match note {
        Note::Role { role, term, why } => format!("is {role} in {term}: {why}"),
        Note::Leader { leader: who, term } => format!("follows {} in {term}", leader(*who)),
        Note::Suspect { leader } => format!("suspects {leader}: the connection was lost"),
        Note::Yield { to, why } => format!("wants {to} to lead: {why}"),
        Note::Transfer { to, step } => format!("transfer to {to} {step}"),
        Note::Truncated { from, upto } => format!("truncates {}..={}", from.0, upto.0),
        Note::Membership { index, membership } => format!("has the members {membership} of entry {}", index.0),
        Note::Removed { index } => format!("is removed by entry {}", index.0),
        Note::SnapshotTaken { last, len } => format!("has an image of {last}, {len} bytes"),
        Note::ReceivingSnapshot { from, last, stored, len, rate: _ } => {
            format!("receives the image of {last} from {from}: {stored} of {len} bytes")
        }
        Note::SnapshotInstalled { last, len } => format!("installs an image of {last}, {len} bytes"),
        Note::SnapshotDamaged { from, last, part: true } => {
            format!("drops a damaged part of the image of {last} from {from}")
        }
        Note::SnapshotDamaged { from, last, part: false } => {
            format!("drops the image of {last} from {from}: it is damaged")
        }
        Note::Ignored { from, message, why } => format!("ignores {message} of {from}: {why}"),
        Note::Violation { from, message, why } => format!("VIOLATION in {message} of {from}: {why}"),
    }
}

pub(crate) fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Appended { request, first } => format!("r{} appended at {first}", request.0),
        Reply::Refused { request, reason } => {
            let reason = match reason {
                RefusedReason::NotLeader { leader: who } => format!("not leader, that is {}", leader(*who)),
                RefusedReason::Overloaded => "overloaded".into(),
                RefusedReason::Moved => "leadership moved".into(),
            };
            format!("r{} refused: {reason}", request.0)
        }
        Reply::Returned { request, commands } => {
            format!("r{} returned [{}]", request.0, commands.iter().map(data).collect::<Vec<_>>().join(", "))
        }
        Reply::Unknown { request } => format!("r{} outcome unknown", request.0),
        Reply::Readable { request, index } => format!("r{} readable at {}", request.0, index.0),
        Reply::Changed { request, outcome: Ok(id) } => format!("r{} changed to the configuration {id}", request.0),
        Reply::Changed { request, outcome: Err(refused) } => format!("r{} not changed: {refused}", request.0),
        Reply::Snapshotted { request, last } => format!("r{} there is an image of {last}", request.0),
        Reply::Initialized { request, outcome } => {
            let outcome = match outcome {
                Ok(()) => "initialized".into(),
                Err(InitializeRefused::NotEmpty { existing }) => format!("not initialized, not empty: {existing}"),
                Err(InitializeRefused::Invalid { reason }) => format!("not initialized, invalid: {reason}"),
            };
            format!("r{} {outcome}", request.0)
        }
        Reply::Transferred { request, outcome } => {
            let outcome = match outcome {
                Ok(to) => format!("transferred to {to}"),
                Err(refused) => format!("not transferred: {}", transfer_refused(*refused)),
            };
            format!("r{} {outcome}", request.0)
        }
    }
}

fn transfer_refused(refused: TransferRefused) -> String {
    match refused {
        TransferRefused::NotLeader { leader: who } => format!("not leader, that is {}", leader(who)),
        TransferRefused::UnknownNode { id } => format!("there is no {id}"),
        TransferRefused::NotVoter { id } => format!("{id} does not vote"),
        TransferRefused::InProgress { to } => format!("a transfer to {to} is under way"),
        TransferRefused::Unwilling { id } => format!("{id} would not lead"),
        TransferRefused::NoSuccessor => "no other voter is heard".into(),
        TransferRefused::TimedOut => "timed out".into(),
        TransferRefused::OtherLeader { leader } => format!("{leader} was elected"),
    }
}

#[cfg(test)]
pub(crate) fn status(status: &Status) -> String {
    let mut text = format!(
        "{} {} {} leader={} last={} stored={} commit={} applied={}",
        status.id,
        status.role,
        status.term,
        leader(status.leader),
        status.last,
        status.stored.0,
        status.commit.0,
        status.applied.0
    );
    if let Some(snapshot) = status.snapshot {
        let _ = write!(text, " base={} snapshot={}", status.base, snapshot.last);
    }
    if let Some(configuration) = status.configuration.as_ref().filter(|found| !found.committed && found.id.index.0 > 1)
    {
        let _ = write!(text, " uncommitted={}", configuration.id);
    }
    if let Some(left) = status.lease_left {
        let _ = write!(text, " lease={}ms", left.as_millis());
    }
    if let Some(at) = status.removed {
        let _ = write!(text, " removed={at}");
    }
    if let Some(change) = &status.change {
        let _ = write!(text, "\n   changes to {}", change.target);
        for id in &change.catching_up {
            let _ = write!(text, ", {id} is catching up");
        }
    }
    if let Some(receiving) = status.receiving {
        let _ = write!(
            text,
            "\n   receives the image of {} from {}: {} of {} bytes",
            receiving.last, receiving.from, receiving.stored, receiving.len
        );
    }
    for peer in &status.peers {
        let state = match peer.state {
            ReplicationState::Probe => "probe",
            ReplicationState::Replicate => "replicate",
            ReplicationState::Snapshot => "snapshot",
        };
        let silent = peer.silent_for.map_or_else(|| "unheard".into(), |time| format!("silent={}ms", time.as_millis()));
        let _ = write!(
            text,
            "\n   {} {state} matched={} next={} inflight={} {silent}",
            peer.id, peer.matched.0, peer.next.0, peer.inflight
        );
    }
    text
}

pub(crate) fn disk(disk: &Disk) -> String {
    let base = if disk.base.index.0 == 0 { String::new() } else { format!(" base={}", disk.base) };
    format!("{}{base} {}", hard_state(disk.hard_state), entries(&disk.entries))
}
