//! Numbers as peers send them. The core counts on from any of them, so those that are near the end of what fits are refused before they get there.

use std::time::Duration;

use crate::types::{Index, LogId, Term};

/// Terms, indexes, rounds and leases from here on are refused.
pub const ABSURD: u64 = 1 << 62;

/// A number that can be counted on from.
///
/// # Errors
/// It is absurd; `what` it is stands in the reason.
pub fn sane(what: &str, n: u64) -> Result<u64, String> {
    if n < ABSURD { Ok(n) } else { Err(format!("an absurd {what}: {n}")) }
}

/// A term.
///
/// # Errors
/// See [`sane`].
pub fn term(n: u64) -> Result<Term, String> {
    sane("term", n).map(Term)
}

/// An index.
///
/// # Errors
/// See [`sane`].
pub fn index(n: u64) -> Result<Index, String> {
    sane("index", n).map(Index)
}

/// The id of an entry.
///
/// # Errors
/// See [`sane`].
pub fn log_id(of_term: u64, of_index: u64) -> Result<LogId, String> {
    Ok(LogId { term: term(of_term)?, index: index(of_index)? })
}

/// A lease in nanoseconds. A promise longer than a century is as good as one of a century.
#[must_use]
pub fn nanos(lease: Duration) -> u64 {
    u64::try_from(lease.as_nanos()).unwrap_or(ABSURD).min(ABSURD - 1)
}

/// A lease of so many nanoseconds.
///
/// # Errors
/// See [`sane`].
pub fn lease(nanos: u64) -> Result<Duration, String> {
    sane("lease", nanos).map(Duration::from_nanos)
}
