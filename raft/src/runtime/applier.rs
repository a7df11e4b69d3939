//! Applies committed entries to the state machine, as many at once as are there.
//!
//! A task of its own: a state machine that takes its time delays nothing else. The core bounds what is handed over and
//! not yet applied (`Config::max_applying_bytes`).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures_util::FutureExt;

use super::clock::Clock;
use super::mailbox::{Closed, Mailbox};
use super::pace::{HELD, Pace, Took, Waiting};
use super::panic_text;
use super::pending::Results;
use super::replica::Replica;
use super::snapshotter::Frozen;
use crate::error::{Fatal, FatalKind};
use crate::traits::{Published, Snapshot, SnapshotId};
use crate::types::{Entry, LogId};

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
    Applied {
        results: Results,
        /// How many sessions are open, and what is kept for them, in bytes.
        sessions: (u64, u64),
    },
    Frozen(Frozen),
    Restored {
        /// The last entry that the image reflects.
        last: LogId,
        /// As for `Applied`.
        sessions: (u64, u64),
    },
}

/// What was done, or the reason why nothing more can be.
pub(crate) type Outcome = Result<Done, Fatal>;

/// What the applier has besides its jobs.
pub(crate) struct Desk {
    pub(crate) images: Arc<dyn Snapshot>,
    /// Tells how long batches take.
    pub(crate) clock: Clock,
    pub(crate) pace: Pace,
    /// Counts signs of life of a state machine that takes long.
    pub(crate) signs: Arc<AtomicU64>,
}

/// Runs until its jobs are closed, or something fails. The state machine is dropped at the end, in all cases.
pub(crate) async fn run(mut replica: Replica, mut desk: Desk, jobs: Arc<Mailbox<Job>>, done: Arc<Mailbox<Outcome>>) {
    let ended = AssertUnwindSafe(serve(&mut replica, &mut desk, &jobs, &done)).catch_unwind().await;
    if let Err(panic) = ended {
        let reason = format!("the applier panicked: {}", panic_text(&*panic));
        let _ = done.push(Err(Fatal::new(FatalKind::Bug(reason))));
    }
    // The node stops first, and says why: to let go of a state machine may take as long as its disk does.
    let mut undone = Vec::new();
    while jobs.take(&mut undone).await {
        undone.clear();
    }
}

async fn serve(replica: &mut Replica, desk: &mut Desk, jobs: &Mailbox<Job>, done: &Mailbox<Outcome>) {
    let mut queued = Vec::new();
    while jobs.take(&mut queued).await {
        let mut jobs = queued.drain(..).peekable();
        while let Some(job) = jobs.next() {
            let outcome = match job {
                Job::Apply(first) => {
                    let mut waiting = Waiting::default();
                    waiting.push(first);
                    while let Some(Job::Apply(next)) = jobs.next_if(|job| matches!(job, Job::Apply(_))) {
                        waiting.push(next);
                    }
                    if !apply(replica, desk, waiting, done).await {
                        return;
                    }
                    continue;
                }
                Job::Freeze(id) => replica.freeze(id).await.map(Done::Frozen),
                Job::Restore(image) => {
                    let restored = replica.restore(&desk.images, &desk.signs, image).await;
                    restored.map(|last| Done::Restored { last, sessions: replica.sessions.tally() })
                }
            };
            if !tell(done, outcome) {
                return;
            }
        }
    }
}

/// Applies all that waits, batch by batch. False once it failed, or the node ends.
async fn apply(replica: &mut Replica, desk: &mut Desk, mut waiting: Waiting, done: &Mailbox<Outcome>) -> bool {
    let mut next = desk.pace.take(&mut waiting);
    while let Some((lists, wants_results)) = next {
        let entries = lists.iter().map(Vec::len).sum();
        let (results, took) = Took::by(&desk.clock, replica.apply(lists, wants_results)).await;
        desk.pace.took(entries, took);
        let outcome = results.map(|results| Done::Applied { results, sessions: replica.sessions.tally() });
        if !tell(done, outcome) {
            return false;
        }
        next = desk.pace.take(&mut waiting);
        if next.is_some() || took.held > HELD / 4 {
            // All else of this thread comes before the next, such as heartbeats.
            tokio::task::yield_now().await;
        }
    }
    true
}

/// Says what was done. False if it was the last.
fn tell(done: &Mailbox<Outcome>, outcome: Outcome) -> bool {
    let failed = outcome.is_err();
    match done.push(outcome) {
        Ok(()) => !failed,
        Err(Closed(outcome)) => {
            if let Err(error) = outcome {
                tracing::warn!(%error, "the state machine failed as the node ended");
            }
            false
        }
    }
}
