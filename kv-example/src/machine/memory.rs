//! The machine in memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{Chunks, Fatal, Index, LogId, StateMachine, Term};
use tokio::sync::watch;

use super::{Engine, KvView, ReadError, SMALL_STORE, apply_one};
use crate::api::command::Author;
use crate::api::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::store::{Auth, Checksum, Head, Image, Loader, Room, Store, Sweep};

/// Commands applied under one lock. Readers get a turn between two such runs.
const RUN: usize = 256;
/// Keys looked through in one step of a sweep.
const SWEEP: usize = 512;

/// The state machine: applies commands to a store in memory.
///
/// It lives in memory. After a restart it gets the latest image and the commands after it.
#[derive(Debug, Default)]
pub struct KvMachine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: RwLock<Store>,
    /// The store's users and roles once more, so that whoever asks for them alone does not wait for a run of commands.
    auth: RwLock<Arc<Auth>>,
    /// The last command applied.
    index: AtomicU64,
    term: AtomicU64,
    /// Whether a thread is dropping what a compaction has left.
    sweeping: Mutex<bool>,
    /// The compaction whose garbage is gone.
    swept: watch::Sender<i64>,
}

impl Default for Shared {
    fn default() -> Self {
        let store = Store::new();
        let (swept, _) = watch::channel(store.head().swept);
        Self {
            auth: RwLock::new(store.head().auth.clone()),
            store: RwLock::new(store),
            index: AtomicU64::new(0),
            term: AtomicU64::new(0),
            sweeping: Mutex::new(false),
            swept,
        }
    }
}

impl KvMachine {
    /// A machine with an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A view for readers.
    #[must_use]
    pub fn view(&self) -> KvView {
        KvView::new(self.shared.clone())
    }
}

#[async_trait]
impl StateMachine for KvMachine {
    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        let mut answers = self.apply_batch(vec![(at, command)]).await?;
        answers.pop().ok_or_else(|| Fatal::state_machine("a command has no answer"))
    }

    async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut commands = batch.into_iter().peekable();
        while commands.peek().is_some() {
            let mut last = LogId::ZERO;
            let mut store = self.shared.write();
            for (at, command) in commands.by_ref().take(RUN) {
                answers.push(apply_one(&mut store, at, command)?);
                last = at;
            }
            let sweep = store.needs_sweep();
            self.shared.publish_auth(&store);
            drop(store);
            self.shared.applied(last);
            if sweep {
                self.shared.sweep_in_background();
            }
        }
        Ok(answers)
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Ok(Box::new(ImageChunks(Some(Image::new(self.shared.read().freeze())))))
    }

    async fn restore(&mut self, mut image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let mut loader = Loader::default();
        while let Some(bytes) = image.next().await? {
            loader.push(&bytes).map_err(|error| Fatal::state_machine(error.to_string()))?;
        }
        let store = loader.finish().map_err(|error| Fatal::state_machine(error.to_string()))?;
        self.shared.swept.send_replace(store.head().swept);
        let old = {
            let mut current = self.shared.write();
            self.shared.publish_auth(&store);
            std::mem::replace(&mut *current, store)
        };
        let_go(old);
        Ok(())
    }
}

impl Engine for Shared {
    fn range(&self, author: Option<&Author>, request: &RangeRequest, room: Room) -> Result<RangeResponse, ReadError> {
        if request.range_end.is_empty() {
            return Ok(self.read().range_as(author, request, room)?);
        }
        Ok(self.freeze().range_as(author, request, room)?)
    }

    fn read_txn(&self, author: Option<&Author>, request: &TxnRequest, room: Room) -> Result<TxnResponse, ReadError> {
        Ok(self.freeze().read_txn_as(author, request, room)?)
    }

    fn answer_bytes(&self, reads: &[RangeRequest], most: usize) -> Result<usize, ReadError> {
        Ok(self.freeze().answer_bytes(reads, most)?)
    }

    fn checksum(&self, revision: i64) -> Result<Checksum, ReadError> {
        Ok(self.freeze().checksum(revision)?)
    }

    fn head(&self) -> Head {
        self.read().head().clone()
    }

