use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot::{self, Receiver};

use super::*;
use crate::types::LogId;

type Outcome<T> = Receiver<Result<T, Error>>;

/// A node's pending requests, beside what a core was told of them.
struct Bench {
    pending: Pending,
    inputs: Vec<Input>,
}

impl Bench {
    fn new() -> Self {
        let config = Config { max_applying_bytes: 300, ..Config::default() };
        Self { pending: Pending::new(&config, 10, Index(0)), inputs: Vec::new() }
    }

    fn submit(&mut self, leads: bool, mut requests: Vec<Request>) -> RequestId {
        let inputs = &mut self.inputs;
        self.pending.submit(Time::default(), leads, &mut requests, |input| inputs.push(input));
        self.last_request()
    }

    fn last_request(&self) -> RequestId {
        match self.inputs.last() {
            Some(Input::Propose { request, .. } | Input::Read { request, .. }) => *request,
            other => panic!("{other:?} names no request"),
        }
    }

    fn write(&mut self, leads: bool) -> (RequestId, Outcome<(LogId, Bytes)>) {
        let (answer, outcome) = oneshot::channel();
        let request =
            self.submit(leads, vec![Request::Write { kind: EntryKind::Command, command: "x".into(), answer }]);
        (request, outcome)
    }

    fn write_many(&mut self, count: usize) -> (RequestId, Outcome<Vec<Bytes>>) {
        let (answer, outcome) = oneshot::channel();
        let request = self.submit(true, vec![Request::WriteMany { commands: vec!["x".into(); count], answer }]);
        (request, outcome)
    }

    fn read(&mut self) -> (RequestId, Outcome<()>) {
        let (answer, outcome) = oneshot::channel();
        (self.submit(true, vec![Request::Read { lease: false, answer }]), outcome)
    }

    /// A read of a state that reflects this entry, in a node that has applied so far, where each entry's term is its index by ten.
    fn read_at_least(&mut self, id: LogId, applied: u64) -> Outcome<()> {
        let (answer, outcome) = oneshot::channel();
        let mut requests = vec![Request::ReadAtLeast { id, answer }];
        self.pending.submit(Time::default(), true, &mut requests, |input| panic!("{input:?} is for nobody"));
        self.settle(applied);
        outcome
    }

    fn settle(&mut self, applied: u64) {
        self.pending.settle_at_least(|id| match id.index.0 {
            index if index > applied && id.term.0 < applied / 10 => {
                Reflects::Never { found: LogId::new(applied / 10, applied) }
            }
            index if index > applied => Reflects::NotYet,
            0..10 => Reflects::Unknown { base: LogId::new(1, 10) },
            index if id.term.0 == index / 10 => Reflects::Yes,
            index => Reflects::Never { found: LogId::new(index / 10, index) },
        });
    }

    fn reply(&mut self, reply: Reply) {
        self.pending.on_reply(Time::default(), reply, None);
    }

    fn appended(&mut self, request: RequestId, term: u64, index: u64) {
        self.reply(Reply::Appended { request, first: LogId::new(term, index) });
    }

    fn refused(&mut self, request: RequestId) {
        self.reply(Reply::Refused { request, reason: RefusedReason::NotLeader { leader: None } });
    }

    /// Commands of this term are applied from `from` to `upto`, each answered with its index.
    fn applied(&mut self, term: u64, from: u64, upto: u64) {
        let mut results = Results::none(Index(from - 1));
        results.push_run(
            LogId::new(term, from),
            (from..=upto).map(|index| Bytes::from(index.to_string()).into()).collect(),
        );
        self.pending.on_applied(results);
    }

    /// A command of term 1 is applied, and this is its result.
    fn answered_with(&mut self, index: u64, result: &Bytes) {
        let mut results = Results::none(Index(index - 1));
        results.push_run(LogId::new(1, index), vec![result.clone().into()]);
        self.pending.on_applied(results);
    }

    fn check(&mut self, seconds: u64, leader_known: bool) {
        let now = Time(Duration::from_secs(seconds));
        let inputs = &mut self.inputs;
        self.pending.check(now, leader_known, false, |input| inputs.push(input));
    }

    /// Everything that was admitted has been answered, and nothing is held any more.
    fn is_empty(&mut self, requests: usize, bytes: u64) {
        assert_eq!(self.pending.answered, Load { requests, bytes });
        assert!(!self.pending.wants_results());
        self.check(100, false);
        assert_eq!(self.pending.next_wake(), None);
    }
}

