//! One suite for each trait: what every backend must do, as one `#[test]` a case.

pub mod log_store;
pub mod transport;

use std::future::Future;
use std::time::Duration;

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
