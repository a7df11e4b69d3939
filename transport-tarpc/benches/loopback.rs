//! What two nodes can say to each other over loopback, and how that compares with the gRPC transport, by turns.
//!
//! `cargo bench -p raftkv-transport-tarpc [-- SECONDS [WORKERS [ROUNDS]]]`: seconds for each line (default 2), the runtime's threads
//! (default 2), which both nodes share, and how often all of it is done (default 1).

#![allow(missing_docs, clippy::expect_used, reason = "a benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../../transport-grpc/tests/common/mod.rs"]
mod grpc;

use std::sync::Arc;

fn main() {
    let transports: [raftkv::testing::loopback::Measured; 2] =
        [("grpc", Arc::new(grpc::Grpc)), ("tarpc", Arc::new(common::Tarpc))];
    raftkv::testing::loopback::run(&transports, std::env::args().skip(1), runtime);
}

fn runtime(workers: usize) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.expect("a runtime")
}
