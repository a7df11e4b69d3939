//! A node's place in the cluster: what outlives its runs, what is known about the present one, and which ends of it the faults
//! that it met explain.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::load::Desk;
use super::stores::{DiskFault, Stores};
use super::subject::Subject;
use crate::change::Change;
use crate::consensus::Preference;
use crate::error::{ChangeError, Error, Fatal, FatalKind, InitializeError, StorageError};
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
    /// What its state machine keeps.
    pub(super) kept: super::kept::Kept,
    /// What the operator wants of it: its priority, and whether it may lead. Given to each run.
    pub(super) preference: Preference,
}

pub(super) enum State<S: Subject> {
    Down,
    Running(Running<S>),
    /// It refused to work with what it has, as it should; or lost its disk, and another takes its place.
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
    /// Since when none is any more.
    healed: Option<Instant>,
    /// There is no room, or was none since the run began.
    pub(super) full: bool,
    pub(super) full_now: bool,
    /// Since when there is room again.
    room: Option<Instant>,
    /// Something durable is damaged, for good.
    pub(super) damaged: bool,
    /// What the state machine keeps is damaged, until it is moved away.
    pub(super) machine_damaged: bool,
}

impl Excuses {
    /// Something befalls the disk, or ends to.
    pub(super) fn befall(&mut self, fault: DiskFault) {
        let now = Instant::now();
        match fault {
            DiskFault::Error | DiskFault::SyncError => (self.error, self.healed) = (true, None),
            DiskFault::Full => (self.full, self.full_now, self.room) = (true, true, None),
            DiskFault::Room | DiskFault::Heal => {
                self.full_now = false;
                self.room.get_or_insert(now);
                if fault == DiskFault::Heal {
                    self.healed.get_or_insert(now);
                }
            }
            DiskFault::Rot | DiskFault::Misdirected => self.damaged = true,
            DiskFault::MachineDamaged => self.machine_damaged = true,
            DiskFault::Slow(_) | DiskFault::Stall | DiskFault::Resume | DiskFault::PowerFailsSoon => {}
        }
    }

    /// The machine went down: what befell only that run is over.
    pub(super) fn next_run(&mut self) {
        self.error = false;
        self.full = self.full_now;
    }

    /// Whether a node may stop, or not start, for this reason. `began`: when the write began that has failed, or is under way. What is
    /// mended explains nothing that began later.
    pub(super) fn explain(self, fatal: &Fatal, ending: bool, began: Option<Instant>) -> bool {
        let holds = |over: Option<Instant>| over.is_none_or(|over| began.is_some_and(|began| began <= over));
        let error = self.error && holds(self.healed);
        let full = self.full && (self.full_now || holds(self.room));
        match fatal.kind() {
            FatalKind::Shutdown => ending,
            FatalKind::Storage(storage) => match storage {
                StorageError::Io { .. } => error,
                StorageError::Full { .. } => full,
                StorageError::Corrupt { .. } => self.damaged,
                StorageError::Sticky(_) => error || full,
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
        ("set_priority", stopped(raft.set_priority(1).now_or_never())),
        ("set_may_lead", stopped(raft.set_may_lead(true).now_or_never())),
        ("metrics", stopped(raft.metrics().now_or_never().map(|done| done.map(drop)))),
        (
            "initialize",
            matches!(raft.initialize(Membership::default()).now_or_never(), Some(Err(InitializeError::Stopped(_)))),
        ),
        ("change", matches!(raft.change_membership(Change::new()).now_or_never(), Some(Err(ChangeError::Stopped(_))))),
        ("shutdown", raft.shutdown().now_or_never().is_some()),
        ("stopped", raft.stopped().now_or_never().is_some()),
    ];
    match calls.iter().find(|(_, answered)| !answered) {
        Some((call, _)) => Err(format!("after the end: {call} at {} does not say that it has stopped", raft.id())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_mended_explains_only_what_began_before() {
        let io = StorageError::Io { op: "write", path: "log".into(), source: std::io::Error::other("made to fail") };
        let (io, full) = (Fatal::from(io), Fatal::from(StorageError::Full { op: "write", path: "log".into() }));
        let (before, mut excuses) = (Some(Instant::now()), Excuses::default());
        assert!(!excuses.explain(&io, false, before) && !excuses.explain(&full, false, before));
        excuses.befall(DiskFault::Error);
        excuses.befall(DiskFault::Full);
        assert!(excuses.explain(&io, false, None) && excuses.explain(&full, false, None));
        excuses.befall(DiskFault::Heal);
        assert!(excuses.explain(&io, false, before) && excuses.explain(&full, false, before));
        let later = Some(Instant::now() + Duration::from_secs(1));
        for began in [None, later] {
            assert!(!excuses.explain(&io, false, began) && !excuses.explain(&full, false, began), "{began:?}");
        }
        excuses.befall(DiskFault::SyncError);
        assert!(excuses.explain(&io, false, later) && !excuses.explain(&full, false, later));
        excuses.next_run();
        assert!(!excuses.explain(&io, false, before));
    }
}
