//! What a node replicates: the state machine, the sessions of those who write to it, and the configuration in force where they stand.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;

use super::image::{self, Section};
use super::panic_text;
use super::pending::{Answer, Results};
use super::snapshotter::Frozen;
use crate::error::Fatal;
use crate::mutant;
use crate::session::{Op, SessionId, Sessions, Verdict};
use crate::traits::{Chunks, Published, Recorded, Snapshot, SnapshotId, SnapshotMeta, StateMachine};
use crate::types::{Entry, EntryKind, Index, LogId, Membership};

/// The state that the log has led to so far.
pub(crate) struct Replica {
    pub(crate) machine: Box<dyn StateMachine>,
    pub(crate) standing: Standing,
    pub(crate) sessions: Sessions,
    /// What `sessions` keeps at most.
    pub(crate) max_session_bytes: u64,
    /// Whether the machine keeps records of the sessions.
    pub(crate) keeps_records: bool,
}

/// Where a replica stands.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// The last entry that it reflects.
    pub(crate) applied: LogId,
    /// The configuration in force there, and the entry that brought it.
    pub(crate) membership_at: LogId,
    pub(crate) membership: Membership,
}

impl Standing {
    /// These are applied.
    fn pass(&mut self, entries: &[Entry]) {
        self.applied = entries.last().map_or(self.applied, |entry| entry.id);
        let configured = entries.iter().rfind(|entry| entry.kind == EntryKind::Config);
        if let Some(entry) = configured
            && let Ok(membership) = Membership::decode(&entry.data)
        {
            (self.membership_at, self.membership) = (entry.id, membership);
        }
    }
}

impl Replica {
    /// Applies entries, in order: contiguous, at least one, and following those before. Their results are sorted out if anyone may
    /// want to know them.
    pub(crate) async fn apply(&mut self, lists: Vec<Vec<Entry>>, wants_results: bool) -> Result<Results, Fatal> {
        let mut batch = Batch::new(lists.iter().map(Vec::len).sum());
        for entries in lists {
            self.standing.pass(&entries);
            entries.into_iter().for_each(|entry| batch.add(entry, &mut self.sessions));
        }
        let commands = std::mem::take(&mut batch.commands);
        let changes = self.sessions.take_changes();
        // A durable machine hears of all entries: where its state is as far as an image of it, it must be known to be, or a restart would restore it.
        let given = if commands.is_empty() && changes.is_empty() && !self.keeps_records {
            Vec::new()
        } else {
            self.apply_commands(Recorded { commands, upto: batch.last, changes }).await?
        };
        for New { session, sequence, place } in &batch.new {
            self.sessions.record(*session, *sequence, given.get(*place));
        }
        if !wants_results {
            let mut results = Results::none(batch.last.index);
            results.extend_to(batch.last);
            return Ok(results);
        }
        Ok(batch.results(given))
    }

    /// Has the state machine apply commands. A panic is its failure.
    async fn apply_commands(&mut self, batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        let commands = &batch.commands;
        let (expected, at) = (commands.len(), commands.first().map_or(Index::ZERO, |(id, _)| id.index));
        let (machine, recorded) = (&mut self.machine, self.keeps_records);
        let answers = AssertUnwindSafe(async {
            if recorded { machine.apply_recorded(batch).await } else { machine.apply_batch(batch.commands).await }
        });
        let answers = answers.catch_unwind().await.map_err(|panic| panicked(&*panic, expected, at))??;
        if answers.len() != expected {
            let (got, what) = (answers.len(), if recorded { "apply_recorded" } else { "apply_batch" });
            return Err(Fatal::state_machine(format!(
                "{what} returned {got} results for {expected} commands (from index {}); it must return one for each",
                at.0
            )));
        }
        Ok(answers)
    }

    /// Notes what changes of the sessions, if the machine keeps records of them.
    pub(crate) fn note_changes(&mut self) {
        if self.keeps_records {
            self.sessions.note_changes();
        }
    }

    /// Freezes a view of all of it. A panic of the state machine is its failure.
    pub(crate) async fn freeze(&self, id: SnapshotId) -> Result<Frozen, Fatal> {
        let frozen = AssertUnwindSafe(async { self.machine.snapshot().await }).catch_unwind().await;
        let chunks = frozen.map_err(|panic| {
            Fatal::state_machine(format!("it panicked while its view was frozen: {}", panic_text(&*panic)))
        })??;
        let Standing { applied, membership_at, membership } = self.standing.clone();
        let meta = SnapshotMeta { id, last: applied, membership, membership_at };
        let lost = mutant!("image-without-sessions");
        let sessions = if lost { Sessions::new(0) } else { self.sessions.clone() };
        Ok(Frozen { meta, image: image::wrap(sessions, chunks) })
    }

