//! Work beside the log: making the next segment before it is needed, and removing compacted ones.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};

use raftkv::StorageError;

use crate::reader::Shared;
use crate::segment;
use crate::vfs::{Vfs, VfsFile, failed, give_back, give_back_some, remove_all};

type Made = Result<Arc<dyn VfsFile>, StorageError>;

/// Segments that are to be removed, the oldest first, and who may still be reading them.
type Compacted = VecDeque<(u64, Arc<Shared>)>;

/// Below this a segment is not worth making; a disk with less room than this is full.
const MIN_SEGMENT: u64 = 64 << 10;

enum Job {
    Make(Order, Sender<Made>),
    Remove(Vec<u64>, Arc<Shared>),
}

/// A segment that is wanted.
#[derive(Clone, Copy)]
struct Order {
    id: u64,
    /// Filled with zeros, or only with room reserved.
    zeroed: bool,
    /// How small it may be where the disk is nearly full, in bytes.
    least: u64,
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
            .spawn(move || worker.serve(&queue))
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

    fn order(&self, order: Order) -> Receiver<Made> {
        let (made, taken) = channel();
        self.submit(Job::Make(order, made));
        taken
    }

    /// Starts to make a segment, filled with zeros or only with room reserved, unless that has been done.
    pub(crate) fn prepare(&mut self, id: u64, zeroed: bool) {
        if self.spare.as_ref().is_none_or(|(spare, _)| *spare != id) {
            self.spare = Some((id, self.order(Order { id, zeroed, least: self.place.size })));
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
        let order = Order { id, zeroed: true, least: MIN_SEGMENT };
        self.order(order).recv().unwrap_or_else(|_| self.place.make(order))
    }

    /// Removes segments, the oldest first, some time later. If that fails, the next open does it.
    pub(crate) fn remove(&self, ids: Vec<u64>, readers: &Arc<Shared>) {
        self.submit(Job::Remove(ids, Arc::clone(readers)));
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
    /// Makes a segment as soon as it is asked for, as a write may have to wait for it, and removes others in between, piece by piece.
    fn serve(&self, jobs: &Receiver<Job>) {
        let (mut compacted, mut removed) = (Compacted::new(), Vec::new());
        loop {
            let idle = compacted.is_empty() && removed.is_empty();
            let wait = || jobs.recv().map_err(|_| TryRecvError::Disconnected);
            match if idle { wait() } else { jobs.try_recv() } {
                Ok(Job::Remove(ids, readers)) => compacted.extend(ids.into_iter().map(|id| (id, Arc::clone(&readers)))),
                Ok(Job::Make(order, made)) => {
                    let mut file = self.make(Order { least: self.size, ..order });
                    if matches!(file, Err(StorageError::Full { .. })) {
                        removed.clear();
                        self.remove_at_once(&mut compacted);
                        file = self.make(order);
                    }
                    hand_over(file, order, &made);
                }
                Err(TryRecvError::Empty) => {
                    removed.pop_if(|file: &mut Arc<dyn VfsFile>| !give_back_some(&**file));
                    if removed.is_empty()
                        && let Some((id, readers)) = compacted.pop_front()
                    {
                        removed = told(self.remove(id, &readers));
                    }
                }
                // The log is being closed: the next start finds less to do.
                Err(TryRecvError::Disconnected) => return self.remove_at_once(&mut compacted),
            }
        }
    }

    /// Without a thread.
    fn run(&self, job: Job) {
        match job {
            Job::Make(order, made) => hand_over(self.make(order), order, &made),
            Job::Remove(ids, readers) => {
                for id in ids {
                    told(self.remove(id, &readers)).iter().for_each(|file| give_back(&**file));
                }
            }
        }
    }

    fn remove_at_once(&self, compacted: &mut Compacted) {
        let ids: Vec<u64> = compacted.iter().map(|(id, _)| *id).collect();
        told(remove(&*self.vfs, &self.dir, &ids));
        for (id, readers) in compacted.drain(..) {
            readers.let_go(id);
        }
    }

    /// Removes a segment, and returns its file if nobody is reading it: its room is to be given back piece by piece.
    fn remove(&self, id: u64, readers: &Shared) -> Result<Vec<Arc<dyn VfsFile>>, StorageError> {
        let removed = remove_all(&*self.vfs, &self.dir, &[segment::path(&self.dir, id)]);
        // Also where that failed: its name may be gone all the same.
        let is_read = readers.let_go(id);
        let files = removed?;
        tracing::debug!(segment = id, "removed a segment");
        Ok(if is_read { Vec::new() } else { files })
    }

    fn make(&self, order: Order) -> Made {
        let mut size = self.size;
        loop {
            match segment::create(&*self.vfs, &self.dir, order.id, size, order.zeroed) {
                Err(StorageError::Full { .. }) if size / 2 >= order.least => size /= 2,
                made => return made,
            }
        }
    }
}

fn hand_over(file: Made, order: Order, made: &Sender<Made>) {
    if let Err(error) = &file {
        tracing::warn!(segment = order.id, %error, "the next segment could not be made");
    }
    // Nobody waits for it when the log is being closed.
    let _ = made.send(file);
}

/// What could not be removed is no harm.
fn told<T: Default>(removed: Result<T, StorageError>) -> T {
    removed.unwrap_or_else(|error| {
        tracing::warn!(%error, "compacted segments could not be removed; the next start tries again");
        T::default()
    })
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

#[cfg(all(test, feature = "testing"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;
    use crate::directory::Owner;
    use crate::frame::Identity;
    use crate::index::LogIndex;
    use crate::recovery::Home;
    use crate::sim::SimDisk;
    use raftkv::{ClusterId, GroupId, NodeId};

    const SIZE: u64 = 100 << 10;

    /// A disk with so many segments, and who reads them.
    fn segments(size: u64, ids: std::ops::RangeInclusive<u64>) -> (SimDisk, Place, Vec<Arc<dyn VfsFile>>, Arc<Shared>) {
        let (disk, dir) = (SimDisk::new(), Path::new("/log"));
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        vfs.create_dir_all(dir).unwrap();
        let place = Place { vfs: Arc::clone(&vfs), dir: dir.to_owned(), size };
        let files = ids.map(|id| place.make(Order { id, zeroed: false, least: size }).unwrap()).collect();
        let identity = Identity { cluster: ClusterId(1), node: NodeId(1), group: GroupId(1) };
        let home = Home { vfs, dir: dir.to_owned(), owner: Owner { identity, nonce: 1 } };
        (disk, place, files, Arc::new(Shared::new(home, LogIndex::default())))
    }

    /// A disk of ten segments and so many bytes, of which all ten are to be removed when another is wanted: what was made, and what became of the disk.
    fn wanted(room: usize) -> (Made, SimDisk) {
        let (disk, place, _, readers) = segments(SIZE, 1..=10);
        disk.set_capacity(Some(disk.used() + room));
        let (jobs, queue) = channel();
        let first = Arc::downgrade(&readers.file(1).unwrap());
        jobs.send(Job::Remove((1..=10).collect(), readers)).unwrap();
        let (made, taken) = channel();
        jobs.send(Job::Make(Order { id: 11, zeroed: true, least: MIN_SEGMENT }, made)).unwrap();
        drop(jobs);
        disk.record();
        place.serve(&queue);
        assert_eq!(first.strong_count(), 0, "it would take its room for as long as it is open");
        (taken.recv().unwrap(), disk)
    }

    /// As long as nothing else is wanted, that is.
    #[test]
    fn segments_that_nobody_reads_are_cut_on_the_way() {
        let size = 9 << 20;
        let (disk, place, files, readers) = segments(size, 1..=3);
        let read = readers.file(2).unwrap();
        drop(readers.file(3).unwrap());
        let (jobs, queue) = channel();
        let worker = thread::Builder::new().spawn(move || place.serve(&queue)).unwrap();
        jobs.send(Job::Remove(vec![1, 2, 3], Arc::clone(&readers))).unwrap();
        let lens = || files.iter().map(|file| file.len().unwrap()).collect::<Vec<_>>();
        let most = std::time::Duration::from_secs(20);
        let began = std::time::Instant::now();
        while lens() != [1 << 20, size, 1 << 20] && began.elapsed() < most {
            thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(lens(), [1 << 20, size, 1 << 20], "the second is being read");
        assert!(!(1..=3).any(|id| is_there(&disk, id)), "{:?}", disk.files());
        // It answers still.
        let (made, taken) = channel();
        jobs.send(Job::Make(Order { id: 4, zeroed: false, least: size }, made)).unwrap();
        assert_eq!(taken.recv().unwrap().unwrap().len().unwrap(), size);
        drop(read);
        drop(jobs);
        worker.join().unwrap();
    }

    fn is_there(disk: &SimDisk, id: u64) -> bool {
        disk.contents(&segment::path(Path::new("/log"), id)).is_some()
    }

    /// A write may wait for it, and to remove a GiB takes half a second.
    #[test]
    fn a_segment_that_is_wanted_does_not_wait_for_others_to_be_removed() {
        let (made, disk) = wanted(1 << 20);
        assert_eq!(made.unwrap().len().unwrap(), SIZE);
        assert!((1..=10).all(|id| !is_there(&disk, id)), "those go as well: {:?}", disk.files());
        let both = |moment: &crate::sim::Moment| {
            let disk = moment.kill();
            is_there(&disk, 11) && is_there(&disk, 1)
        };
        assert!(disk.take_recording().iter().any(both), "it came after they had gone");
    }

    #[test]
    fn a_segment_on_a_full_disk_takes_the_room_of_those_that_are_to_be_removed() {
        let (made, disk) = wanted(1000);
        assert_eq!(made.unwrap().len().unwrap(), SIZE);
        assert!((1..=10).all(|id| !is_there(&disk, id)), "{:?}", disk.files());
    }
}
