//! What a run leaves behind: its trace, what it went through, and the first promise that was broken.

use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::testing::lock;
use crate::testing::simulation::{Coverage, Trace, TraceEvent};
use crate::types::NodeId;

/// Shared by everything in a run.
#[derive(Clone, Debug)]
pub(super) struct Record(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    /// Whether steps are kept in words.
    kept: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    trace: Trace,
    coverage: Coverage,
    violation: Option<String>,
}

impl Record {
    pub(super) fn new(keep: usize) -> Self {
        let state = State { trace: Trace::new(keep), coverage: Coverage::default(), violation: None };
        Self(Arc::new(Shared { began: Instant::now(), kept: keep > 0, state: Mutex::new(state) }))
    }

    pub(super) fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Whether anybody will read the words of a step.
    pub(super) fn is_kept(&self) -> bool {
        self.0.kept
    }

    pub(super) fn step(&self, what: impl Hash, event: impl FnOnce() -> TraceEvent) {
        let at = self.now();
        lock(&self.0.state).trace.step(at, what, event);
    }

    /// Something happened at a node.
    pub(super) fn node(&self, node: NodeId, text: impl Into<String>) {
        let text = text.into();
        self.step((node, text.clone()), || TraceEvent::Node { node, text });
    }

    /// Something happened to all.
    pub(super) fn cluster(&self, text: impl Into<String>) {
        let text = text.into();
        self.step(text.clone(), || TraceEvent::Cluster { text });
    }

    pub(super) fn hit(&self, class: &'static str) {
        lock(&self.0.state).coverage.hit(class);
    }

    pub(super) fn count(&self, class: &'static str) -> u64 {
        lock(&self.0.state).coverage.count(class)
    }

    /// A promise is broken. The first one counts: it ends the run.
    pub(super) fn violated(&self, what: impl Into<String>) {
        let what = what.into();
        self.cluster(format!("VIOLATED: {what}"));
        lock(&self.0.state).violation.get_or_insert(what);
    }

    pub(super) fn is_violated(&self) -> bool {
        lock(&self.0.state).violation.is_some()
    }

    pub(super) fn take(&self) -> (Trace, Coverage, Option<String>) {
        let state = lock(&self.0.state);
        (state.trace.clone(), state.coverage.clone(), state.violation.clone())
    }
}
