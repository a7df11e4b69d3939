//! The client's session: its writes are sent again until their outcome is known, and take effect once.
//!
//! It is opened with the first write, and anew if it has expired. Servers that know of no sessions, such as etcd's, are written to without: then a
//! write whose outcome is unknown is not sent again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raftkv::{Once, Sequencer, SessionId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::backoff::Backoff;
use super::{Cause, Client, ClientError, Kind, Line};
use crate::api::node::node_client::NodeClient;
use crate::api::node::{CloseSessionRequest, OpenSessionRequest};
use crate::service::ONCE;
use crate::service::once::encode;

/// How long a client that ends waits for its session to be closed. One that is not closed expires.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What a client knows of its session.
#[derive(Debug)]
pub(super) struct Session {
    state: Mutex<State>,
    /// A write has ended.
    ended: Notify,
    /// One opens it for all.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Closed,
    /// With what shows that it is this client's.
    Open(Sequencer, String),
    /// There are none: the servers do not know of them, or the client wants none.
    Unknown,
}

impl State {
    /// The session, if this is the one.
    fn of(&mut self, session: SessionId) -> Option<&mut Sequencer> {
        match self {
            Self::Open(sequencer, _) if sequencer.session() == session => Some(sequencer),
            Self::Open(..) | Self::Closed | Self::Unknown => None,
        }
    }
}

impl Session {
    pub(super) fn new(wanted: bool) -> Self {
        let state = if wanted { State::Closed } else { State::Unknown };
        Self { state: Mutex::new(state), ended: Notify::new(), opening: tokio::sync::Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has expired: the next write opens it anew.
    fn forget(&self, session: SessionId) {
        let mut state = self.lock();
        if state.of(session).is_some() {
            *state = State::Closed;
        }
    }
}

/// A write with its number, until it is answered or given up.
struct Turn<'a> {
    session: &'a Session,
    id: SessionId,
    sequence: u64,
    proof: String,
}

impl Turn<'_> {
    fn once(&self) -> Once {
        let Self { session, id, sequence, .. } = *self;
        match session.lock().of(id) {
            Some(sequencer) => sequencer.once(sequence),
            // It has expired or is being closed.
            None => Once { session: id, sequence, answered: 0 },
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(sequencer) = self.session.lock().of(self.id) {
            sequencer.end(self.sequence);
        }
        self.session.ended.notify_waiters();
    }
}

impl Client {
    /// A write that takes effect once however often it is sent, if the servers can see to that.
    pub(super) async fn write<T, R, F, W>(&self, message: T, send: F) -> Result<R, ClientError>
    where
        T: Clone,
        F: Fn(Line, Request<T>) -> W,
        W: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = Instant::now() + self.inner.options.timeout;
        let mut backoff = Backoff::new();
        loop {
            let Some(turn) = self.turn(deadline).await? else {
                return self.call(Kind::Write, |channel| send(channel, Request::new(message.clone()))).await;
            };
            let mut uncertain = false;
            let attempt = |channel| {
                let mut request = Request::new(message.clone());
                request.metadata_mut().insert(ONCE, encode(turn.once(), &turn.proof));
                send(channel, request)
            };
            match self.call_until(deadline, Kind::Once, &mut uncertain, attempt).await {
                Err(ClientError::Other(cause)) if cause.expired => {
                    self.inner.session.forget(turn.id);
                    if uncertain {
                        return Err(ClientError::Unknown(cause));
                    }
                    // Where sessions are driven out as fast as they are opened, this ends as well.
                    let pause = backoff.next_pause();
                    if Instant::now() + pause >= deadline {
                        return Err(ClientError::Safe(cause));
                    }
                    tokio::time::sleep(pause).await;
                }
                // This attempt was refused, and an earlier one may have been the one.
                Err(ClientError::Other(cause)) if uncertain && !cause.decided => {
                    return Err(ClientError::Unknown(cause));
                }
                outcome => return outcome,
            }
        }
    }

    /// The next number of the session, which is opened if need be; none where there are no sessions.
    async fn turn(&self, deadline: Instant) -> Result<Option<Turn<'_>>, ClientError> {
        let session = &self.inner.session;
        loop {
            let mut ended = std::pin::pin!(session.ended.notified());
            ended.as_mut().enable();
            let number = match &mut *session.lock() {
                State::Unknown => return Ok(None),
                State::Closed => None,
                State::Open(sequencer, proof) => Some((sequencer.session(), sequencer.begin(), proof.clone())),
            };
            match number {
                Some((id, Some(sequence), proof)) => return Ok(Some(Turn { session, id, sequence, proof })),
                Some((_, None, _)) => {
                    let waited = tokio::time::timeout_at(deadline, ended).await;
                    let full = "too many writes of this client wait for an answer".into();
                    waited.map_err(|_| ClientError::Safe(Cause::new("no endpoint", Code::ResourceExhausted, full)))?;
                }
                None => self.open(deadline).await?,
            }
        }
    }

    async fn open(&self, deadline: Instant) -> Result<(), ClientError> {
        let session = &self.inner.session;
        let _one = session.opening.lock().await;
        if !matches!(*session.lock(), State::Closed) {
            return Ok(());
        }
        let open = |channel| async move { NodeClient::new(channel).open_session(OpenSessionRequest {}).await };
        // One that is opened twice expires.
        let opened = match self.call_until(deadline, Kind::Read, &mut false, open).await {
            Ok(opened) => State::Open(Sequencer::new(SessionId(opened.session)), opened.proof),
            Err(ClientError::Other(cause)) if cause.code == Code::Unimplemented => State::Unknown,
            Err(error) => return Err(error),
        };
        *session.lock() = opened;
        Ok(())
    }

    /// Ends the client's session, so that the servers need not keep anything for it until it expires. Not to be called while writes are
    /// under way: their outcome would be unknown.
    pub async fn close(&self) {
        let (session, proof) = match &mut *self.inner.session.lock() {
            State::Open(sequencer, proof) => (sequencer.session(), proof.clone()),
            State::Closed | State::Unknown => return,
        };
        self.inner.session.forget(session);
        let request = CloseSessionRequest { session: session.0, proof };
        let close = |line: Line| {
            let request = request.clone();
            async move { NodeClient::new(line).close_session(request).await }
        };
        let deadline = Instant::now() + CLOSE_LIMIT.min(self.inner.options.timeout);
        // In vain, it expires.
        let _ = self.call_until(deadline, Kind::Read, &mut false, close).await;
    }
}
