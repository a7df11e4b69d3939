//! Raft's errors in the codes and words that etcd's clients know.

use std::time::Duration;

use http::HeaderMap;
use raftkv::{ChangeError, ChangeRefused, Error, Membership, NodeId, Peer, Status as RaftStatus, TransferError};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::api::command;
use crate::store::Refusal;

/// The metadata key of a failed request that says what a client may do: [`RETRY_SAFE`], [`RETRY_UNKNOWN`],
/// [`SESSION_EXPIRED`] or [`DECIDED`]. It is absent where a retry would fail in the same way.
pub const RETRY: &str = "raftkv-retry";
/// The request had no effect and will have none: it can be sent again.
pub const RETRY_SAFE: &str = "safe";
/// The request may have taken effect, or may yet: send it again only if twice does no harm.
pub const RETRY_UNKNOWN: &str = "unknown";
/// The request was a session's write, and its session is not open any more, or does not take it: this attempt had no effect, an earlier one
/// may have had.
pub const SESSION_EXPIRED: &str = "session-expired";
/// The request was decided in its turn, and this is what came of it: it would be so on every node, and at every attempt of the same write in its
/// session. A refusal without this mark speaks of one attempt alone.
pub const DECIDED: &str = "decided";
/// The metadata key of a longer explanation, for people.
pub const DETAIL: &str = "raftkv-detail";
/// The metadata key of the leader's node id, where it is known.
pub const LEADER: &str = "raftkv-leader";

/// What a request was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// To read. It can always be sent again.
    Read,
    /// To change something.
    Write {
        /// Whether it failed before its time was over.
        in_time: bool,
    },
}

/// The status for a client. The messages are etcd's, word for word, because clients compare them.
pub(super) fn to_status(error: &Error, intent: Intent) -> Status {
    let (code, message) = match error {
        Error::NotLeader { leader: None } | Error::Unavailable => (Code::Unavailable, "etcdserver: no leader"),
        Error::NotLeader { leader: Some(_) } | Error::Lost => (Code::Unavailable, "etcdserver: leader changed"),
        Error::Overloaded => (Code::ResourceExhausted, "etcdserver: too many requests"),
        Error::TooLarge { .. } => (Code::InvalidArgument, "etcdserver: request is too large"),
        Error::Stopped(_) => (Code::Unavailable, "etcdserver: server stopped"),
        Error::SessionExpired => (Code::FailedPrecondition, "raftkv: the session has expired or was closed"),
        Error::AnswerForgotten => {
            (Code::FailedPrecondition, "raftkv: the write was applied, but its answer is not kept any more")
        }
        Error::OutOfSequence => {
            (Code::FailedPrecondition, "raftkv: the write's number is not in its session's sequence")
        }
        Error::OutcomeUnknown if intent == (Intent::Write { in_time: true }) => {
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure")
        }
        // An error that this version does not know says nothing about the outcome either.
        Error::OutcomeUnknown | _ => (Code::Unavailable, "etcdserver: request timed out"),
    };
    let mut status = Status::new(code, message);
    let retry = if matches!(error, Error::TooLarge { .. } | Error::AnswerForgotten) {
        None
    } else if matches!(error, Error::SessionExpired | Error::OutOfSequence) {
        Some(SESSION_EXPIRED)
    } else if intent == Intent::Read || error.is_safe_to_retry() {
        Some(RETRY_SAFE)
    } else {
        Some(RETRY_UNKNOWN)
    };
    let metadata = status.metadata_mut();
    if let Some(retry) = retry {
        metadata.insert(RETRY, MetadataValue::from_static(retry));
    }
    if let Error::NotLeader { leader: Some(leader) } = error {
        metadata.insert(LEADER, MetadataValue::from(leader.id.0));
    }
    // Paths and the like may hold what a header can't.
    if let Ok(detail) = MetadataValue::try_from(printable(&error.to_string())) {
        metadata.insert(DETAIL, detail);
    }
    status
}

