//! Model checking of the production core: every state that a small cluster can reach within given [`Bounds`], in every order of events.
//!
//! A state is some nodes, each a [`Consensus`](crate::consensus::Consensus) with its disk and the write under way; the messages on their way; how
//! often each bounded event occurred; and what an observer must remember to judge it. Messages are a set: they come in any order, late, twice
//! or never. A disk that takes its time completes a write at any later moment, or loses or tears it in a crash.
//!
//! Three things make tens of millions of states a matter of minutes:
//! * A node is stepped once for each different pair of node and event. States of the cluster hold numbers of nodes and messages, so that
//!   a transition is a look into a table.
//! * Nodes that can't be told apart by what they do are one. `consensus/fingerprint.rs` says what is left out and why; above all, times
//!   are only recent or long ago. The search does not take this on trust: a node that was reached in two ways takes its steps in both
//!   forms, and a difference ends the search.
//! * States that differ only in what can't matter any more are one: answers of a term that the receiver is past for ever are not kept, and
//!   the first node to campaign is n1.
//!
//! After every transition these are checked: Election Safety, Log Matching, Leader Completeness, State Machine Safety; what is committed is
//! on the disks of a majority, and stays there; votes are stable; no promise leaves before it is durable; term, commit and applied
//! indexes never go back; a read covers what was committed when it began; a refused command is never committed, and none is twice; no
//! correct node accuses another; and the core's own assertions.
//!
//! What is not explored: several inputs between two collections of effects, state machines that take their time, and whatever the
//! bounds exclude. Liveness is the simulator's to check.

mod bounds;
mod cluster;
mod history;
mod marks;
mod node;
mod nodes;
mod presets;
mod search;
mod table;
#[cfg(test)]
mod tests;
mod words;

pub use bounds::{Bounds, MAX_NODES};
pub use presets::{Preset, presets};
pub use search::{Progress, Report, Violation, explore};
