//! Exactly once: client sessions in the replicated state (thesis §6.3).
//!
//! A write whose answer was lost may have been applied, and a client that repeats it may have it applied twice. So a client opens a
//! *session*, and numbers its writes within it. Every node remembers which numbers of an open session it has applied, with their answers, and
//! answers a repetition from its memory. The memory is a part of the replicated state: it is made by the log alone, and comes with every
//! image.
//!
//! * A session's name is drawn by chance, so that none is ever given out twice, whatever becomes of the log.
//! * With each write the client says below which number it wants no answers any more: these are forgotten. Of the others it may have
//!   [`WINDOW`] under way.
//! * A session that is not used for long expires, by the time that leaders have led, of which they write a note into the log
//!   ([`EntryKind::Clock`](crate::EntryKind::Clock)): all nodes decide alike, and no node's wall clock matters. They write it when a session is
//!   used, so no session grows old while none is used, or nobody leads.
//! * There are at most `Config::max_sessions`: one more takes the place of that which was not used for the longest time.

mod handle;
mod image;
mod op;
mod sequencer;
mod table;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::handle::Session;
pub(crate) use self::image::{SessionChanges, wire};
pub(crate) use self::op::Op;
pub use self::sequencer::Sequencer;
pub(crate) use self::table::{Sessions, Verdict};

/// How far a write's number may be ahead of the oldest one whose answer is still wanted. All nodes must agree on it.
pub(crate) const WINDOW: u64 = 256;

/// Names a session. Drawn by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Names a write, so that it is applied once however often it is sent, to whichever nodes.
///
/// [`Session`] names writes by itself. This is for services whose clients are elsewhere: these name their writes with a [`Sequencer`], and
/// the service hands the name to [`Raft::write_once`](crate::Raft::write_once).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Once {
    /// The session.
    pub session: SessionId,
    /// The write's number, never used for another write of the session. They begin at 0.
    pub sequence: u64,
    /// All writes with lower numbers are answered, or given up: their answers are forgotten, and what of them has not been applied never
    /// is. `sequence` must not be lower, and less than 256 higher.
    pub answered: u64,
}
