//! When the quorum is lost for good: a survivor's log is changed, offline, so that it becomes the only voter.
//!
//! Raft can't do this, for it may lose what was acknowledged: the survivor need not hold all that the lost majority had on
//! disk. It is for an operator to decide. While the members that are given up may still come back with their disks, it must not be done: they would be
//! a second cluster with the same name.

use bytes::Bytes;

use crate::error::{Fatal, FatalKind};
use crate::runtime::find_configurations;
use crate::traits::{HardState, LogState, LogStore, LogWrite, Snapshot};
use crate::types::{Entry, EntryKind, LogId, Membership, NodeId, Peer};

/// What a survivor holds: look at it before you decide.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// The node.
    pub id: NodeId,
    /// The configuration in force on it, and the index of its entry.
    pub membership: Membership,
    /// The log: the survivor's last entry is all that it can tell of how far it is behind.
    pub log: LogState,
    /// The last entry in its newest image.
    pub snapshot: Option<LogId>,
}

impl Survivor {
    /// Looks at the stores of a node that does not run. Changes nothing.
    ///
    /// # Errors
    /// The stores can't be read or are damaged, or they hold no configuration with this node in it.
    pub async fn inspect(id: NodeId, log: &dyn LogStore, snapshots: &dyn Snapshot) -> Result<Self, Fatal> {
        let state = log.load().await?;
        let snapshot = snapshots.latest().await?;
        let newest = snapshot.as_ref().map(|image| image.meta.last);
        if let Some(image) = newest.filter(|image| !holds(&state, *image)) {
            return Err(refused(format!(
                "its newest image reaches to {image}, which its log ({} to {}) does not hold: it was stopped while it took over an image; start it \
                 once, alone, so that it finishes that, then stop it and try again",
                state.base, state.last
            )));
        }
        let from_snapshot = snapshot.map(|image| (image.meta.membership_at, image.meta.membership));
        let mut configurations = find_configurations(log, &state, state.last.index, from_snapshot).await?;
        let Some((_, membership)) = configurations.pop() else {
            return Err(refused("it holds no configuration: it never belonged to a cluster".into()));
        };
        if !membership.contains(id) {
            return Err(refused(format!("node {} is no member of its own configuration ({membership})", id.0)));
        }
        Ok(Self { id, membership, log: state, snapshot: newest })
    }

    /// The members that are given up.
    pub fn given_up(&self) -> impl Iterator<Item = &Peer> {
        self.membership.members().filter(|peer| peer.id != self.id)
    }

    /// Makes the survivor the only voter, in a term of its own: everything in its log becomes committed when it starts again. In the same write
    /// it gets `commands`, which its state machine applies before all that comes later: what it should know of the members that are given
    /// up, for example. Returns the entry with which it is the only voter.
    ///
    /// # Errors
    /// The log can't be written, or is not the one that was looked at. Nothing has changed then.
    pub async fn become_only_voter(&self, log: &dyn LogStore, commands: Vec<Bytes>) -> Result<LogId, Fatal> {
        if log.load().await? != self.log {
            return Err(refused("the log has changed since it was looked at".into()));
        }
        let Some(own) = self.membership.get(self.id) else {
            return Err(refused(format!("node {} is no member", self.id.0)));
        };
        let HardState { term, .. } = self.log.hard_state;
        let id = LogId { term: term.next(), index: self.log.last.index.next() };
        let mut entries = vec![Entry { id, kind: EntryKind::Config, data: Membership::new([own.clone()]).encode() }];
        let mut last = id.index;
        entries.extend(commands.into_iter().map(|data| {
            last = last.next();
            Entry { id: LogId { term: id.term, index: last }, kind: EntryKind::Command, data }
        }));
        let hard_state = HardState { term: id.term, voted_for: Some(self.id) };
        log.write(LogWrite { hard_state: Some(hard_state), entries }).await?;
        Ok(id)
    }
}

/// Whether the log holds this entry, or begins right after it.
fn holds(log: &LogState, id: LogId) -> bool {
    let run = log.runs.iter().rev().find(|run| run.first <= id.index);
    id == log.base || (id.index <= log.last.index && run.is_some_and(|run| run.term == id.term))
}

fn refused(reason: String) -> Fatal {
    Fatal::new(FatalKind::Config(reason))
}
