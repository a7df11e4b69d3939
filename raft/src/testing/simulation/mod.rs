//! Simulated clusters: production code under a schedule that a seed decides.

mod coverage;
mod trace;

pub use coverage::Coverage;
pub use trace::{Step, Trace, TraceEvent};
