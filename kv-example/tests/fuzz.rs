//! Decoders of this package, with bytes of all kinds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

raftkv::fuzz_tests!(kv_example::fuzzing::TARGETS; commands image tokens txn_syntax authorities config_file);