#[test]
fn a_write_gets_the_result_of_its_own_entry() {
    let mut bench = Bench::new();
    let (first, mut one) = bench.write(true);
    let (second, mut two) = bench.write(true);
    bench.appended(first, 1, 5);
    bench.appended(second, 1, 6);
    bench.applied(1, 1, 5);
    assert_eq!(one.try_recv().unwrap().unwrap(), (LogId::new(1, 5), "5".into()));
    assert!(two.try_recv().is_err());
    bench.applied(1, 6, 9);
    assert_eq!(two.try_recv().unwrap().unwrap().1, "6");
    bench.is_empty(2, 130);
}

#[test]
fn another_entry_at_the_index_proves_a_write_lost() {
    let mut bench = Bench::new();
    let (old, mut lost) = bench.write(true);
    bench.appended(old, 1, 5);
    let (new, mut kept) = bench.write(true);
    bench.appended(new, 2, 5);
    bench.applied(2, 1, 5);
    assert!(matches!(lost.try_recv().unwrap(), Err(Error::Lost)));
    assert_eq!(kept.try_recv().unwrap().unwrap().1, "5");
    bench.is_empty(2, 130);
}

#[test]
fn an_entry_of_a_later_term_proves_all_writes_beyond_it_lost() {
    let mut bench = Bench::new();
    let (old, mut lost) = bench.write(true);
    bench.appended(old, 1, 900);
    let (many, mut all_lost) = bench.write_many(3);
    bench.appended(many, 1, 901);
    let (late, mut late_lost) = bench.write(true);
    let (new, mut kept) = bench.write(true);
    bench.appended(new, 2, 6);
    bench.applied(2, 1, 5);
    assert!(matches!(lost.try_recv().unwrap(), Err(Error::Lost)), "900 will be of term 2 or later");
    assert!(matches!(all_lost.try_recv().unwrap(), Err(Error::Lost)));
    bench.appended(late, 1, 950);
    assert!(matches!(late_lost.try_recv().unwrap(), Err(Error::Lost)), "also when its place is told late");
    assert!(kept.try_recv().is_err(), "this one is still to come");
    bench.applied(2, 6, 6);
    assert_eq!(kept.try_recv().unwrap().unwrap().1, "6");
}

#[test]
fn an_entry_that_is_no_command_proves_a_write_lost() {
    let mut bench = Bench::new();
    let (old, mut lost) = bench.write(true);
    bench.appended(old, 1, 3);
    let mut results = Results::none(Index(0));
    results.push_run(LogId::new(1, 1), vec![Bytes::from("1").into(), Bytes::from("2").into()]);
    results.extend_to(LogId::new(1, 3));
    bench.pending.on_applied(results);
    assert!(matches!(lost.try_recv().unwrap(), Err(Error::Lost)));
    bench.is_empty(1, 65);
}

#[test]
fn a_batch_gets_all_results_also_when_they_come_apart() {
    let mut bench = Bench::new();
    let (request, mut outcome) = bench.write_many(3);
    bench.appended(request, 1, 5);
    bench.applied(1, 1, 6);
    assert!(outcome.try_recv().is_err());
    bench.applied(1, 7, 7);
    assert_eq!(outcome.try_recv().unwrap().unwrap(), ["5", "6", "7"]);
    bench.is_empty(1, 195);
}

#[test]
fn a_batch_that_was_cut_in_two_has_an_unknown_outcome_and_one_that_is_gone_is_lost() {
    let mut bench = Bench::new();
    let (cut, mut cut_outcome) = bench.write_many(2);
    let (gone, mut gone_outcome) = bench.write_many(2);
    bench.appended(cut, 1, 1);
    bench.appended(gone, 1, 3);
    bench.applied(1, 1, 1);
    bench.applied(2, 2, 4);
    assert!(matches!(cut_outcome.try_recv().unwrap(), Err(Error::OutcomeUnknown)));
    assert!(matches!(gone_outcome.try_recv().unwrap(), Err(Error::Lost)));
    bench.is_empty(2, 260);
}

