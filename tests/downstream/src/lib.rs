//! All four traits of `raftkv`, implemented from its public documentation alone, as small as they can be and still keep what they promise: this passes
//! the conformance suites. To be read by whoever is about to write a backend.
//!
//! | file | trait | what it is |
//! |---|---|---|
//! | `transport.rs` | `Transport` | plain TCP, one connection to each peer and lane |
//! | `log.rs`, `encoding.rs` | `LogStore` | one file, which is written anew when the log is cut, or has grown |
//! | `snapshots.rs`, `encoding.rs` | `Snapshot` | one file, which is written anew when an image is begun, published or given up |
//! | `shelf.rs` | `Snapshot` in fewer lines, by way of `Shelf` | a directory of images |
//! | `ledger.rs` | `StateMachine` | the accounts of `accounts.rs`, between which money is moved |
//!
//! What the framework has for authors of stores is used: `HeldLog` and `HeldImages` are a store's half in memory, and `Records` and `Worker` of `raftkv_storage_file::parts` a file of
//! records and the thread that waits for it. Files are reached through the seam of `raftkv-storage-file` (`Vfs`): on a real disk that is the operating system, and in the conformance suites a disk that
//! loses power, fails and is damaged at any operation (`sim::Restarts`). `count.sh` counts the lines, and says which count.

mod accounts;
mod encoding;
mod ledger;
mod log;
mod shelf;
mod snapshots;
mod transport;

use encoding::{decode, encode};

pub use accounts::{Accounts, Transfer};
pub use ledger::Ledger;
pub use log::OneFile;
pub use shelf::Shelves;
pub use snapshots::Images;
pub use transport::{Tcp, serve};

/// A panic elsewhere does not make what is behind the lock worse.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
