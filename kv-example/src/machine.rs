//! The replicated state machine: the store, fed from the log, and the view that readers have of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use raftkv::{Chunks, Fatal, Index, LogId, StateMachine, Term};
use tokio::sync::watch;

use crate::api::command::{Command, Outcome, command, outcome};
use crate::api::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::store::{Checksum, Image, Loader, Members, Refusal, Stats, Store, Writer};

/// Commands applied under one lock. Readers get a turn between two such runs.
const RUN: usize = 256;
/// Keys looked through in one step of a sweep.
const SWEEP: usize = 512;
/// Reads of a range in a store with more keys than this run on a thread of their own, so that they do not hold up the
/// requests that share their worker.
const SMALL_STORE: usize = 4096;

/// The state machine: applies commands to a [`Store`].
///
/// It lives in memory. After a restart it gets the latest image and the commands after it.
#[derive(Debug, Default)]
pub struct KvMachine {
    shared: Arc<Shared>,
}

/// A reader's view of a [`KvMachine`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KvView {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: RwLock<Store>,
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
        let (swept, _) = watch::channel(store.swept());
        Self {
            store: RwLock::new(store),
            index: AtomicU64::new(0),
            term: AtomicU64::new(0),
            sweeping: Mutex::new(false),
            swept,
        }
    }
}

/// The bytes that the log holds for a command.
#[must_use]
pub fn encode_command(body: command::Body) -> Bytes {
    Command { body: Some(body) }.encode_to_vec().into()
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
        KvView { shared: Arc::clone(&self.shared) }
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
            drop(store);
            self.shared.applied(last);
            if sweep {
                self.shared.sweep_in_background();
            }
        }
        Ok(answers)
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Ok(Box::new(ImageChunks(Image::new(self.shared.read().freeze()))))
    }

    async fn restore(&mut self, mut image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let mut loader = Loader::default();
        while let Some(bytes) = image.next().await? {
            loader.push(&bytes).map_err(|error| Fatal::state_machine(error.to_string()))?;
        }
        let store = loader.finish().map_err(|error| Fatal::state_machine(error.to_string()))?;
        self.shared.swept.send_replace(store.swept());
        let old = std::mem::replace(&mut *self.shared.write(), store);
        // Dropped here, when readers have long gone on.
        drop(old);
        Ok(())
    }
}

/// A pure function of the store and the command: every node must come to the same.
pub(crate) fn apply_one(store: &mut Store, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
    use command::Body as Request;
    use outcome::Body as Answer;

    let empty = command.is_empty();
    let answer = match Command::decode(command) {
        Err(_) => Answer::Refusal(Refusal::Malformed.into()),
        Ok(Command { body: None }) if empty => Answer::Refusal(Refusal::Malformed.into()),
        Ok(Command { body: None }) => {
            // Another version knows what this is. To skip it would make this node differ from the others.
            return Err(Fatal::state_machine(format!(
                "the command at {at} is of a kind that this version does not know: upgrade this node, then restart it"
            )));
        }
        Ok(Command { body: Some(body) }) => {
            let mut writer = Writer::new(store);
            let result = match &body {
                Request::Put(put) => writer.put(put).map(Answer::Put),
                Request::DeleteRange(delete) => Ok(Answer::DeleteRange(writer.delete_range(delete))),
                Request::Txn(txn) => writer.txn(txn).map(Answer::Txn),
                Request::Compact(compact) => writer.compact(compact).map(Answer::Compact),
                Request::Member(note) => writer.note_member(note).map(Answer::Member),
            };
            result.unwrap_or_else(|refusal| Answer::Refusal(refusal.into()))
        }
    };
    Ok(Outcome { body: Some(answer) }.encode_to_vec().into())
}

impl KvView {
    /// Reads keys, from what this node has applied.
    ///
    /// # Errors
    /// The revision is compacted, or in the future; or the sort option is unknown.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Refusal> {
        if request.range_end.is_empty() {
            return self.shared.read().range(&request);
        }
        self.read_frozen(move |store| store.range(&request)).await
    }

    /// Runs a transaction that only reads, on what this node has applied.
    ///
    /// # Errors
    /// A read wants a revision that is compacted, or in the future.
    pub async fn read_txn(&self, request: TxnRequest) -> Result<TxnResponse, Refusal> {
        self.read_frozen(move |store| store.read_txn(&request)).await
    }

    /// A checksum over what this node has applied up to `revision`; 0 means all.
    ///
    /// # Errors
    /// The revision is compacted, or in the future.
    pub async fn checksum(&self, revision: i64) -> Result<Checksum, Refusal> {
        self.read_frozen(move |store| store.checksum(revision)).await
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.shared.read().revision()
    }

    /// The revision of the last compaction; -1 before the first.
    #[must_use]
    pub fn compacted(&self) -> i64 {
        self.shared.read().compacted()
    }

    /// What is known of the members.
    #[must_use]
    pub fn members(&self) -> Members {
        self.shared.read().members().clone()
    }

    /// The store's sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.read().stats()
    }

    /// The last command applied since the start.
    #[must_use]
    pub fn applied(&self) -> LogId {
        let (index, term) = (self.shared.index.load(Ordering::Relaxed), self.shared.term.load(Ordering::Relaxed));
        LogId { term: Term(term), index: Index(index) }
    }

    /// Waits until what the compaction at `revision` made unreachable is dropped.
    pub async fn swept(&self, revision: i64) {
        let mut swept = self.shared.swept.subscribe();
        // The sender lives as long as this view does.
        _ = swept.wait_for(|swept| *swept >= revision).await;
    }

    async fn read_frozen<T: Send + 'static>(&self, read: impl FnOnce(&Store) -> T + Send + 'static) -> T {
        let store = self.shared.read().freeze();
        if store.slots() <= SMALL_STORE {
            return read(&store);
        }
        match tokio::task::spawn_blocking(move || read(&store)).await {
            Ok(answer) => answer,
            // It is never aborted before it ran unless the runtime is going down, and then nobody waits for the answer.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => std::future::pending().await,
        }
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
    fn sweep_step(&self, sweep: &crate::store::Sweep) -> Option<crate::store::Sweep> {
        let slice = self.read().look(sweep, SWEEP);
        // Keys may change in between, but what was unreachable stays so.
        let end = self.write().drop_garbage(&slice);
        (!end).then_some(slice.sweep)
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
        strong.swept.send_replace(store.swept());
        if !store.needs_sweep() {
            *sweeping = false;
            return;
        }
    }
}

/// An image as the framework reads it.
struct ImageChunks(Image);

#[async_trait]
impl Chunks for ImageChunks {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        Ok(self.0.next_record())
    }
}
