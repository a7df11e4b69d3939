//! Simulated clusters: production code under a schedule that a seed decides.
//!
//! A [`Depth`] runs one seed; a [`Campaign`] runs many, counts what they went through ([`Coverage`]) and stops at the first
//! [`Failure`], which [`shrink`](shrink()) makes smaller and [`diagram`] shows.

mod campaign;
pub mod consensus;
mod coverage;
pub mod diagram;
pub mod node;
mod shrink;
mod trace;

pub use campaign::{Campaign, Depth, Failure, Findings, Options, Run, SHOWN_STEPS, attempt, caught};
pub use coverage::Coverage;
pub use shrink::shrink;
pub use trace::{Step, Trace, TraceEvent};
