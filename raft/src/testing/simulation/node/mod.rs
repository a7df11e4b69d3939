//! Whole nodes in a simulated world: the production runtime (driver, log writer, outboxes, applier), real stores on disks that fail,
//! and your state machine, on one thread whose time is simulated. A run is a function of its seed.
//!
//! | what | where |
//! |---|---|
//! | what you bring | [`Subject`], [`Stores`] |
//! | seeds, and what is reported | `simulation.rs`: [`Simulation`] |
//! | what a seed decides beforehand | `plan.rs` |
//! | the phases of a run, and what must be true at its end | `run.rs` |
//! | starting nodes, taking them down, judging why they stopped | `world.rs`, `seat.rs` |
//! | what goes wrong | `faults.rs` |
//! | members that come and go | `members.rs` |
//! | opening what nodes keep; state machines that are durable by themselves, compared with others | `durable.rs` |
//! | clients | `load.rs` |
//! | the machine: clock, pauses, power | `machine.rs` |
//! | the network | `network.rs` |
//! | what state machines are given | `ledger.rs` |
//! | what logs acknowledged; when writes of images began | `vouched.rs`; `watched.rs` |
//!
//! # What is checked
//!
//! * What clients were told is linearizable by the model.
//! * All nodes are given the same commands at the same places, each once, in order and without a gap, and answer the same.
//! * What was acknowledged was applied, with that answer; what was refused or [`Lost`](crate::Error::Lost) never was.
//! * A log that acknowledged a write has it at the next start, or refuses to open; one that was under way is there in part at most.
//! * A state machine that is durable by itself has, when it goes on, what all commands up to there make.
//! * A term has one leader.
//! * Every call is answered in bounded time, as long as its node's machine runs.
//! * A node stops only for a reason that a fault explains. From then on every call at it says so at once, and its state machine and stores
//!   are released.
//! * A majority that is left in peace serves within a bound, whatever happens to the others; when all are, they hold the same.
//! * Where members come and go: whatever was asked for, and whichever machine lost its disk, all that work can become voters again; whoever leaves
//!   learns it, and the others go on.

mod durable;
mod faults;
mod kept;
mod ledger;
mod load;
mod machine;
mod members;
mod network;
mod once;
mod plan;
mod record;
mod registers;
mod run;
mod seat;
mod simulation;
mod stores;
mod subject;
mod vouched;
mod watched;
mod world;

pub use registers::{RegisterMachine, RegisterView, Registers};
pub use simulation::Simulation;
pub use stores::{Disk, DiskFault, MemStores, Outage, Site, Stores};
pub use subject::{OpOf, RetOf, Subject};
