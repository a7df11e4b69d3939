//! Where clients' requests enter: admitted within the limits or turned away at once, then taken in batches by the driver.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::error::Error;
use crate::types::{Entry, EntryKind, LogId};

/// What a client waits on.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// A client's request.
#[derive(Debug)]
pub(crate) enum Request {
    /// Answered with the entry's id beside the result.
    Write { kind: EntryKind, command: Bytes, answer: Answer<(LogId, Bytes)> },
    /// At least one command.
    WriteMany { commands: Vec<Bytes>, answer: Answer<Vec<Bytes>> },
    /// A linearizable read. `lease` tells whether the leader's lease will do.
    Read { lease: bool, answer: Answer<()> },
    /// A read of a state that reflects this entry.
    ReadAtLeast { id: LogId, answer: Answer<()> },
}

impl Request {
    /// What the request counts against byte limits until it is answered.
    pub(crate) fn cost(&self) -> u64 {
        match self {
            Self::Write { command, .. } => Entry::OVERHEAD + command.len() as u64,
            Self::WriteMany { commands, .. } => commands.iter().map(|c| Entry::OVERHEAD + c.len() as u64).sum(),
            Self::Read { .. } | Self::ReadAtLeast { .. } => Entry::OVERHEAD,
        }
    }
}

/// Requests from their arrival to their answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) requests: usize,
    pub(crate) bytes: u64,
}

impl Load {
    pub(crate) fn add(&mut self, requests: usize, bytes: u64) {
        self.requests += requests;
        self.bytes += bytes;
    }
}

/// Why a request was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    Overloaded,
    Stopped,
}

/// The bounded queue between clients and the driver.
#[derive(Debug)]
pub(crate) struct Intake {
    limit: Load,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: Vec<Request>,
    /// Everything that was admitted and is not known to be answered.
    load: Load,
    /// The driver, while it sleeps.
    driver: Option<Waker>,
    closed: bool,
}

impl Intake {
    pub(crate) fn new(config: &Config) -> Self {
        let limit = Load { requests: config.max_pending_requests, bytes: config.max_uncommitted_bytes };
        Self { limit, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a request if there is room, and tells whether it is the only one. One that exceeds all of the room in bytes is admitted when nothing else is there.
    pub(crate) fn push(&self, request: Request) -> Result<bool, NotAdmitted> {
        let cost = request.cost();
        let mut state = self.lock();
        if state.closed {
            return Err(NotAdmitted::Stopped);
        }
        let full = state.load.requests >= self.limit.requests;
        if full || (state.load.requests > 0 && state.load.bytes + cost > self.limit.bytes) {
            return Err(NotAdmitted::Overloaded);
        }
        state.load.add(1, cost);
        state.queue.push(request);
        let alone = state.load.requests == 1;
        let driver = state.driver.take();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        Ok(alone)
    }

    /// Makes room for what was `answered` (and zeroes it), and takes all requests that are there; waits while there are none.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, answered: &mut Load, into: &mut Vec<Request>) -> Poll<()> {
        let mut state = self.lock();
        debug_assert!(answered.requests <= state.load.requests && answered.bytes <= state.load.bytes, "answered once");
        state.load.requests = state.load.requests.saturating_sub(answered.requests);
        state.load.bytes = state.load.bytes.saturating_sub(answered.bytes);
        *answered = Load::default();
        if !state.queue.is_empty() {
            if into.is_empty() {
                std::mem::swap(&mut state.queue, into);
            } else {
                into.append(&mut state.queue);
            }
            return Poll::Ready(());
        }
        if !state.driver.as_ref().is_some_and(|driver| driver.will_wake(cx.waker())) {
            state.driver = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// What was admitted and is not known to be answered.
    pub(crate) fn load(&self) -> Load {
        self.lock().load
    }

    /// Whether requests are there that nobody has taken yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }

    /// Admits nothing more; what is there is still taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// Admits nothing more, and gives back what nobody will take.
    pub(crate) fn close_and_drain(&self) -> Vec<Request> {
        let mut state = self.lock();
        state.closed = true;
        std::mem::take(&mut state.queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(bytes: usize) -> Request {
        let kind = EntryKind::Command;
        Request::Write { kind, command: vec![0; bytes].into(), answer: oneshot::channel().0 }
    }

    async fn take(intake: &Intake, mut answered: Load) -> Vec<Request> {
        let mut requests = Vec::new();
        std::future::poll_fn(|cx| intake.poll_take(cx, &mut answered, &mut requests)).await;
        requests
    }

    #[tokio::test]
    async fn requests_count_until_they_are_answered() {
        let intake = Intake::new(&Config { max_pending_requests: 2, ..Config::default() });
        intake.push(write(1)).unwrap();
        intake.push(write(1)).unwrap();
        assert_eq!(intake.push(write(1)), Err(NotAdmitted::Overloaded));
        assert_eq!(take(&intake, Load::default()).await.len(), 2);
        assert_eq!(intake.push(write(1)), Err(NotAdmitted::Overloaded), "taken is not answered");
        assert!(futures_util::FutureExt::now_or_never(take(&intake, Load { requests: 2, bytes: 130 })).is_none());
        intake.push(write(1)).unwrap();
    }

    #[test]
    fn bytes_are_bounded_and_one_large_request_passes_alone() {
        let intake = Intake::new(&Config { max_uncommitted_bytes: 1000, ..Config::default() });
        intake.push(write(5000)).unwrap();
        assert_eq!(intake.push(write(0)), Err(NotAdmitted::Overloaded));
    }

    #[test]
    fn a_closed_intake_says_so() {
        let intake = Intake::new(&Config::default());
        intake.push(write(1)).unwrap();
        assert_eq!(intake.close_and_drain().len(), 1);
        assert_eq!(intake.push(write(1)), Err(NotAdmitted::Stopped));
    }
}
