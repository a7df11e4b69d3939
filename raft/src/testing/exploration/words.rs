//! What happens, in words.

use super::cluster::{Action, State};
use super::nodes::{Act, Flight, Nodes};
use crate::message::{AppendReply, Body};
use crate::types::{Entry, EntryKind};

/// An action in a state, with what it sends and what becomes of the node.
pub(super) fn action(nodes: &mut Nodes, state: &State, action: Action, lines: &mut Vec<String>) {
    let (node, act, kept) = match action {
        Action::Lose { flight } => {
            return lines.push(format!("lost: {}", self::flight(&nodes.flights[flight as usize])));
        }
        Action::At { node, act } => (node, act, ""),
        Action::Duplicate { node, flight } => (node, Act::Deliver(flight), ", and may come again"),
    };
    let name = format!("n{}", node + 1);
    lines.push(match act {
        Act::Deliver(flight) => format!("{}{kept}", self::flight(&nodes.flights[flight as usize])),
        Act::Timeout => format!("{name} hears no leader for its election timeout"),
        Act::Heartbeat => format!("{name} waits for its heartbeat interval"),
        Act::Lapse => format!("{name} pauses for longer than every timeout"),
        Act::Stored => format!("{name} is told that its write is on the disk"),
        Act::Restart(0) => format!("{name} loses power, and the write under way; it starts again"),
        Act::Restart(kept) => {
            format!("{name} loses power; of the write under way, {} entries are on the disk; it starts again", kept - 1)
        }
        Act::Propose(number) => format!("{name} is asked to write c{number}"),
        Act::Read(number) => format!("{name} is asked for read {number}"),
        Act::Change(number) => format!("{name} is asked for change {number}"),
    });
    let number = nodes.change(state.nodes[node], act);
    let change = &nodes.changes[number];
    for sent in &change.sent {
        lines.push(format!("    sends {}", flight(&nodes.flights[*sent as usize])));
    }
    for told in &change.told {
        lines.push(format!("    answers {told:?}"));
    }
    let is = nodes.node(change.next);
    let (term, role) = is.core.standing();
    let log: Vec<_> = is.log().iter().map(|(id, _)| id.to_string()).collect();
    let disk: Vec<_> = is.disk.entries.iter().map(|entry| entry.id.to_string()).collect();
    let vote = is.disk.hard_state.voted_for.map_or("nobody".into(), |id| id.to_string());
    lines.push(format!(
        "    {name}: {role} in {term}, log [{}], committed {}; on disk {} with a vote for {vote}, [{}]",
        log.join(" "),
        is.core.committed(),
        is.disk.hard_state.term,
        disk.join(" ")
    ));
}

fn flight(flight: &Flight) -> String {
    let Flight { from, to, message } = flight;
    let body = match &message.body {
        Body::Append { prev, entries, commit } => {
            let entries: Vec<_> = entries.iter().map(entry).collect();
            format!("Append [{}] after {prev}, commit {commit}", entries.join(" "))
        }
        Body::AppendReply(AppendReply::Accepted { stored }) => format!("Accepted up to {stored}"),
        Body::AppendReply(AppendReply::Rejected { prev, hint }) => format!("Rejected {prev}, hint {hint}"),
        other @ (Body::PreVote { .. }
        | Body::PreVoteReply { .. }
        | Body::Vote { .. }
        | Body::VoteReply { .. }
        | Body::Heartbeat { .. }
        | Body::HeartbeatReply { .. }
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. }
        | Body::Forward { .. }
        | Body::ForwardReply { .. }
        | Body::Change { .. }
        | Body::ChangeReply { .. }
        | Body::Offer { .. }
        | Body::Fetch { .. }
        | Body::Chunk { .. }
        | Body::TimeoutNow
        | Body::Commit { .. }) => format!("{other:?}"),
    };
    format!("{from} -> {to} {} {body}", message.term)
}

fn entry(entry: &Entry) -> String {
    match entry.kind {
        EntryKind::Noop => format!("{}:noop", entry.id),
        EntryKind::Config => format!("{}:config", entry.id),
        EntryKind::Clock => format!("{}:clock", entry.id),
        EntryKind::Command | EntryKind::Session => format!("{}:{}", entry.id, String::from_utf8_lossy(&entry.data)),
    }
}
