//! Histories whose verdict is known.

use crate::testing::linearizability::*;

type Op = RegisterOp<&'static str, u32>;
type Ret = RegisterRet<u32>;

/// One register's history, written as a story.
#[derive(Default)]
struct Story(History<Op, Ret>);

impl Story {
    fn begin(&mut self, op: Op) -> CallId {
        self.0.invoke(op)
    }

    fn end(&mut self, call: CallId, ret: Ret) {
        self.0.returned(call, ret);
    }

    /// A call that overlaps no other's end.
    fn whole(&mut self, op: Op, ret: Ret) {
        let call = self.begin(op);
        self.end(call, ret);
    }

    fn put(&mut self, value: u32) {
        self.whole(Op::Put("x", value), Ret::Done);
    }

    fn get(&mut self, value: impl Into<Option<u32>>) {
        self.whole(Op::Get("x"), Ret::Value(value.into()));
    }

    fn check(&self) -> Result<Report, Error> {
        check(&Register::default(), &self.0, Budget::default())
    }

    fn passes(&self) -> Report {
        self.check().unwrap()
    }

    fn fails(&self) -> Violation {
        match self.check() {
            Err(Error::NotLinearizable(violation)) => *violation,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nothing_is_linearizable() {
    assert_eq!(Story::default().passes(), Report::default());
}

#[test]
fn one_call_after_the_other() {
    let mut story = Story::default();
    story.get(None);
    story.put(1);
    story.get(1);
    story.whole(Op::Cas("x", Some(1), 2), Ret::Swapped(true));
    story.whole(Op::Cas("x", Some(1), 3), Ret::Swapped(false));
    story.get(2);
    story.whole(Op::Delete("x"), Ret::Done);
    story.get(None);
    let report = story.passes();
    assert_eq!((report.calls, report.answered, report.open, report.keys), (8, 8, 0, 1));
}

#[test]
fn a_write_may_take_effect_anywhere_between_its_ends() {
    let mut story = Story::default();
    let put = story.begin(Op::Put("x", 1));
    story.get(None);
    story.get(1);
    story.end(put, Ret::Done);
    story.passes();
}

#[test]
fn a_stale_read() {
    let mut story = Story::default();
    story.put(1);
    story.put(2);
    story.get(1);
    story.fails();
}

#[test]
fn a_lost_write() {
    let mut story = Story::default();
    story.put(1);
    story.get(None);
    story.fails();
}

#[test]
fn a_read_from_the_future() {
    let mut story = Story::default();
    story.get(1);
    story.put(1);
    story.fails();
}

#[test]
fn a_value_that_nobody_wrote() {
    let mut story = Story::default();
    story.put(1);
    story.get(7);
    story.fails();
}

#[test]
fn reads_that_go_back_while_the_write_is_under_way() {
    let mut story = Story::default();
    story.put(1);
    let put = story.begin(Op::Put("x", 2));
    story.get(2);
    story.get(1);
    story.end(put, Ret::Done);
    story.fails();
}

#[test]
fn a_value_that_flips_back() {
    let mut story = Story::default();
    let (one, two) = (story.begin(Op::Put("x", 1)), story.begin(Op::Put("x", 2)));
    story.end(one, Ret::Done);
    story.end(two, Ret::Done);
    story.get(1);
    story.get(2);
    story.get(1);
    story.fails();
}

#[test]
fn a_compare_and_swap_that_succeeds_twice() {
    let mut story = Story::default();
    story.put(1);
    let (one, two) = (story.begin(Op::Cas("x", Some(1), 2)), story.begin(Op::Cas("x", Some(1), 2)));
    story.end(one, Ret::Swapped(true));
    story.end(two, Ret::Swapped(true));
    story.fails();
}

/// Each compares with a value that is there only if another one succeeded that compares with such a value: none ever does.
#[test]
fn many_comparisons_with_what_is_never_there_cost_nothing() {
    let mut story = Story::default();
    for value in 100..500 {
        story.begin(Op::Cas("x", Some(value), value % 400 + 101));
    }
    story.put(1);
    story.get(1);
    story.passes();
    story.get(101);
    story.fails();
}

#[test]
fn a_write_without_an_answer_may_come_late_or_never() {
    for seen in [None, Some(1)] {
        let mut story = Story::default();
        story.begin(Op::Put("x", 1));
        story.get(None);
        story.get(seen);
        let report = story.passes();
        assert_eq!((report.answered, report.open), (2, 1));
    }
}

#[test]
fn a_write_without_an_answer_takes_effect_once() {
    let mut story = Story::default();
    story.begin(Op::Put("x", 1));
    story.get(1);
    story.put(2);
    story.get(1);
    story.fails();
}

#[test]
fn a_write_without_an_answer_has_no_effect_before_it_was_sent() {
    let mut story = Story::default();
    story.get(1);
    story.begin(Op::Put("x", 1));
    story.fails();
}

#[test]
fn a_write_that_failed_was_never_there() {
    let mut story = Story::default();
    let put = story.begin(Op::Put("x", 1));
    story.0.failed(put);
    story.get(None);
    assert_eq!(story.passes().failed, 1);
    story.get(1);
    story.fails();
}

#[test]
fn a_counter_that_counts_twice() {
    let mut history = History::new();
    for sum in [1, 3] {
        let call = history.invoke(CounterOp::Add(1));
        history.returned(call, sum);
    }
    assert!(matches!(check(&Counter, &history, Budget::default()), Err(Error::NotLinearizable(_))));
    // With another one that got no answer, it is right.
    let mut history = History::new();
    history.invoke(CounterOp::Add(1));
    for sum in [1, 3] {
        let call = history.invoke(CounterOp::Add(1));
        history.returned(call, sum);
    }
    check(&Counter, &history, Budget::default()).unwrap();
}

#[test]
fn a_write_that_was_applied_twice() {
    let model = KeyValue::default();
    let mut history = History::new();
    let put = history.invoke(KeyValueOp::Put("x", 1));
    history.returned(put, KeyValueRet::Written);
    let get = history.invoke(KeyValueOp::Get("x"));
    let mut twice = history.clone();
    history.returned(get, KeyValueRet::Found(Some((1, 1))));
    check(&model, &history, Budget::default()).unwrap();
    twice.returned(get, KeyValueRet::Found(Some((1, 2))));
    assert!(matches!(check(&model, &twice, Budget::default()), Err(Error::NotLinearizable(_))));
}

#[test]
fn keys_are_told_apart() {
    let mut story = Story::default();
    story.whole(Op::Put("x", 1), Ret::Done);
    story.whole(Op::Get("y"), Ret::Value(None));
    assert_eq!(story.passes().keys, 2);
    story.whole(Op::Get("y"), Ret::Value(Some(1)));
    assert_eq!(story.fails().key, "\"y\"");
}

#[test]
fn a_history_that_was_recorded_wrongly() {
    let mut story = Story::default();
    let put = story.begin(Op::Put("x", 1));
    story.end(put, Ret::Done);
    story.0.failed(put);
    let error = story.check().unwrap_err();
    assert_eq!(error.to_string(), "the history was recorded wrongly: call 0 ended twice");
}

#[test]
fn a_budget_that_is_used_up_is_no_pass() {
    let mut story = Story::default();
    story.put(1);
    story.get(1);
    let budget = Budget { steps: 1, ..Budget::default() };
    let error = check(&Register::default(), &story.0, budget).unwrap_err();
    assert!(matches!(error, Error::Exhausted { .. }), "{error}");
}

/// Each sum of some of the open calls is a state, and each is reached in very many ways: to compare these is most of the work, and
/// the budget bounds that as well.
#[test]
#[allow(clippy::disallowed_methods, reason = "how long a check takes is for the wall clock to say")]
fn a_budget_bounds_the_time_that_open_calls_cost() {
    let mut history = History::new();
    for number in 1..=40 {
        history.invoke(CounterOp::Add(number));
    }
    let get = history.invoke(CounterOp::Get);
    history.returned(get, 100_000);
    let begun = std::time::Instant::now();
    let budget = Budget { steps: 300_000, configurations: 1_000_000 };
    let error = check(&Counter, &history, budget).unwrap_err();
    assert!(matches!(error, Error::Exhausted { .. }), "{error}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "it took {:?}", begun.elapsed());
}
