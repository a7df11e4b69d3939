//! Applies committed entries to the state machine, as many at once as are there.
//!
//! A task of its own: a state machine that takes its time delays nothing else. The core bounds what is handed over and
//! not yet applied (`Config::max_applying_bytes`).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;

use super::mailbox::Mailbox;
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
    /// The last entry that the image reflects.
    Restored(LogId),
}

/// What was done, or the reason why nothing more can be.
pub(crate) type Outcome = Result<Done, Fatal>;

/// Runs until its jobs are closed, or something fails. The state machine is dropped at the end, in all cases.
pub(crate) async fn run(
    replica: Replica,
    images: Arc<dyn Snapshot>,
    jobs: Arc<Mailbox<Job>>,
    done: Arc<Mailbox<Outcome>>,
) {
    let ended = AssertUnwindSafe(serve(replica, &images, &jobs, &done)).catch_unwind().await;
    if let Err(panic) = ended {
        let reason = format!("the applier panicked: {}", panic_text(&*panic));
        let _ = done.push(Err(Fatal::new(FatalKind::Bug(reason))));
    }
}

async fn serve(mut replica: Replica, images: &Arc<dyn Snapshot>, jobs: &Mailbox<Job>, done: &Mailbox<Outcome>) {
    let mut queued = Vec::new();
    while jobs.take(&mut queued).await {
        let mut jobs = queued.drain(..).peekable();
        while let Some(job) = jobs.next() {
            let outcome = match job {
                Job::Apply(Entries { entries, mut wants_results }) => {
                    let mut batch = vec![entries];
                    while let Some(Job::Apply(next)) = jobs.next_if(|job| matches!(job, Job::Apply(_))) {
                        batch.push(next.entries);
                        wants_results |= next.wants_results;
                    }
                    let results = replica.apply(batch, wants_results).await;
                    results.map(|results| Done::Applied { results, sessions: replica.sessions.tally() })
                }
                Job::Freeze(id) => replica.freeze(id).await.map(Done::Frozen),
                Job::Restore(image) => replica.restore(images, image).await.map(Done::Restored),
            };
            let failed = outcome.is_err();
            if done.push(outcome).is_err() || failed {
                return;
            }
        }
    }
}