#[test]
fn a_forwarded_write_may_be_applied_before_its_place_is_known() {
    let mut bench = Bench::new();
    let (request, mut outcome) = bench.write(false);
    assert!(bench.pending.wants_results());
    bench.applied(1, 1, 3);
    bench.appended(request, 1, 2);
    assert_eq!(outcome.try_recv().unwrap().unwrap().1, "2");
    let (request, mut outcome) = bench.write(false);
    bench.applied(2, 4, 4);
    bench.appended(request, 1, 4);
    assert!(matches!(outcome.try_recv().unwrap(), Err(Error::Lost)));
    bench.is_empty(2, 130);
}

#[test]
fn results_that_nobody_claims_are_kept_within_bounds() {
    let mut bench = Bench::new();
    let (early, mut early_outcome) = bench.write(false);
    let (late, mut late_outcome) = bench.write(false);
    for index in 1..=20 {
        bench.applied(1, index, index);
    }
    bench.appended(early, 1, 2);
    assert!(matches!(early_outcome.try_recv().unwrap(), Err(Error::OutcomeUnknown)));
    bench.appended(late, 1, 20);
    assert_eq!(late_outcome.try_recv().unwrap().unwrap().1, "20");
    bench.is_empty(2, 130);
}

#[test]
fn results_that_were_claimed_leave_their_room_to_others() {
    let mut bench = Bench::new();
    let (early, mut early_outcome) = bench.write(false);
    let (late, mut late_outcome) = bench.write(false);
    // Two such results are above the limit of 300, one and what is left of the other are not.
    let result = Bytes::from(vec![7; 150]);
    bench.answered_with(1, &result);
    bench.appended(early, 1, 1);
    assert_eq!(early_outcome.try_recv().unwrap().unwrap().1, result);
    bench.answered_with(2, &result);
    bench.appended(late, 1, 2);
    assert_eq!(
        late_outcome.try_recv().unwrap().unwrap().1,
        result,
        "it was forgotten for the sake of one that is gone"
    );
    bench.is_empty(2, 130);
}

#[test]
fn refused_writes_and_reads_wait_for_a_leader_and_are_proposed_under_a_new_name() {
    let mut bench = Bench::new();
    let (write, mut written) = bench.write(false);
    bench.refused(write);
    let (read, mut readable) = bench.read();
    bench.refused(read);
    bench.inputs.clear();
    bench.check(1, false);
    assert!(bench.inputs.is_empty(), "without a leader there is nobody to ask");
    bench.check(2, true);
    let [Input::Propose { request: write_again, commands, .. }, Input::Read { request: read_again, lease: false }] =
        &bench.inputs[..]
    else {
        panic!("{:?}", bench.inputs)
    };
    assert!(*write_again > write && *read_again > read);
    assert_eq!(commands.len(), 1);
    let (write_again, read_again) = (*write_again, *read_again);
    bench.appended(write_again, 1, 1);
    bench.reply(Reply::Readable { request: read_again, index: Index(1) });
    assert!(readable.try_recv().is_err(), "not applied yet");
    bench.applied(1, 1, 1);
    assert_eq!(written.try_recv().unwrap().unwrap().1, "1");
    readable.try_recv().unwrap().unwrap();
    bench.is_empty(2, 129);
}

#[test]
fn deadlines_tell_what_may_have_happened() {
    let mut bench = Bench::new();
    let (parked, mut unavailable) = bench.write(false);
    bench.refused(parked);
    let (_, mut forwarded) = bench.write(false);
    let (appended, mut proposed) = bench.write(true);
    bench.appended(appended, 1, 7);
    let (_, mut asked) = bench.read();
    let (confirmed, mut waiting) = bench.read();
    bench.reply(Reply::Readable { request: confirmed, index: Index(7) });
    bench.check(4, false);
    assert_eq!(bench.pending.answered.requests, 0);
    bench.check(5, false);
    assert!(matches!(unavailable.try_recv().unwrap(), Err(Error::Unavailable)));
    assert!(matches!(forwarded.try_recv().unwrap(), Err(Error::OutcomeUnknown)));
    assert!(matches!(proposed.try_recv().unwrap(), Err(Error::OutcomeUnknown)));
    assert!(matches!(asked.try_recv().unwrap(), Err(Error::Unavailable)));
    assert!(matches!(waiting.try_recv().unwrap(), Err(Error::Unavailable)));
    bench.is_empty(5, 65 * 3 + 64 * 2);
}

