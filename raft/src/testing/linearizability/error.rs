//! Why a history does not pass.

use std::fmt;

use super::history::CallId;

/// Why a history does not pass.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No order of the calls explains all answers.
    #[error("{0}")]
    NotLinearizable(Box<Violation>),
    /// The budget was used up before the answer was found. This is no pass: raise the budget, or use more keys, fewer clients at
    /// one key, or shorter histories.
    #[error(
        "not decided: the budget was used up at key {key}, after {steps} steps and {configurations} configurations; raise the \
         budget, or make histories shorter, with more keys or fewer clients at one key"
    )]
    Exhausted {
        /// The key that was being checked.
        key: String,
        /// How often the model was asked, for all keys.
        steps: u64,
        /// How many situations of this key were told apart.
        configurations: u64,
    },
    /// The history contradicts itself: the test that recorded it is wrong.
    #[error("the history was recorded wrongly: {0}")]
    History(String),
    /// The model breaks its own word: the test is wrong.
    #[error("the model is wrong: {0}")]
    Model(String),
}

/// A history that no order of its calls explains.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The key whose calls contradict each other.
    pub key: String,
    /// The longest explanation that was found: these calls in this order.
    pub linearized: Vec<CallId>,
    /// The model's state after them.
    pub state: String,
    /// The calls that were under way then and could not go on from there. The first of them had to take effect next.
    pub stuck: Vec<CallId>,
    /// All that, to be read.
    pub timeline: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.timeline)
    }
}