    fn auth(&self) -> Arc<Auth> {
        self.auth.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_quick(&self, of_one_key: bool) -> bool {
        of_one_key || self.read().slots() <= SMALL_STORE
    }

    fn applied(&self) -> LogId {
        let (index, term) = (self.index.load(Ordering::Relaxed), self.term.load(Ordering::Relaxed));
        LogId { term: Term(term), index: Index(index) }
    }

    fn swept(&self) -> watch::Receiver<i64> {
        self.swept.subscribe()
    }
}

impl Shared {
    // A writer that panicked has stopped the node, and nothing is read from it through `Raft` any more: a poisoned lock
    // adds nothing.
    fn read(&self) -> RwLockReadGuard<'_, Store> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Store> {
        self.store.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy for a read that takes long, so that it holds up no writer.
    fn freeze(&self) -> Store {
        self.read().freeze()
    }

    /// Lets everybody see the users and roles of this store, which nobody else may change meanwhile.
    fn publish_auth(&self, store: &Store) {
        let auth = &store.head().auth;
        if !Arc::ptr_eq(&*self.auth.read().unwrap_or_else(PoisonError::into_inner), auth) {
            *self.auth.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(auth);
        }
    }

    fn sweeping(&self) -> MutexGuard<'_, bool> {
        self.sweeping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn applied(&self, at: LogId) {
        self.index.store(at.index.0, Ordering::Relaxed);
        self.term.store(at.term.0, Ordering::Relaxed);
    }

    /// Drops what a compaction made unreachable, a few keys at a time, while reads and writes go on. When it happens makes
    /// no difference to any answer, so nodes need not agree on it.
    fn sweep_in_background(self: &Arc<Self>) {
        let mut sweeping = self.sweeping();
        if *sweeping {
            return;
        }
        let shared = Arc::downgrade(self);
        match std::thread::Builder::new().name("kv-sweep".into()).spawn(move || sweep(&shared)) {
            Ok(_) => *sweeping = true,
            // The next batch of commands tries again.
            Err(error) => tracing::warn!(%error, "no thread to drop compacted versions; will try again"),
        }
    }

    /// One step of a sweep; none at its end.
    fn sweep_step(&self, sweep: &Sweep) -> Option<Sweep> {
        let slice = self.read().look(sweep, SWEEP);
        // Keys may change in between, but what was unreachable stays so.
        self.write().drop_garbage(sweep, slice)
    }
}

fn sweep(shared: &Weak<Shared>) {
    while let Some(strong) = shared.upgrade() {
        let mut next = Some(strong.read().start_sweep());
        drop(strong);
        while let Some(sweep) = next {
            let Some(strong) = shared.upgrade() else { return };
            next = strong.sweep_step(&sweep);
            drop(strong);
            std::thread::yield_now();
        }
        let Some(strong) = shared.upgrade() else { return };
        let mut sweeping = strong.sweeping();
        let store = strong.read();
        strong.swept.send_replace(store.head().swept);
        if !store.needs_sweep() {
            *sweeping = false;
            return;
        }
    }
}

/// Drops what may be large, elsewhere: a million keys take so long that a node whose thread did it would send its heartbeats late.
fn let_go(what: impl Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("kv-drop".into()).spawn(move || drop(what)) {
        tracing::warn!(%error, "no thread to drop former contents, which may have held this one up");
    }
}

/// An image as the framework reads it, until it is dropped.
struct ImageChunks(Option<Image>);

impl Drop for ImageChunks {
    fn drop(&mut self) {
        // What has changed since the image was begun has no other owner.
        if let Some(image) = self.0.take() {
            let_go(image);
        }
    }
}

#[async_trait]
impl Chunks for ImageChunks {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        Ok(self.0.as_mut().and_then(Image::next_record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells by which thread it was dropped.
    struct Dropped(std::sync::mpsc::Sender<Option<String>>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().name().map(str::to_owned));
        }
    }

    /// The follower that installed an image of a gigabyte kept its thread for 150 ms.
    #[test]
    fn what_may_be_large_is_dropped_by_another_thread() {
        let (tell, told) = std::sync::mpsc::channel();
        let_go(Dropped(tell));
        assert_eq!(told.recv().unwrap().as_deref(), Some("kv-drop"));
    }
}
