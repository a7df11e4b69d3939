//! The situations that schedules of the consensus core must meet, and where each is noticed.

use crate::change::ChangeRefused;
use crate::config::Config;
use crate::consensus::{FetchPurpose, Note, RefusedReason, Reply, RoleKind, TransferStep};
use crate::message::{AppendReply, Body, Message};
use crate::metrics::Status;
use crate::testing::simulation::Coverage;
use crate::types::{Entry, Index};

/// What the largest batch of commands costs that a schedule proposes.
pub(crate) const LARGEST_BATCH: u64 = 4 * (Entry::OVERHEAD + 720);

/// All of them. A campaign in which one never occurs has not tried what it claims to.
pub(crate) const EXPECTED: &[&str] = &[
    "appends rejected with a hint that skips entries",
    "bridge partitions",
    "campaigns asked for by an operator",
    "campaigns that meet a promise",
    "addresses changed",
    "changes made",
    "changes meant for another configuration",
    "changes of too few voters that can be reached",
    "changes passed on",
    "changes refused",
    "changes that come too early in a term",
    "changes that come while another is in progress",
    "changes that did not catch up in time",
    "changes with an unknown outcome",
    "clusters of one voter that grew",
    "clusters that shrank to one voter",
    "configurations taken back",
    "configurations that were joint",
    "joint configurations left",
    "leaders that leave for good",
    "leaders that were removed",
    "learners promoted",
    "nodes that learned that they are removed",
    "removed nodes that came back",
    "runs with changing members",
    "voters demoted",
    "votes given without a vote of one's own",
    "clocks that jump",
    "clocks that run at another rate",
    "crashes of leaders",
    "crashes of others",
    "damaged images noticed",
    "damaged parts of images noticed",
    "elections won over entries of earlier terms",
    "elections won with an uncommitted entry of an earlier term on a quorum (figure 8)",
    "elections won",
    "fetches for a follower",
    "fetches for the state machine",
    "forwarded writes refused",
    "forwarded writes that moved with leadership",
    "forwarded writes with an unknown outcome",
    "held writes given back",
    "images installed",
    "images that are not there any more",
    "leaders estranged",
    "leaders kept from leading that handed over",
    "leaders suspected",
    "leaders that hand over to a higher priority",
    "nodes kept from leading",
    "runs with priorities",
    "transfers refused by the successor",
    "leaders that give way with a slow disk",
    "leaders that hand over with a stuck state machine",
    "leaders that step down for a later term",
    "leaders that step down with a stuck state machine",
    "leaders that step down without a quorum",
    "messages delivered late",
    "messages delivered twice",
    "messages lost",
    "messages out of order",
    "minorities that go on failing",
    "one-way cuts",
    "pauses of a process",
    "polls held for a hint",
    "polls lost",
    "power lost between an image and its cut",
    "pre-votes refused",
    "reads answered by a lease",
    "reads confirmed",
    "reads refused",
    "receipts of an image resumed",
    "requests refused for a limit",
    "runs of one voter",
    "runs of seven voters",
    "runs with a clock",
    "runs with leases",
    "runs without a clock",
    "snapshots taken",
    "split votes",
    "stalls of a disk",
    "starts from a compacted log",
    "state machines that kept what they applied",
    "successors told to campaign",
    "torn writes recovered",
    "transfers begun",
    "transfers completed",
    "transfers given up",
    "transfers refused",
    "truncations",
    "votes lost",
    "whole partitions",
    "windows that were full",
    "writes answered",
    "writes lost in a crash",
    "writes proven lost",
    "writes torn by a crash",
    "writes whose outcome an image covers",
];

/// Whether only a leader says this.
pub(crate) fn is_of_a_leader(message: &Message) -> bool {
    match message.body {
        Body::Append { .. } | Body::Heartbeat { .. } | Body::Commit { .. } | Body::Offer { .. } | Body::TimeoutNow => {
            true
        }
        Body::PreVote { .. }
        | Body::PreVoteReply { .. }
        | Body::Vote { .. }
        | Body::VoteReply { .. }
        | Body::AppendReply(_)
        | Body::HeartbeatReply { .. }
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. }
        | Body::Forward { .. }
        | Body::ForwardReply { .. }
        | Body::Change { .. }
        | Body::ChangeReply { .. }
        | Body::Fetch { .. }
        | Body::Chunk { .. } => false,
    }
}

pub(crate) fn fetch(purpose: FetchPurpose) -> &'static str {
    match purpose {
        FetchPurpose::Follower(_) => "fetches for a follower",
        FetchPurpose::Apply => "fetches for the state machine",
    }
}

