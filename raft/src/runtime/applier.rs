//! Applies committed entries to the state machine, as many at once as are there.
//!
//! A task of its own: a state machine that takes its time delays nothing else. The core bounds what is handed over and
//! not yet applied (`Config::max_applying_bytes`).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use super::image::{self, Section};
use super::mailbox::Mailbox;
use super::panic_text;
use super::pending::Results;
use super::snapshotter::Frozen;
use crate::error::{Fatal, FatalKind};
use crate::traits::{Published, Snapshot, SnapshotId, SnapshotMeta, StateMachine};
use crate::types::{Entry, EntryKind, Index, LogId, Membership};

/// Something to do with the state machine. Jobs are done in order.
#[derive(Debug)]
pub(crate) enum Job {
    /// Apply these.
    Apply(Entries),
    /// Freeze a view of what is applied by now, under this name.
    Freeze(SnapshotId),
    /// Replace the state by this image.
    Restore(Published),
}

/// Entries to apply.
#[derive(Debug)]
pub(crate) struct Entries {
    /// Contiguous; follow those of the job before. At least one.
    pub(crate) entries: Vec<Entry>,
    /// Whether anyone may want to know the results.
    pub(crate) wants_results: bool,
}

/// What was done.
#[derive(Debug)]
pub(crate) enum Done {
    Applied(Results),
    Frozen(Frozen),
    /// The last entry that the image reflects.
    Restored(LogId),
}

/// What was done, or the reason why nothing more can be.
pub(crate) type Outcome = Result<Done, Fatal>;

/// Where the state machine stands.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// The last entry that it reflects.
    pub(crate) applied: LogId,
    /// The configuration in force there, and the entry that brought it.
    pub(crate) membership_at: LogId,
    pub(crate) membership: Membership,
}

/// Runs until its jobs are closed, or something fails. The state machine is dropped at the end, in all cases.
pub(crate) async fn run(
    machine: Box<dyn StateMachine>,
    standing: Standing,
    images: Arc<dyn Snapshot>,
    jobs: Arc<Mailbox<Job>>,
    done: Arc<Mailbox<Outcome>>,
) {
    let ended = AssertUnwindSafe(serve(machine, standing, &images, &jobs, &done)).catch_unwind().await;
    if let Err(panic) = ended {
        let reason = format!("the applier panicked: {}", panic_text(&*panic));
        let _ = done.push(Err(Fatal::new(FatalKind::Bug(reason))));
    }
}

async fn serve(
    mut machine: Box<dyn StateMachine>,
    mut standing: Standing,
    images: &Arc<dyn Snapshot>,
    jobs: &Mailbox<Job>,
    done: &Mailbox<Outcome>,
) {
    let mut queued = Vec::new();
    while jobs.take(&mut queued).await {
        let mut jobs = queued.drain(..).peekable();
        while let Some(job) = jobs.next() {
            let outcome = match job {
                Job::Apply(first) => {
                    let mut batch = vec![first];
                    while let Some(Job::Apply(next)) = jobs.next_if(|job| matches!(job, Job::Apply(_))) {
                        batch.push(next);
                    }
                    batch.iter().for_each(|job| standing.pass(&job.entries));
                    apply(&mut *machine, &mut batch).await.map(Done::Applied)
                }
                Job::Freeze(id) => freeze(&*machine, &standing, id).await.map(Done::Frozen),
                Job::Restore(image) => restore(&mut *machine, &mut standing, images, image).await.map(Done::Restored),
            };
            let failed = outcome.is_err();
            if done.push(outcome).is_err() || failed {
                return;
            }
        }
    }
}

