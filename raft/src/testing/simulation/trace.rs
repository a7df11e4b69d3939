//! What happened in a run: always as a hash, by which two runs are compared; as readable steps when somebody looks.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::types::NodeId;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When, on the clock of the simulation.
    pub at: Duration,
    /// What.
    pub event: TraceEvent,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// A message came to a node from another.
    Delivered {
        /// Its sender.
        from: NodeId,
        /// Where it came.
        to: NodeId,
        /// Its contents, on one line.
        text: String,
    },
    /// A message is lost.
    Dropped {
        /// Its sender.
        from: NodeId,
        /// Where it should have come.
        to: NodeId,
        /// Its contents, on one line.
        text: String,
    },
    /// Something happened at one node.
    Node {
        /// Which one.
        node: NodeId,
        /// What, on one line.
        text: String,
    },
    /// Something happened to all of them.
    Cluster {
        /// What, on one line.
        text: String,
    },
}

/// The trace of one run.
#[derive(Clone, Debug)]
pub struct Trace {
    hasher: DefaultHasher,
    count: u64,
    /// The last steps, when they are kept at all.
    steps: VecDeque<Step>,
    keep: usize,
}

impl Trace {
    /// A trace that keeps the last `keep` steps in words.
    #[must_use]
    pub fn new(keep: usize) -> Self {
        Self { hasher: DefaultHasher::new(), count: 0, steps: VecDeque::new(), keep }
    }

    /// Takes a step in: `what` tells it apart from others; `event` is asked for its words only when they are kept.
    pub fn step(&mut self, at: Duration, what: impl Hash, event: impl FnOnce() -> TraceEvent) {
        at.hash(&mut self.hasher);
        what.hash(&mut self.hasher);
        self.count += 1;
        if self.keep > 0 {
            if self.steps.len() == self.keep {
                self.steps.pop_front();
            }
            self.steps.push_back(Step { at, event: event() });
        }
    }

    /// Takes something in that is no step of its own, such as the state after a step.
    pub fn mix(&mut self, what: impl Hash) {
        what.hash(&mut self.hasher);
    }

    /// Equal for equal runs.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// How many steps there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last steps.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter()
    }
}
