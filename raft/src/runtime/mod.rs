//! The only place that awaits a backend.

mod inbox;

pub use inbox::{Arrivals, Inbox};
