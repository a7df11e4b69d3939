//! Work beside the log: making the next segment before it is needed, and removing compacted ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use raftkv::StorageError;

use crate::segment;
use crate::vfs::{Vfs, VfsFile, failed};

type Made = Result<Arc<dyn VfsFile>, StorageError>;

/// Below this a segment is not worth making; a disk with less room than this is full.
const MIN_SEGMENT: u64 = 64 << 10;

enum Job {
    Make(u64, bool, Sender<Made>),
    Remove(Vec<u64>),
}

/// Keeps segment files: on a thread of its own, or in the calls themselves.
#[derive(Debug)]
pub(crate) struct Keeper {
    place: Place,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    spare: Option<(u64, Receiver<Made>)>,
}

#[derive(Clone, Debug)]
struct Place {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    size: u64,
}

impl Keeper {
    pub(crate) fn new(vfs: Arc<dyn Vfs>, dir: PathBuf, size: u64, background: bool) -> Result<Self, StorageError> {
        let place = Place { vfs, dir, size };
        if !background {
            return Ok(Self { place, jobs: None, thread: None, spare: None });
        }
        let (jobs, queue) = channel();
        let worker = place.clone();
        let thread = thread::Builder::new()
            .name("raftkv-segments".into())
            .spawn(move || queue.into_iter().for_each(|job| worker.run(job)))
            .map_err(failed("start a thread for", &place.dir))?;
        Ok(Self { place, jobs: Some(jobs), thread: Some(thread), spare: None })
    }

    fn submit(&self, job: Job) {
        match &self.jobs {
            // The worker ends only after the sender.
            Some(jobs) => drop(jobs.send(job)),
            None => self.place.run(job),
        }
    }

    /// Starts to make a segment, filled with zeros or only with room reserved, unless that has been done.
    pub(crate) fn prepare(&mut self, id: u64, zeroed: bool) {
        if self.spare.as_ref().is_none_or(|(spare, _)| *spare != id) {
            let (made, spare) = channel();
            self.spare = Some((id, spare));
            self.submit(Job::Make(id, zeroed, made));
        }
    }

    /// The file of a segment, made now if it was not prepared. On a disk that is nearly full it may be smaller than usual.
    pub(crate) fn take(&mut self, id: u64) -> Made {
        if let Some((spare, made)) = self.spare.take()
            && spare == id
            && let Ok(Ok(file)) = made.recv()
        {
            return Ok(file);
        }
        self.place.make(id, MIN_SEGMENT)
    }

    /// Removes segments, some time later. If that fails, the next open does it.
    pub(crate) fn remove(&self, ids: Vec<u64>) {
        self.submit(Job::Remove(ids));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported there, and nothing depends on its result.
            let _ = thread.join();
        }
    }
}

impl Place {
    fn run(&self, job: Job) {
        match job {
            Job::Make(id, zeroed, made) => {
                let result = segment::create(&*self.vfs, &self.dir, id, self.size, zeroed);
                if let Err(error) = &result {
                    tracing::warn!(segment = id, %error, "the next segment could not be made in advance");
                }
                // Nobody waits for it when the log is being closed.
                let _ = made.send(result);
            }
            Job::Remove(ids) => {
                if let Err(error) = remove(&*self.vfs, &self.dir, &ids) {
                    tracing::warn!(%error, "compacted segments could not be removed; the next start tries again");
                }
            }
        }
    }

    fn make(&self, id: u64, least: u64) -> Made {
        let mut size = self.size;
        loop {
            match segment::create(&*self.vfs, &self.dir, id, size, true) {
                Err(StorageError::Full { .. }) if size / 2 >= least => size /= 2,
                made => return made,
            }
        }
    }
}

/// Removes segment files, oldest first, durably.
pub(crate) fn remove(vfs: &dyn Vfs, dir: &Path, ids: &[u64]) -> Result<(), StorageError> {
    if ids.is_empty() {
        return Ok(());
    }
    for id in ids {
        let path = segment::path(dir, *id);
        vfs.remove(&path).map_err(failed("remove", &path))?;
        tracing::debug!(segment = id, "removed a segment");
    }
    vfs.sync_dir(dir).map_err(failed("fsync", dir))
}
