use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn once(session: SessionId, sequence: u64, answered: u64) -> Once {
    Once { session, sequence, answered }
}

fn opened(sessions: &mut Sessions, id: u64, most: u64) -> SessionId {
    sessions.open(SessionId(id), HOUR, most);
    SessionId(id)
}

/// Sessions of which one is open: number 1.
fn one() -> (Sessions, SessionId) {
    let mut sessions = Sessions::new(1000);
    let id = opened(&mut sessions, 1, 10);
    (sessions, id)
}

/// A write comes, and is answered with its sequence if it is to be applied.
fn write(sessions: &mut Sessions, at: u64, once: Once) -> Verdict {
    let verdict = sessions.decide(Index(at), once, 0);
    if verdict == Verdict::Apply {
        sessions.record(once.session, once.sequence, Some(&Bytes::from(once.sequence.to_string())));
    }
    verdict
}

fn answered(sequence: u64) -> Verdict {
    Verdict::Answered(Bytes::from(sequence.to_string()))
}

#[test]
fn a_write_is_applied_once_and_its_answer_repeated() {
    let (mut sessions, id) = one();
    assert_eq!(write(&mut sessions, 2, once(id, 0, 0)), Verdict::Apply);
    assert_eq!(write(&mut sessions, 3, once(id, 1, 0)), Verdict::Apply);
    assert_eq!(write(&mut sessions, 4, once(id, 0, 0)), answered(0));
    assert_eq!(write(&mut sessions, 5, once(id, 1, 1)), answered(1));
    assert_eq!(write(&mut sessions, 6, once(id, 0, 0)), Verdict::OutOfSequence, "it was told that 0 is answered");
}

#[test]
fn a_session_that_is_opened_twice_is_the_same() {
    let (mut sessions, id) = one();
    assert_eq!(write(&mut sessions, 2, once(id, 0, 0)), Verdict::Apply);
    opened(&mut sessions, 1, 1);
    assert_eq!(write(&mut sessions, 3, once(id, 0, 0)), answered(0));
}

#[test]
fn a_name_that_makes_no_sense_spoils_nothing() {
    let (mut sessions, id) = one();
    assert_eq!(write(&mut sessions, 2, once(id, 3, 1_000_000)), Verdict::OutOfSequence);
    assert_eq!(write(&mut sessions, 2, once(id, 3, 3)), Verdict::Apply);
}

#[test]
fn writes_may_come_out_of_order() {
    let (mut sessions, id) = one();
    for sequence in [3, 1, 2, 0] {
        assert_eq!(write(&mut sessions, 2, once(id, sequence, 0)), Verdict::Apply);
    }
    assert_eq!(write(&mut sessions, 2, once(id, 2, 0)), answered(2));
}

#[test]
fn a_repetition_in_the_same_batch_waits_for_the_first() {
    let (mut sessions, id) = one();
    assert_eq!(sessions.decide(Index(2), once(id, 0, 0), 7), Verdict::Apply);
    assert_eq!(sessions.decide(Index(3), once(id, 0, 0), 8), Verdict::Repeats(7));
}

#[test]
fn a_write_that_is_given_up_is_not_applied_when_it_comes_late() {
    let (mut sessions, id) = one();
    assert_eq!(write(&mut sessions, 2, once(id, 1, 1)), Verdict::Apply);
    assert_eq!(write(&mut sessions, 3, once(id, 0, 0)), Verdict::OutOfSequence);
}

#[test]
fn a_session_is_bounded_in_what_it_may_have_under_way() {
    let (mut sessions, id) = one();
    assert_eq!(write(&mut sessions, 2, once(id, WINDOW, 0)), Verdict::OutOfSequence);
    assert_eq!(write(&mut sessions, 2, once(id, u64::MAX, 0)), Verdict::OutOfSequence);
    assert_eq!(write(&mut sessions, 2, once(id, WINDOW - 1, 0)), Verdict::Apply);
    assert_eq!(write(&mut sessions, 2, once(id, WINDOW, 1)), Verdict::Apply);
}

