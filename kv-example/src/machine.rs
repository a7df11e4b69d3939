//! The replicated state machine: the store, fed from the log, and the view that readers have of it.
//!
//! Where the store's versions are kept is chosen when a node starts: [`KvMachine`] keeps them in memory. What commands do and reads answer is the
//! same for all ([`crate::store`]).

mod memory;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use raftkv::{Fatal, LogId};
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tonic::Status;

use crate::api::command::{AuthChange, Author, Command, Outcome, command, outcome};
use crate::api::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::store::{
    Auth, Checksum, Head, KeysMut, Members, Refusal, Room, Stats, Store, Writer, most_keys, most_keys_of_txn,
};

pub use memory::KvMachine;

/// Reads of a range in a store with more keys than this run on a thread of their own, so that they do not hold up the
/// requests that share their worker.
const SMALL_STORE: usize = 4096;
/// How many of them run at once; others wait for their turn. There is no use in more threads than that.
const MAX_LONG_READS: usize = 32;
/// How many of these may gather more than [`MANY`] keys. Each takes room for what it has found so far, and where that runs out they refuse each other: of 100
/// reads of 8 MiB by two clients, 32 of them at once, 2 were answered where there was room for 6.
const MAX_LARGE_READS: usize = 4;
/// As many keys may be asked for by whoever pages through more.
const MANY: u64 = 1000;
/// How many reads of single keys wait for the disk at once; others wait for their turn. The runtime has 512 threads for all that blocks: were they all to wait for
/// a disk that hangs, nobody could read certificates any more, or close the log.
const MAX_SHORT_READS: usize = 128;

/// A reader's view of a state machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KvView {
    engine: Arc<dyn Engine>,
    large_reads: Arc<Semaphore>,
    long_reads: Arc<Semaphore>,
    short_reads: Arc<Semaphore>,
}

/// How much a read has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    OneKey,
    /// Goes over many keys, and gives little back.
    Long,
    /// Gives as much back as there is.
    Large,
}

impl Reading {
    fn of(request: &RangeRequest) -> Self {
        if request.range_end.is_empty() { Self::OneKey } else { Self::of_keys(most_keys(request)) }
    }

    fn of_keys(most: u64) -> Self {
        if most > MANY { Self::Large } else { Self::Long }
    }
}

/// Why a read has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// The request is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What is kept can't be read.
    #[error("the node can't read its own state: {0}")]
    Failed(String),
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Refused(refusal) => refusal.into(),
            ReadError::Failed(_) => Self::internal(error.to_string()),
        }
    }
}

/// In the place of the revision up to which everything was dropped: nothing more will be.
pub(crate) const NEVER_SWEPT: i64 = i64::MAX;

/// What readers need of a state machine, whatever keeps its keys. What it waits for, if anything, is the disk.
pub(crate) trait Engine: fmt::Debug + Send + Sync + 'static {
    /// Reads keys, if the author may, and if there is room for the answer.
    fn range(&self, author: Option<&Author>, request: &RangeRequest, room: Room) -> Result<RangeResponse, ReadError>;

    /// Runs a transaction that only reads, if the author may, and if there is room for the answer.
    fn read_txn(&self, author: Option<&Author>, request: &TxnRequest, room: Room) -> Result<TxnResponse, ReadError>;

    /// How many bytes the answers to these reads take together, whoever asks: at most `most`.
    fn answer_bytes(&self, reads: &[RangeRequest], most: usize) -> Result<usize, ReadError>;

    /// A checksum over what was applied up to a revision.
    fn checksum(&self, revision: i64) -> Result<Checksum, ReadError>;

    /// What the store is beside its keys.
    fn head(&self) -> Head;

    /// The users and roles. Quicker than all of the head.
    fn auth(&self) -> Arc<Auth>;

    /// Whether a read, of one key or of everything, is quick enough for a thread that serves others as well: that of the protocol among them, which
    /// must not wait for a disk.
    fn is_quick(&self, of_one_key: bool) -> bool;

    /// The last command applied.
    fn applied(&self) -> LogId;

    /// The compaction whose garbage is gone.
    fn swept(&self) -> watch::Receiver<i64>;
}

