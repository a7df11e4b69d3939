//! What happens to a node, as a stream for its owner.

use std::time::Duration;

use tokio::sync::broadcast;

use crate::consensus::{RoleKind, TransferStep};
use crate::error::Fatal;
use crate::types::{Index, LogId, Membership, NodeId, Term};

/// How many events a listener may lag behind before it misses some.
const MAX_LAG: usize = 256;

/// Something happened to the node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Its role or term changed.
    Role {
        /// Its role from now on.
        role: RoleKind,
        /// Its term.
        term: Term,
    },
    /// It follows another leader, or none, from now on.
    Leader {
        /// Who leads; the node itself when it does.
        leader: Option<NodeId>,
        /// In which term.
        term: Term,
    },
    /// A configuration is in force from now on.
    Membership {
        /// Its place in the log.
        index: Index,
        /// The configuration.
        membership: Membership,
    },
    /// A configuration without this node is committed: it may be stopped.
    Removed {
        /// The configuration's place in the log.
        index: Index,
    },
    /// Uncommitted entries of a former leader were replaced by those of the present one.
    Truncated {
        /// The first index removed.
        from: Index,
        /// The last one.
        upto: Index,
    },
    /// An image of the state machine was taken. The log in front of it is cut off, save the trailing entries.
    SnapshotTaken {
        /// The last entry that it reflects.
        last: LogId,
        /// Its length in bytes.
        len: u64,
    },
    /// An image that was received took the place of the state and of the log: this node had fallen behind what others keep of theirs.
    SnapshotInstalled {
        /// The last entry that it reflects.
        last: LogId,
        /// Its length in bytes.
        len: u64,
    },
    /// An image is being received. Told at the beginning, and from time to time.
    SnapshotReceiving {
        /// Who sends it.
        from: NodeId,
        /// The last entry that it reflects.
        last: LogId,
        /// How much of it is on disk, in bytes.
        stored: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// This leader hands leadership over.
    Transfer {
        /// To whom.
        to: NodeId,
        /// How far it is. Its success shows as the next leader.
        step: TransferStep,
    },
    /// Something does not get done: a leader gives leadership up for it, and the node does not campaign until it recovers.
    Stalled {
        /// What.
        what: Stall,
        /// For how long by now.
        since: Duration,
    },
    /// It got done, and the node may lead again.
    Recovered {
        /// What had stalled.
        what: Stall,
        /// How long it took.
        took: Duration,
    },
    /// The listener was too slow, and events are missing here.
    Missed {
        /// How many.
        count: u64,
    },
    /// It stopped. The last event.
    Stopped(Fatal),
}

/// A part of a node that can stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stall {
    /// The disk: a write of the log takes longer than `Config::stall_timeout`.
    Disk,
    /// The state machine: it did not get on for that long with what it has to do.
    StateMachine,
}

/// A stream of events, from [`Raft::events`](crate::Raft::events).
#[derive(Debug)]
pub struct Events(Source);

#[derive(Debug)]
enum Source {
    Live(broadcast::Receiver<Event>),
    /// The node has stopped; this is still to be told.
    Stopped(Fatal),
    Ended,
}

impl Events {
    /// The next event; none after [`Event::Stopped`].
    pub async fn next(&mut self) -> Option<Event> {
        match &mut self.0 {
            Source::Live(receiver) => match receiver.recv().await {
                Ok(event) => {
                    if matches!(event, Event::Stopped(_)) {
                        self.0 = Source::Ended;
                    }
                    Some(event)
                }
                Err(broadcast::error::RecvError::Lagged(count)) => Some(Event::Missed { count }),
                Err(broadcast::error::RecvError::Closed) => None,
            },
            Source::Stopped(_) => match std::mem::replace(&mut self.0, Source::Ended) {
                Source::Stopped(fatal) => Some(Event::Stopped(fatal)),
                Source::Live(_) | Source::Ended => None,
            },
            Source::Ended => None,
        }
    }

    /// The stream of a node that has stopped.
    pub(crate) fn stopped(fatal: Fatal) -> Self {
        Self(Source::Stopped(fatal))
    }
}

/// The sending side.
#[derive(Debug)]
pub(crate) struct Announcer(broadcast::Sender<Event>);

impl Announcer {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(MAX_LAG))
    }

    pub(crate) fn announce(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.0.send(event);
    }

    pub(crate) fn listen(&self) -> Events {
        Events(Source::Live(self.0.subscribe()))
    }
}
