//! The search for an order.

use std::collections::BTreeMap;

use super::error::{Error, Violation};
use super::history::{Call, CallId, End, History};
use super::model::Model;

/// How hard to look before giving up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How often the model may be asked, for all keys.
    pub steps: u64,
    /// How many situations of one key may be told apart; each takes about 100 bytes of memory.
    pub configurations: u64,
}

impl Default for Budget {
    /// Some seconds and at most about a gigabyte.
    fn default() -> Self {
        Self { steps: 100_000_000, configurations: 10_000_000 }
    }
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many calls there were.
    pub calls: usize,
    /// How many of them were answered.
    pub answered: usize,
    /// How many have no end.
    pub open: usize,
    /// How many failed.
    pub failed: usize,
    /// How many keys they touched.
    pub keys: usize,
    /// How often the model was asked.
    pub steps: u64,
}

/// Looks for an order of the calls that explains every answer.
///
/// # Errors
/// There is none, or none was found within the budget; see [`Error`].
pub fn check<M: Model>(model: &M, history: &History<M::Op, M::Ret>, budget: Budget) -> Result<Report, Error> {
    if let Some(misuse) = &history.misuse {
        return Err(Error::History(misuse.clone()));
    }
    let mut report = Report { calls: history.calls.len(), ..Report::default() };
    let mut keys: BTreeMap<M::Key, Vec<usize>> = BTreeMap::new();
    for (id, call) in history.calls.iter().enumerate() {
        match call.end {
            End::Open => report.open += 1,
            End::Returned { .. } => report.answered += 1,
            End::Failed => report.failed += 1,
        }
        if !matches!(call.end, End::Failed) {
            keys.entry(model.key(&call.op)).or_default().push(id);
        }
    }
    report.keys = keys.len();
    for (key, ids) in keys {
        let calls: Vec<_> = ids.iter().map(|id| &history.calls[*id]).collect();
        search(model, &key, &calls, budget, &mut report.steps).map_err(|violation| match violation {
            Some(longest) => Error::NotLinearizable(Box::new(Violation {
                key: format!("{key:?}"),
                timeline: format!("key {key:?} is not linearizable: {} calls can be ordered, no more", longest.len()),
                linearized: longest.into_iter().map(|at| CallId(ids[at])).collect(),
                state: String::new(),
                stuck: Vec::new(),
            })),
            None => Error::Exhausted { key: format!("{key:?}"), steps: report.steps, configurations: 0 },
        })?;
    }
    Ok(report)
}

/// Returns the longest order that was found, or none when the budget was used up.
fn search<M: Model>(
    model: &M,
    key: &M::Key,
    calls: &[&Call<M::Op, M::Ret>],
    budget: Budget,
    steps: &mut u64,
) -> Result<(), Option<Vec<usize>>> {
    let mut longest = Vec::new();
    let mut stack = vec![(Vec::new(), model.initial(key))];
    while let Some((order, state)) = stack.pop() {
        let left = || (0..calls.len()).filter(|at| !order.contains(at));
        let first_return = left().filter_map(|at| match calls[at].end {
            End::Returned { at, .. } => Some(at),
            End::Open | End::Failed => None,
        });
        let Some(first_return) = first_return.min() else { return Ok(()) };
        for at in left().filter(|at| calls[*at].invoked < first_return) {
            *steps += 1;
            if *steps > budget.steps {
                return Err(None);
            }
            let mut state = state.clone();
            let answer = model.apply(&mut state, &calls[at].op);
            if matches!(&calls[at].end, End::Returned { ret, .. } if *ret != answer) {
                continue;
            }
            let mut order = order.clone();
            order.push(at);
            stack.push((order, state));
        }
        if order.len() > longest.len() {
            longest = order;
        }
    }
    Err(Some(longest))
}
