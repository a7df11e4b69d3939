//! The thread that writes: one for all commands, since the database takes one writer at a time, and since an allocator keeps what a thread has
//! freed for that thread, so that many threads in turn would take many times the cache.

use std::sync::mpsc;
use std::thread::JoinHandle;

use raftkv::Fatal;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
pub(super) struct Scribe {
    /// None at the end.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Scribe {
    pub(super) fn start() -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let run = move || queue.into_iter().for_each(|job| job());
        let thread = std::thread::Builder::new().name("kv-redb".into()).spawn(run)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs this there, and waits for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> Result<T, Fatal> + Send + 'static,
    ) -> Result<T, Fatal> {
        let (done, answer) = oneshot::channel();
        // Nobody may wait for the answer any more.
        let job: Job = Box::new(move || _ = done.send(run()));
        let ended = || Fatal::state_machine("the thread that writes the database has ended by a panic");
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(ended)?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // How it ends does not matter any more.
            _ = thread.join();
        }
    }
}