impl Standing {
    /// These are about to be applied.
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

/// A panic of the state machine is its failure.
async fn restore(
    machine: &mut dyn StateMachine,
    standing: &mut Standing,
    images: &Arc<dyn Snapshot>,
    Published { meta, .. }: Published,
) -> Result<LogId, Fatal> {
    let (_, chunks) = image::open(images, meta.id).await?;
    let restored = AssertUnwindSafe(async { machine.restore(chunks).await }).catch_unwind().await;
    restored.map_err(|panic| {
        Fatal::state_machine(format!("it panicked while it was restored from an image: {}", panic_text(&*panic)))
    })??;
    let SnapshotMeta { id: _, last, membership, membership_at } = meta;
    *standing = Standing { applied: last, membership_at, membership };
    Ok(last)
}

/// A panic of the state machine is its failure.
async fn freeze(machine: &dyn StateMachine, standing: &Standing, id: SnapshotId) -> Result<Frozen, Fatal> {
    let frozen = AssertUnwindSafe(async { machine.snapshot().await }).catch_unwind().await;
    let chunks = frozen.map_err(|panic| {
        Fatal::state_machine(format!("it panicked while its view was frozen: {}", panic_text(&*panic)))
    })??;
    let Standing { applied, membership_at, membership } = standing.clone();
    let meta = SnapshotMeta { id, last: applied, membership, membership_at };
    Ok(Frozen { meta, image: image::wrap(&Section {}, chunks) })
}

async fn apply(machine: &mut dyn StateMachine, jobs: &mut Vec<Entries>) -> Result<Results, Fatal> {
    let mut batch = Batch::new(jobs.iter().map(|job| job.entries.len()).sum());
    let mut wants_results = false;
    for job in jobs.drain(..) {
        wants_results |= job.wants_results;
        job.entries.into_iter().for_each(|entry| batch.add(entry));
    }
    let Batch { commands, runs, from, last } = batch;
    let answers = if commands.is_empty() { Vec::new() } else { apply_commands(machine, commands).await? };
    if !wants_results {
        let mut results = Results::none(last.index);
        results.extend_to(last);
        return Ok(results);
    }
    Ok(sort(answers, &runs, from, last))
}

/// A panic of the state machine is its failure.
async fn apply_commands(machine: &mut dyn StateMachine, commands: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
    let (expected, at) = (commands.len(), commands.first().map_or(Index::ZERO, |(id, _)| id.index));
    let answers = AssertUnwindSafe(async { machine.apply_batch(commands).await })
        .catch_unwind()
        .await
        .map_err(|panic| panicked(&*panic, expected, at))??;
    if answers.len() != expected {
        let got = answers.len();
        return Err(Fatal::state_machine(format!(
            "apply_batch returned {got} results for {expected} commands (from index {}); it must return one for each",
            at.0
        )));
    }
    Ok(answers)
}

fn panicked(panic: &(dyn std::any::Any + Send), commands: usize, at: Index) -> Fatal {
    let text = panic_text(panic);
    Fatal::state_machine(format!("it panicked while applying {commands} commands from index {}: {text}", at.0))
}

/// The commands among some entries, and where they stand.
struct Batch {
    commands: Vec<(LogId, Bytes)>,
    /// Stretches of commands with contiguous indexes and one term: the first, and how many.
    runs: Vec<(LogId, usize)>,
    /// The first and the last entry, command or not.
    from: Index,
    last: LogId,
}

impl Batch {
    fn new(capacity: usize) -> Self {
        Self { commands: Vec::with_capacity(capacity), runs: Vec::new(), from: Index::ZERO, last: LogId::ZERO }
    }

    fn add(&mut self, entry: Entry) {
        if self.last == LogId::ZERO {
            self.from = entry.id.index;
        }
        self.last = entry.id;
        match entry.kind {
            EntryKind::Command => {
                match self.runs.last_mut() {
                    Some((first, count))
                        if first.term == entry.id.term && first.index.plus(*count as u64) == entry.id.index =>
                    {
                        *count += 1;
                    }
                    Some(_) | None => self.runs.push((entry.id, 1)),
                }
                self.commands.push((entry.id, entry.data));
            }
            EntryKind::Noop | EntryKind::Config => {}
        }
    }
}

/// Files the answers under their log ids.
fn sort(mut answers: Vec<Bytes>, runs: &[(LogId, usize)], from: Index, last: LogId) -> Results {
    let mut results = Results::none(from.prev());
    for (n, (first, count)) in runs.iter().enumerate() {
        let rest = if n + 1 == runs.len() { Vec::new() } else { answers.split_off(*count) };
        results.push_run(*first, std::mem::replace(&mut answers, rest));
    }
    results.extend_to(last);
    results
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::super::pending::Fate;
    use super::*;
    use crate::traits::Chunks;

    /// Answers each command with itself; "panic", "fail" and "short" do as they say.
    struct Parrot;

    #[async_trait]
    impl StateMachine for Parrot {
        async fn apply(&mut self, _at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
            Ok(command)
        }

        async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
            match &batch[0].1[..] {
                b"panic" => panic!("as told"),
                b"fail" => Err(Fatal::state_machine("as told")),
                b"short" => Ok(Vec::new()),
                _ => Ok(batch.into_iter().map(|(_, command)| command).collect()),
            }
        }

        async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
            Err(Fatal::state_machine("no snapshots"))
        }

        async fn restore(&mut self, _image: Box<dyn Chunks>) -> Result<(), Fatal> {
            Err(Fatal::state_machine("no snapshots"))
        }
    }

    fn entry(term: u64, index: u64, kind: EntryKind, data: &'static str) -> Entry {
        Entry { id: LogId::new(term, index), kind, data: data.into() }
    }

    fn command(data: &'static str) -> Entries {
        Entries { entries: vec![entry(1, 1, EntryKind::Command, data)], wants_results: true }
    }

    #[tokio::test]
    async fn jobs_are_applied_together_and_results_filed_by_id() {
        let first = vec![entry(1, 4, EntryKind::Command, "a"), entry(2, 5, EntryKind::Noop, "")];
        let second = vec![entry(2, 6, EntryKind::Command, "b"), entry(2, 7, EntryKind::Config, "x")];
        let job = |entries| Entries { entries, wants_results: true };
        let mut results = apply(&mut Parrot, &mut vec![job(first), job(second)]).await.unwrap();
        assert_eq!(results.upto(), Index(7));
        assert_eq!(results.take(LogId::new(1, 4)), Fate::Applied("a".into()));
        assert_eq!(results.take(LogId::new(1, 5)), Fate::Overwritten);
        assert_eq!(results.take(LogId::new(2, 6)), Fate::Applied("b".into()));
    }

    #[tokio::test]
    async fn a_failing_machine_is_fatal_in_every_way_it_can_fail() {
        for (data, says) in [("panic", "panicked"), ("fail", "as told"), ("short", "0 results for 1 commands")] {
            let fatal = apply(&mut Parrot, &mut vec![command(data)]).await.unwrap_err();
            assert!(fatal.to_string().contains(says), "{fatal}");
        }
    }
}
