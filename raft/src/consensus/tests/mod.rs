//! Tests of the core as a cluster: golden scripts (`raft/src/testscripts`).
//!
//! [`script`] drives the cluster of `testing::simulation::consensus` by commands; the simulator drives the same by a seed.

mod arguments;
mod commands;
mod script;
