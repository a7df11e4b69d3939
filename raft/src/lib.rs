//! Raft as a framework.

mod config;
pub mod consensus;
mod error;
mod handle;
mod message;
mod metrics;
mod runtime;
#[cfg(feature = "testing")]
pub mod testing;
mod traits;
mod types;

pub use config::Config;
pub use error::{Error, Fatal, FatalKind, InitializeError, Refusal, StorageError, TransportError};
pub use handle::{Builder, Consistency, Raft};
pub use message::{AppendReply, Body, Envelope, ForwardOutcome, Lane, Message, RequestId};
pub use metrics::{PeerStatus, ReplicationState, Status};
pub use runtime::{Arrivals, Event, Events, Inbox};
pub use traits::{
    Chunks, HardState, LogState, LogStore, LogWrite, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, StateMachine,
    TermRun, Transport,
};
pub use types::{ClusterId, Entry, EntryKind, GroupId, Index, LogId, Membership, NodeId, Peer, Term};
