//! The backends in memory pass the suites that every backend passes.

use raftkv::testing::MemLog;
use raftkv::testing::conformance::log_store::Backend;

struct Memory(MemLog);

impl Backend for Memory {
    type Store = MemLog;

    async fn open(&self) -> MemLog {
        // A write that failed stops a store until it is opened anew.
        self.0.crash(raftkv::testing::Crash::Lost);
        self.0.reopen()
    }
}

mod log_in_memory {
    use super::*;
    raftkv::log_store_conformance!(Memory(MemLog::new()));
}