/// The bytes that the log holds for a command of nobody in particular.
#[must_use]
pub fn encode_command(body: command::Body) -> Bytes {
    encode_command_of(None, body)
}

/// The bytes that the log holds for a command of this author.
#[must_use]
pub fn encode_command_of(author: Option<Author>, body: command::Body) -> Bytes {
    encode_command_within(author, body, None)
}

/// The same, of a command whose answer may take so many bytes, with 64 for each key in it: one that would take more is refused, by all nodes alike.
#[must_use]
pub fn encode_command_within(author: Option<Author>, body: command::Body, max_answer: Option<u64>) -> Bytes {
    Command { author, body: Some(body), max_answer }.encode_to_vec().into()
}

/// How large an answer may be where the command does not say it, as versions that knew no limit wrote it: as large as any client takes, so that no node
/// refuses what one of such a version has done. It is a part of what commands mean, and the same for ever.
const UNLIMITED_ANSWER: u64 = 1 << 31;

/// A pure function of the store and the command: every node must come to the same.
pub(crate) fn apply_one<K: KeysMut>(store: &mut Store<K>, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
    use command::Body as Request;
    use outcome::Body as Answer;

    let empty = command.is_empty();
    let answer = match Command::decode(command) {
        Err(_) => Answer::Refusal(Refusal::Malformed.into()),
        Ok(Command { body: None, .. }) if empty => Answer::Refusal(Refusal::Malformed.into()),
        Ok(Command { body: None | Some(Request::Auth(AuthChange { change: None })), .. }) => {
            // Another version knows what this is. To skip it would make this node differ from the others.
            return Err(Fatal::state_machine(format!(
                "the command at {at} is of a kind that this version does not know: upgrade this node, then restart it"
            )));
        }
        Ok(Command { body: Some(body), author, max_answer }) => {
            let most = usize::try_from(max_answer.unwrap_or(UNLIMITED_ANSWER)).unwrap_or(usize::MAX);
            let permitted = store.head().auth.check(author.as_ref(), &body);
            let mut writer = Writer::new(store);
            let result = permitted.and_then(|()| match &body {
                Request::Put(put) => writer.put(put, most).map(Answer::Put),
                Request::DeleteRange(delete) => writer.delete_range(delete, &mut most.into()).map(Answer::DeleteRange),
                Request::Txn(txn) => writer.txn(txn, most).map(Answer::Txn),
                Request::Compact(compact) => writer.compact(compact).map(Answer::Compact),
                Request::Member(note) => writer.note_member(note).map(Answer::Member),
                Request::Auth(AuthChange { change }) => change
                    .as_ref()
                    .map_or(Err(Refusal::Malformed), |change| writer.change_auth(change))
                    .map(Answer::Auth),
            });
            result.unwrap_or_else(|refusal| Answer::Refusal(refusal.into()))
        }
    };
    Ok(Outcome { body: Some(answer) }.encode_to_vec().into())
}

