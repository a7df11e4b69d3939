//! Which configuration is in force: the latest in the log, committed or not (paper §6).

use bytes::Bytes;

use super::Consensus;
use super::io::Note;
use crate::types::{Index, LogId, Membership};

/// The configurations that may yet be in force: the last committed one, and all after it.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Configurations(Vec<(LogId, Membership)>);

impl Configurations {
    pub(crate) fn new(found: Vec<(LogId, Membership)>) -> Self {
        Self(found)
    }

    pub(crate) fn current(&self) -> Option<&Membership> {
        self.0.last().map(|(_, membership)| membership)
    }

    /// The configuration that the entry at `index` holds, if it may yet be in force.
    pub(crate) fn at(&self, index: Index) -> Option<&Membership> {
        self.0.iter().find(|(at, _)| at.index == index).map(|(_, membership)| membership)
    }

    /// Entries from `from` on were removed: an earlier configuration is in force again.
    pub(crate) fn truncated(&mut self, from: Index) {
        self.0.retain(|(at, _)| at.index < from);
    }

    /// Everything up to `index` stays.
    pub(crate) fn committed(&mut self, index: Index) {
        let settled = self.0.iter().take_while(|(at, _)| at.index <= index).count();
        self.0.drain(..settled.saturating_sub(1));
    }
}

impl Consensus {
    /// A configuration is about to be in the log at `id`, and so in force. Its bytes were validated.
    pub(crate) fn adopt_configuration(&mut self, id: LogId, data: &Bytes) {
        let Ok(membership) = Membership::decode(data) else { return };
        self.out.notes.push(Note::Membership { index: id.index, membership: membership.clone() });
        self.configurations.0.push((id, membership));
    }
}