    /// Replaces all of it by an image.
    /// `signs` counts how often the state machine asks for more of it.
    pub(crate) async fn restore(
        &mut self,
        images: &Arc<dyn Snapshot>,
        signs: &Arc<AtomicU64>,
        published: Published,
    ) -> Result<LogId, Fatal> {
        let Published { meta: SnapshotMeta { id, last, membership, membership_at }, .. } = published;
        let (section, chunks) = image::open(images, id).await?;
        let sessions = section.sessions(self.max_session_bytes);
        let chunks = Box::new(Watched { chunks, signs: signs.clone() });
        restore_machine(&mut *self.machine, chunks, last, self.keeps_records.then_some(&sessions)).await?;
        if !mutant!("restore-without-sessions") {
            self.sessions = sessions;
            self.note_changes();
        }
        self.standing = Standing { applied: last, membership_at, membership };
        Ok(last)
    }
}

/// An image whose reader shows that it lives with each part that it asks for.
struct Watched {
    chunks: Box<dyn Chunks>,
    signs: Arc<AtomicU64>,
}

#[async_trait]
impl Chunks for Watched {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        self.signs.fetch_add(1, Ordering::Relaxed);
        self.chunks.next().await
    }
}

/// A machine that keeps records of sessions is given those. A panic of the state machine is its failure.
pub(crate) async fn restore_machine(
    machine: &mut dyn StateMachine,
    image: Box<dyn Chunks>,
    last: LogId,
    sessions: Option<&Sessions>,
) -> Result<(), Fatal> {
    let restored = AssertUnwindSafe(async {
        match sessions {
            Some(sessions) => machine.restore_recorded(image, sessions.to_records(), last).await,
            None => machine.restore(image).await,
        }
    });
    let restored = restored.catch_unwind().await;
    restored.map_err(|panic| {
        Fatal::state_machine(format!("it panicked while it was restored from an image: {}", panic_text(&*panic)))
    })?
}

impl Section {
    /// The sessions that it holds.
    pub(crate) fn sessions(self, max_bytes: u64) -> Sessions {
        self.sessions.map_or_else(|| Sessions::new(max_bytes), |sessions| Sessions::from_image(sessions, max_bytes))
    }
}

/// Takes over what these entries say of sessions, for a state machine that reflects them already: that writes were applied is known again, but not
/// what it answered.
pub(crate) fn pass_sessions(sessions: &mut Sessions, entries: Vec<Entry>) {
    let mut batch = Batch::new(0);
    entries.into_iter().for_each(|entry| batch.add(entry, sessions));
    for New { session, sequence, .. } in batch.new {
        sessions.record(session, sequence, None);
    }
}

fn panicked(panic: &(dyn std::any::Any + Send), commands: usize, at: Index) -> Fatal {
    let text = panic_text(panic);
    Fatal::state_machine(format!("it panicked while applying {commands} commands from index {}: {text}", at.0))
}

/// Some entries, sorted into what the state machine has to do, and what is answered without it.
struct Batch {
    commands: Vec<(LogId, Bytes)>,
    /// The writes of sessions among the commands.
    new: Vec<New>,
    /// What is answered without the state machine, by its place among all answers.
    decided: Vec<(usize, Decided)>,
    /// Stretches of entries that are answered, with contiguous indexes and one term: the first, and how many.
    runs: Vec<(LogId, usize)>,
    answers: usize,
    /// The first and the last entry, answered or not.
    from: Index,
    last: LogId,
}

/// A session's write that is applied.
struct New {
    session: SessionId,
    sequence: u64,
    /// Among the commands.
    place: usize,
}

enum Decided {
    Answer(Answer),
    /// As the command at this place.
    Same(usize),
}

impl Batch {
    fn new(capacity: usize) -> Self {
        Self {
            commands: Vec::with_capacity(capacity),
            new: Vec::new(),
            decided: Vec::new(),
            runs: Vec::new(),
            answers: 0,
            from: Index::ZERO,
            last: LogId::ZERO,
        }
    }

