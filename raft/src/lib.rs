//! Raft as a framework: bring a state machine, pick a log store and a transport, get a linearizable, highly available
//! service.
//!
//! # What Raft is here
//!
//! A group of nodes keeps one log. A command is *committed* once a majority has it on disk; from then on every
//! node applies it, at the same place in the same order, and no failure of a minority takes it back. One node, the
//! *leader* of the present *term*, decides what goes into the log. When it is not heard any more, the others elect another, and only
//! a node whose log holds everything that is committed can win. This crate follows Diego Ongaro and John Ousterhout, "In
//! Search of an Understandable Consensus Algorithm" (the *paper*), and Ongaro's dissertation "Consensus: Bridging Theory and Practice"
//! (the *thesis*); comments name their sections.
//!
//! ```text
//!  client ─ Raft handle ─┐                                   ┌─> log writer ── LogStore
//!                        ▼                                   │        │ Stored(seq)
//!  peer ─ Inbox ──> driver ── Input ──> Consensus::step ── Effects ──> outbox ── Transport ─> peer
//!                        ▲                                   │
//!                        └────────── Input ◄── applier ◄─────┘── StateMachine, Snapshot
//! ```
//!
//! [`consensus`] is pure: a value and a function, without I/O, clock or thread. The runtime around it is the only place that awaits a
//! backend. You meet four traits at the edge, [`StateMachine`], [`LogStore`], [`Transport`] and [`Snapshot`], and the
//! handle, [`Raft`].
//!
//! # What it promises
//!
//! | property | where it is kept |
//! |---|---|
//! | A term has at most one leader (Election Safety, paper §5.2). | a vote is on disk before it is told: `durability.rs` |
//! | A leader never overwrites its own log (Leader Append-Only, §5.3). | `Log::append` is all a leader calls |
//! | Equal ids mean equal logs up to there (Log Matching, §5.3). | `on_append` takes entries only after the one before them |
//! | A leader has all that is committed (Leader Completeness, §5.4). | `on_vote` refuses a log that is behind |
//! | Nodes apply the same commands in the same order (State Machine Safety, §5.4.3). | `commit.rs` hands out what is committed, once, in order |
//! | Only entries of its own term are committed by counting (§5.4.2). | `advance_commit` |
//! | Nothing is acknowledged before it is on disk. | `durability.rs`; the runtime cannot get it wrong |
//! | A read sees every write that was answered before it began (thesis §6.4). | `read.rs` |
//! | A write of a session is applied once, however often it is sent (thesis §6.3). | `session/table.rs` |
//! | So does one by a lease ([`Consistency::Lease`]), as long as clocks go as was vouched for (§6.4.1). | `lease.rs` |
//! | A refused request was never proposed; [`Error::Lost`] was never applied. | `forward.rs`, the runtime's waiters |
//!
//! # What it does not promise
//!
//! A write whose answer is [`Error::OutcomeUnknown`] may be applied, now or later; repeating it may apply it twice, unless it is written in a
//! [`Session`]. Nodes are assumed to fail
//! by stopping, not by lying: messages are checked, but a member that forges them can do harm. Disks may lose what was not
//! synced, but a disk that loses what it said is synced breaks the promises above. Clocks may be wrong in any way and cost nothing but time,
//! unless you ask for leases: these count on `Config::lease_drift`.

mod change;
mod config;
pub mod consensus;
mod error;
mod handle;
mod message;
pub mod metrics;
#[doc(hidden)]
pub mod mutants;
mod recovery;
mod runtime;
mod session;
#[cfg(feature = "testing")]
pub mod testing;
mod traits;
#[cfg(feature = "transport-kit")]
pub mod transport_kit;
mod types;

pub use change::{Change, ChangeRefused, Edit};
pub use config::Config;
pub use error::{
    ChangeError, Error, Fatal, FatalKind, InitializeError, Refusal, StorageError, TransferError, TransportError,
};
pub use handle::{Builder, Consistency, Raft};
pub use message::{AppendReply, Body, ChangeOutcome, Envelope, ForwardOutcome, Hello, Lane, Message, Part, RequestId};
pub use metrics::{
    ChangeStatus, ConfigurationStatus, Metrics, PeerStatus, ReceivingStatus, ReplicationState, SessionsStatus,
    SnapshotStatus, Status,
};
pub use recovery::Survivor;
#[doc(hidden)]
pub use runtime::Host;
pub use runtime::{Arrivals, Event, Events, Inbox, Stall};
pub use session::{Once, Sequencer, Session, SessionId};
pub use traits::{
    Chunks, Draft, Drafts, HardState, HeldImages, HeldLog, ImageChange, ImageStep, LogState, LogStore, LogWrite,
    Published, Record, RecordChange, Recorded, Shelf, Shelved, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter,
    StateMachine, TermRun, Transport, Turn,
};
pub use types::{ClusterId, Entry, EntryKind, GroupId, Index, LogId, Membership, NodeId, Peer, Term};
