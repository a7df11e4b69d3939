//! Did a service behave as if each call had taken effect at once, at some moment between its invocation and its answer?
//!
//! That is linearizability (Herlihy and Wing, 1990). A [`History`] records calls as clients saw them; a [`Model`] says what
//! one correct machine would answer; [`check`] looks for an order of the calls that explains every answer and contradicts
//! no real time, and returns [`Error::NotLinearizable`] with a timeline when there is none.
//!
//! # How to check your own service's history
//!
//! 1. Choose a model: [`Register`], [`KeyValue`] and [`Counter`] are here, and a [`Model`] of your own is a few lines: a state, and
//!    what each operation answers and does to it.
//! 2. Share one history among all clients, behind a lock. Record [`invoke`](History::invoke) before a request is sent,
//!    and then one of three ends:
//!    * It was answered: [`returned`](History::returned), with what the client was told.
//!    * It is *proven* that it took no effect and never will, as with [`Error::Lost`](crate::Error::Lost):
//!      [`failed`](History::failed). A read without an answer may be recorded so, too.
//!    * Anything else, such as a timeout: nothing. The call stays open, and may take effect at any later time, or never. To call that a
//!      failure is the usual mistake of such tests: they then report a violation where there is none.
//! 3. Hurt the service, stop the clients, mend the service, let every client read all there is once more (that is what finds writes
//!    that were lost at the end), and [`check`].
//!
//! Give each write a value of its own, so that a read tells which write it saw. Let clients meet at a few keys, but not the whole test at
//! one: the work grows with the calls that overlap at one key, and with the open ones there. Where many calls stay open, go on to
//! fresh keys now and then. [`Error::Exhausted`] is no pass: nobody knows then.
//!
//! ```
//! use raftkv::testing::linearizability::{Budget, Error, History, Model, check};
//!
//! /// A ticket machine: each customer gets the next number.
//! struct Tickets;
//!
//! #[derive(Clone, PartialEq, Debug)]
//! struct Take;
//!
//! impl Model for Tickets {
//!     type Op = Take;
//!     type Ret = u64;
//!     type State = u64;
//!     type Key = ();
//!
//!     fn key(&self, _op: &Take) {}
//!
//!     fn initial(&self, _key: &()) -> u64 {
//!         0
//!     }
//!
//!     fn apply(&self, last: &mut u64, _op: &Take) -> u64 {
//!         *last += 1;
//!         *last
//!     }
//! }
//!
//! let mut history = History::new();
//! let one = history.invoke(Take);
//! let two = history.invoke(Take); // gets no answer, and stays open
//! let three = history.invoke(Take);
//! history.returned(three, 2);
//! history.returned(one, 3);
//! // The open call must have taken the first ticket.
//! assert!(check(&Tickets, &history, Budget::default()).is_ok());
//!
//! // Who comes later gets a number that was given to another.
//! let four = history.invoke(Take);
//! history.returned(four, 2);
//! let Err(Error::NotLinearizable(violation)) = check(&Tickets, &history, Budget::default()) else { panic!() };
//! assert_eq!(violation.stuck, [four]);
//! println!("{violation}"); // a timeline of the last calls, and what does not fit
//! ```
//!
//! # What it costs
//!
//! 200,000 calls of 64 clients at the registers of 100 keys, of which 5 % got no answer, take about 2 s on one core
//! (`cargo bench -p raftkv --bench linearizability`). Deciding linearizability is NP-complete, so some histories use up any
//! budget: above all long ones of one key with many overlapping and many open calls. [`Model::leaves_state`] and [`Model::merge_open`]
//! are two hints that make most of them cheap; the models here give both.

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
