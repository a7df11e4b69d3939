//! All four traits of `raftkv`, implemented from its public documentation alone, as small as they can be and still keep what they promise: this passes
//! the conformance suites. To be read by whoever is about to write a backend.
//!
//! | file | trait | what it is |
//! |---|---|---|
//! | `transport.rs` | `Transport` | plain TCP, one connection to each peer and lane |
//! | `records.rs`, `log.rs` | `LogStore` | one file, which is written anew when the log is cut |
//! | `snapshots.rs` | `Snapshot`, by way of `Shelf` | a directory of images |
//! | `ledger.rs` | `StateMachine` | accounts, between which money is moved |

mod ledger;
mod log;
mod records;
mod snapshots;
mod transport;

pub use ledger::{Accounts, Ledger, Transfer};
pub use log::OneFile;
pub use snapshots::Images;
pub use transport::{Tcp, serve};

/// A panic elsewhere does not make what is behind the lock worse.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
