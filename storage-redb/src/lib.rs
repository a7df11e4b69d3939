//! A log and snapshots in databases of [redb], for [`raftkv`]: an equal of `raftkv-storage-file` for those who want their data where a
//! database keeps it, with tools that can look into it.
//!
//! ```no_run
//! use raftkv::{ClusterId, GroupId, NodeId};
//! use raftkv_storage_redb::{Identity, Options, RedbLog, RedbSnapshots, SnapshotOptions};
//!
//! # fn main() -> Result<(), raftkv::StorageError> {
//! let identity = Identity { cluster: ClusterId(42), node: NodeId(1), group: GroupId(0) };
//! let log = RedbLog::open("data/log", identity, Options::default())?;
//! let snapshots = RedbSnapshots::open("data/snapshots", identity, SnapshotOptions::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! * What was acknowledged survives a loss of power at any moment. Each step (hard state, truncation, entries) is one transaction; it is there as
//!   a whole or not at all.
//! * Every entry and every image is verified when it is read, by a checksum of ours; every page by redb's when a database is opened. A flipped bit, a
//!   missing file, another node's file or an old copy is noticed and told; of a log that was closed in good order, the first entry that can't be read
//!   is named (offsets in its file are redb's own). Where damage that comes while a database is open makes redb panic, the panic is caught, and told
//!   as damage. (In a program compiled with `panic = "abort"` it ends the process.)
//! * A write or sync that failed sticks: no later write is taken.
//! * One process at a time, and only for the node, cluster, group and kind of store that the directory was made for.
//!
//! Three things that redb leaves to whoever uses it are done here:
//!
//! * **An unclean stop.** A sync that fails may leave in the page cache what never reaches the disk, and the next process would build on it. So after
//!   any stop that is not known to have been an orderly one the file is copied to a new one, which is synced and checked before it takes the other's name. (redb
//!   then goes through all of it as well, to repair what it needs.) If the check fails, the original is as it was.
//! * **The last commit.** redb takes back a commit that is not whole, as one that was interrupted. A note of the last commit that was synced, in a
//!   file of its own (`SYNCED`), tells that from damage. The note itself is not synced with each commit: after a loss of power, with
//!   [`Commit::OnePhase`], damage to the very last commit alone can pass for an interrupted one.
//! * **The header.** redb overwrites the first sector of its file with each commit, and relies on the disk to leave it old or new. Copies beside it
//!   stand in where a disk that loses power leaves it unreadable. This holds for sectors of 512 bytes; where blocks of 4096 bytes can
//!   break as a whole, use `raftkv-storage-file` with `align: 4096`.
//!
//! # What it costs
//!
//! * Speed: as many batches as redb commits, see below. For each, redb writes some pages of 4 KiB, where `raftkv-storage-file` writes the
//!   entries and little else.
//! * Disk: 29 bytes an entry for index, term, checksum and the like, and redb's pages around them. See "How large the file becomes".
//! * Memory: what [`Options::cache_bytes`] allows, 16 bytes for each term in the log, and images below the line while they are written.
//! * Threads: one that writes. Reads run on tokio's blocking threads, each in a transaction that ends with the read, so that none holds on to pages
//!   that were compacted.
//! * Opening reads the whole log, redb's check and ours, and after an unclean stop copies it first. Room for a second
//!   copy must be there then. A log of 544 MiB, 1 600 000 entries, took 1.9 s, and 4.2 s after a kill, on two cores;
//!   compacting nearly all of it 0.6 s, and 90 000 entries 0.02 s (`cargo bench -p raftkv-storage-redb --bench recovery`).
//!
//! ## How a commit gets to the disk
//!
//! | [`Commit`] | costs | what is gained |
//! |---|---|---|
//! | [`OnePhase`](Commit::OnePhase), the default | one `fdatasync` | everything above |
//! | [`TwoPhase`](Commit::TwoPhase) | a second one, so nearly half of the commits a second | damage to the last commit is told from an interruption even after a loss of power; and redb's checksums, which are no defence against somebody who chooses data and crashes, are not relied on |
//!
//! redb can also answer before anything is on the disk (`Durability::None`). That is not offered: a node would acknowledge what it can forget,
//! and a cluster of such nodes loses data and votes twice in a term.
//!
//! ## Beside bare redb
//!
//! Commits a second of entries with 256 bytes, beside commits of redb that put the same payloads into one table and do nothing else, in turns, in one
//! run. The bar is a ratio of 0.85. The disk took some 0.1 ms for a sync (at commit 448121d); in a file system in memory, where a
//! sync takes no time, what is left is the processor's work (of an earlier commit):
//!
//! ```sh
//! cargo bench -p raftkv-storage-redb --bench append -- DIR
//! ```
//!
//! | [`Commit`] | batch of | on the disk: log | bare | ratio | in memory: log | bare | ratio |
//! |---|--:|--:|--:|--:|--:|--:|--:|
//! | one phase | 1 | 5 569 | 5 956 | 0.93 | 25 516 | 25 032 | 0.92 |
//! | | 16 | 5 187 | 5 653 | 0.92 | 23 160 | 26 543 | 0.83 |
//! | | 256 | 3 111 | 2 914 | 1.07 | 8 072 | 5 170 | 1.48 |
//! | two phases | 1 | 3 761 | 3 921 | 0.96 | 24 504 | 30 869 | 0.78 |
//! | | 16 | 3 534 | 3 797 | 0.94 | 20 528 | 24 223 | 0.83 |
//! | | 256 | 2 583 | 2 328 | 1.11 | 7 854 | 5 304 | 1.46 |
//!
//! So checksums, terms and the thread cost some 10 µs a batch, which is little beside a sync; large batches gain more than that from being added in
//! one sweep.
//!
//! ## How large the file becomes
//!
//! redb never overwrites what a commit refers to, and uses pages again that were freed before. So the file has room for what the log holds, for what
//! the last transaction replaced, and for growth: it doubles when it is full, and grows by 4 GiB from there on. A node keeps what its snapshots leave in
//! the log (`Config::snapshot_entries`, `trailing_entries`), and the file stays within some four times that. It shrinks in a commit that finds more than half
//! of the file free at its end, and to its last page in use when it is closed. What lies in between is given back when a log is opened of whose file less than
//! a quarter is in use. [`RedbLog::stats`] tells how long the file is, and how much of that is entries. Room is reserved when the file grows (`fallocate`), so a disk that is full says so then.
//! Zeros are written over it in pieces of 256 KiB, each when the first page of it is used: a commit of 16 entries into room that was only reserved took nearly twice as long,
//! as the file system had more to note with each.
//!
//! ## Small images and large ones
//!
//! An image of up to [`SnapshotOptions::small_bytes`] (256 KiB by default) is in the database, written in one transaction; a larger one is in a file beside
//! it ([`FileSnapshots`](raftkv_storage_file::FileSnapshots)). Below that an image travels in one piece and there is nothing to resume, and
//! redb does well; beyond, a database would write each image through its pages, keep the room of the largest for ever, and make
//! readers and the writer share its cache. The images' database is not the log's: a commit of one would wait for the other's sync.
//!
//! # How it is built
//!
//! | file | what it knows |
//! |---|---|
//! | `backend.rs` | redb's seam to the machine, laid onto [`Vfs`](raftkv_storage_file::Vfs): the header kept twice, and the note of what was synced |
//! | `blank.rs` | which room of the file was never written to |
//! | `volume.rs` | a database in its directory: claimed, made, copied, checked, closed |
//! | `record.rs` | the bytes of an entry and of the state, and their checksums |
//! | `index.rs` | what the log holds, without the payloads |
//! | `store.rs` | the log itself, blocking |
//! | `log.rs` | [`RedbLog`]: the log behind a thread |
//! | `dump.rs`, `overlay.rs` | [`dump`]: a log told line by line, out of a file that nobody writes to |
//! | `snapshots/` | [`RedbSnapshots`]: images of the state machine |
//! | `error.rs` | what redb says, in our words |
//! | `fuzzing.rs` | the decoders as functions of bytes (feature `testing`) |
//! | `simulation.rs` | the stores of a simulated node (feature `testing`) |
//!
//! The files of a directory are `LOCK`, `IDENTITY` and `SYNCED` as FORMAT.md of `raftkv-storage-file` draws them, and `log.redb` or `images.redb`,
//! which redb's own tools can read. `SYNCED` holds twice the number of the last commit that is known to be synced, and one more as long as
//! the database is not closed; where it is missing or can't be read, the database counts as not closed.
//!
//! [redb]: https://docs.rs/redb

mod backend;
mod blank;
mod dump;
mod error;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod log;
mod overlay;
mod record;
#[cfg(feature = "testing")]
pub mod simulation;
mod snapshots;
mod store;
mod volume;

pub use dump::{DumpLine, dump, dump_on};
pub use log::{Commit, Options, RedbLog, Stats};
pub use raftkv_storage_file::Identity;
pub use snapshots::{RedbSnapshots, SnapshotOptions};
