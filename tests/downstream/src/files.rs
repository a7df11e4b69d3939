//! Files, whole.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use raftkv_storage_file::parts::read_full;
use raftkv_storage_file::{Access, Vfs, VfsFile};

/// Opens a file, or makes one.
pub(crate) fn open(files: &dyn Vfs, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
    match files.open(path, Access::Write) {
        Err(error) if error.kind() == ErrorKind::NotFound => files.open(path, Access::Create),
        opened => opened,
    }
}

/// All bytes of a file.
pub(crate) fn contents(file: &dyn VfsFile) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.len()? as usize];
    read_full(file, &mut bytes, 0)?;
    Ok(bytes)
}
