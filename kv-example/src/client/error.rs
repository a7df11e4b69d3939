//! What a failed call means for the caller.

use std::error::Error;
use std::fmt;

use thiserror::Error;
use tonic::{Code, Status};

use super::{Kind, connector};
use crate::service::{DECIDED, DETAIL, LEADER, RETRY, SESSION_EXPIRED};

/// Why a call failed, by what the caller may do about it.
#[derive(Clone, Debug, Error)]
pub enum ClientError {
    /// Nothing took effect. The same call may be sent again.
    #[error("not done, and safe to try again: {0}")]
    Safe(Cause),
    /// It was a write, and it may have taken effect, or may still do so. Look before sending it again.
    #[error(
        "the outcome is unknown: {0}; the write may have taken effect, or may still: read the key before trying again"
    )]
    Unknown(Cause),
    /// The server refused the call as it is; sending it again will not help.
    #[error("{0}")]
    Other(Cause),
}

/// Who said what.
#[derive(Clone, Debug)]
pub struct Cause {
    /// The gRPC status code.
    pub code: Code,
    /// The endpoint that failed, or was asked last.
    pub endpoint: String,
    /// Its words, or the connection's.
    pub message: String,
    /// The node that leads, where the endpoint said so.
    pub leader: Option<u64>,
    /// Whether the session is not open any more in which the write was made.
    pub(super) expired: bool,
    /// Whether this is what came of the write, and not of one attempt alone.
    pub(super) decided: bool,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.endpoint, self.message)
    }
}

impl Cause {
    pub(super) fn new(endpoint: &str, code: Code, message: String) -> Self {
        Self { code, endpoint: endpoint.to_owned(), message, leader: None, expired: false, decided: false }
    }

    /// The causes of several endpoints in one.
    pub(super) fn merged(causes: impl Iterator<Item = Self>) -> Self {
        causes
            .reduce(|all, next| Self {
                code: next.code,
                message: format!("{}; {next}", all.message),
                endpoint: all.endpoint,
                leader: next.leader.or(all.leader),
                expired: next.expired || all.expired,
                decided: next.decided && all.decided,
            })
            .unwrap_or_else(|| Self::new("no endpoint", Code::Unavailable, "no time was left to try one".into()))
    }
}

impl ClientError {
    /// Who said what.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        match self {
            Self::Safe(cause) | Self::Unknown(cause) | Self::Other(cause) => cause,
        }
    }

    pub(super) fn other(endpoint: &str, message: &str) -> Self {
        Self::Other(Cause::new(endpoint, Code::Internal, message.to_owned()))
    }

    pub(super) fn from_status(kind: Kind, endpoint: &str, status: &Status) -> Self {
        let leader = text(status, LEADER).and_then(|id| id.parse().ok());
        let cause = |words| Cause { leader, ..Cause::new(endpoint, status.code(), words) };
        if kind == Kind::Read && may_pass(status.code()) || never_sent(status) {
            return Self::Safe(cause(words(status)));
        }
        match text(status, RETRY) {
            Some("safe") => Self::Safe(cause(words(status))),
            // What that means is said by the error itself.
            Some("unknown") => Self::Unknown(cause(status.message().to_owned())),
            Some(SESSION_EXPIRED) => Self::Other(Cause { expired: true, ..cause(words(status)) }),
            Some(DECIDED) => Self::Other(Cause { decided: true, ..cause(words(status)) }),
            // A write that the connection failed, and not the server: it may have arrived.
            Some(_) | None if may_pass(status.code()) || status.source().is_some() => {
                Self::Unknown(cause(words(status)))
            }
            Some(_) | None => Self::Other(cause(words(status))),
        }
    }
}