pub(crate) fn noted(coverage: &mut Coverage, note: &Note) {
    match note {
        Note::Role { role: RoleKind::Leader, .. } => coverage.hit("elections won"),
        Note::Role { why, .. } => match *why {
            "a majority refused its vote" => coverage.hit("votes lost"),
            "the configuration does not let it vote any more" => coverage.hit("leaders that were removed"),
            "a majority would not elect it" => coverage.hit("polls lost"),
            "the connection with its leader was lost" => coverage.hit("polls held for a hint"),
            "it heard no quorum for an election timeout" => coverage.hit("leaders that step down without a quorum"),
            "its disk does not get a write done" => coverage.hit("leaders that give way with a slow disk"),
            "its state machine gets nothing done" => coverage.hit("leaders that step down with a stuck state machine"),
            _ => {}
        },
        Note::Suspect { .. } => coverage.hit("leaders suspected"),
        Note::Transfer { step: TransferStep::Begins, .. } => coverage.hit("transfers begun"),
        Note::Transfer { step: TransferStep::GivenUp, .. } => coverage.hit("transfers given up"),
        Note::Ignored { why: "this node promised to stay out of elections", .. } => {
            coverage.hit("campaigns that meet a promise");
        }
        Note::Transfer { step: TransferStep::Refused, .. } => coverage.hit("transfers refused by the successor"),
        Note::Yield { why: "its priority is higher", .. } => {
            coverage.hit("leaders that hand over to a higher priority")
        }
        Note::Yield { why: "the state machine here gets nothing done", .. } => {
            coverage.hit("leaders that hand over with a stuck state machine");
        }
        Note::Yield { .. } => {}
        Note::Truncated { .. } => coverage.hit("truncations"),
        Note::Removed { .. } => coverage.hit("nodes that learned that they are removed"),
        Note::Membership { membership, .. } if membership.is_joint() => coverage.hit("configurations that were joint"),
        Note::SnapshotInstalled { .. } => coverage.hit("images installed"),
        Note::SnapshotDamaged { part: true, .. } => coverage.hit("damaged parts of images noticed"),
        Note::SnapshotDamaged { part: false, .. } => coverage.hit("damaged images noticed"),
        Note::Leader { .. }
        | Note::ReceivingSnapshot { .. }
        | Note::Membership { .. }
        | Note::SnapshotTaken { .. }
        | Note::Ignored { .. }
        | Note::Violation { .. } => {}
    }
}

pub(crate) fn sent(coverage: &mut Coverage, message: &Message) {
    match &message.body {
        Body::PreVoteReply { granted: false, .. } => coverage.hit("pre-votes refused"),
        Body::Chunk { part: None, .. } => coverage.hit("images that are not there any more"),
        Body::AppendReply(AppendReply::Rejected { prev, hint }) if hint.index.next() < prev.index => {
            coverage.hit("appends rejected with a hint that skips entries");
        }
        Body::AppendReply(_)
        | Body::PreVote { .. }
        | Body::PreVoteReply { .. }
        | Body::Vote { .. }
        | Body::VoteReply { .. }
        | Body::Append { .. }
        | Body::Heartbeat { .. }
        | Body::HeartbeatReply { .. }
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. }
        | Body::Forward { .. }
        | Body::ForwardReply { .. }
        | Body::ChangeReply { .. }
        | Body::Offer { .. }
        | Body::Fetch { .. }
        | Body::Chunk { .. }
        | Body::Commit { .. } => {}
        Body::Change { .. } => coverage.hit("changes passed on"),
        Body::TimeoutNow => coverage.hit("successors told to campaign"),
    }
}

pub(crate) fn replied(coverage: &mut Coverage, reply: &Reply, is_read: bool) {
    match reply {
        Reply::Refused { reason: RefusedReason::Overloaded, .. } => coverage.hit("requests refused for a limit"),
        Reply::Refused { reason: RefusedReason::NotLeader { .. }, .. } if is_read => coverage.hit("reads refused"),
        Reply::Refused { reason: RefusedReason::NotLeader { .. }, .. } => coverage.hit("forwarded writes refused"),
        Reply::Unknown { .. } => coverage.hit("forwarded writes with an unknown outcome"),
        Reply::Refused { reason: RefusedReason::Moved, .. } => {
            coverage.hit("forwarded writes that moved with leadership")
        }
        Reply::Returned { .. } => coverage.hit("held writes given back"),
        Reply::Transferred { outcome: Ok(_), .. } => coverage.hit("transfers completed"),
        Reply::Transferred { outcome: Err(_), .. } => coverage.hit("transfers refused"),
        Reply::Changed { outcome: Ok(_), .. } => coverage.hit("changes made"),
        Reply::Changed { outcome: Err(refused), .. } => coverage.hit(change_refused(refused)),
        Reply::Appended { .. } | Reply::Readable { .. } | Reply::Initialized { .. } | Reply::Snapshotted { .. } => {}
    }
}

fn change_refused(refused: &ChangeRefused) -> &'static str {
    match refused {
        ChangeRefused::NotCaughtUp { .. } => "changes that did not catch up in time",
        ChangeRefused::InProgress { .. } => "changes that come while another is in progress",
        ChangeRefused::NotReady => "changes that come too early in a term",
        ChangeRefused::Mismatch { .. } => "changes meant for another configuration",
        ChangeRefused::Unreachable { .. } => "changes of too few voters that can be reached",
        ChangeRefused::UnknownNode { .. }
        | ChangeRefused::NoVoters
        | ChangeRefused::NoDifference
        | ChangeRefused::AddressConflict { .. }
        | ChangeRefused::Invalid { .. } => "changes refused",
    }
}

/// A message of a node that does not vote by its own configuration.
pub(crate) fn sent_without_a_vote(coverage: &mut Coverage, message: &Message) {
    // Its configuration may be an old one: it votes for whoever asks (thesis §4.1).
    if matches!(message.body, Body::VoteReply { granted: true }) {
        coverage.hit("votes given without a vote of one's own");
    }
}

pub(crate) fn observed(coverage: &mut Coverage, config: &Config, status: &Status) {
    let full = |inflight: usize| inflight >= config.max_inflight_appends && inflight > 0;
    if status.peers.iter().any(|peer| full(peer.inflight) && peer.next > Index(1)) {
        coverage.hit("windows that were full");
    }
}
