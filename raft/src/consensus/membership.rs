//! Which configuration is in force: the latest in the log, committed or not (paper §6, thesis §4.3); and who follows from it.
//!
//! A configuration that is not committed may be taken back with its entry; then the one before it is in force again.

use bytes::Bytes;

use super::Consensus;
use super::io::{Note, Time};
use super::progress::Progress;
use super::role::Role;
use crate::mutant;
use crate::traits::SnapshotMeta;
use crate::types::{EntryKind, Index, LogId, Membership, NodeId, Peer};

/// The configurations that may yet be in force: the last committed one, and all after it.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Configurations(Vec<(LogId, Membership)>);

/// A peer that the leader's configuration has dropped, and that is not known to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaving {
    /// Where it is reached.
    pub(super) peer: Peer,
    /// Where the configuration is that dropped it.
    pub(super) at: Index,
    /// The round of heartbeats that told it that this is committed.
    pub(super) told: Option<u64>,
    /// When it is left alone in any case.
    pub(super) until: Time,
}

impl Configurations {
    pub(crate) fn new(found: Vec<(LogId, Membership)>) -> Self {
        Self(found)
    }

    pub(crate) fn current(&self) -> Option<&Membership> {
        self.0.last().map(|(_, membership)| membership)
    }

    /// The one in force, with its place.
    pub(crate) fn latest(&self) -> Option<(LogId, &Membership)> {
        self.0.last().map(|(at, membership)| (*at, membership))
    }

    /// All that may yet be in force.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = &Membership> {
        self.0.iter().map(|(_, membership)| membership)
    }

    /// The configuration that the entry at `index` holds, if it may yet be in force.
    pub(crate) fn at(&self, index: Index) -> Option<&Membership> {
        self.0.iter().find(|(at, _)| at.index == index).map(|(_, membership)| membership)
    }

    /// Entries from `from` on were removed: an earlier configuration is in force again. Whether that changed anything.
    fn truncated(&mut self, from: Index) -> bool {
        let before = self.0.len();
        if !mutant!("uncommitted-configuration-not-taken-back") {
            self.0.retain(|(at, _)| at.index < from);
        }
        self.0.len() < before
    }

    /// An image that ends at `last` brings the configuration that was in force there. The log after it stays, or goes as well. Tells where
    /// `id` is found to have been dropped for good.
    fn replaced(
        &mut self,
        (at, membership): (LogId, Membership),
        last: Index,
        keep: bool,
        id: NodeId,
    ) -> Option<LogId> {
        let was_there = self.all().any(|membership| membership.contains(id));
        let dropped = was_there && !membership.contains(id);
        self.0.retain(|(later, _)| keep && later.index > last);
        self.0.insert(0, (at, membership));
        (dropped && !self.all().any(|membership| membership.contains(id))).then_some(at)
    }

    /// Everything up to `index` stays. Tells where `id` is found to have been dropped for good.
    fn committed(&mut self, index: Index, id: NodeId) -> Option<LogId> {
        let settled = self.0.iter().take_while(|(at, _)| at.index <= index).count();
        let passed: Vec<_> = self.0.drain(..settled.saturating_sub(1)).collect();
        let (at, last) = self.0.first().filter(|_| settled > 0)?;
        let was_there = passed.iter().any(|(_, membership)| membership.contains(id));
        (was_there && !last.contains(id)).then_some(*at)
    }
}

impl Consensus {
    /// A configuration is about to be in the log at `id`, and so in force. Its bytes were validated.
    pub(crate) fn adopt_configuration(&mut self, id: LogId, data: &Bytes) {
        let Ok(membership) = Membership::decode(data) else { return };
        if membership.contains(self.id) {
            self.removed = None;
        }
        self.out.notes.push(Note::Membership { index: id.index, membership: membership.clone() });
        self.configurations.0.push((id, membership));
    }

    /// An image takes the place of the log up to its last entry, and of all that comes after it unless that is to `keep`.
    pub(crate) fn adopt_configuration_of(&mut self, meta: &SnapshotMeta, keep: bool) {
        if mutant!("installed-image-leaves-the-old-configuration") {
            return;
        }
        let brought = (meta.membership_at, meta.membership.clone());
        let dropped = self.configurations.replaced(brought, meta.last.index, keep, self.id);
        if let Some((at, membership)) = self.configurations.latest() {
            if membership.contains(self.id) {
                self.removed = None;
            }
            self.out.notes.push(Note::Membership { index: at.index, membership: membership.clone() });
        }
        if let Some(at) = dropped {
            self.removed = Some(at);
            self.out.notes.push(Note::Removed { index: at.index });
        }
    }

