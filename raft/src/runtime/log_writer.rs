//! The one write of the log that may be under way.
//!
//! Its future is polled by the driver itself, which spares a task's wake-up, and is always polled to its end.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::panic_text;
use crate::consensus::{Time, Write};
use crate::error::StorageError;
use crate::mutant;
use crate::traits::LogStore;

pub(crate) struct LogWriter {
    log: Arc<dyn LogStore>,
    /// How long a write may take before the log warns of it.
    slow: Duration,
    current: Option<Current>,
}

struct Current {
    seq: u64,
    started: Time,
    /// Whether the log was warned of it.
    warned: bool,
    future: BoxFuture<'static, Result<(), StorageError>>,
}

impl LogWriter {
    pub(crate) fn new(log: Arc<dyn LogStore>, slow: Duration) -> Self {
        Self { log, slow, current: None }
    }

    /// Begins a write. The one before is done: the core gives out no second one.
    pub(crate) fn start(&mut self, now: Time, Write { seq, compact, write }: Write) {
        debug_assert!(self.current.is_none(), "one write at a time");
        let log = self.log.clone();
        let write = AssertUnwindSafe(async move {
            if let Some(upto) = compact {
                log.compact(upto).await?;
            }
            // What only cuts writes nothing.
            if write.hard_state.is_none() && write.entries.is_empty() { Ok(()) } else { log.write(write).await }
        })
        .catch_unwind();
        let future = write.map(|done| done.unwrap_or_else(|panic| Err(panicked(&*panic)))).boxed();
        self.current = Some(Current { seq, started: now, warned: false, future });
    }

    /// The number of the write that has become durable; waits while there is none.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<u64, StorageError>> {
        let Some(current) = &mut self.current else { return Poll::Pending };
        let outcome = ready!(current.future.poll_unpin(cx));
        let seq = current.seq;
        let warned = current.warned;
        self.current = None;
        if warned && outcome.is_ok() {
            tracing::info!("the slow write of the log is done");
        }
        if mutant!("failed-write-taken-for-done") {
            return Poll::Ready(Ok(seq));
        }
        Poll::Ready(outcome.map(|()| seq))
    }

    /// When [`LogWriter::check`] has something to say, if the write lasts until then.
    pub(crate) fn next_wake(&self) -> Option<Time> {
        self.current.as_ref().filter(|current| !current.warned).map(|current| current.started.plus(self.slow))
    }

    /// Warns of a slow disk, once a write.
    pub(crate) fn check(&mut self, now: Time) {
        let Some(current) = &mut self.current else { return };
        let taken = now.since(current.started);
        if !current.warned && taken >= self.slow {
            current.warned = true;
            tracing::warn!(?taken, limit = ?self.slow, "slow disk: a write of the log is not done yet");
        }
    }

    /// Waits for the write under way, if there is one: a write is never broken off.
    pub(crate) async fn finish(mut self) {
        if let Some(current) = self.current.take()
            && let Err(error) = current.future.await
        {
            tracing::warn!(%error, "the last write of the log failed");
        }
    }
}

/// A panic of the store is its failure.
fn panicked(panic: &(dyn std::any::Any + Send)) -> StorageError {
    StorageError::Sticky(format!("it panicked: {}", panic_text(panic)))
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").field("writing", &self.current.as_ref().map(|c| c.seq)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_fn;

    use super::*;
    use crate::testing::MemLog;
    use crate::traits::{HardState, LogWrite};
    use crate::types::Term;

    const SLOW: Duration = Duration::from_millis(200);

    fn write(seq: u64) -> Write {
        let hard_state = HardState { term: Term(seq), voted_for: None };
        Write { seq, compact: None, write: LogWrite { hard_state: Some(hard_state), entries: Vec::new() } }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_write_is_warned_of_once_and_then_done() {
        let log = MemLog::new();
        let mut writer = LogWriter::new(Arc::new(log.clone()), SLOW);
        assert_eq!(writer.next_wake(), None);
        log.hold();
        writer.start(Time::default(), write(1));
        assert!(poll_fn(|cx| writer.poll(cx)).now_or_never().is_none());
        assert_eq!(writer.next_wake(), Some(Time(SLOW)));
        writer.check(Time(SLOW / 2));
        assert!(writer.next_wake().is_some());
        writer.check(Time(SLOW));
        assert_eq!(writer.next_wake(), None, "warned");
        log.release();
        assert_eq!(poll_fn(|cx| writer.poll(cx)).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_write_under_way_is_finished_at_the_end() {
        let log = MemLog::new();
        log.set_latency(Duration::from_secs(1));
        let mut writer = LogWriter::new(Arc::new(log.clone()), SLOW);
        writer.start(Time::default(), write(7));
        writer.finish().await;
        assert_eq!(log.load().await.unwrap().hard_state.term, Term(7));
    }
}
