//! Did a service behave as if each call had taken effect at once, at some moment between its invocation and its answer?
//!
//! That is linearizability (Herlihy and Wing, 1990). A [`History`] records calls as clients saw them; a [`Model`] says what
//! one correct machine would answer; [`check`] looks for an order of the calls that explains every answer and contradicts
//! no real time, and returns [`Error::NotLinearizable`] with a timeline when there is none.

mod check;
mod error;
mod explain;
mod history;
mod memory;
mod model;
mod models;
mod plan;
mod search;
#[cfg(test)]
mod tests;

pub use check::{Budget, Report, check};
pub use error::{Error, Violation};
pub use history::{CallId, History};
pub use model::Model;
pub use models::{Counter, CounterOp, KeyValue, KeyValueOp, KeyValueRet, Register, RegisterOp, RegisterRet};
