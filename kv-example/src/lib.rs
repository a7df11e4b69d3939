//! A replicated key-value server that speaks the etcd v3 API.

pub mod api;
pub mod backends;
mod bench;
pub mod cli;
pub mod client;
mod cluster;
pub mod config;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
pub mod machine;
mod metrics;
pub mod room;
mod server;
pub mod service;
pub mod store;
pub mod telemetry;
