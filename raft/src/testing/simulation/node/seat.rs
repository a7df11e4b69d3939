//! A node's place in the cluster: what outlives its runs, what is known about the present one, and which ends of it the faults
//! that it met explain.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::FutureExt;

use super::load::Desk;
use super::stores::Stores;
use super::subject::Subject;
use crate::error::{Error, Fatal, FatalKind, InitializeError, StorageError};
use crate::handle::{Consistency, Raft};
use crate::types::{Membership, NodeId, Peer};

/// Something that the world has to see to.
#[derive(Debug)]
pub(super) enum Notice {
    /// A store tells that power fails at this moment.
    PowerFailed { node: NodeId, run: u64 },
    /// A node has stopped.
    Stopped { node: NodeId, run: u64, fatal: Fatal },
}

pub(super) struct Seat<S: Subject, T> {
    pub(super) peer: Peer,
    pub(super) stores: T,
    /// What its log acknowledged.
    pub(super) memory: super::vouched::Memory,
    /// Counts the starts.
    pub(super) run: u64,
    pub(super) state: State<S>,
    pub(super) excuses: Excuses,
    /// The state machines of all runs: gone when the runtime has let go of them.
    pub(super) alive: Vec<Weak<()>>,
}

pub(super) enum State<S: Subject> {
    Down,
    Running(Running<S>),
    /// It refused to work with what it has, as it should. Without a change of membership nothing can take its place.
    Out,
}

pub(super) struct Running<S: Subject> {
    /// None once it is dropped without a shutdown.
    pub(super) desk: Option<Desk<S>>,
    pub(super) machine: Arc<super::machine::Machine>,
    /// It was told to end.
    pub(super) ending: bool,
}

/// What befell a node's disk: the ends that this explains.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Excuses {
    /// An operation was made to fail, in this run.
    pub(super) error: bool,
    /// There is no room, or was none since the run began.
    pub(super) full: bool,
    pub(super) full_now: bool,
    /// Something durable is damaged, for good.
    pub(super) damaged: bool,
}

impl Excuses {
    /// The machine went down: what befell only that run is over.
    pub(super) fn next_run(&mut self) {
        self.error = false;
        self.full = self.full_now;
    }

    /// Whether a node may stop, or not start, for this reason.
    pub(super) fn explain(self, fatal: &Fatal, ending: bool) -> bool {
        match fatal.kind() {
            FatalKind::Shutdown => ending,
            FatalKind::Storage(error) => match error {
                StorageError::Io { .. } => self.error,
                StorageError::Full { .. } => self.full,
                StorageError::Corrupt { .. } => self.damaged,
                StorageError::Sticky(_) => self.error || self.full,
                StorageError::Refused { .. } | StorageError::Misuse(_) => false,
            },
            FatalKind::StateMachine(_) | FatalKind::Config(_) | FatalKind::Bug(_) => false,
        }
    }
}

impl<S: Subject, T: Stores> Seat<S, T> {
    pub(super) fn running(&self) -> Option<&Running<S>> {
        match &self.state {
            State::Running(running) => Some(running),
            State::Down | State::Out => None,
        }
    }

    /// Running, and not about to end.
    pub(super) fn is_up(&self) -> bool {
        self.running().is_some_and(|running| !running.ending)
    }

    pub(super) fn is_out(&self) -> bool {
        matches!(self.state, State::Out)
    }

    /// Whether it keeps every promise it ever made.
    pub(super) fn is_sound(&self) -> bool {
        !self.is_out() && !self.excuses.damaged
    }
}

/// Every call at a node that has stopped answers at once, with the reason.
pub(super) fn check_stopped(raft: &Raft) -> Result<(), String> {
    let stopped = |outcome: Option<Result<(), Error>>| matches!(outcome, Some(Err(Error::Stopped(_))));
    let calls = [
        ("write", stopped(raft.write(Bytes::new()).now_or_never().map(|done| done.map(drop)))),
        ("write_many", stopped(raft.write_many(vec![Bytes::new()]).now_or_never().map(|done| done.map(drop)))),
        ("read", stopped(raft.read(Consistency::Linearizable).now_or_never())),
        ("stale read", stopped(raft.read(Consistency::Stale).now_or_never())),
        ("status", stopped(raft.status().now_or_never().map(|done| done.map(drop)))),
        ("campaign", stopped(raft.campaign().now_or_never())),
        (
            "initialize",
            matches!(raft.initialize(Membership::default()).now_or_never(), Some(Err(InitializeError::Stopped(_)))),
        ),
        ("shutdown", raft.shutdown().now_or_never().is_some()),
        ("stopped", raft.stopped().now_or_never().is_some()),
    ];
    match calls.iter().find(|(_, answered)| !answered) {
        Some((call, _)) => Err(format!("after the end: {call} at {} does not say that it has stopped", raft.id())),
        None => Ok(()),
    }
}
