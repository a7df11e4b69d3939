//! The check of a whole history.

use std::collections::BTreeMap;

use super::error::Error;
use super::explain::explain;
use super::history::{End, History};
use super::model::Model;
use super::plan::Plan;
use super::search::{Limits, Search, Stop};

/// How hard to look before giving up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How often the model may be asked, and one situation be compared with another, for all keys.
    pub steps: u64,
    /// How many situations and states of one key may be told apart; each takes some hundred bytes of memory.
    pub configurations: u64,
}

impl Default for Budget {
    /// About a minute, and at most some gigabytes.
    fn default() -> Self {
        Self { steps: 200_000_000, configurations: 10_000_000 }
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
    /// How often the model was asked, and one situation compared with another.
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
            End::Failed => {
                report.failed += 1;
                continue;
            }
        }
        keys.entry(model.key(&call.op)).or_default().push(id);
    }
    report.keys = keys.len();
    for (key, ids) in keys {
        check_key(model, history, &key, &ids, budget, &mut report.steps)?;
    }
    Ok(report)
}

fn check_key<M: Model>(
    model: &M,
    history: &History<M::Op, M::Ret>,
    key: &M::Key,
    ids: &[usize],
    budget: Budget,
    steps: &mut u64,
) -> Result<(), Error> {
    let plan = Plan::new(model, history, ids);
    let left = budget.steps.saturating_sub(*steps);
    let all = Limits { steps: left, configurations: budget.configurations, depth: usize::MAX, until: usize::MAX };
    // Nearly every order is found placing at most one or two calls before another returns. To look for such an order first spares
    // much where an early mistake shows late.
    let few = |depth| Limits { steps: left / 8, configurations: budget.configurations / 8, depth, ..all };
    for limits in [few(1), few(2), Limits { steps: left - left / 4, ..all }] {
        let mut search = Search::new(model, &plan, limits);
        let result = search.run(model.initial(key));
        *steps += search.steps();
        let last = limits.depth == usize::MAX;
        match result {
            Ok(()) => return Ok(()),
            Err(Stop::NoOrder) => {
                let until = search.reached;
                drop(search);
                // The same once more, up to the place that it did not get beyond.
                let mut again = Search::new(model, &plan, Limits { until, ..limits });
                let _ = again.run(model.initial(key));
                return Err(Error::NotLinearizable(Box::new(explain(model, history, key, &plan, &again))));
            }
            Err(Stop::Model(what)) => return Err(Error::Model(what)),
            Err(Stop::Limited | Stop::Exhausted) if !last => {}
            Err(Stop::Limited | Stop::Exhausted) => {
                let configurations = search.configurations();
                return Err(Error::Exhausted { key: format!("{key:?}"), steps: *steps, configurations });
            }
        }
    }
    Ok(())
}