/// A request that this node refuses until it has caught up with the cluster once since its start.
pub(super) fn not_ready() -> Status {
    let mut status = Status::unavailable("etcdserver: no leader");
    status.metadata_mut().insert(RETRY, MetadataValue::from_static(RETRY_SAFE));
    let detail = "this node has not caught up with the cluster since its start, and would answer from an older state; \
                  retry later, or at another node";
    status.metadata_mut().insert(DETAIL, MetadataValue::from_static(detail));
    status
}

/// A request that is too large by so much at most still reaches the services; others are refused unread, in the same words.
pub(crate) const OVERSIZE: usize = 512 << 10;
/// What such a refusal says in an answer's headers.
const TOO_LARGE_IN_HEADERS: &[u8] = b"etcdserver:%20request%20is%20too%20large";

pub(crate) fn too_large() -> Status {
    Refusal::TooLarge.into()
}

/// Whether this answer says so.
pub(crate) fn is_too_large(answer: &HeaderMap) -> bool {
    answer.get(Status::GRPC_MESSAGE).is_some_and(|words| words.as_bytes() == TOO_LARGE_IN_HEADERS)
}

/// There is no room for a request. Nothing came of it.
pub(crate) fn overloaded(detail: &str) -> Status {
    marked(Code::ResourceExhausted, "etcdserver: too many requests", Some(RETRY_SAFE), detail)
}

/// A request that is not here as a whole when it should be. Nothing came of it.
pub(crate) fn too_slow(limit: Duration, option: &str) -> Status {
    let words = "raftkv: the request did not arrive in time";
    let detail = format!("{} ms (--{option}) after it began it was not here as a whole", limit.as_millis());
    marked(Code::DeadlineExceeded, words, Some(RETRY_SAFE), &detail)
}

/// An answer that no client gets, at this node.
pub(super) fn answer_too_large(limit: usize) -> Status {
    let words = format!("raftkv: the answer would be larger than {limit} bytes");
    let detail = "ask for less at a time: with a limit, from key to key, or for keys alone; the node's limit is --max-response-mib";
    marked(Code::ResourceExhausted, &words, None, detail)
}

/// What this node says once it is a member no more.
pub(super) fn removed() -> Status {
    let words = "etcdserver: the member has been permanently removed from the cluster";
    marked(
        Code::Unavailable,
        words,
        Some(RETRY_SAFE),
        "ask another member; this one can be stopped and its data deleted",
    )
}

/// What a new node says before it has learned that it is a member.
pub(super) fn not_joined() -> Status {
    let detail = "this node is no member, as far as it knows, and waits for its cluster to reach it; ask another member meanwhile";
    marked(Code::Unavailable, "etcdserver: no leader", Some(RETRY_SAFE), detail)
}

/// A request that is one message holds more.
pub(crate) fn several_messages() -> Status {
    Status::invalid_argument("etcdserver: more than one message came where one is a request")
}

/// What came can't be read as what the method takes.
pub(crate) fn no_message() -> Status {
    Status::invalid_argument("raftkv: what came is no message of this method")
}

/// As many passwords are being hashed as may be, in all, or for this address or name.
pub(super) fn too_many_logins(detail: &str) -> Status {
    marked(Code::ResourceExhausted, "etcdserver: too many requests", Some(RETRY_SAFE), detail)
}

/// A write in a session without a user, which may have been applied before there were users: what came of it is for nobody to know.
pub(super) fn written_by_nobody() -> Status {
    let detail = "authentication was enabled meanwhile; log in, and read what the write was to change";
    marked(Code::InvalidArgument, "etcdserver: user name is empty", Some(RETRY_UNKNOWN), detail)
}

/// A write in a session that its author has not opened, or not since there are users.
pub(super) fn foreign_session() -> Status {
    let words = "raftkv: the session was not opened by this user";
    marked(Code::PermissionDenied, words, Some(SESSION_EXPIRED), "open one with the token that the write has")
}

pub(super) fn bad_address(reason: &str) -> Status {
    marked(Code::InvalidArgument, "etcdserver: given member URLs are invalid", None, reason)
}

/// A member has one address here.
pub(crate) fn several_addresses() -> Status {
    bad_address("there are several; a member has one here")
}

