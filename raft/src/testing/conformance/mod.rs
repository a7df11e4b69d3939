//! One suite for each trait: what every backend must do, as one `#[test]` a case.
//!
//! | trait | suite | what you give |
//! |---|---|---|
//! | [`LogStore`](crate::LogStore) | [`log_store_conformance!`](crate::log_store_conformance) | how a store is opened: [`log_store::Backend`] |
//! | [`Snapshot`](crate::Snapshot) | [`snapshot_conformance!`](crate::snapshot_conformance) | how a store is opened: [`snapshot::Backend`] |
//! | [`StateMachine`](crate::StateMachine) | [`state_machine_conformance!`](crate::state_machine_conformance) | a new machine, and commands from a seed: [`state_machine::Backend`] |
//! | [`Transport`](crate::Transport) | [`transport_conformance!`](crate::transport_conformance) | both halves of the transport: [`transport::Network`] |
//! | the same over TCP (feature `transport-kit`) | `connection_conformance!` | the same: `connections::Halves` |
//!
//! Each macro takes an expression that makes a new backend without data, and expands to tests in the module where it stands:
//! give each backend, and each of its settings worth testing, a module of its own.
//!
//! ```text
//! mod usual {
//!     raftkv::log_store_conformance!(super::MyBackend::new(Options::default()));
//! }
//! mod tiny_files {
//!     raftkv::log_store_conformance!(super::MyBackend::new(Options { file_bytes: 4096, ..Options::default() }));
//! }
//! ```
//!
//! # Seams
//!
//! What a store does when power is lost can only be tested where the suite can take its power away. Stores offer that through
//! `arm`, an optional method of their backend: it makes the store's medium (a simulated disk, or a wrapper around its files) fail at a
//! given operation with a [`Fault`]. Without it those cases pass, and say on their output that nothing was tested.
//!
//! A store that reaches its files through `Vfs` of `raftkv-storage-file` has such a medium in `raftkv_storage_file::sim::Restarts` (feature `testing`), whose functions are what `open`, `arm` and
//! `arm_opening` take. `tests/downstream` shows it.

#[cfg(feature = "transport-kit")]
pub mod connections;
pub mod log_store;
pub mod snapshot;
pub mod state_machine;
pub mod transport;

use std::future::Future;
use std::time::Duration;

/// What a store can be made to meet with, where its author offers the seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One operation fails, as when a disk reports an error once. The process lives on, and later operations would pass.
    Error,
    /// The process ends: it does nothing any more, but what it had handed to the operating system is there.
    Kill,
    /// Power is lost: of what was not made durable, any part may be gone.
    PowerLoss,
}

/// Runs one case to its end on a fresh single-threaded runtime.
///
/// # Panics
/// The case fails, or takes more than a minute.
#[expect(clippy::panic, reason = "a test reports by panicking")]
pub fn run(case: impl Future<Output = ()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime: {error}"),
    };
    let outcome = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), case).await });
    assert!(outcome.is_ok(), "the case hangs");
    runtime.shutdown_timeout(Duration::from_secs(5));
}

/// Says that a case was not tested for want of a seam.
fn not_tested(what: &str) {
    println!("NOT TESTED: the backend offers no seam for {what}");
}
