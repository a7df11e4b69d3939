//! What another store needs to be as careful with its directory as the ones of this crate: `raftkv-storage-redb` is built with it, and
//! so are the stores of a crate that is nobody's in particular (`tests/downstream`).
//!
//! ```
//! use std::path::Path;
//! use raftkv::{ClusterId, GroupId, NodeId, StorageError};
//! use raftkv_storage_file::parts::{Claim, SyncedNote};
//! use raftkv_storage_file::{Identity, Vfs};
//!
//! fn open(vfs: &dyn Vfs, dir: &Path, identity: Identity) -> Result<(), StorageError> {
//!     let claim = Claim::take(vfs, dir, "ledger", identity, |names| names.iter().any(|name| name == "ledger.db"))?;
//!     let (mut note, last) = SyncedNote::open(vfs, dir, claim.nonce())?;
//!     // After each batch that was synced, so that the next process can vouch for it:
//!     note.set(last + 1)
//! }
//! ```

pub use crate::directory::{Claim, SyncedNote, kind_of};
pub use crate::records::Records;
pub use crate::segment::zero;
pub use crate::vfs::{failed, read_full, write_all};
pub use crate::worker::Worker;
