//! [`Session`]: a client's own session, which repeats writes until their outcome is known.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Once, Sequencer, SessionId};
use crate::error::Error;
use crate::handle::Raft;

/// How long a write waits between two attempts: first, and at most.
const PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(320);

/// A client's session: its writes are applied exactly once, although they are repeated until their outcome is known, across changes of
/// leader, snapshots and restarts (thesis §6.3). [`Raft::session`] makes one.
///
/// It is opened with its first write, and anew if it has expired before another. It may have many writes under way; they are applied in any
/// order.
#[derive(Debug)]
pub struct Session {
    raft: Raft,
    /// While it is open.
    open: Mutex<Option<Sequencer>>,
    /// A write has ended.
    ended: Notify,
    /// One opens it for all.
    opening: tokio::sync::Mutex<()>,
}

/// A write with its number, until it is answered or given up.
struct Turn<'a> {
    session: &'a Session,
    id: SessionId,
    sequence: u64,
}

impl Turn<'_> {
    fn once(&self) -> Once {
        let Self { session, id, sequence } = *self;
        match session.lock().as_ref().filter(|sequencer| sequencer.session() == id) {
            Some(sequencer) => sequencer.once(sequence),
            // The session has expired meanwhile, and may have been opened anew. Nothing is applied in the old one any more.
            None => Once { session: id, sequence, answered: 0 },
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(sequencer) = self.session.lock().as_mut().filter(|sequencer| sequencer.session() == self.id) {
            sequencer.end(self.sequence);
        }
        self.session.ended.notify_waiters();
    }
}

/// How long a write is still repeated, and what is known of it.
struct Patience {
    /// None: for ever.
    until: Option<Instant>,
    pause: Duration,
    /// Whether an attempt may have been applied.
    uncertain: bool,
}

impl Patience {
    /// An attempt failed, and another will be made after a pause; the reason if there is no time for it.
    async fn wait(&mut self, error: Error) -> Result<(), Error> {
        if self.until.is_some_and(|until| Instant::now() + self.pause >= until) {
            return Err(if self.uncertain { Error::OutcomeUnknown } else { error });
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        Ok(())
    }
}

impl Session {
    pub(crate) fn new(raft: Raft) -> Self {
        Self { raft, open: Mutex::default(), ended: Notify::new(), opening: tokio::sync::Mutex::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sequencer>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name, while it is open.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.lock().as_ref().map(Sequencer::session)
    }

    /// As [`Raft::write`], but exactly once: the write is repeated when it was refused or its outcome is unknown, for at most
    /// `Config::session_patience`. A future that is dropped gives the write up: it may have been applied, and may yet be, but not after a
    /// later write of the session that began when all before it had ended.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when the patience ends and an attempt may have been applied; else the reason why the last one was refused.
    /// [`Error::SessionExpired`] when the session ended in the middle of the write, and an attempt may have been applied before.
    /// [`Error::AnswerForgotten`] when it was applied, and nobody knows its answer any more. [`Error::TooLarge`] and [`Error::Stopped`] as for
    /// [`Raft::write`].
    pub async fn write(&self, command: Bytes) -> Result<Bytes, Error> {
        let until = Instant::now().checked_add(self.raft.session_patience());
        let mut patience = Patience { until, pause: PAUSE, uncertain: false };
        loop {
            let turn = self.begin(&mut patience).await?;
            match self.repeat(&turn, &command, &mut patience).await {
                Err(error @ Error::SessionExpired) => {
                    self.forget(turn.id);
                    if patience.uncertain {
                        return Err(error);
                    }
                    // Where sessions are driven out as fast as they are opened, this ends as well.
                    patience.wait(error).await?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Sends a write until its outcome is known.
    async fn repeat(&self, turn: &Turn<'_>, command: &Bytes, patience: &mut Patience) -> Result<Bytes, Error> {
        loop {
            match self.raft.write_once(turn.once(), command.clone()).await {
                Err(error) if error.is_safe_to_retry() || matches!(error, Error::OutcomeUnknown) => {
                    patience.uncertain |= matches!(error, Error::OutcomeUnknown);
                    patience.wait(error).await?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Gives a write its number, when there is room for it.
    async fn begin(&self, patience: &mut Patience) -> Result<Turn<'_>, Error> {
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            let number = self.lock().as_mut().map(|open| (open.session(), open.begin()));
            match number {
                Some((id, Some(sequence))) => return Ok(Turn { session: self, id, sequence }),
                Some((_, None)) => match patience.until {
                    None => ended.await,
                    Some(until) => timeout_at(until, ended).await.map_err(|_| Error::Overloaded)?,
                },
                None => self.open(patience).await?,
            }
        }
    }

    async fn open(&self, patience: &mut Patience) -> Result<(), Error> {
        let _one = self.opening.lock().await;
        while self.id().is_none() {
            match self.raft.open_session().await {
                Ok(id) => *self.lock() = Some(Sequencer::new(id)),
                // One that was opened unknown to anybody expires, and nothing was written in it.
                Err(Error::OutcomeUnknown) => patience.wait(Error::Unavailable).await?,
                Err(error) if error.is_safe_to_retry() => patience.wait(error).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// It has expired: the next write opens it anew.
    fn forget(&self, id: SessionId) {
        self.lock().take_if(|sequencer| sequencer.session() == id);
    }

    /// Ends the session, so that nothing is kept for it any more. What is still under way ends with [`Error::SessionExpired`]. One that is
    /// dropped instead is kept until it expires.
    ///
    /// # Errors
    /// As for [`Raft::close_session`].
    pub async fn close(self) -> Result<(), Error> {
        match self.id() {
            Some(id) => self.raft.close_session(id).await,
            None => Ok(()),
        }
    }
}