pub(super) fn address_used(by: &Peer) -> Status {
    let detail = format!("member {} is at {}", by.id.0, by.address);
    marked(Code::FailedPrecondition, "etcdserver: Peer URLs already exists", None, &detail)
}

pub(super) fn member_not_found(id: NodeId, present: &Membership) -> Status {
    let detail = format!("there is no member {}; there are: {present}", id.0);
    marked(Code::NotFound, "etcdserver: member not found", None, &detail)
}

pub(super) fn too_many_members(limit: usize, learner: bool) -> Status {
    let words = if learner {
        "etcdserver: too many learner members in cluster"
    } else {
        "etcdserver: too many members in cluster"
    };
    marked(Code::FailedPrecondition, words, None, &format!("there are {limit} already; remove one first"))
}

pub(super) fn no_learner(id: NodeId) -> Status {
    let detail = format!("member {} votes already", id.0);
    marked(Code::FailedPrecondition, "etcdserver: can only promote a learner member", None, &detail)
}

const NOT_IN_SYNC: &str = "etcdserver: can only promote a learner member which is in sync with leader";

pub(super) fn not_in_sync(status: &RaftStatus, id: NodeId) -> Status {
    let progress = status.peers.iter().find(|peer| peer.id == id);
    let detail = match progress.map(|peer| (peer.matched.0, peer.silent_for)) {
        Some((matched, Some(silence))) => format!(
            "member {} has {matched} of {} entries and was heard {} ms ago; try again when it has caught up",
            id.0,
            status.last.index.0,
            silence.as_millis()
        ),
        Some((_, None)) | None => format!("member {} was not heard yet; start it, and try again", id.0),
    };
    marked(Code::FailedPrecondition, NOT_IN_SYNC, None, &detail)
}

/// Why the members did not change. etcd's words, where it has some.
pub(super) fn not_changed(error: &ChangeError) -> Status {
    use ChangeRefused as Why;
    let (code, words, retry) = match error {
        ChangeError::Refused(Why::InProgress { .. }) => {
            (Code::Unavailable, "etcdserver: another membership change is in progress", Some(RETRY_SAFE))
        }
        ChangeError::Refused(Why::NotReady) => (Code::Unavailable, "etcdserver: leader changed", Some(RETRY_SAFE)),
        ChangeError::Refused(Why::UnknownNode { .. }) => (Code::NotFound, "etcdserver: member not found", None),
        ChangeError::Refused(Why::NoVoters) => {
            (Code::FailedPrecondition, "etcdserver: re-configuration failed due to not enough started members", None)
        }
        ChangeError::Refused(Why::AddressConflict { .. }) => {
            (Code::FailedPrecondition, "etcdserver: Peer URLs already exists", None)
        }
        ChangeError::Refused(Why::NotCaughtUp { .. }) => (Code::FailedPrecondition, NOT_IN_SYNC, None),
        ChangeError::Refused(Why::Unreachable { .. }) => {
            (Code::Unavailable, "etcdserver: unhealthy cluster", Some(RETRY_SAFE))
        }
        ChangeError::Refused(_) => (Code::FailedPrecondition, "etcdserver: the members can't be changed so", None),
        ChangeError::Unavailable => (Code::Unavailable, "etcdserver: no leader", Some(RETRY_SAFE)),
        ChangeError::Overloaded => (Code::ResourceExhausted, "etcdserver: too many requests", Some(RETRY_SAFE)),
        ChangeError::Stopped(_) => (Code::Unavailable, "etcdserver: server stopped", Some(RETRY_UNKNOWN)),
        // An error that this version does not know says nothing about the outcome either.
        ChangeError::OutcomeUnknown | _ => (Code::Unavailable, "etcdserver: request timed out", Some(RETRY_UNKNOWN)),
    };
    marked(code, words, retry, &error.to_string())
}

