//! The last steps of a run as a sequence diagram: time runs down, a column for each node, an arrow for each message.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::trace::{Step, TraceEvent};
use crate::types::NodeId;

/// The distance of two columns.
const WIDTH: usize = 6;
/// Where the texts end.
const LINE: usize = 200;

/// Draws the steps, for the nodes 1 to `nodes` and whoever else occurs.
#[must_use]
pub fn render(nodes: u64, steps: &[Step]) -> String {
    let mut ids: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
    for step in steps {
        match &step.event {
            TraceEvent::Delivered { from, to, .. } | TraceEvent::Dropped { from, to, .. } => ids.extend([*from, *to]),
            TraceEvent::Node { node, .. } => ids.extend([*node]),
            TraceEvent::Cluster { .. } => {}
        }
    }
    let ids: Vec<NodeId> = ids.into_iter().collect();
    let mut out = String::new();
    let heads: String = ids.iter().map(|id| format!("{:<WIDTH$}", id.to_string())).collect();
    let _ = writeln!(out, "{:>12}  {}", "", heads.trim_end());
    for step in steps {
        line(&mut out, &ids, step);
    }
    out
}

fn line(out: &mut String, ids: &[NodeId], step: &Step) {
    let at = |id: NodeId| ids.iter().position(|other| *other == id).unwrap_or(0) * WIDTH;
    let mut row = vec![' '; ids.len() * WIDTH];
    for (n, cell) in row.iter_mut().enumerate() {
        if n % WIDTH == 0 {
            *cell = '|';
        }
    }
    let text = match &step.event {
        TraceEvent::Delivered { from, to, text } => {
            arrow(&mut row, at(*from), at(*to), false);
            format!("{from} -> {to} {text}")
        }
        TraceEvent::Dropped { from, to, text } => {
            arrow(&mut row, at(*from), at(*to), true);
            format!("{from} -> {to} {text} ... lost")
        }
        TraceEvent::Node { node, text } => {
            if let Some(cell) = row.get_mut(at(*node)) {
                *cell = '*';
            }
            format!("{node} {text}")
        }
        TraceEvent::Cluster { text } => {
            row.fill('=');
            text.clone()
        }
    };
    let row: String = row.into_iter().collect();
    let text: String = text.chars().take(LINE).collect();
    let seconds = step.at.as_secs_f64();
    let _ = writeln!(out, "{seconds:>11.4}s  {row} {text}");
}

/// From one column to another; a lost one ends in a cross.
fn arrow(row: &mut [char], from: usize, to: usize, lost: bool) {
    let (left, right) = (from.min(to), from.max(to));
    for cell in row.iter_mut().take(right).skip(left + 1) {
        *cell = '-';
    }
    let head = if from < to { right.saturating_sub(1) } else { left + 1 };
    if let Some(cell) = row.get_mut(head) {
        *cell = match (lost, from < to) {
            (true, _) => 'x',
            (false, true) => '>',
            (false, false) => '<',
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_are_arrows_between_the_columns_of_their_nodes() {
        let at = Duration::from_millis;
        let (one, two, three) = (NodeId(1), NodeId(2), NodeId(3));
        let steps = [
            Step { at: at(5), event: TraceEvent::Cluster { text: "all links carry".into() } },
            Step { at: at(10), event: TraceEvent::Delivered { from: one, to: three, text: "Vote".into() } },
            Step { at: at(11), event: TraceEvent::Node { node: three, text: "stores t2".into() } },
            Step { at: at(1250), event: TraceEvent::Dropped { from: three, to: two, text: "VoteReply".into() } },
        ];
        let expected = "              n1    n2    n3
     0.0050s  ================== all links carry
     0.0100s  |---------->|      n1 -> n3 Vote
     0.0110s  |     |     *      n3 stores t2
     1.2500s  |     |x----|      n3 -> n2 VoteReply ... lost
";
        assert_eq!(render(3, &steps), expected);
    }
}
