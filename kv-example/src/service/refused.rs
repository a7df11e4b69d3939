//! Raft's errors in the codes and words that etcd's clients know.

use raftkv::Error;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// The metadata key of a failed request that says what a client may do: [`RETRY_SAFE`] or [`RETRY_UNKNOWN`]. It is absent
/// where a retry would fail in the same way.
pub const RETRY: &str = "raftkv-retry";
/// The request had no effect and will have none: it can be sent again.
pub const RETRY_SAFE: &str = "safe";
/// The request may have taken effect, or may yet: send it again only if twice does no harm.
pub const RETRY_UNKNOWN: &str = "unknown";
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
    Write,
}

/// The status for a client. The messages are etcd's, word for word, because clients compare them.
pub(super) fn to_status(error: &Error, intent: Intent) -> Status {
    let (code, message) = match error {
        Error::NotLeader { leader: None } | Error::Unavailable => (Code::Unavailable, "etcdserver: no leader"),
        Error::NotLeader { leader: Some(_) } | Error::Lost => (Code::Unavailable, "etcdserver: leader changed"),
        Error::Overloaded => (Code::ResourceExhausted, "etcdserver: too many requests"),
        Error::TooLarge { .. } => (Code::InvalidArgument, "etcdserver: request is too large"),
        Error::Stopped(_) => (Code::Unavailable, "etcdserver: server stopped"),
        // An error that this version does not know says nothing about the outcome either.
        Error::OutcomeUnknown | _ => (Code::Unavailable, "etcdserver: request timed out"),
    };
    let mut status = Status::new(code, message);
    let retry = if matches!(error, Error::TooLarge { .. }) {
        None
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
            assert_eq!(mapped(&error, Intent::Write), wanted);
            let read = if wanted.2.is_some() { (wanted.0, wanted.1, safe.map(str::to_owned)) } else { wanted };
            assert_eq!(mapped(&error, Intent::Read), read);
        }
        let status = to_status(&Error::NotLeader { leader: Some(Peer::new(7, "a:1")) }, Intent::Write);
        assert_eq!(status.metadata().get(LEADER).expect("a leader"), "7");
    }
}
