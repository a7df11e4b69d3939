//! A write-ahead log on segmented, checksummed files for raftkv.

mod directory;
mod dump;
mod frame;
mod index;
mod keeper;
mod log;
mod reader;
mod recovery;
mod segment;
#[cfg(feature = "testing")]
pub mod sim;
mod vfs;
mod wal;

pub use dump::{DumpEntries, DumpHead, DumpLine, DumpVerdict, dump, dump_on};
pub use frame::Identity;
pub use log::{FileLog, Options};
pub use vfs::{Access, Guard, OsVfs, Vfs, VfsFile};
pub use wal::Wal;
