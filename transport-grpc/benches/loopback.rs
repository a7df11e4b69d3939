//! What two nodes can say to each other over loopback: the rate one way, and the time of a round trip.
//!
//! `cargo bench -p raftkv-transport-grpc [-- SECONDS [WORKERS [ROUNDS]]]`: seconds for each line (default 2), the runtime's threads
//! (default 2), which both nodes share, and how often all of it is done (default 1).

#![allow(missing_docs, clippy::expect_used, reason = "a benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;

fn main() {
    raftkv::testing::loopback::run(&[("grpc", Arc::new(common::Grpc))], std::env::args().skip(1), runtime);
}

fn runtime(workers: usize) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.expect("a runtime")
}
