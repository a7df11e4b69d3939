//! Real server processes, hurt in every way that a machine or its owner hurts them. See the page of the crate for the environment
//! variables.

mod away;
mod chaos;
mod cluster_command;
mod config;
mod curves;
mod cut;
mod engine;
mod etcdctl;
mod exactly_once;
mod full_disk;
mod image;
mod kill;
mod members;
#[cfg(target_os = "linux")]
mod memory;
mod pause;
#[cfg(target_os = "linux")]
mod power;
mod rolling;
mod shutdown;
mod stranger;
mod users;

use raftkv_tests::ClusterOptions;

/// The server under test.
const SERVER: &str = env!("CARGO_BIN_EXE_kv-node");

/// Three nodes with default settings.
fn three() -> ClusterOptions {
    ClusterOptions::new(SERVER)
}
