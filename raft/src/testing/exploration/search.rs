//! The search: breadth first, so that the first violation found has the shortest way to it.

use std::ops::ControlFlow;

use super::bounds::Bounds;
use super::cluster::{Action, Reached, State};
use super::marks::{Mark, Marks};
use super::nodes::Nodes;
use super::table::Table;
use super::words;
use crate::testing::simulation::Coverage;

/// States between two calls of the progress function.
const STRIDE: u64 = 1 << 14;

/// How far a search has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// States reached, however often.
    pub reached: u64,
    /// Different ones.
    pub distinct: u64,
    /// How many actions lead to the states that are being expanded.
    pub depth: u64,
    /// States that wait to be expanded.
    pub waiting: u64,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Report {
    /// States reached, however often: the transitions that were taken, and the first state.
    pub reached: u64,
    /// Different states.
    pub distinct: u64,
    /// The number of actions on the shortest way to the farthest state.
    pub depth: u64,
    /// Whether all states within the bounds were seen.
    pub exhausted: bool,
    /// How often a state was left out because it has more messages on their way than the bounds allow.
    pub beyond: u64,
    /// Different states of one node and its disk: each of them was produced by the core itself.
    pub nodes: u64,
    /// Steps of the core: different pairs of a node and an event.
    pub steps: u64,
    /// How many of these steps were taken again from the same node as it is when reached in another way, and led to the same: that is
    /// why nodes which differ in times and the like may count as one.
    pub compared: u64,
    /// The situations met, with the number of transitions into them.
    pub coverage: Coverage,
    /// For each situation, the least number of actions that lead to it.
    pub first: Vec<(&'static str, u64)>,
    /// The first violation found, if any.
    pub violation: Option<Violation>,
}

/// A property does not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which one, and where.
    pub reason: String,
    /// The actions that lead there, in words: no shorter way was there.
    pub trace: Vec<String>,
}

/// States that wait for their turn, one after the other in one piece of memory.
#[derive(Debug, Default)]
struct Queue {
    words: Vec<u32>,
    len: u64,
}

struct Search {
    nodes: Nodes,
    /// Every state seen, by its fingerprint, with the fingerprint of the one before it on a shortest way.
    seen: Table,
    next: Queue,
    reached: u64,
    beyond: u64,
    times: [u64; Mark::ALL.len()],
    first: [Option<u64>; Mark::ALL.len()],
}

/// Looks at every state within the bounds, until one violates a property or `progress` breaks it off.
///
/// States are known by 64-bit fingerprints: among 50 million of them two share one with a probability of less than 1 in 10,000, and then one
/// of them is not expanded.
///
/// # Errors
/// The bounds make no sense.
pub fn explore(bounds: &Bounds, mut progress: impl FnMut(Progress) -> ControlFlow<()>) -> Result<Report, String> {
    bounds.validate()?;
    let mut search = Search::new(bounds);
    let (count, mut actions) = (bounds.nodes, Vec::new());
    let (mut current, mut state, mut next) = (Queue::default(), State::default(), State::default());
    std::mem::swap(&mut current, &mut search.next);
    let (mut depth, mut expanded) = (0, 0_u64);
    while current.len > 0 {
        let mut at = 0;
        for done in 0..current.len {
            expanded += 1;
            if expanded % STRIDE == 0 {
                let waiting = current.len - done + search.next.len;
                let (reached, distinct) = (search.reached, search.seen.len() as u64);
                if progress(Progress { reached, distinct, depth, waiting }).is_break() {
                    return Ok(search.report(depth, false, None));
                }
            }
            at = state.decode(count, &current.words, at);
            state.actions(&search.nodes, &mut actions);
            for action in &actions {
                next.clone_from(&state);
                if let Err(reason) = search.visit(&state, &mut next, *action, depth + 1) {
                    let trace = search.trace(&state, *action);
                    return Ok(search.report(depth + 1, false, Some(Violation { reason, trace })));
                }
            }
        }
        std::mem::swap(&mut current, &mut search.next);
        search.next.words.clear();
        search.next.len = 0;
        depth += u64::from(current.len > 0);
    }
    Ok(search.report(depth, true, None))
}

impl Search {
    fn new(bounds: &Bounds) -> Self {
        let mut nodes = Nodes::new(bounds.clone());
        let first = State::first(&mut nodes);
        let mut search = Self {
            nodes,
            seen: Table::new(),
            next: Queue::default(),
            reached: 1,
            beyond: 0,
            times: [0; Mark::ALL.len()],
            first: [None; Mark::ALL.len()],
        };
        search.seen.insert(first.fingerprint(), 0);
        first.encode(bounds.nodes, &mut search.next.words);
        search.next.len = 1;
        search
    }

    /// Takes an action, and keeps the state it leads to if it is new.
    fn visit(&mut self, state: &State, next: &mut State, action: Action, depth: u64) -> Result<(), String> {
        let mut marks = Marks::default();
        let reached = next.take(&mut self.nodes, action, &mut marks);
        if !marks.is_empty() {
            for (at, mark) in Mark::ALL.into_iter().enumerate().filter(|(_, mark)| marks.has(*mark)) {
                debug_assert_eq!(at, mark as usize);
                self.times[at] += 1;
                self.first[at].get_or_insert(depth);
            }
        }
        match reached {
            Reached::Violation(reason) => return Err(reason),
            Reached::Beyond => {
                self.beyond += 1;
                return Ok(());
            }
            Reached::Fine => {}
        }
        self.reached += 1;
        if self.seen.insert(next.fingerprint(), state.fingerprint()) {
            next.encode(self.nodes.bounds.nodes, &mut self.next.words);
            self.next.len += 1;
        }
        Ok(())
    }

    /// The shortest way to a state and an action beyond it, in words. The states on it are known by their fingerprints, so each is found
    /// again among the successors of the one before.
    fn trace(&mut self, last: &State, action: Action) -> Vec<String> {
        let mut way = vec![last.fingerprint()];
        while let Some(before) = way.last().and_then(|key| self.seen.get(*key)).filter(|before| *before != 0) {
            way.push(before);
        }
        way.reverse();
        let (mut state, mut lines) = (State::first(&mut self.nodes), Vec::new());
        let (mut actions, mut marks) = (Vec::new(), Marks::default());
        for key in way.into_iter().skip(1) {
            state.actions(&self.nodes, &mut actions);
            let found = actions.iter().find_map(|action| {
                let mut next = state.clone();
                let reached = next.take(&mut self.nodes, *action, &mut marks);
                (matches!(reached, Reached::Fine) && next.fingerprint() == key).then_some((*action, next))
            });
            let Some((action, next)) = found else { break };
            words::action(&mut self.nodes, &state, action, &mut lines);
            state = next;
        }
        words::action(&mut self.nodes, &state, action, &mut lines);
        lines
    }

    fn report(self, depth: u64, exhausted: bool, violation: Option<Violation>) -> Report {
        let mut coverage = Coverage::default();
        for (mark, times) in Mark::ALL.into_iter().zip(self.times) {
            coverage.add(mark.name(), times);
        }
        let first = Mark::ALL.into_iter().zip(self.first);
        Report {
            reached: self.reached,
            distinct: self.seen.len() as u64,
            depth,
            exhausted,
            beyond: self.beyond,
            nodes: self.nodes.count() as u64,
            steps: self.nodes.changes.len() as u64,
            compared: self.nodes.compared,
            coverage,
            first: first.filter_map(|(mark, depth)| depth.map(|depth| (mark.name(), depth))).collect(),
            violation,
        }
    }
}
