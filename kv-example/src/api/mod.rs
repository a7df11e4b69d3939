//! The messages and services on the wire, generated from `proto/`.
//!
//! `cargo test -p kv-example --test etcd_api` regenerates them and fails on a difference; with `RAFTKV_REGENERATE=1` it
//! writes the difference instead.

#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::wildcard_enum_match_arm, clippy::too_many_lines)]
pub mod etcdserverpb;

#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod authpb;

mod codec;
mod secrets;

#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod mvccpb;

/// The service for this server's own operators: what etcd's protocol has no room for.
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::wildcard_enum_match_arm, clippy::too_many_lines)]
pub mod node;

/// What the log and images hold.
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod command;
