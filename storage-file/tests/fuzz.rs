//! Decoders of this package, with bytes of all kinds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

raftkv::fuzz_tests!(raftkv_storage_file::fuzzing::TARGETS; frame log meta_files records snapshots);
