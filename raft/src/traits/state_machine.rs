use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Fatal;
use crate::session::SessionChanges;
use crate::types::LogId;

/// What you replicate: a deterministic machine. The same commands in the same order must give the same states and
/// results on every node, so it must not look at clocks, random numbers or the machine it runs on.
///
/// Reads are no part of the trait: keep a shared reference to your data, await
/// [`Raft::read`](crate::Raft::read), then look at it.
#[async_trait]
pub trait StateMachine: Send + Sync + 'static {
    /// The id of the last command that is reflected in the machine's own durable state. Zero, the default, is right for
    /// a machine in memory: it gets the latest snapshot and all commands after it again.
    ///
    /// # Errors
    /// The state can't be read. Stops the node.
    async fn applied(&self) -> Result<LogId, Fatal> {
        Ok(LogId::ZERO)
    }

    /// Applies one command, and returns the answer for whoever wrote it. A command that makes no sense to the machine is
    /// an answer as well, not an error. One that takes longer than `Config::stall_timeout` costs a leader its leadership.
    ///
    /// # Errors
    /// The machine is broken. Stops the node; waiting clients are told.
    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal>;

    /// Applies commands in order, one answer each. Override it where a batch is cheaper than its parts, such as one
    /// transaction for all. Batches begin small, and grow as long as they are done in a fraction of `Config::stall_timeout`. Nothing else of the thread
    /// runs until the future waits or ends, not even heartbeats: more than 64 commands come only as long as they keep it for less than 5 ms. What
    /// blocks, such as a sync, belongs elsewhere (`tokio::task::spawn_blocking`), and then batches are as large as they may.
    ///
    /// # Errors
    /// As for [`StateMachine::apply`].
    async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
        let mut answers = Vec::with_capacity(batch.len());
        for (at, command) in batch {
            answers.push(self.apply(at, command).await?);
        }
        Ok(answers)
    }

    /// For machines that are durable by themselves: as [`StateMachine::apply_batch`], and in the same transaction keeps what the framework
    /// remembers of client sessions ([`Recorded::changes`]), and `batch.upto` for [`StateMachine::applied`]. So a write that is repeated after a
    /// restart gets the answer of its first application. There may be no commands and only changes, or nothing but `batch.upto`: entries that are
    /// no commands count as well, or else a state that is as far as an image would not be known to be.
    ///
    /// A machine that does not override this does not apply a repetition twice either, since the sessions are read from the log again, but who
    /// repeats a write from before the restart is told [`AnswerForgotten`](crate::Error::AnswerForgotten).
    ///
    /// # Errors
    /// As for [`StateMachine::apply`].
    async fn apply_recorded(&mut self, batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        self.apply_batch(batch.commands).await
    }

    /// For machines that override [`StateMachine::apply_recorded`]: all records that they keep, in any order. None, the default, for those
    /// that do not.
    ///
    /// # Errors
    /// The state can't be read. Stops the node.
    async fn records(&self) -> Result<Option<Vec<Record>>, Fatal> {
        Ok(None)
    }

    /// For machines that override [`StateMachine::apply_recorded`]: as [`StateMachine::restore`], and replaces all records by these. The image
    /// reflects everything up to `last`, which is what [`StateMachine::applied`] tells from then on.
    ///
    /// # Errors
    /// Stops the node.
    async fn restore_recorded(
        &mut self,
        image: Box<dyn Chunks>,
        records: Vec<Record>,
        last: LogId,
    ) -> Result<(), Fatal> {
        let _ = (records, last);
        self.restore(image).await
    }

    /// Freezes a view of the state, quickly: no command is applied meanwhile. The image is then read in the background,
    /// while the machine goes on.
    ///
    /// # Errors
    /// Stops the node.
    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal>;

    /// Replaces the state by an image that [`StateMachine::snapshot`] gave, here or on another node.
    ///
    /// A machine that is durable itself may be cut off in the middle. The image is restored anew at the next start, as long as
    /// [`StateMachine::applied`] does not tell of the image's last command before all of the image is durable.
    ///
    /// # Errors
    /// Stops the node.
    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal>;
}

/// A machine that is chosen when the node starts.
#[async_trait]
impl<M: StateMachine + ?Sized> StateMachine for Box<M> {
    async fn applied(&self) -> Result<LogId, Fatal> {
        (**self).applied().await
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        (**self).apply(at, command).await
    }

    async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
        (**self).apply_batch(batch).await
    }

    async fn apply_recorded(&mut self, batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        (**self).apply_recorded(batch).await
    }

    async fn records(&self) -> Result<Option<Vec<Record>>, Fatal> {
        (**self).records().await
    }

    async fn restore_recorded(
        &mut self,
        image: Box<dyn Chunks>,
        records: Vec<Record>,
        last: LogId,
    ) -> Result<(), Fatal> {
        (**self).restore_recorded(image, records, last).await
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        (**self).snapshot().await
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        (**self).restore(image).await
    }
}

/// Something that the framework wants kept beside the state of a durable machine. What is in it concerns the framework alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// Its name, unique among all records.
    pub key: Bytes,
    /// What it holds.
    pub value: Bytes,
}

/// A change of what is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RecordChange {
    /// Keep this, in the place of the record with the same key, if there is one.
    Put(Record),
    /// Forget the record with this key, if there is one.
    Delete(Bytes),
}

/// Commands, and what is to be kept with them.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// To be applied in order, one answer each. There may be none.
    pub commands: Vec<(LogId, Bytes)>,
    /// The state reflects everything up to here afterwards.
    pub upto: LogId,
    pub(crate) changes: SessionChanges,
}

impl Recorded {
    /// What is to change in the records, given the answers to the commands.
    #[must_use]
    pub fn changes(&self, answers: &[Bytes]) -> Vec<RecordChange> {
        self.changes.to_records(answers)
    }
}

/// An image of a state machine, read piece by piece.
#[async_trait]
pub trait Chunks: Send + 'static {
    /// The next bytes, never empty; none at the end. Where an image is cut into chunks carries no meaning.
    ///
    /// # Errors
    /// The image can't be read further.
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal>;
}

/// An image that is in memory already.
#[async_trait]
impl Chunks for std::vec::IntoIter<Bytes> {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        Ok(Iterator::find(self, |chunk| !chunk.is_empty()))
    }
}
