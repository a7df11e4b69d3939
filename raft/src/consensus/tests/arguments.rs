//! What the words of a script's commands mean.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use goldenscript::ArgumentConsumer;

use crate::change::Change;
use crate::message::{AppendReply, Body, ForwardOutcome, Message, Part, RequestId};
use crate::testing::simulation::consensus::Cluster;
use crate::traits::{Published, SnapshotId, SnapshotMeta};
use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Peer, Term};

pub(super) type Failure = Box<dyn Error>;

pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|e| format!("{what}={text}: {e}").into())
}

pub(super) fn key<T: std::str::FromStr<Err: std::fmt::Display>>(
    args: &mut ArgumentConsumer,
    name: &str,
) -> Result<Option<T>, Failure> {
    args.take_key(name).map(|text| parse(name, text)).transpose()
}

/// `INDEX@TERM`, as transcripts show it.
pub(super) fn log_id(text: &str) -> Result<LogId, Failure> {
    let (index, term) = text.split_once('@').ok_or_else(|| format!("{text}: a log id is INDEX@TERM"))?;
    Ok(LogId::new(parse("term", term)?, parse("index", index)?))
}

pub(super) fn duration(text: &str) -> Result<Duration, Failure> {
    let millis = text.strip_suffix("ms").ok_or_else(|| format!("{text}: a duration ends in ms"))?;
    Ok(Duration::from_millis(parse("duration", millis)?))
}

pub(super) fn yes(text: &str) -> Result<bool, Failure> {
    parse("true or false", text)
}

/// The nodes named by the positional arguments; all, if none is.
pub(super) fn ids(args: &mut ArgumentConsumer, cluster: &Cluster) -> Result<Vec<NodeId>, Failure> {
    let mut named = Vec::new();
    while let Some(text) = args.next_pos() {
        named.push(NodeId(parse("id", text)?));
    }
    Ok(if named.is_empty() { cluster.nodes.keys().copied().collect() } else { named })
}

pub(super) fn id(args: &mut ArgumentConsumer) -> Result<NodeId, Failure> {
    Ok(NodeId(parse("id", args.next_pos().ok_or("which node?")?)?))
}

/// A command: as it is written, or `*N` for N bytes.
pub(super) fn payload(text: &str) -> Result<Bytes, Failure> {
    match text.strip_prefix('*') {
        Some(size) => Ok(Bytes::from(vec![b'x'; parse("size", size)?])),
        None => Ok(Bytes::copy_from_slice(text.as_bytes())),
    }
}

/// A hand-written message: `TYPE term=T field=value…`.
pub(super) fn message(args: &mut ArgumentConsumer) -> Result<Message, Failure> {
    let kind = args.next_pos().ok_or("which message?")?;
    let term = Term(key(args, "term")?.ok_or("term=?")?);
    let number = |args: &mut ArgumentConsumer, name: &str| key::<u64>(args, name).map(Option::unwrap_or_default);
    let at = |args: &mut ArgumentConsumer, name: &str| args.take_key(name).map_or(Ok(LogId::ZERO), log_id);
    let granted = args.take_key("granted").map(yes).transpose()?.unwrap_or(false);
    let body = match kind {
        "PreVote" => Body::PreVote { proposed: Term(number(args, "for")?), last: at(args, "last")? },
        "PreVoteReply" => Body::PreVoteReply { proposed: Term(number(args, "for")?), granted },
        "Vote" => Body::Vote {
            last: at(args, "last")?,
            transfer: args.take_key("transfer").map(yes).transpose()?.unwrap_or(false),
        },
        "TimeoutNow" => Body::TimeoutNow,
        "VoteReply" => Body::VoteReply { granted },
        "Append" => Body::Append {
            prev: at(args, "prev")?,
            commit: Index(number(args, "commit")?),
            entries: args
                .take_key("entries")
                .unwrap_or_default()
                .split_whitespace()
                .map(command)
                .collect::<Result<_, _>>()?,
        },
        "Accepted" => Body::AppendReply(AppendReply::Accepted { stored: Index(number(args, "stored")?) }),
        "Rejected" => Body::AppendReply(AppendReply::Rejected { prev: at(args, "prev")?, hint: at(args, "hint")? }),
        "Heartbeat" => Body::Heartbeat {
            commit: Index(number(args, "commit")?),
            round: number(args, "round")?,
            lease: args.take_key("lease").map(duration).transpose()?.unwrap_or_default(),
        },
        "HeartbeatReply" => Body::HeartbeatReply {
            round: number(args, "round")?,
            matching: Index(number(args, "matching")?),
            stored: Index(number(args, "stored")?),
            priority: Some(key(args, "priority")?.unwrap_or_default()),
            lease: args.take_key("lease").map(duration).transpose()?.unwrap_or_default(),
        },
        "ReadIndex" => Body::ReadIndex {
            request: RequestId(number(args, "request")?),
            lease: args.take_key("lease").map(yes).transpose()?.unwrap_or(false),
        },
        "ReadIndexReply" => {
            Body::ReadIndexReply { request: RequestId(number(args, "request")?), index: key(args, "index")?.map(Index) }
        }
        "Forward" => Body::Forward {
            request: RequestId(number(args, "request")?),
            kind: entry_kind(args)?,
            commands: args
                .take_key("commands")
                .unwrap_or_default()
                .split_whitespace()
                .map(payload)
                .collect::<Result<_, _>>()?,
        },
        "ForwardReply" => Body::ForwardReply {
            request: RequestId(number(args, "request")?),
            outcome: match (args.take_key("first"), args.take_key("overloaded")) {
                _ if args.take_key("moved").is_some() => ForwardOutcome::Moved,
                (Some(first), _) => ForwardOutcome::Appended { first: log_id(first)? },
                (None, Some(_)) => ForwardOutcome::Overloaded,
                (None, None) => ForwardOutcome::NotLeader,
            },
        },
        "Offer" | "Fetch" | "Chunk" => image(kind, args)?,
        "Commit" => Body::Commit { index: Index(number(args, "index")?) },
        _ => return Err(format!("there is no message {kind}").into()),
    };
    Ok(Message { term, body })
}

