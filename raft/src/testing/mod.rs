//! For tests and experiments (feature `testing`): backends in memory with hooks for faults, state machines, and whole
//! clusters in one process.
//!
//! Nothing here looks at a clock but tokio's or at a random number without a seed: under a paused clock on one thread,
//! the same test runs the same way each time.

#[cfg(feature = "dev-certs")]
pub mod certs;
mod cluster;
pub mod conformance;
pub mod exploration;
#[doc(hidden)]
pub mod fuzzing;
pub mod linearizability;
#[cfg(feature = "transport-kit")]
pub mod loopback;
mod machines;
mod memory_log;
mod memory_network;
mod memory_snapshots;
pub mod messages;
mod random;
pub mod simulation;

pub use cluster::{Cluster, ClusterBuilder};
pub use machines::{Counter, Durable, Echo, Recorder};
pub use memory_log::{Crash, MemLog};
pub use memory_network::{Link, MemNetwork, MemTransport};
pub use memory_snapshots::MemSnapshots;
pub use random::Random;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::runtime::image;

/// The image that a node writes of a state machine that gives these bytes, for tests that put one into a store themselves.
#[must_use]
pub fn image_of(machine: impl AsRef<[u8]>) -> Vec<u8> {
    [&image::head(&image::Section::default()), machine.as_ref()].concat()
}

/// A test that panicked holding a lock must not hide behind the next one's panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
