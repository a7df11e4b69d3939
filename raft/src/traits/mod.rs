//! What you bring, or pick from the backends: the four traits at the edge of the framework.
//!
//! All are object-safe and carry bytes; every hot path works in batches.

mod drafts;
mod log_store;
mod snapshot;
mod state_machine;
mod transport;

pub use drafts::{Drafts, Turn};
pub use log_store::{HardState, LogState, LogStore, LogWrite, TermRun};
pub use snapshot::{Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter};
pub use state_machine::{Chunks, Record, RecordChange, Recorded, StateMachine};
pub use transport::Transport;
