//! A contradiction in words and lines.

use std::fmt::Write;

use super::error::Violation;
use super::history::{CallId, End, History};
use super::model::Model;
use super::plan::Plan;
use super::search::{Placed, Search};

/// How many of the ordered calls are shown: the last ones.
const SHOWN: usize = 12;
/// How many of the open calls that could still take effect are shown.
const SHOWN_OPEN: usize = 4;
/// How long a call's words may be.
const WORDS: usize = 60;

/// What the search knows at the place that it did not get beyond.
pub(super) fn explain<M: Model>(
    model: &M,
    history: &History<M::Op, M::Ret>,
    key: &M::Key,
    plan: &Plan<'_, M>,
    search: &Search<'_, '_, M>,
) -> Violation {
    let mut used = vec![0; plan.classes.len()];
    let mut linearized = Vec::new();
    for placed in search.placed() {
        linearized.push(match placed {
            Placed::Answered(call) => plan.answered[call].id,
            Placed::Open(class) => {
                used[class] += 1;
                plan.classes[class].ids[used[class] - 1]
            }
        });
    }
    let stuck: Vec<usize> = search.stuck().into_iter().map(|call| plan.answered[call].id).collect();
    let state = search.state();
    let mut would = String::new();
    if let (Some(first), Some(state)) = (stuck.first(), state) {
        let answer = model.apply(&mut state.clone(), &history.calls[*first].op);
        would = short(&format!("{answer:?}"));
    }
    let state = state.map_or_else(String::new, |state| short(&format!("{state:?}")));
    let now = stuck.first().map_or(u64::MAX, |id| end(history, *id));
    let unused = plan.classes.iter().zip(&used).flat_map(|(class, used)| &class.ids[*used..]);
    let mut unused: Vec<usize> = unused.copied().filter(|id| history.calls[*id].invoked < now).collect();
    unused.sort_unstable();
    let left_out = linearized.len().saturating_sub(SHOWN);
    let mut text = format!(
        "key {key:?} is not linearizable: {} of its {} calls can be ordered, no more\n",
        linearized.len(),
        plan.answered.len() + plan.classes.iter().map(|class| class.ids.len()).sum::<usize>()
    );
    let chart = Chart::new(history, linearized[left_out..].iter().chain(&stuck));
    if left_out > 0 {
        let _ = writeln!(text, "  ({left_out} calls before)");
    }
    for id in &linearized[left_out..] {
        let _ = writeln!(text, "  {}", chart.line(*id));
    }
    let _ = writeln!(text, "  then the state is {state}, and what was under way can't be placed:");
    for (nth, id) in stuck.iter().enumerate() {
        let note = if nth == 0 { format!("  <- must be next, and would be answered {would}") } else { String::new() };
        let _ = writeln!(text, "  {}{note}", chart.line(*id));
    }
    if !unused.is_empty() {
        let newest: Vec<_> = unused.iter().rev().take(SHOWN_OPEN).map(|id| words(history, *id)).collect();
        let _ = writeln!(
            text,
            "  {} calls without an answer might take effect here, and don't help; the latest: {}",
            unused.len(),
            newest.join("; ")
        );
    }
    let ids = |ids: Vec<usize>| ids.into_iter().map(CallId).collect();
    Violation { key: format!("{key:?}"), linearized: ids(linearized), state, stuck: ids(stuck), timeline: text }
}

fn short(text: &str) -> String {
    if text.chars().count() <= WORDS {
        return text.to_owned();
    }
    text.chars().take(WORDS - 1).chain(['…']).collect()
}

fn end<Op, Ret>(history: &History<Op, Ret>, id: usize) -> u64 {
    match history.calls[id].end {
        End::Returned { at, .. } => at,
        End::Open | End::Failed => u64::MAX,
    }
}

fn words<Op: std::fmt::Debug, Ret: std::fmt::Debug>(history: &History<Op, Ret>, id: usize) -> String {
    let call = &history.calls[id];
    let op = short(&format!("{:?}", call.op));
    match &call.end {
        End::Returned { ret, .. } => format!("#{id} {op} -> {}", short(&format!("{ret:?}"))),
        End::Open => format!("#{id} {op} -> ?"),
        End::Failed => format!("#{id} {op} failed"),
    }
}

/// Calls as bars below each other; a column is one beginning or end of those shown.
struct Chart<'h, Op, Ret> {
    history: &'h History<Op, Ret>,
    columns: Vec<u64>,
    width: usize,
}

impl<'h, Op: std::fmt::Debug, Ret: std::fmt::Debug> Chart<'h, Op, Ret> {
    fn new<'i>(history: &'h History<Op, Ret>, ids: impl Iterator<Item = &'i usize> + Clone) -> Self {
        let mut columns: Vec<u64> =
            ids.clone().flat_map(|id| [history.calls[*id].invoked, end(history, *id)]).collect();
        columns.sort_unstable();
        columns.dedup();
        let width = ids.map(|id| words(history, *id).chars().count()).max().unwrap_or(0);
        Self { history, columns, width }
    }

    fn line(&self, id: usize) -> String {
        let (from, to) = (self.history.calls[id].invoked, end(self.history, id));
        let bar = self.columns.iter().map(|column| match *column {
            column if column == from => '|',
            u64::MAX if to == u64::MAX => '>',
            column if column == to => '|',
            column if column > from && column < to => '-',
            _ => ' ',
        });
        format!("{:width$}  {}", words(self.history, id), bar.collect::<String>(), width = self.width)
    }
}
