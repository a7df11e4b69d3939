use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Fatal;
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
    /// transaction for all. Batches begin small, and grow as long as they are done in a fraction of `Config::stall_timeout`.
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