    fn add(&mut self, entry: Entry, sessions: &mut Sessions) {
        if self.last == LogId::ZERO {
            self.from = entry.id.index;
        }
        self.last = entry.id;
        match entry.kind {
            EntryKind::Command => {
                self.answered(entry.id);
                self.commands.push((entry.id, entry.data));
            }
            EntryKind::Session => {
                let decided = self.decide(entry.id, entry.data, sessions);
                self.decided.extend(decided.map(|decided| (self.answers, decided)));
                self.answered(entry.id);
            }
            EntryKind::Clock => sessions.on_clock(entry.id, &entry.data),
            EntryKind::Noop | EntryKind::Config => {}
        }
    }

    /// This entry gets an answer.
    fn answered(&mut self, id: LogId) {
        self.answers += 1;
        match self.runs.last_mut() {
            Some((first, count)) if first.term == id.term && first.index.plus(*count as u64) == id.index => *count += 1,
            Some(_) | None => self.runs.push((id, 1)),
        }
    }

    /// What a session asks for: its answer, unless the state machine is to give it.
    fn decide(&mut self, id: LogId, data: Bytes, sessions: &mut Sessions) -> Option<Decided> {
        let answer = match Op::decode(data) {
            Some(Op::Open { session, idle, most }) => {
                sessions.open(session, idle, most);
                Answer::Given(Bytes::new())
            }
            Some(Op::Write { once, command }) => match sessions.decide(id.index, once, self.commands.len()) {
                Verdict::Apply => {
                    let place = self.commands.len();
                    self.new.push(New { session: once.session, sequence: once.sequence, place });
                    self.commands.push((id, command));
                    return None;
                }
                Verdict::Repeats(place) => return Some(Decided::Same(place)),
                Verdict::Answered(answer) => Answer::Given(answer),
                Verdict::Forgotten => Answer::Forgotten,
                Verdict::Expired => Answer::SessionExpired,
                Verdict::OutOfSequence => Answer::OutOfSequence,
            },
            Some(Op::Close { session }) => {
                sessions.close(session);
                Answer::Given(Bytes::new())
            }
            // Nobody who is well writes this.
            None => Answer::OutOfSequence,
        };
        Some(Decided::Answer(answer))
    }

    /// Files the answers under their log ids. `given` are the state machine's.
    fn results(self, given: Vec<Bytes>) -> Results {
        let mut answers = if self.decided.is_empty() {
            given.into_iter().map(Answer::Given).collect()
        } else {
            merge(&given, self.decided, self.answers)
        };
        let mut results = Results::none(self.from.prev());
        for (n, (first, count)) in self.runs.iter().enumerate() {
            let rest = if n + 1 == self.runs.len() { Vec::new() } else { answers.split_off(*count) };
            results.push_run(*first, std::mem::replace(&mut answers, rest));
        }
        results.extend_to(self.last);
        results
    }
}

