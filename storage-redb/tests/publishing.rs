//! Two images that are published at the same time, in each order in which their steps can meet: a file system that stands still in the middle of
//! one sees to it that they do. A node comes to this when it has taken an image of its own while it receives one from the leader.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use raftkv::{LogId, Membership, Peer, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter};
use raftkv_storage_file::sim::SimDisk;
use raftkv_storage_file::{Access, Guard, Vfs, VfsFile};
use raftkv_storage_redb::{Commit, RedbSnapshots, SnapshotOptions};
use support::IDENTITY;

/// The line in these tests.
const LINE: usize = 1000;

/// A disk on which the next sync of a file can be made to wait.
#[derive(Clone, Debug)]
struct Halting {
    disk: SimDisk,
    /// Which file, by a part of its name; whom to tell; and what to wait for.
    halt: Arc<Mutex<Option<Halt>>>,
}

#[derive(Debug)]
struct Halt {
    name: &'static str,
    arrived: Sender<()>,
    go_on: Receiver<()>,
}

#[derive(Debug)]
struct HaltingFile {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    of: Halting,
}

impl Halting {
    fn new() -> Self {
        Self { disk: SimDisk::new(), halt: Arc::default() }
    }

    /// The next sync of such a file tells the first of these that it has come, and waits for the other.
    fn halt(&self, name: &'static str) -> (Receiver<()>, Sender<()>) {
        let ((arrived, seen), (go, go_on)) = (channel(), channel());
        *self.halt.lock().unwrap() = Some(Halt { name, arrived, go_on });
        (seen, go)
    }

    fn pass(&self, path: &Path) {
        let mut halt = self.halt.lock().unwrap();
        let this = halt.take_if(|halt| path.to_string_lossy().contains(halt.name));
        drop(halt);
        if let Some(Halt { arrived, go_on, .. }) = this {
            arrived.send(()).unwrap();
            go_on.recv().unwrap();
        }
    }
}

impl Vfs for Halting {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn VfsFile>> {
        let file = self.disk.open(path, access)?;
        Ok(Arc::new(HaltingFile { file, path: path.to_owned(), of: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Guard>> {
        self.disk.lock(path)
    }

    fn random(&self) -> u64 {
        self.disk.random()
    }
}

impl VfsFile for HaltingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.of.pass(&self.path);
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        self.file.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

fn meta(index: u64) -> SnapshotMeta {
    let membership = Membership::new([Peer::new(1, "a:1"), Peer::new(2, "b:2")]);
    SnapshotMeta { id: SnapshotId(index), last: LogId::new(3, index), membership, membership_at: LogId::new(1, 1) }
}

fn bytes(index: u64, len: usize) -> Bytes {
    (0..len).map(|n| (n as u64 * 31 + index * 7).to_le_bytes()[0]).collect::<Vec<u8>>().into()
}

fn open(vfs: &Halting) -> RedbSnapshots {
    let options = SnapshotOptions { small_bytes: LINE, commit: Commit::OnePhase, background: true };
    RedbSnapshots::open_on(Arc::new(vfs.clone()), "/images", IDENTITY, options).unwrap()
}

async fn written(store: &RedbSnapshots, index: u64, len: usize) -> Box<dyn SnapshotWriter> {
    let mut writer = store.begin(meta(index)).await.unwrap();
    writer.append(bytes(index, len)).await.unwrap();
    writer
}

async fn assert_newest(store: &RedbSnapshots, (index, len): (u64, usize), case: &str) {
    let latest = store.latest().await.unwrap().map(|image| image.meta.last.index.0);
    assert_eq!(latest, Some(index), "{case}");
    let read = store.read(&SnapshotId(index), 0, len + 1).await.unwrap();
    assert!(read == bytes(index, len), "{case}: other bytes");
}

/// Both are published: the first stands still in the sync of a file with this in its name until the second has gone as far as it can, which is to its
/// end if it need not wait for the first. The newer of both must be there afterwards, and after reopening, and the other gone.
fn publish_both(name: &'static str, first: (u64, usize), second: (u64, usize)) {
    let case = format!("first {first:?}, held in the sync of {name}; then {second:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let vfs = Halting::new();
    runtime.block_on(async {
        let store = open(&vfs);
        let one = written(&store, first.0, first.1).await;
        let two = written(&store, second.0, second.1).await;
        let (arrived, go_on) = vfs.halt(name);
        let one = tokio::spawn(one.publish());
        tokio::task::spawn_blocking(move || arrived.recv_timeout(Duration::from_secs(20)).unwrap()).await.unwrap();
        // What is decided at once is decided now.
        let mut two = two.publish();
        let begun = two.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let two = tokio::spawn(async move { if let Poll::Ready(done) = begun { done } else { two.await } });
        // Time for whatever does not wait: should it be too short, the two meet in another order.
        tokio::time::sleep(Duration::from_millis(50)).await;
        go_on.send(()).unwrap();
        one.await.unwrap().unwrap();
        two.await.unwrap().unwrap();
        let newest = first.max(second);
        assert_newest(&store, newest, &case).await;
        drop(store);
        let is_image = |path: &&PathBuf| path.extension().is_some_and(|kind| kind == "snap" || kind == "part");
        let left = vfs.disk.files().iter().filter(is_image).count();
        assert_eq!(left, usize::from(newest.1 > LINE), "{case}: {:?}", vfs.disk.files());
        assert_newest(&open(&vfs), newest, &case).await;
    });
}

#[test]
fn an_older_small_image_does_not_replace_a_newer_one_whose_publishing_takes_longer() {
    publish_both("images.redb", (20, 100), (10, 100));
}

#[test]
fn a_small_image_published_beside_an_older_large_one_is_not_lost_with_it() {
    publish_both(".part", (10, 2000), (20, 100));
}

#[test]
fn a_large_image_published_beside_an_older_small_one_stays() {
    publish_both(".part", (20, 2000), (10, 100));
    publish_both("images.redb", (10, 100), (20, 2000));
}

#[test]
fn an_older_large_image_does_not_replace_a_newer_small_one_whose_publishing_takes_longer() {
    publish_both("images.redb", (20, 100), (10, 2000));
}

#[test]
fn of_two_images_on_the_same_side_of_the_line_the_newer_one_stays() {
    publish_both("images.redb", (10, 100), (20, 100));
    publish_both(".part", (10, 2000), (20, 2000));
    publish_both(".part", (20, 2000), (10, 2000));
}