#[test]
fn old_answers_are_forgotten_within_the_limit_but_never_that_they_were_given() {
    let (mut sessions, id) = one();
    for sequence in 0..100 {
        assert_eq!(write(&mut sessions, 2 + sequence, once(id, sequence, 0)), Verdict::Apply);
        assert!(sessions.tally().1 <= 1000);
    }
    assert_eq!(write(&mut sessions, 200, once(id, 0, 0)), Verdict::Forgotten);
    assert_eq!(write(&mut sessions, 200, once(id, 99, 0)), answered(99));
    assert_eq!(write(&mut sessions, 200, once(id, 100, 100)), Verdict::Apply);
    assert_eq!(sessions.tally(), (1, OVERHEAD + 3), "what was acknowledged is not kept");
}

#[test]
fn what_is_kept_is_listed_within_a_bound() {
    let (mut sessions, id) = one();
    for sequence in 0..10_000 {
        write(&mut sessions, 2, once(id, sequence, sequence));
        assert!(sessions.kept.len() < 70);
    }
    sessions.close(id);
    assert_eq!((sessions.tally(), sessions.answers), ((0, 0), 0));
}

#[test]
fn time_is_what_leaders_have_led() {
    let (mut sessions, _) = one();
    for (term, led, clock) in [(1, 5, 5), (1, 8, 8), (2, 1, 9), (4, 3, 12), (4, 3, 12), (4, 2, 12)] {
        sessions.advance(Term(term), Duration::from_secs(led));
        assert_eq!(sessions.clock, Duration::from_secs(clock), "term {term} after {led} s");
    }
}

#[test]
fn an_idle_session_expires_and_one_in_use_does_not() {
    let mut sessions = Sessions::new(1000);
    let [idle, used] = [1, 2].map(|id| opened(&mut sessions, id, 10));
    sessions.advance(Term(1), HOUR);
    assert_eq!(write(&mut sessions, 3, once(used, 0, 0)), Verdict::Apply);
    assert_eq!(sessions.tally().0, 2);
    sessions.advance(Term(1), HOUR + Duration::from_millis(1));
    assert_eq!(write(&mut sessions, 4, once(idle, 0, 0)), Verdict::Expired);
    assert_eq!(write(&mut sessions, 5, once(used, 0, 0)), answered(0));
}

#[test]
fn the_one_that_is_idle_for_longest_makes_room() {
    let mut sessions = Sessions::new(1000);
    let [first, second] = [1, 2].map(|id| opened(&mut sessions, id, 2));
    sessions.advance(Term(1), Duration::from_secs(1));
    assert_eq!(write(&mut sessions, 3, once(first, 0, 0)), Verdict::Apply);
    let third = opened(&mut sessions, 4, 2);
    assert_eq!(write(&mut sessions, 5, once(second, 0, 0)), Verdict::Expired);
    assert_eq!(write(&mut sessions, 5, once(first, 0, 0)), answered(0));
    assert_eq!(write(&mut sessions, 5, once(third, 0, 0)), Verdict::Apply);
    opened(&mut sessions, 6, 0);
    assert_eq!(sessions.tally().0, 1, "there is always room for one");
}

#[test]
fn an_image_brings_the_same_sessions() {
    let mut sessions = Sessions::new(400);
    let [a, b] = [1, 2].map(|id| opened(&mut sessions, id, 10));
    sessions.advance(Term(3), Duration::from_millis(1234));
    for (at, session, sequence) in [(3, a, 0), (4, b, 0), (5, a, 1), (6, b, 4), (7, a, 2), (8, b, 1), (9, b, 2)] {
        assert_eq!(write(&mut sessions, at, once(session, sequence, 0)), Verdict::Apply);
    }
    assert_eq!(write(&mut sessions, 9, once(a, 0, 0)), Verdict::Forgotten);
    let mut restored = Sessions::from_image(sessions.to_image(), 400);
    // What was dropped from the list is not listed again.
    sessions
        .kept
        .retain(|(session, sequence)| matches!(sessions.open[session].applied[sequence].answer, Kept::Answer(_)));
    assert_eq!(restored, sessions);
    assert_eq!(write(&mut restored, 10, once(a, 2, 0)), answered(2));
    let fewer = Sessions::from_image(sessions.to_image(), 100);
    assert_eq!((fewer.tally().0, fewer.answers), (2, 1), "a smaller limit holds at once");
}