/// Why leadership was not handed over. Nothing is lost by asking again.
pub(super) fn not_transferred(error: &TransferError) -> Status {
    let (code, words, retry) = match error {
        TransferError::NotLeader { .. } => (Code::FailedPrecondition, "etcdserver: not leader", None),
        TransferError::UnknownNode { .. } | TransferError::NotVoter { .. } | TransferError::Unwilling { .. } => {
            (Code::FailedPrecondition, "etcdserver: bad leader transferee", None)
        }
        TransferError::InProgress { .. } => {
            (Code::Unavailable, "etcdserver: another transfer is in progress", Some(RETRY_SAFE))
        }
        TransferError::NoSuccessor => (Code::FailedPrecondition, "etcdserver: unhealthy cluster", None),
        TransferError::OtherLeader { .. } => (Code::Unavailable, "etcdserver: leader changed", Some(RETRY_SAFE)),
        TransferError::Stopped(_) => (Code::Unavailable, "etcdserver: server stopped", Some(RETRY_SAFE)),
        TransferError::TimedOut | _ => {
            (Code::Unavailable, "etcdserver: request timed out, leader transfer took too long", Some(RETRY_SAFE))
        }
    };
    marked(code, words, retry, &error.to_string())
}

/// The state machine's own refusal of a write.
pub(super) fn decided(refusal: command::Refusal) -> Status {
    with_decided(refusal.into())
}

/// The same, in words of its own.
pub(super) fn with_decided(mut status: Status) -> Status {
    status.metadata_mut().insert(RETRY, MetadataValue::from_static(DECIDED));
    status
}

fn marked(code: Code, words: &str, retry: Option<&'static str>, detail: &str) -> Status {
    let mut status = Status::new(code, words);
    let metadata = status.metadata_mut();
    if let Some(retry) = retry {
        metadata.insert(RETRY, MetadataValue::from_static(retry));
    }
    if let Ok(detail) = MetadataValue::try_from(printable(detail)) {
        metadata.insert(DETAIL, detail);
    }
    status
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use raftkv::{Fatal, Peer};

    use super::*;

    fn mapped(error: &Error, intent: Intent) -> (Code, String, Option<String>) {
        let status = to_status(error, intent);
        let retry = status.metadata().get(RETRY).map(|value| value.to_str().expect("text").to_owned());
        assert!(!status.metadata().get(DETAIL).expect("a detail").is_empty());
        (status.code(), status.message().to_owned(), retry)
    }

    fn row(code: Code, message: &str, retry: Option<&str>) -> (Code, String, Option<String>) {
        (code, format!("etcdserver: {message}"), retry.map(str::to_owned))
    }

    #[test]
    fn a_client_can_tell_what_is_safe_to_retry() {
        let (safe, unknown) = (Some(RETRY_SAFE), Some(RETRY_UNKNOWN));
        let leader = Some(Peer::new(7, "a:1"));
        let rows = [
            (Error::NotLeader { leader: None }, row(Code::Unavailable, "no leader", safe)),
            (Error::NotLeader { leader }, row(Code::Unavailable, "leader changed", safe)),
            (Error::Unavailable, row(Code::Unavailable, "no leader", safe)),
            (Error::Overloaded, row(Code::ResourceExhausted, "too many requests", safe)),
            (Error::TooLarge { size: 2, limit: 1 }, row(Code::InvalidArgument, "request is too large", None)),
            (Error::Lost, row(Code::Unavailable, "leader changed", safe)),
            (Error::OutcomeUnknown, row(Code::Unavailable, "request timed out", unknown)),
            (Error::Stopped(Fatal::state_machine("ärger\n")), row(Code::Unavailable, "server stopped", unknown)),
        ];
        for (error, wanted) in rows {
            assert_eq!(mapped(&error, Intent::Write { in_time: false }), wanted);
            let read = if wanted.2.is_some() { (wanted.0, wanted.1, safe.map(str::to_owned)) } else { wanted };
            assert_eq!(mapped(&error, Intent::Read), read);
        }
        let lost = mapped(&Error::OutcomeUnknown, Intent::Write { in_time: true });
        let words = "request timed out, possibly due to previous leader failure";
        assert_eq!(lost, row(Code::Unavailable, words, unknown));
        let status =
            to_status(&Error::NotLeader { leader: Some(Peer::new(7, "a:1")) }, Intent::Write { in_time: true });
        assert_eq!(status.metadata().get(LEADER).expect("a leader"), "7");
    }
}
