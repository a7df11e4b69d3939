//! The `kv-example` program as its users meet it: real processes, real sockets, real files. One test program, so that they are linked once, and those that
//! wait leave their turn to others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

#[cfg(target_os = "linux")]
mod certificates;
mod cluster;
mod config;
mod engine;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod limits_members;
#[cfg(target_os = "linux")]
mod limits_support;
#[cfg(target_os = "linux")]
mod limits_tls;
#[cfg(target_os = "linux")]
mod listener;
mod log;
mod member;
mod metrics;
mod no_quorum;
mod shutdown;
mod support;
mod tls;
mod users;