    /// Entries from `from` on were removed.
    pub(crate) fn take_back_configurations(&mut self, from: Index) {
        if self.configurations.truncated(from)
            && let Some((at, membership)) = self.configurations.latest()
        {
            self.out.notes.push(Note::Membership { index: at.index, membership: membership.clone() });
        }
    }

    /// Everything up to `index` is committed, and with it the configurations up to there.
    pub(crate) fn settle_configurations(&mut self, index: Index) {
        if let Some(at) = self.configurations.committed(index, self.id) {
            self.removed = Some(at);
            self.out.notes.push(Note::Removed { index: at.index });
        }
    }

    /// Puts a configuration into the leader's log: it is in force at once.
    pub(crate) fn append_configuration(&mut self, now: Time, membership: &Membership) {
        let id = LogId { term: self.hard_state.term, index: self.log.last().index.next() };
        let data = membership.encode();
        self.adopt_configuration(id, &data);
        self.append_own(EntryKind::Config, data);
        self.commit_due = true;
        let until = now.plus(self.config.catch_up_timeout);
        let known: Vec<_> = self.configurations.all().rev().flat_map(Membership::members).collect();
        let Role::Leader(leader) = &mut self.role else { return };
        for peer in membership.members().filter(|peer| peer.id != self.id) {
            leader.leaving.remove(&peer.id);
            leader.peers.entry(peer.id).or_insert_with(|| Progress::new(now, id.index.prev()));
        }
        for dropped in leader.peers.keys().filter(|id| !membership.contains(**id)) {
            if let Some(peer) = known.iter().find(|peer| peer.id == *dropped) {
                let leaving = Leaving { peer: (*peer).clone(), at: id.index, told: None, until };
                leader.leaving.entry(*dropped).or_insert(leaving);
            }
        }
        if mutant!("removed-node-is-not-told") {
            leader.peers.retain(|id, _| membership.contains(*id));
            leader.leaving.clear();
        }
    }

    /// The peers of a new leader: the members, and those that an earlier configuration that may yet be in force still names.
    pub(crate) fn peers_of_new_leader(&self, now: Time) -> (Vec<NodeId>, Vec<(NodeId, Leaving)>) {
        let Some((at, current)) = self.configurations.latest() else { return Default::default() };
        let until = now.plus(self.config.catch_up_timeout);
        let others = self.configurations.all().flat_map(Membership::members);
        let leaving = others.filter(|peer| peer.id != self.id && !current.contains(peer.id));
        let leaving =
            leaving.map(|peer| (peer.id, Leaving { peer: peer.clone(), at: at.index, told: None, until })).collect();
        let members = current.members().map(|peer| peer.id).filter(|id| *id != self.id).collect();
        (members, leaving)
    }

    /// Leaves alone those that know that they are dropped, and those that could not be told in time.
    pub(crate) fn part_with_removed(&mut self, now: Time) {
        let Role::Leader(leader) = &mut self.role else { return };
        let super::role::Leader { peers, leaving, .. } = &mut **leader;
        leaving.retain(|id, state| {
            let knows = |progress: &Progress| state.told.is_some_and(|round| progress.round >= round);
            let stays = now < state.until && peers.get(id).is_some_and(|progress| !knows(progress));
            if !stays {
                peers.remove(id);
            }
            stays
        });
    }

    /// Everyone that this node may have something to say to: the members of all configurations that may yet be in force, where the latest one
    /// has them, and on a leader those that are leaving.
    #[must_use]
    pub fn correspondents(&self) -> Vec<Peer> {
        let mut found: std::collections::BTreeMap<NodeId, Peer> = Default::default();
        let leaving = match &self.role {
            Role::Leader(leader) => Some(leader.leaving.values().map(|leaving| &leaving.peer)),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => None,
        };
        let configured = self.configurations.all().rev().flat_map(Membership::members);
        for peer in configured.chain(leaving.into_iter().flatten()) {
            found.entry(peer.id).or_insert_with(|| peer.clone());
        }
        found.remove(&self.id);
        found.into_values().collect()
    }
}
