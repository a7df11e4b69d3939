//! What a durable machine keeps of client sessions for the framework.

use std::time::Duration;

use super::{Backend, COMMANDS, chunks, commands, image, not_tested};
use crate::session::{Once, SessionId, Sessions, Verdict};
use crate::traits::{Record, Recorded, StateMachine};
use crate::types::{LogId, Term};

/// How many commands are written in each session.
const IN_SESSION: usize = 10;

async fn kept(machine: &impl StateMachine) -> Option<Vec<Record>> {
    let mut records = machine.records().await.expect("the records")?;
    records.sort();
    Some(records)
}

fn expected(sessions: &Sessions) -> Vec<Record> {
    let mut records = sessions.to_records();
    records.sort();
    records
}

/// Applies these, as writes of a session, and compares what is kept.
async fn write(
    machine: &mut impl StateMachine,
    sessions: &mut Sessions,
    session: SessionId,
    commands: &[(LogId, bytes::Bytes)],
) {
    for (sequence, (at, _)) in (0..).zip(commands) {
        let place = usize::try_from(sequence).unwrap_or(0);
        let once = Once { session, sequence, answered: sequence / 2 };
        assert_eq!(sessions.decide(at.index, once, place), Verdict::Apply, "the session is open");
    }
    let upto = commands.last().map_or(LogId::ZERO, |(at, _)| *at);
    let batch = Recorded { commands: commands.to_vec(), upto, changes: sessions.take_changes() };
    let answers = machine.apply_recorded(batch).await.expect("answers");
    assert_eq!(answers.len(), commands.len(), "each command has an answer");
    for (sequence, answer) in (0..).zip(&answers) {
        sessions.record(session, sequence, Some(answer));
    }
    assert_eq!(kept(machine).await, Some(expected(sessions)), "the records after {upto}");
    assert_eq!(machine.applied().await.expect("applied"), upto);
}

/// With each batch the machine keeps what it is told, and forgets what it is told; all of it is there when it is opened again, and an image brings
/// its own.
pub async fn records_of_sessions_are_kept_with_the_state<B: Backend>(backend: &B) {
    let commands = commands(backend, 15, COMMANDS);
    let mut source = backend.create().await;
    let mut machine = backend.create().await;
    if kept(&machine).await.is_none() {
        return not_tested("records of sessions; right for a machine that keeps none");
    }
    let mut sessions = Sessions::new(u64::MAX);
    sessions.note_changes();
    for (n, part) in (1..).zip(commands.chunks(IN_SESSION)) {
        let Some((at, _)) = part.first() else { return };
        // From the fourth on each takes the place of another one, which is to be forgotten.
        let session = SessionId(at.index.0);
        sessions.open(session, Duration::from_secs(60), 3);
        sessions.advance(Term(1), Duration::from_millis(n));
        write(&mut machine, &mut sessions, session, part).await;
        drop(machine);
        machine = backend.reopen().await.expect("a machine that keeps records can be reopened");
        assert_eq!(kept(&machine).await, Some(expected(&sessions)), "the records after reopening");
    }
    // Nothing to apply, but something to forget.
    let upto = LogId::new(99, 9999);
    sessions.advance(Term(2), Duration::from_secs(600));
    let batch = Recorded { commands: Vec::new(), upto, changes: sessions.take_changes() };
    assert!(machine.apply_recorded(batch).await.expect("no answers").is_empty());
    assert_eq!(kept(&machine).await, Some(expected(&sessions)), "after all sessions have expired");
    // An entry that is no command, as after an election.
    let upto = LogId::new(100, 10_000);
    let batch = Recorded { commands: Vec::new(), upto, changes: sessions.take_changes() };
    assert!(batch.changes.is_empty(), "nothing has changed");
    assert!(machine.apply_recorded(batch).await.expect("no answers").is_empty());
    assert_eq!(machine.applied().await.expect("applied"), upto, "after entries that are no commands");
    // An image replaces them.
    let mut others = Sessions::new(u64::MAX);
    others.note_changes();
    others.advance(Term(1), Duration::from_millis(1));
    let session = SessionId(7);
    others.open(session, Duration::from_secs(60), 3);
    write(&mut source, &mut others, session, &commands[..IN_SESSION]).await;
    let taken = image(&source).await;
    let last = LogId::new(101, 20_000);
    machine.restore_recorded(chunks(&taken, 1000), others.to_records(), last).await.expect("a restored machine");
    assert_eq!(kept(&machine).await, Some(expected(&others)), "after an image with other sessions");
    assert_eq!(machine.applied().await.expect("applied"), last, "after an image");
    drop(machine);
    let machine = backend.reopen().await.expect("a machine that keeps records can be reopened");
    assert_eq!(kept(&machine).await, Some(expected(&others)), "after reopening what an image brought");
    assert_eq!(machine.applied().await.expect("applied"), last, "after reopening what an image brought");
}