/// `[kind=session|config]`: a command otherwise.
pub(super) fn entry_kind(args: &mut ArgumentConsumer) -> Result<EntryKind, Failure> {
    match args.take_key("kind") {
        None => Ok(EntryKind::Command),
        Some("session") => Ok(EntryKind::Session),
        Some("config") => Ok(EntryKind::Config),
        Some(other) => Err(format!("there is no kind {other}").into()),
    }
}

/// `Offer image=ID last=INDEX@TERM len=N`, `Fetch image=ID offset=N max=N`, `Chunk image=ID offset=N [data=TEXT]`.
fn image(kind: &str, args: &mut ArgumentConsumer) -> Result<Body, Failure> {
    let image = SnapshotId(key(args, "image")?.unwrap_or(1));
    let offset = key(args, "offset")?.unwrap_or_default();
    Ok(match kind {
        "Offer" => {
            let last = args.take_key("last").map_or(Ok(LogId::ZERO), log_id)?;
            let membership_at = args.take_key("at").map_or(Ok(LogId::ZERO), log_id)?;
            let membership = Membership::new([Peer::new(1, "h1"), Peer::new(2, "h2")]);
            let meta = SnapshotMeta { id: image, last, membership, membership_at };
            Body::Offer { image: Published { meta, len: key(args, "len")?.unwrap_or_default(), checksum: 0 } }
        }
        "Fetch" => Body::Fetch { image, offset, max: key(args, "max")?.unwrap_or_default() },
        _ => {
            let data = Bytes::from(args.take_key("data").unwrap_or_default().to_owned());
            Body::Chunk { image, offset, part: Some(Part { checksum: crc32c::crc32c(&data), data }) }
        }
    })
}

/// A change of the configuration: `voter=ID learner=ID promote=ID demote=ID remove=ID replace=OLD:NEW move=ID:ADDRESS if=INDEX@TERM`, each
/// as often as wished; or `set=ID,ID` with `learners=ID,ID`.
pub(super) fn change(args: &mut ArgumentConsumer) -> Result<Change, Failure> {
    let mut change = Change::new();
    let peer = |id: &str| -> Result<Peer, Failure> { Ok(Peer::new(parse("id", id)?, format!("h{id}"))) };
    let node = |id: &str| -> Result<u64, Failure> { parse("id", id) };
    let pair =
        |text: &str| text.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).ok_or("two, with a colon between");
    let peers = |list: &str| list.split(',').map(peer).collect::<Result<Vec<_>, _>>();
    while let Some((name, value)) = args.next_key() {
        change = match name {
            "voter" => change.add_voter(peer(value)?),
            "learner" => change.add_learner(peer(value)?),
            "promote" => change.promote(node(value)?),
            "demote" => change.demote(node(value)?),
            "remove" => change.remove(node(value)?),
            "replace" => change.replace(node(&pair(value)?.0)?, peer(&pair(value)?.1)?),
            "move" => change.set_address(Peer::new(node(&pair(value)?.0)?, pair(value)?.1)),
            "set" => Change::to(Membership::new(peers(value)?)),
            "if" => change.only_if(log_id(value)?),
            _ => return Err(format!("there is no edit {name}").into()),
        };
    }
    Ok(change)
}

/// A made-up entry: its payload is its id, so that equal ids are equal entries.
fn command(text: &str) -> Result<Entry, Failure> {
    Ok(Entry { id: log_id(text)?, kind: EntryKind::Command, data: Bytes::copy_from_slice(text.as_bytes()) })
}