/// Whether a code speaks of the server's or the connection's state, and not of the request.
fn may_pass(code: Code) -> bool {
    match code {
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => true,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

/// Whether no server has looked at the request: there was no connection, it was ending, or the server did not let it in.
fn never_sent(status: &Status) -> bool {
    sources(status).any(|error| {
        error.is::<tonic::ConnectError>()
            // The connection closed before the request was handed to it.
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
            || error.downcast_ref::<h2::Error>().is_some_and(refused_unseen)
            || io(error).is_some_and(connector::is_refusal)
    })
}

fn io<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a std::io::Error> {
    error.downcast_ref().or_else(|| error.downcast_ref::<h2::Error>()?.get_io())
}

/// Whether the server promises not to have looked at the stream: it refused it, or it is beyond the last one that a server
/// that goes away in good order still takes (RFC 9113 §6.8).
fn refused_unseen(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
}

/// The innermost cause is what a person can act on ("connection refused").
fn words(status: &Status) -> String {
    match sources(status).last() {
        Some(cause) => match cause.downcast_ref::<std::io::Error>() {
            Some(error) if error.kind() == std::io::ErrorKind::ConnectionRefused && !connector::is_refusal(error) => {
                "connection refused (no server runs there)".into()
            }
            Some(_) | None => cause.to_string(),
        },
        None => match text(status, DETAIL) {
            Some(detail) => format!("{} ({detail})", status.message()),
            None => status.message().to_owned(),
        },
    }
}

fn text<'a>(status: &'a Status, key: &str) -> Option<&'a str> {
    status.metadata().get(key)?.to_str().ok()
}

fn sources(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(code: Code, retry: &'static str) -> Status {
        let mut status = Status::new(code, "x");
        status.metadata_mut().insert(RETRY, retry.parse().unwrap());
        status
    }

    fn of(kind: Kind, status: &Status) -> ClientError {
        ClientError::from_status(kind, "here", status)
    }

    #[test]
    fn the_server_says_what_is_safe() {
        assert!(matches!(of(Kind::Write, &marked(Code::Unavailable, "safe")), ClientError::Safe(_)));
        assert!(matches!(of(Kind::Write, &marked(Code::ResourceExhausted, "safe")), ClientError::Safe(_)));
        assert!(matches!(of(Kind::Write, &marked(Code::Unavailable, "unknown")), ClientError::Unknown(_)));
    }

    #[test]
    fn without_its_word_a_write_is_unknown_and_a_read_is_safe() {
        let status = Status::new(Code::Unavailable, "gone");
        assert!(matches!(of(Kind::Write, &status), ClientError::Unknown(_)));
        assert!(matches!(of(Kind::Read, &status), ClientError::Safe(_)));
    }

    /// The request had left when the connection broke: whatever code that was given, a write may have arrived.
    #[test]
    fn a_connection_that_broke_in_flight_leaves_a_write_unknown() {
        // A code of the connection's state, and one that would otherwise mean that the server refused the request.
        for code in [Code::Unavailable, Code::Unknown, Code::ResourceExhausted, Code::FailedPrecondition] {
            let mut status = Status::new(code, "transport error");
            status.set_source(std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
            assert!(matches!(of(Kind::Write, &status), ClientError::Unknown(_)), "{code:?}");
            let words = of(Kind::Write, &status).to_string();
            assert!(words.contains("connection reset") && words.contains("outcome is unknown"), "{words}");
        }
    }

    #[test]
    fn the_leader_that_a_refusal_names() {
        let mut status = marked(Code::Unavailable, "safe");
        assert_eq!(of(Kind::Write, &status).cause().leader, None);
        status.metadata_mut().insert(LEADER, "7".parse().unwrap());
        assert_eq!(of(Kind::Write, &status).cause().leader, Some(7));
        status.metadata_mut().insert(LEADER, "none".parse().unwrap());
        assert_eq!(of(Kind::Write, &status).cause().leader, None);
    }

    #[test]
    fn a_refused_request_is_neither() {
        let status = Status::new(Code::InvalidArgument, "etcdserver: key is not provided");
        assert!(matches!(of(Kind::Write, &status), ClientError::Other(_)));
        assert!(matches!(of(Kind::Read, &status), ClientError::Other(_)));
    }

    #[test]
    fn merged_causes_name_every_endpoint() {
        let causes = ["a:1", "b:2"].map(|endpoint| Cause::new(endpoint, Code::Unavailable, "down".into()));
        assert_eq!(Cause::merged(causes.into_iter()).to_string(), "a:1: down; b:2: down");
    }
}
