//! What the handles and the driver share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::busy::BusyPoll;
use super::events::{Announcer, Event, Events};
use super::intake::{Intake, Request};
use super::mailbox::{Closed, Mailbox};
use super::meter::Failures;
use super::pending::{ChangeAnswer, InitializeAnswer, TransferAnswer};
use super::random;
use crate::change::Change;
use crate::config::Config;
use crate::error::{ChangeError, Error, Fatal, FatalKind, InitializeError, TransferError};
use crate::metrics::{Metrics, Status};
use crate::session::SessionId;
use crate::types::{LogId, Membership, NodeId};

/// How many requests of the owner are with the driver at a time; further ones wait.
const MAX_CONTROL: usize = 64;

/// How many changes of the configuration may wait at a node; further ones are turned away.
const MAX_CHANGES: usize = 16;

/// Requests of the node's owner. Heard under overload as well.
#[derive(Debug)]
pub(crate) enum Control {
    Initialize {
        membership: Membership,
        answer: InitializeAnswer,
    },
    Change {
        change: Change,
        answer: ChangeAnswer,
    },
    Campaign {
        answer: oneshot::Sender<()>,
    },
    /// Changes what is given.
    Prefer {
        priority: Option<u32>,
        may_lead: Option<bool>,
        answer: oneshot::Sender<()>,
    },
    Snapshot {
        answer: oneshot::Sender<LogId>,
    },
    Transfer {
        to: Option<NodeId>,
        answer: TransferAnswer,
    },
    Status {
        answer: oneshot::Sender<Status>,
    },
    Metrics {
        answer: oneshot::Sender<Metrics>,
    },
    /// In good order, or at once.
    Stop {
        orderly: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: NodeId,
    pub(crate) max_command_bytes: u64,
    pub(crate) max_sessions: u64,
    pub(crate) session_idle: Duration,
    pub(crate) session_patience: Duration,
    /// From which the names of sessions are drawn.
    names: AtomicU64,
    pub(crate) intake: Intake,
    /// Whether a request that is alone is answered soon.
    busy: BusyPoll,
    pub(crate) control: Mailbox<Control>,
    control_room: Semaphore,
    /// For changes of the configuration, which take long.
    change_room: Semaphore,
    pub(crate) announcer: Announcer,
    pub(crate) failures: Failures,
    /// Set once, when the node begins to stop.
    fatal: OnceLock<Fatal>,
    /// Closed when the node begins to stop: a gate that nobody enters before.
    ending: Semaphore,
    /// Closed when everything has ended: a gate that nobody enters before.
    ended: Semaphore,
}

impl Shared {
    /// `seed` must differ from run to run of the node.
    pub(crate) fn new(id: NodeId, config: &Config, seed: u64) -> Self {
        Self {
            id,
            max_command_bytes: config.max_command_bytes,
            max_sessions: config.max_sessions as u64,
            session_idle: config.session_idle,
            session_patience: config.session_patience,
            names: AtomicU64::new(seed),
            intake: Intake::new(config),
            busy: BusyPoll::new(config.busy_poll),
            control: Mailbox::new(),
            control_room: Semaphore::new(MAX_CONTROL),
            change_room: Semaphore::new(MAX_CHANGES),
            announcer: Announcer::new(),
            failures: Failures::default(),
            fatal: OnceLock::new(),
            ending: Semaphore::new(0),
            ended: Semaphore::new(0),
        }
    }

    /// A name that no other session has.
    pub(crate) fn name_session(&self) -> SessionId {
        SessionId(random::mix(self.names.fetch_add(1, Ordering::Relaxed)))
    }

    /// Why the node stops or has stopped, if it does.
    pub(crate) fn fatal(&self) -> Option<&Fatal> {
        self.fatal.get()
    }

    /// Why the node has stopped.
    fn why(&self) -> Fatal {
        let bug = || Fatal::new(FatalKind::Bug("the node stopped without a reason".into()));
        self.fatal().cloned().unwrap_or_else(bug)
    }

