//! What the tests of the log share: ways to open one on a simulated disk, and to see what it holds.

#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used, clippy::panic)]

pub mod hooked;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftkv::{ClusterId, GroupId, NodeId, StorageError};
use raftkv_storage_file::sim::SimDisk;
pub use raftkv_storage_file::sim::log_model::{Call, LogModel as Model, entry, vote, write};
use raftkv_storage_file::{Identity, Options, Wal};

pub const IDENTITY: Identity = Identity { cluster: ClusterId(0xc0ffee), node: NodeId(1), group: GroupId(0) };

pub fn dir() -> PathBuf {
    PathBuf::from("/log")
}

pub fn segment(id: u64) -> PathBuf {
    dir().join(format!("{id:020}.wal"))
}

/// Segments so small that a few batches fill one.
pub fn tiny() -> Options {
    Options { segment_bytes: 3072, direct_from: 1024, background: false, ..Options::default() }
}

pub fn open(disk: &SimDisk) -> Result<Wal, StorageError> {
    open_with(disk, tiny())
}

pub fn open_with(disk: &SimDisk, options: Options) -> Result<Wal, StorageError> {
    Wal::open(Arc::new(disk.clone()), Path::new("/log"), IDENTITY, options)
}

/// What a log holds by its own account.
pub fn model_of(wal: &Wal) -> Result<Model, StorageError> {
    Model::read(&wal.state(), |range| wal.read(range, u64::MAX))
}

pub fn perform(wal: &mut Wal, call: &Call) -> Result<(), StorageError> {
    match call {
        Call::Write(write) => wal.write(write),
        Call::Compact(upto) => wal.compact(*upto),
    }
}
