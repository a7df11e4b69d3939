//! What must be found, what must not, and that a search can fail.

use std::ops::ControlFlow;

use super::history::{Committed, History};
use super::*;
use crate::types::LogId;

fn search(bounds: &Bounds) -> Report {
    let report = explore(bounds, |_| ControlFlow::Continue(())).expect("the bounds make sense");
    assert!(report.exhausted || report.violation.is_some());
    report
}

fn preset(name: &str) -> Preset {
    presets().into_iter().find(|preset| preset.name == name).expect("it is there")
}

#[test]
fn all_states_of_small_clusters_are_safe() {
    let searches = preset("tiny").searches;
    for bounds in searches {
        let report = search(&bounds);
        let wrong = report.violation.map(|violation| format!("{}\n{}", violation.reason, violation.trace.join("\n")));
        assert_eq!(wrong, None, "{}", bounds.name);
        assert!(report.compared > 0, "{}: no node was reached in two ways", bounds.name);
        for class in &bounds.must_meet {
            assert!(report.coverage.count(class) > 0, "{}: never met: {class}", bounds.name);
        }
    }
}

#[test]
fn disks_that_forget_break_what_is_promised_and_the_way_there_is_short() {
    let bounds = Bounds { forgetful_disks: true, crashes: 1, max_term: 1, campaigns: 1, ..Bounds::new("forgetful") };
    let violation = search(&bounds).violation.expect("a disk forgot");
    assert!(violation.reason.contains("committed means durable on a quorum"), "{}", violation.reason);
    // An election, a commit, a crash: nothing shorter can break it.
    let actions = violation.trace.iter().filter(|line| !line.starts_with(' ')).count();
    assert_eq!(actions, 6, "{:#?}", violation.trace);
}

#[test]
fn a_search_is_the_same_each_time_and_stops_when_told() {
    let bounds = Bounds::new("elections");
    let numbers = |report: Report| (report.reached, report.distinct, report.depth, report.nodes, report.steps);
    let all = numbers(search(&Bounds { max_term: 1, ..bounds.clone() }));
    assert_eq!(all, numbers(search(&Bounds { max_term: 1, ..bounds.clone() })));
    let report = explore(&bounds, |_| ControlFlow::Break(())).expect("the bounds make sense");
    assert!(!report.exhausted && report.violation.is_none());
}

#[test]
fn bounds_that_make_no_sense_are_refused_by_name() {
    let refused = |bounds: Bounds| explore(&bounds, |_| ControlFlow::Continue(())).expect_err("it makes no sense");
    assert!(refused(Bounds { nodes: 6, ..Bounds::new("six") }).contains("6 nodes"));
    assert!(refused(Bounds { crashes: 16, ..Bounds::new("storm") }).contains("storm"));
    assert!(refused(Bounds { logs: vec![Vec::new(); 4], ..Bounds::new("logs") }).contains("4 logs"));
}

fn committed(term: u64, index: u64, by: u64) -> Committed {
    Committed { id: LogId::new(term, index), content: index, by }
}

fn held(ids: &[(u64, u64)]) -> Vec<(LogId, u64)> {
    ids.iter().map(|(term, index)| (LogId::new(*term, *index), *index)).collect()
}

#[test]
fn what_is_committed_must_be_on_the_disks_of_a_majority() {
    let history = History { committed: vec![committed(1, 1, 1), committed(1, 2, 1)], ..History::default() };
    let (all, some, none) = (held(&[(1, 1), (1, 2), (2, 3)]), held(&[(1, 1)]), held(&[(1, 1), (2, 2)]));
    let of = |nodes: usize| move |holders| Bounds { nodes, ..Bounds::new("any") }.is_quorum_of_any(holders);
    assert_eq!(history.durable([&*all, &all, &none].into_iter(), of(3)), Ok(()));
    assert!(history.durable([&*all, &some, &none].into_iter(), of(3)).is_err_and(|why| why.contains("on 1 of 3")));
    assert!(history.durable([&*all, &all, &none, &some].into_iter(), of(4)).is_err());
    let changing = Bounds { voters: 1, changes: vec![vec![2, 3]], ..Bounds::new("changing") };
    assert!([0b001, 0b110].into_iter().all(|holders| changing.is_quorum_of_any(holders)));
    assert!(![0b010, 0b100].into_iter().any(|holders| changing.is_quorum_of_any(holders)));
}

#[test]
fn a_read_must_cover_what_was_committed_when_it_began() {
    let mut history = History { committed: vec![committed(1, 1, 1), committed(1, 2, 1)], ..History::default() };
    history.read_begins(0, 2);
    history.read_begins(1, 2);
    assert_eq!(history.read_ends(0, Some(crate::Index(2))), Ok(()));
    assert!(history.read_ends(1, Some(crate::Index(1))).is_err_and(|why| why.contains("n3 gets i1")));
    history.read_begins(2, 2);
    history.restarted(2);
    assert_eq!(history.read_ends(2, Some(crate::Index(0))), Ok(()), "nobody waits for it");
}