    /// The node begins to stop: nothing is taken in any more, and what was not taken yet is answered.
    pub(crate) fn close(&self, fatal: Fatal) {
        let fatal = self.fatal.get_or_init(|| fatal).clone();
        self.control_room.close();
        self.ending.close();
        for request in self.intake.close_and_drain() {
            let error = Error::Stopped(fatal.clone());
            match request {
                Request::Write { answer, .. } => drop(answer.send(Err(error))),
                Request::WriteMany { answer, .. } => drop(answer.send(Err(error))),
                Request::Read { answer, .. } | Request::ReadAtLeast { answer, .. } => drop(answer.send(Err(error))),
            }
        }
        for control in self.control.close_and_drain() {
            match control {
                Control::Initialize { answer, .. } => {
                    let _ = answer.send(Err(InitializeError::Stopped(fatal.clone())));
                }
                Control::Change { answer, .. } => {
                    let _ = answer.send(Err(ChangeError::Stopped(fatal.clone())));
                }
                Control::Transfer { answer, .. } => {
                    let _ = answer.send(Err(TransferError::Stopped(fatal.clone())));
                }
                Control::Campaign { .. }
                | Control::Prefer { .. }
                | Control::Snapshot { .. }
                | Control::Status { .. }
                | Control::Metrics { .. }
                | Control::Stop { .. } => {}
            }
        }
    }

    /// Waits for the answer to a request, which may be `alone`.
    pub(crate) async fn answered<T>(&self, mut answered: oneshot::Receiver<T>, alone: bool) -> Option<T> {
        if !alone || !self.busy.is_on() {
            return answered.await.ok();
        }
        let began = Instant::now();
        let mut wait = self.busy.wait(Duration::ZERO);
        let answer = std::future::poll_fn(|cx| {
            let answer = answered.poll_unpin(cx);
            if answer.is_pending() {
                self.busy.look_again(&mut wait, cx, || began.elapsed());
            }
            answer
        });
        let answer = answer.await;
        self.busy.came(&wait, began.elapsed());
        answer.ok()
    }

    /// Asks the driver for something, and waits for its answer.
    pub(crate) async fn request<T>(&self, control: impl FnOnce(oneshot::Sender<T>) -> Control) -> Result<T, Fatal> {
        // Held until the answer is there.
        let _room = self.control_room.acquire().await.map_err(|_| self.why())?;
        let (answer, answered) = oneshot::channel();
        self.control.push(control(answer)).map_err(|Closed(_)| self.why())?;
        match answered.await {
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.reason().await),
        }
    }

    /// Has the driver change the configuration, and waits for the outcome.
    pub(crate) async fn change(&self, change: Change) -> Result<LogId, ChangeError> {
        let Ok(_room) = self.change_room.try_acquire() else { return Err(ChangeError::Overloaded) };
        let (answer, answered) = oneshot::channel();
        let pushed = self.control.push(Control::Change { change, answer });
        pushed.map_err(|Closed(_)| ChangeError::Stopped(self.why()))?;
        match answered.await {
            Ok(outcome) => outcome,
            Err(_) => Err(ChangeError::Stopped(self.reason().await)),
        }
    }

    /// Asks the driver to stop.
    pub(crate) fn stop(&self, orderly: bool) {
        // Where nobody takes it, the node has stopped.
        let _ = self.control.push(Control::Stop { orderly });
    }

    /// Why the node stops, for someone whose request it dropped or turned away: then there is a reason, or will be when its orderly end is over.
    pub(crate) async fn reason(&self) -> Fatal {
        match self.fatal() {
            Some(fatal) => fatal.clone(),
            None => self.ending().await,
        }
    }

    /// Everything has ended. The gate closes first, so that no listener misses the last event.
    pub(crate) fn end(&self) {
        self.ended.close();
        self.announcer.announce(Event::Stopped(self.why()));
    }

    pub(crate) fn listen(&self) -> Events {
        let events = self.announcer.listen();
        if self.ended.is_closed() { Events::stopped(self.why()) } else { events }
    }

    /// Waits for the beginning of the end.
    pub(crate) async fn ending(&self) -> Fatal {
        // The gate has no places: this returns when it is closed.
        let _ = self.ending.acquire().await;
        self.why()
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> Fatal {
        // The gate has no places: this returns when it is closed.
        let _ = self.ended.acquire().await;
        self.why()
    }
}

/// Ends the node in all cases, also when the runtime that runs it is dropped.
#[derive(Debug)]
pub(crate) struct EndGuard(pub(crate) std::sync::Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.close(Fatal::shutdown());
        self.0.end();
    }
}
