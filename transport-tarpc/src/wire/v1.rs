//! Version 1 of what is on the wire. The order of fields and variants *is* the format (postcard writes no names), so nothing here may change
//! within a version: what a later version adds, it adds at the end of an enum, and sends only to those who know that version.
//!
//! ```text
//! frame   := length of the rest (u32, big-endian), then
//!   from the one who connects, first:   MAGIC, version, Opening
//!   from the one who connects, later:   Ask; behind `Deliver` the batch: a count, and as many Envelopes
//!   from the other, first:              MAGIC, version, Answer; behind `Welcome` how many requests may be under way (u32; UNSAID_REQUESTS
//!                                       where nothing is behind it)
//!   from the other, later:              Answer
//! ```

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes as Blob;

/// The first bytes of both directions, in every version; the version's number follows, as a varint.
pub(crate) const MAGIC: [u8; 8] = *b"raftkv-t";

/// How many requests a receiver takes that does not say so.
pub(crate) const UNSAID_REQUESTS: u32 = 1024;

/// Who speaks to whom. It counts as the request with id 0.
#[derive(Serialize, Deserialize)]
pub(crate) struct Opening<'a> {
    pub(crate) cluster: u64,
    pub(crate) from: u64,
    /// Where the sender receives.
    pub(crate) address: &'a str,
    pub(crate) to: u64,
    pub(crate) lane: u8,
    /// How often it will give a sign of life, in milliseconds.
    pub(crate) probe_ms: u32,
}

/// A request.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) id: u64,
    /// For how long its answer is waited for, in milliseconds.
    pub(crate) patience_ms: u32,
    pub(crate) call: Call,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Call {
    /// The batch follows.
    Deliver,
    Probe,
    Farewell,
    /// No answer is waited for any more.
    Cancel,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Answer<'a> {
    pub(crate) id: u64,
    #[serde(borrow)]
    pub(crate) reply: Reply<'a>,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Reply<'a> {
    Welcome {
        window_bytes: u32,
        max_message_bytes: u64,
    },
    Refused(#[serde(borrow)] Refusal<'a>),
    Taken,
    NotTaken(#[serde(borrow)] Refusal<'a>),
    Alive,
    Farewell(#[serde(borrow)] Refusal<'a>),
    /// The request could not be dealt with at all.
    Failed(&'a str),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Refusal<'a> {
    pub(crate) lasting: bool,
    pub(crate) reason: &'a str,
}

/// A message with its group. Cluster, sender and receiver are those of the connection.
#[derive(Serialize, Deserialize)]
pub(crate) struct Envelope<'a> {
    pub(crate) group: u64,
    pub(crate) term: u64,
    #[serde(borrow)]
    pub(crate) body: Body<'a>,
}

/// Term and index.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Id(pub(crate) u64, pub(crate) u64);

#[derive(Serialize, Deserialize)]
pub(crate) struct Entry<'a> {
    pub(crate) id: Id,
    pub(crate) kind: u8,
    #[serde(borrow)]
    pub(crate) data: &'a Blob,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Body<'a> {
    PreVote {
        proposed: u64,
        last: Id,
    },
    PreVoteReply {
        proposed: u64,
        granted: bool,
    },
    Vote {
        last: Id,
        transfer: bool,
    },
    VoteReply {
        granted: bool,
    },
    Append {
        prev: Id,
        #[serde(borrow)]
        entries: Vec<Entry<'a>>,
        commit: u64,
    },
    AppendAccepted {
        stored: u64,
    },
    AppendRejected {
        prev: Id,
        hint: Id,
    },
    /// Leases are in nanoseconds.
    Heartbeat {
        commit: u64,
        round: u64,
        lease: u64,
    },
    HeartbeatReply {
        round: u64,
        matching: u64,
        stored: u64,
        priority: Option<u32>,
        lease: u64,
    },
    ReadIndex {
        request: u64,
        lease: bool,
    },
    ReadIndexReply {
        request: u64,
        index: Option<u64>,
    },
    Forward {
        request: u64,
        kind: u8,
        #[serde(borrow)]
        commands: Vec<&'a Blob>,
    },
    ForwardReply {
        request: u64,
        outcome: Forwarded,
    },
    Commit {
        index: u64,
    },
    TimeoutNow,
    Change {
        request: u64,
        #[serde(borrow)]
        edits: Vec<Edit<'a>>,
        expected: Option<Id>,
    },
    ChangeReply {
        request: u64,
        #[serde(borrow)]
        outcome: Changed<'a>,
    },
    Offer {
        image: u64,
        last: Id,
        /// As entries of kind `Config` hold it.
        #[serde(borrow, with = "serde_bytes")]
        membership: Cow<'a, [u8]>,
        membership_at: Id,
        len: u64,
        checksum: u32,
    },
    Fetch {
        image: u64,
        offset: u64,
        max: u64,
    },
    Chunk {
        image: u64,
        offset: u64,
        #[serde(borrow)]
        part: Option<Part<'a>>,
    },
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Forwarded {
    Appended(Id),
    Overloaded,
    NotLeader,
    Moved,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Part<'a> {
    #[serde(borrow)]
    pub(crate) data: &'a Blob,
    pub(crate) checksum: u32,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Peer<'a> {
    pub(crate) id: u64,
    pub(crate) address: &'a str,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Edit<'a> {
    AddVoter(#[serde(borrow)] Peer<'a>),
    AddLearner(#[serde(borrow)] Peer<'a>),
    Promote(u64),
    Demote(u64),
    Remove(u64),
    Replace {
        old: u64,
        #[serde(borrow)]
        new: Peer<'a>,
    },
    SetAddress(#[serde(borrow)] Peer<'a>),
    /// A whole configuration, as entries of kind `Config` hold it.
    Set(#[serde(borrow, with = "serde_bytes")] Cow<'a, [u8]>),
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Changed<'a> {
    Done(Id),
    NotLeader,
    Unknown,
    InProgress {
        at: Id,
    },
    NotReady,
    Mismatch {
        actual: Id,
    },
    UnknownNode(u64),
    NoVoters,
    NoDifference,
    AddressConflict {
        #[serde(borrow)]
        address: Cow<'a, str>,
        nodes: (u64, u64),
    },
    NotCaughtUp {
        id: u64,
        matched: u64,
        last: u64,
    },
    Unreachable {
        silent: Vec<u64>,
    },
    /// Also for what this version has no word for.
    Invalid {
        #[serde(borrow)]
        reason: Cow<'a, str>,
    },
}
