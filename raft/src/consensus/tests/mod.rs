//! Tests of the core as a cluster: golden scripts (`raft/src/testscripts`), and random schedules.
//!
//! [`cluster`] holds cores, simulated [`disk`]s, links and clients, and moves one event at a time. [`checker`] looks at
//! the whole cluster after each of them. [`script`] drives it from golden scripts, [`chaos`] from a seed.

mod arguments;
mod chaos;
mod checker;
mod clients;
mod cluster;
mod commands;
mod disk;
mod script;
mod show;
