//! What you bring, or pick from the backends: the four traits at the edge of the framework.
//!
//! All are object-safe and carry bytes; every hot path works in batches.

mod drafts;
mod held_images;
mod held_log;
mod log_store;
mod shelf;
mod snapshot;
mod state_machine;
mod transport;

pub use drafts::{Drafts, Turn};
pub use held_images::{Draft, HeldImages, ImageChange, ImageStep};
pub use held_log::HeldLog;
pub use log_store::{HardState, LogState, LogStore, LogWrite, TermRun};
pub use shelf::{Shelf, Shelved};
#[cfg(feature = "testing")]
pub(crate) use shelf::{fuzz as fuzz_shelf, sample as sample_shelf};
pub use snapshot::{Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter};
pub use state_machine::{Chunks, Record, RecordChange, Recorded, StateMachine};
pub use transport::Transport;
