//! How a cluster begins: with a first configuration, as the very first entry.
//!
//! The entry is the same on every node that is told to start the same cluster (term 0, index 1), so it does not matter whether
//! one node is told, or all: logs that begin with it match. Two starts with different members would look alike, so they must be
//! kept apart by their [`ClusterId`](crate::ClusterId), best derived from the members.

use super::Consensus;
use super::io::{InitializeRefused, Reply, Time};
use crate::message::RequestId;
use crate::types::{Entry, EntryKind, Index, LogId, Membership};

/// The id of the entry that begins a cluster.
const FIRST: LogId = LogId::new(0, 1);

impl Consensus {
    /// Starts a cluster of these members, on a node whose log is empty. On a node that holds this very start it does nothing.
    pub(crate) fn initialize(&mut self, now: Time, request: RequestId, membership: Membership) {
        let refused = if let Err(reason) = membership.validate() {
            Some(InitializeRefused::Invalid { reason })
        } else if membership.is_joint() {
            Some(InitializeRefused::Invalid { reason: "a cluster can't begin with a joint configuration".into() })
        } else if !membership.is_voter(self.id) {
            let reason = format!("this node ({}) is not among them ({membership})", self.id);
            Some(InitializeRefused::Invalid { reason })
        } else if self.configurations.at(FIRST.index) == Some(&membership) {
            None
        } else if self.log.last() != LogId::ZERO || self.membership().is_some() || !self.votes_within(&membership) {
            Some(InitializeRefused::NotEmpty { existing: self.describe() })
        } else {
            let data = membership.encode();
            self.adopt_configuration(FIRST, &data);
            self.log.append(Entry { id: FIRST, kind: EntryKind::Config, data });
            self.reset_election_timer(now);
            None
        };
        match refused {
            Some(refused) => self.out.replies.push(Reply::Initialized { request, outcome: Err(refused) }),
            None => {
                self.initializing.push(request);
                self.on_initialized_stored();
            }
        }
    }

    /// A member that was told of the start before may have asked for this node's vote already. A vote for anyone else belongs
    /// to another cluster.
    fn votes_within(&self, membership: &Membership) -> bool {
        self.hard_state.voted_for.or(self.leader()).is_none_or(|id| membership.is_voter(id))
    }

    /// The start of a cluster is answered once it is on disk.
    pub(crate) fn on_initialized_stored(&mut self) {
        if self.log.stored() > Index::ZERO {
            let requests = self.initializing.drain(..);
            self.out.replies.extend(requests.map(|request| Reply::Initialized { request, outcome: Ok(()) }));
        }
    }

    fn describe(&self) -> String {
        let members = self.membership().map_or_else(|| "not known".into(), ToString::to_string);
        format!("members: {members}; log: {} to {}; {}", self.log.base(), self.log.last(), self.hard_state.term)
    }
}