impl KvView {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        let turns = |most| Arc::new(Semaphore::new(most));
        let [large_reads, long_reads, short_reads] = [MAX_LARGE_READS, MAX_LONG_READS, MAX_SHORT_READS].map(turns);
        Self { engine, large_reads, long_reads, short_reads }
    }

    /// Reads keys as nobody in particular, from what this node has applied.
    ///
    /// # Errors
    /// As [`KvView::range_as`].
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, ReadError> {
        self.range_as(None, request, usize::MAX).await
    }

    /// Reads keys as this user, from what this node has applied, into an answer of at most `most` bytes.
    ///
    /// # Errors
    /// The author may not read them, by the users and roles of the very state that is read; the revision is compacted, or in the future; the sort
    /// option is unknown; or the answer would be larger.
    pub async fn range_as(
        &self,
        author: Option<Author>,
        request: RangeRequest,
        most: usize,
    ) -> Result<RangeResponse, ReadError> {
        self.range_within(author, request, most.into()).await
    }

    /// The same, if there is room for the answer.
    pub(crate) async fn range_within(
        &self,
        author: Option<Author>,
        request: RangeRequest,
        room: Room,
    ) -> Result<RangeResponse, ReadError> {
        self.read(Reading::of(&request), move |engine| engine.range(author.as_ref(), &request, room)).await
    }

    /// Runs a transaction that only reads as this user, on what this node has applied, if there is room for the answer.
    ///
    /// # Errors
    /// The author may not read that; a read wants a revision that is compacted, or in the future; or there is not so much room.
    pub(crate) async fn read_txn_within(
        &self,
        author: Option<Author>,
        request: TxnRequest,
        room: Room,
    ) -> Result<TxnResponse, ReadError> {
        let reading = Reading::of_keys(most_keys_of_txn(&request));
        self.read(reading, move |engine| engine.read_txn(author.as_ref(), &request, room)).await
    }

    /// How many bytes the answers to these reads take together, at most `most`, whoever asks. What is refused takes none.
    ///
    /// # Errors
    /// It would be more.
    pub(crate) async fn answer_bytes(&self, reads: Vec<RangeRequest>, most: usize) -> Result<usize, ReadError> {
        let of_one_key = reads.iter().all(|read| read.range_end.is_empty());
        let reading = if of_one_key { Reading::OneKey } else { Reading::Long };
        self.read(reading, move |engine| engine.answer_bytes(&reads, most)).await
    }

    /// The users and roles.
    #[must_use]
    pub fn auth(&self) -> Arc<Auth> {
        self.engine.auth()
    }

    /// A checksum over what this node has applied up to `revision`; 0 means all.
    ///
    /// # Errors
    /// The revision is compacted, or in the future.
    pub async fn checksum(&self, revision: i64) -> Result<Checksum, ReadError> {
        self.read(Reading::Long, move |engine| engine.checksum(revision)).await
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.engine.head().revision
    }

    /// The revision of the last compaction; -1 before the first.
    #[must_use]
    pub fn compacted(&self) -> i64 {
        self.engine.head().compacted
    }

    /// What is known of the members.
    #[must_use]
    pub fn members(&self) -> Members {
        self.engine.head().members
    }

    /// The store's sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.engine.head().stats
    }

    /// The last command applied, since the start where the machine is in memory.
    #[must_use]
    pub fn applied(&self) -> LogId {
        self.engine.applied()
    }

    /// Waits until what the compaction at `revision` made unreachable is dropped.
    ///
    /// # Errors
    /// It never will be: what keeps the keys has failed, or the node has stopped.
    pub async fn swept(&self, revision: i64) -> Result<(), ReadError> {
        let mut swept = self.engine.swept();
        // Whoever sends it lives as long as this view does.
        match swept.wait_for(|swept| *swept >= revision).await {
            Ok(swept) if *swept == NEVER_SWEPT && self.engine.head().swept < revision => {
                let reason =
                    "the revisions are compacted, but what they took could not be dropped: the node's log says why";
                Err(ReadError::Failed(reason.into()))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Runs a read where it disturbs nobody.
    async fn read<T: Send + 'static>(
        &self,
        reading: Reading,
        read: impl FnOnce(&dyn Engine) -> T + Send + 'static,
    ) -> T {
        if self.engine.is_quick(reading == Reading::OneKey) {
            return read(&*self.engine);
        }
        // Never closed.
        let turn_of = |turns: &Arc<Semaphore>| Arc::clone(turns).acquire_owned();
        let turn = match reading {
            Reading::OneKey => (turn_of(&self.short_reads).await, None),
            Reading::Long => (turn_of(&self.long_reads).await, None),
            Reading::Large => {
                // First the one that fewer have: whoever waits for it keeps nobody else from reading.
                let large = turn_of(&self.large_reads).await;
                (turn_of(&self.long_reads).await, Some(large))
            }
        };
        let engine = Arc::clone(&self.engine);
        let read = move || {
            // Whoever asked may be gone before the read is done.
            let _turn = turn;
            read(&*engine)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(answer) => answer,
            // It is never aborted before it ran unless the runtime is going down, and then nobody waits for the answer.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => std::future::pending().await,
        }
    }
}
