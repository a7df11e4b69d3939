//! A write-ahead log and snapshots on plain files, for [`raftkv`].
//!
//! ```no_run
//! use raftkv::{ClusterId, GroupId, NodeId};
//! use raftkv_storage_file::{FileLog, FileSnapshots, Identity, Options};
//!
//! # fn main() -> Result<(), raftkv::StorageError> {
//! let identity = Identity { cluster: ClusterId(42), node: NodeId(1), group: GroupId(0) };
//! let log = FileLog::open("data/log", identity, Options::default())?;
//! let snapshots = FileSnapshots::open("data/snapshots", identity)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! * What was acknowledged survives a loss of power at any moment. Each step is one write and one `fdatasync`; it is there as a
//!   whole or not at all.
//! * Every byte is verified when it is read. A flipped bit, a misdirected write, a missing file or another node's file is noticed
//!   and told, with the file, the offset and the index.
//! * A torn tail, which was never acknowledged, is told from damage by a rule and not by a guess, and is cut. See FORMAT.md beside this
//!   crate for the rule and for the one case that nobody can tell.
//! * A write or sync that failed sticks: no later write is taken. What the next process finds in the page cache it writes anew before it
//!   relies on it, since a failed sync may have left it there alone.
//! * One process at a time, and only for the node, cluster and group that the directory was made for.
//!
//! # What it costs
//!
//! * Disk: 64 bytes a batch and 32 an entry, and each batch is padded to 512 bytes. Two segments of room beyond what is held.
//! * Memory: 24 bytes for every 32 KiB of log, or for every truncation; about 0.8 MB for 1 GiB.
//! * Threads: one that writes, and one that makes and removes segments. Reads run on tokio's blocking threads.
//! * Opening reads the whole log once.
//!
//! # How it is built
//!
//! | file | what it knows |
//! |---|---|
//! | `vfs.rs` | the seam to the file system: everything goes through [`Vfs`] |
//! | `frame.rs` | the bytes of a batch and of an entry, and their checksums |
//! | `segment.rs` | one segment: its header, its making, the walk over its batches |
//! | `directory.rs` | lock, identity, and the note of what was synced |
//! | `recovery.rs` | what the log holds after a stop of any kind, without changing a byte |
//! | `direct.rs` | large writes past the page cache |
//! | `wal.rs` | the log itself, blocking: writes, compacts, rolls over, repairs |
//! | `index.rs`, `reader.rs` | where entries are, and reading them beside the writer |
//! | `keeper.rs` | segments made in advance, and removed |
//! | `log.rs` | [`FileLog`]: the log behind a thread |
//! | `dump.rs` | a log shown line by line |
//! | `worker.rs` | work on a disk, off the threads that serve: for other stores |
//! | `records.rs` | a file of records: for other stores |
//! | `parts.rs` | what other stores can be built with |
//! | `snapshots/` | [`FileSnapshots`]: images of the state machine |
//! | `fuzzing.rs` | the decoders as functions of bytes (feature `testing`) |
//! | `sim.rs` | a disk that loses, tears and refuses (feature `testing`) |
//! | `simulation.rs` | the log and snapshots of a simulated node, on such a disk (feature `testing`) |

mod direct;
mod directory;
mod dump;
mod frame;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod keeper;
mod log;
pub mod parts;
mod reader;
mod records;
mod recovery;
mod segment;
#[cfg(feature = "testing")]
pub mod sim;
#[cfg(feature = "testing")]
pub mod simulation;
mod snapshots;
mod vfs;
mod wal;
mod worker;

pub use dump::{DumpEntries, DumpHead, DumpLine, DumpVerdict, dump, dump_on};
pub use frame::Identity;
pub use log::{FileLog, Options};
pub use snapshots::FileSnapshots;
pub use vfs::{Access, Guard, OsVfs, Vfs, VfsFile};
pub use wal::Wal;
