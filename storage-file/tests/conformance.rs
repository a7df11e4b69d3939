//! The suite that every log store passes, on real files: with segments of the usual size, with tiny ones that force many rolls,
//! and without a thread.

#![allow(clippy::unwrap_used)]

use raftkv::testing::conformance::log_store::Backend;
use raftkv::{ClusterId, GroupId, NodeId};
use raftkv_storage_file::{FileLog, Identity, Options};
use tempfile::TempDir;

struct Files {
    dir: TempDir,
    options: Options,
}

fn files(options: Options) -> Files {
    Files { dir: tempfile::tempdir().unwrap(), options }
}

impl Backend for Files {
    type Store = FileLog;

    async fn open(&self) -> FileLog {
        let identity = Identity { cluster: ClusterId(7), node: NodeId(1), group: GroupId(0) };
        FileLog::open(self.dir.path().join("a/b"), identity, self.options).unwrap()
    }
}

mod usual {
    use super::*;
    raftkv::log_store_conformance!(files(Options { segment_bytes: 4 << 20, ..Options::default() }));
}

mod tiny_segments {
    use super::*;
    raftkv::log_store_conformance!(files(Options { segment_bytes: 4096, ..Options::default() }));
}

mod wide_alignment_without_a_thread {
    use super::*;
    raftkv::log_store_conformance!(files(Options { segment_bytes: 64 << 10, align: 4096, background: false }));
}