#[test]
fn answers_that_come_too_late_or_twice_change_nothing() {
    let mut bench = Bench::new();
    let (request, mut outcome) = bench.write(false);
    bench.check(5, false);
    assert!(outcome.try_recv().unwrap().is_err());
    bench.appended(request, 1, 1);
    bench.refused(request);
    bench.reply(Reply::Unknown { request });
    bench.reply(Reply::Readable { request, index: Index(1) });
    bench.applied(1, 1, 1);
    bench.is_empty(1, 65);
}

#[test]
fn large_groups_are_cut_to_the_size_of_a_message() {
    let mut bench = Bench::new();
    let size = usize::try_from(Config::default().max_append_bytes).unwrap() / 2;
    let requests = (0..5).map(|_| Request::Write {
        kind: EntryKind::Command,
        command: vec![0; size].into(),
        answer: oneshot::channel().0,
    });
    bench.submit(true, requests.collect());
    assert_eq!(bench.inputs.len(), 5);
    let small =
        (0..5).map(|_| Request::Write { kind: EntryKind::Command, command: "x".into(), answer: oneshot::channel().0 });
    bench.submit(true, small.collect());
    assert_eq!(bench.inputs.len(), 6, "small ones go together");
}

#[test]
fn everyone_is_told_when_the_node_stops() {
    let mut bench = Bench::new();
    let (parked, mut one) = bench.write(false);
    bench.refused(parked);
    let (_, mut two) = bench.write(false);
    let (appended, mut three) = bench.write(true);
    bench.appended(appended, 1, 7);
    let (_, mut four) = bench.read();
    let (answer, mut five) = oneshot::channel();
    bench.pending.initialize(Membership::default(), answer);
    bench.pending.stop(&Fatal::shutdown());
    for outcome in [&mut one, &mut two, &mut three] {
        assert!(matches!(outcome.try_recv().unwrap(), Err(Error::Stopped(_))));
    }
    assert!(matches!(four.try_recv().unwrap(), Err(Error::Stopped(_))));
    assert!(matches!(five.try_recv().unwrap(), Err(InitializeError::Stopped(_))));
    bench.is_empty(4, 65 * 3 + 64);
}

#[test]
fn a_read_waits_until_its_entry_is_applied_or_ruled_out() {
    let mut bench = Bench::new();
    let mut there = bench.read_at_least(LogId::new(1, 12), 25);
    assert!(there.try_recv().unwrap().is_ok());
    let mut other = bench.read_at_least(LogId::new(2, 12), 25);
    let found = other.try_recv().unwrap();
    assert!(matches!(found, Err(Error::NeverCommitted { found, .. }) if found == LogId::new(1, 12)), "{found:?}");
    let mut old = bench.read_at_least(LogId::new(0, 7), 25);
    assert!(matches!(old.try_recv().unwrap(), Err(Error::Compacted { base, .. }) if base == LogId::new(1, 10)));

    let mut later = bench.read_at_least(LogId::new(2, 27), 25);
    let mut overwritten = bench.read_at_least(LogId::new(2, 31), 25);
    let mut never_comes = bench.read_at_least(LogId::new(3, 39), 25);
    bench.applied(2, 26, 27);
    bench.settle(27);
    assert!(later.try_recv().unwrap().is_ok());
    assert!(overwritten.try_recv().is_err() && never_comes.try_recv().is_err());
    // The first entry of another term rules out all that are missing of earlier ones.
    bench.applied(3, 28, 30);
    bench.settle(30);
    assert!(matches!(overwritten.try_recv().unwrap(), Err(Error::NeverCommitted { .. })));
    assert!(never_comes.try_recv().is_err());
    assert_eq!(bench.pending.next_wake(), Some(Time(Duration::from_secs(5))));
    bench.check(5, true);
    assert!(matches!(never_comes.try_recv().unwrap(), Err(Error::Unavailable)));
    bench.is_empty(6, 6 * 64);
}

#[test]
fn a_read_of_an_entry_is_told_why_the_node_stops() {
    let mut bench = Bench::new();
    let mut outcome = bench.read_at_least(LogId::new(9, 99), 25);
    assert!(bench.pending.is_waited_for());
    bench.pending.stop(&Fatal::shutdown());
    assert!(matches!(outcome.try_recv().unwrap(), Err(Error::Stopped(_))));
    bench.is_empty(1, 64);
}