/// Puts what was decided at its place among what the state machine gave.
fn merge(given: &[Bytes], decided: Vec<(usize, Decided)>, all: usize) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(all);
    let mut next = given.iter().cloned().map(Answer::Given);
    for (place, decided) in decided {
        let before = place - answers.len();
        answers.extend(next.by_ref().take(before));
        answers.push(match decided {
            Decided::Answer(answer) => answer,
            Decided::Same(place) => given.get(place).cloned().map_or(Answer::Forgotten, Answer::Given),
        });
    }
    answers.extend(next);
    answers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;

    use super::super::pending::Fate;
    use super::*;
    use crate::session::Once;

    /// Answers each command with itself and how many it has applied; "panic", "fail" and "short" do as they say.
    struct Parrot(u64);

    #[async_trait]
    impl StateMachine for Parrot {
        async fn apply(&mut self, _at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
            self.0 += 1;
            Ok(format!("{}{}", String::from_utf8_lossy(&command), self.0).into())
        }

        async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
            match &batch[0].1[..] {
                b"panic" => panic!("as told"),
                b"fail" => return Err(Fatal::state_machine("as told")),
                b"short" => return Ok(Vec::new()),
                _ => {}
            }
            let mut answers = Vec::new();
            for (at, command) in batch {
                answers.push(self.apply(at, command).await?);
            }
            Ok(answers)
        }

        async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
            Err(Fatal::state_machine("no snapshots"))
        }

        async fn restore(&mut self, _image: Box<dyn Chunks>) -> Result<(), Fatal> {
            Err(Fatal::state_machine("no snapshots"))
        }
    }

    fn replica() -> Replica {
        let standing = Standing { applied: LogId::ZERO, membership_at: LogId::ZERO, membership: Membership::default() };
        let sessions = Sessions::new(1000);
        Replica { machine: Box::new(Parrot(0)), standing, sessions, max_session_bytes: 1000, keeps_records: false }
    }

    fn entry(term: u64, index: u64, kind: EntryKind, data: impl Into<Bytes>) -> Entry {
        Entry { id: LogId::new(term, index), kind, data: data.into() }
    }

    fn session(index: u64, op: &Op) -> Entry {
        entry(1, index, EntryKind::Session, op.encode())
    }

    fn open(index: u64) -> Entry {
        session(index, &Op::Open { session: SessionId(1), idle: Duration::from_secs(10), most: 10 })
    }

    fn write(index: u64, sequence: u64) -> Entry {
        let once = Once { session: SessionId(1), sequence, answered: 0 };
        session(index, &Op::Write { once, command: "w".into() })
    }

    fn given(text: &'static str) -> Fate {
        Fate::Applied(Answer::Given(text.into()))
    }

    #[tokio::test]
    async fn entries_are_applied_together_and_results_filed_by_id() {
        let first = vec![entry(1, 4, EntryKind::Command, "a"), entry(2, 5, EntryKind::Noop, "")];
        let second = vec![entry(2, 6, EntryKind::Command, "b"), entry(2, 7, EntryKind::Config, "x")];
        let mut results = replica().apply(vec![first, second], true).await.unwrap();
        assert_eq!(results.upto(), Index(7));
        assert_eq!(results.take(LogId::new(1, 4)), given("a1"));
        assert_eq!(results.take(LogId::new(1, 5)), Fate::Overwritten);
        assert_eq!(results.take(LogId::new(2, 6)), given("b2"));
    }

    #[tokio::test]
    async fn answers_of_sessions_are_filed_among_those_of_commands() {
        let (command, noop) = (entry(1, 3, EntryKind::Command, "c"), entry(1, 5, EntryKind::Noop, ""));
        let all = vec![open(1), write(2, 0), command, write(4, 0), noop, write(6, 1), write(7, 5000), write(8, 1)];
        let mut replica = replica();
        let mut results = replica.apply(vec![all], true).await.unwrap();
        let mut take = |index| results.take(LogId::new(1, index));
        assert_eq!(take(1), given(""));
        assert_eq!((take(2), take(3), take(4)), (given("w1"), given("c2"), given("w1")));
        assert_eq!((take(5), take(6)), (Fate::Overwritten, given("w3")));
        assert_eq!((take(7), take(8)), (Fate::Applied(Answer::OutOfSequence), given("w3")));
        let mut results = replica.apply(vec![vec![write(9, 0)]], true).await.unwrap();
        assert_eq!(results.take(LogId::new(1, 9)), given("w1"), "also in a later batch");
    }

    #[tokio::test]
    async fn sessions_are_kept_where_nobody_wants_results() {
        let mut replica = replica();
        replica.apply(vec![vec![open(1), write(2, 0)]], false).await.unwrap();
        let mut results = replica.apply(vec![vec![write(3, 0)]], true).await.unwrap();
        assert_eq!(results.take(LogId::new(1, 3)), given("w1"));
    }

    #[tokio::test]
    async fn a_machine_that_reflects_a_write_already_does_not_apply_it_again() {
        let mut replica = replica();
        pass_sessions(&mut replica.sessions, vec![open(1), write(2, 0)]);
        let mut results = replica.apply(vec![vec![write(3, 0), write(4, 1)]], true).await.unwrap();
        assert_eq!(results.take(LogId::new(1, 3)), Fate::Applied(Answer::Forgotten));
        assert_eq!(results.take(LogId::new(1, 4)), given("w1"));
    }

    #[tokio::test]
    async fn nonsense_in_a_session_is_answered_and_does_no_harm() {
        let nonsense = entry(1, 1, EntryKind::Session, "nonsense");
        let clock = entry(1, 2, EntryKind::Clock, "short");
        let mut results = replica().apply(vec![vec![nonsense, clock]], true).await.unwrap();
        assert_eq!(results.take(LogId::new(1, 1)), Fate::Applied(Answer::OutOfSequence));
    }

    #[tokio::test]
    async fn a_failing_machine_is_fatal_in_every_way_it_can_fail() {
        for (data, says) in [("panic", "panicked"), ("fail", "as told"), ("short", "0 results for 1 commands")] {
            let entries = vec![entry(1, 1, EntryKind::Command, data)];
            let fatal = replica().apply(vec![entries], true).await.unwrap_err();
            assert!(fatal.to_string().contains(says), "{fatal}");
        }
    }
}
