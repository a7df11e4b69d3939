//! Making a failing run smaller: a search over the options of its seed, as long as the same invariant fails.

use super::campaign::{Depth, Failure, Options, SHOWN_STEPS, attempt};

/// The smallest run found that fails in the same way, within so many attempts, with its last steps.
#[must_use]
pub fn shrink(depth: &dyn Depth, failure: &Failure, attempts: u32) -> Failure {
    let mut search = Search { depth, smallest: failure.clone(), attempts };
    loop {
        let before = search.smallest.options.clone();
        search.fewer_events();
        search.fewer_faults();
        search.fewer_nodes();
        if search.attempts == 0 || search.smallest.options == before {
            return search.smallest;
        }
    }
}

struct Search<'a> {
    depth: &'a dyn Depth,
    smallest: Failure,
    attempts: u32,
}

impl Search<'_> {
    /// Takes the options over if the run still fails in the same way.
    fn fails(&mut self, options: &Options) -> bool {
        if self.attempts == 0 || *options == self.smallest.options {
            return false;
        }
        self.attempts -= 1;
        match attempt(self.depth, self.smallest.seed, options, SHOWN_STEPS) {
            Err(failure) if failure.kind() == self.smallest.kind() => {
                self.smallest = *failure;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Options)) -> Options {
        let mut options = self.smallest.options.clone();
        change(&mut options);
        options
    }

    /// First those after the failure; then bisects, though a run with fewer events may fail where one with more does not.
    fn fewer_events(&mut self) {
        let most = self.smallest.events;
        self.fails(&self.with(|options| options.events = Some(most)));
        let (mut passes, mut fails) = (0, self.smallest.events);
        while passes + 1 < fails && self.attempts > 0 {
            let middle = passes.midpoint(fails);
            if self.fails(&self.with(|options| options.events = Some(middle))) {
                fails = middle.min(self.smallest.events);
            } else {
                passes = middle;
            }
        }
    }

    fn fewer_faults(&mut self) {
        for fault in self.depth.faults() {
            self.fails(&self.with(|options| {
                options.without.insert((*fault).to_owned());
            }));
        }
    }

    fn fewer_nodes(&mut self) {
        for nodes in 1..self.smallest.nodes {
            if self.fails(&self.with(|options| options.nodes = Some(nodes))) {
                return;
            }
        }
    }
}
