//! Peers that vanish, stall, refuse, restart or move: what the sender sees, how soon, and what the log says.

mod common;

raftkv::connection_conformance!(common::Grpc);
