//! How large the database of the contents becomes when everything in it is written anew, again and again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use kv_example::api::command::command;
use kv_example::api::etcdserverpb::{CompactionRequest, PutRequest};
use kv_example::backends::redb::{Options, Owner, RedbMachine};
use kv_example::machine::encode_command;
use raftkv::{Chunks, ClusterId, LogId, NodeId, StateMachine};

const OWNER: Owner = Owner { cluster: ClusterId(7), node: NodeId(1) };
/// What is there at any time, and what one round writes anew.
const KEYS: u64 = 300;
const VALUE: usize = 1000;
const ROUNDS: u64 = 40;

/// A machine, and what it has been told.
struct Subject {
    machine: RedbMachine,
    file: PathBuf,
    last: u64,
}

impl Subject {
    fn new(dir: &Path) -> Self {
        let file = dir.join("kv.redb");
        // Without threads, so that what a compaction leaves is dropped when it is applied. Some 80 commands are in memory alone.
        let options = Options { cache_bytes: 1 << 20, sync_bytes: 100 << 10, background: false, ..Options::default() };
        Self { machine: RedbMachine::open(&file, OWNER, options).unwrap(), file, last: 0 }
    }

    async fn apply(&mut self, body: command::Body) {
        self.last += 1;
        self.machine.apply(LogId::new(1, self.last), encode_command(body)).await.unwrap();
    }

    /// Writes all keys anew, one command a batch, as a node does that is not busy.
    async fn overwrite(&mut self) {
        for n in 0..KEYS {
            let key = Bytes::from(format!("key-{:03}", n * 7 % KEYS));
            let value = vec![self.last.to_le_bytes()[0]; VALUE].into();
            self.apply(command::Body::Put(PutRequest { key, value, ..Default::default() })).await;
        }
    }

    async fn compact(&mut self) {
        let revision = self.machine.view().revision();
        self.apply(command::Body::Compact(CompactionRequest { revision, physical: false })).await;
    }

    fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.file).unwrap().len()
    }
}

/// What the file may have at most: 4.8 MB for 300 kB of keys and values. There are two versions of each key until they are compacted, and pages around them; what the last commits have
/// replaced waits for the next sync; and redb doubles a file that is full. It comes to 4.5 MB, however often a transaction is synced.
const BOUND: u64 = 16 * KEYS * VALUE as u64;

async fn read_to_the_end(mut image: Box<dyn Chunks>) -> usize {
    let mut bytes = 0;
    while let Some(part) = image.next().await.unwrap() {
        bytes += part.len();
    }
    bytes
}

#[tokio::test]
async fn a_database_that_is_overwritten_and_compacted_uses_its_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(dir.path());
    let mut sizes = Vec::new();
    for _ in 0..ROUNDS {
        subject.overwrite().await;
        subject.compact().await;
        sizes.push(subject.file_bytes());
    }
    let (early, late) = sizes.split_at(sizes.len() / 4);
    let largest = sizes.iter().copied().max().unwrap();
    assert!(late.iter().all(|size| early.contains(size)), "it went on to grow: {sizes:?}");
    let stats = subject.machine.view().stats();
    assert_eq!((stats.live, stats.versions), (KEYS, KEYS));
    println!(
        "{} KiB of contents, {} KiB written, {} KiB of file",
        stats.bytes >> 10,
        (ROUNDS * KEYS * VALUE as u64) >> 10,
        largest >> 10
    );
    const { assert!(BOUND < ROUNDS * KEYS * VALUE as u64 / 2, "this measures nothing") };
    assert!(largest < BOUND, "{largest} bytes for {} of contents", stats.bytes);
}

/// The view that an image is of keeps what is overwritten meanwhile, so the file grows with that: which shows that the bound above can be exceeded. When the
/// image is complete, that room is used as well, and the file grows no more.
#[tokio::test]
async fn what_an_image_has_kept_from_being_used_again_is_used_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(dir.path());
    subject.overwrite().await;
    let image = subject.machine.snapshot().await.unwrap();
    for _ in 0..ROUNDS {
        subject.overwrite().await;
        subject.compact().await;
    }
    let grown = subject.file_bytes();
    assert!(grown > BOUND, "{grown} bytes while an image is read: is there anything that keeps pages?");
    assert!(read_to_the_end(image).await > KEYS as usize * VALUE);
    for _ in 0..ROUNDS {
        subject.overwrite().await;
        subject.compact().await;
        let image = subject.machine.snapshot().await.unwrap();
        assert!(read_to_the_end(image).await > KEYS as usize * VALUE);
    }
    assert!(subject.file_bytes() <= grown, "{} bytes, and {grown} before", subject.file_bytes());
}

/// A restore fills tables of its own beside those that are there, and then deletes these.
#[tokio::test]
async fn restores_one_after_the_other_take_the_room_of_two() {
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(dir.path());
    subject.overwrite().await;
    subject.compact().await;
    let mut largest = 0;
    for _ in 0..ROUNDS {
        let mut parts = Vec::new();
        let mut image = subject.machine.snapshot().await.unwrap();
        while let Some(part) = image.next().await.unwrap() {
            parts.push(part);
        }
        drop(image);
        subject.last += 1;
        let last = LogId::new(1, subject.last);
        subject.machine.restore_recorded(Box::new(parts.into_iter()), Vec::new(), last).await.unwrap();
        largest = largest.max(subject.file_bytes());
    }
    assert_eq!(subject.machine.view().stats().live, KEYS);
    assert!(largest < BOUND, "{largest} bytes after {ROUNDS} restores of {KEYS} values of {VALUE} bytes");
}
