//! What the services need of a Raft node, so that they can be tested without one.

use std::future::Future;

use bytes::Bytes;
use raftkv::{
    Change, ChangeError, Consistency, Error, Events, LogId, NodeId, Once, Raft, SessionId, Status, TransferError,
};

/// A node that replicates commands to a [`KvMachine`](crate::machine::KvMachine).
pub trait Replica: Clone + Send + Sync + 'static {
    /// Replicates a command and applies it here. Returns the machine's answer.
    fn write(&self, command: Bytes) -> impl Future<Output = Result<Bytes, Error>> + Send;

    /// As `write`, but once, however often it is asked for under this name.
    fn write_once(&self, once: Once, command: Bytes) -> impl Future<Output = Result<Bytes, Error>> + Send;

    /// Opens a session.
    fn open_session(&self) -> impl Future<Output = Result<SessionId, Error>> + Send;

    /// Ends a session.
    fn close_session(&self, session: SessionId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Returns when what is applied here is fresh enough to be read.
    fn read(&self, consistency: Consistency) -> impl Future<Output = Result<(), Error>> + Send;

    /// The node's view of itself and its group.
    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send;

    /// What happens to the node from now on; none where nobody tells.
    fn events(&self) -> Option<Events> {
        None
    }

    /// Stands for election.
    fn campaign(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Changes who is in the cluster.
    fn change_membership(&self, change: Change) -> impl Future<Output = Result<LogId, ChangeError>> + Send;

    /// Hands leadership over, if this node leads.
    fn transfer_leadership(&self, to: Option<NodeId>) -> impl Future<Output = Result<NodeId, TransferError>> + Send;

    /// Writes an image of what is applied here, and returns the last entry that it reflects.
    fn snapshot(&self) -> impl Future<Output = Result<LogId, Error>> + Send;

    /// Changes how much this node is wanted as the leader.
    fn prefer(&self, priority: Option<u32>, may_lead: Option<bool>) -> impl Future<Output = Result<(), Error>> + Send;
}

impl Replica for Raft {
    fn write(&self, command: Bytes) -> impl Future<Output = Result<Bytes, Error>> + Send {
        Self::write(self, command)
    }

    fn write_once(&self, once: Once, command: Bytes) -> impl Future<Output = Result<Bytes, Error>> + Send {
        Self::write_once(self, once, command)
    }

    fn open_session(&self) -> impl Future<Output = Result<SessionId, Error>> + Send {
        Self::open_session(self)
    }

    fn close_session(&self, session: SessionId) -> impl Future<Output = Result<(), Error>> + Send {
        Self::close_session(self, session)
    }

    fn read(&self, consistency: Consistency) -> impl Future<Output = Result<(), Error>> + Send {
        Self::read(self, consistency)
    }

    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send {
        Self::status(self)
    }

    fn events(&self) -> Option<Events> {
        Some(Self::events(self))
    }

    fn campaign(&self) -> impl Future<Output = Result<(), Error>> + Send {
        Self::campaign(self)
    }

    fn change_membership(&self, change: Change) -> impl Future<Output = Result<LogId, ChangeError>> + Send {
        Self::change_membership(self, change)
    }

    fn transfer_leadership(&self, to: Option<NodeId>) -> impl Future<Output = Result<NodeId, TransferError>> + Send {
        Self::transfer_leadership(self, to)
    }

    fn snapshot(&self) -> impl Future<Output = Result<LogId, Error>> + Send {
        Self::snapshot(self)
    }

    async fn prefer(&self, priority: Option<u32>, may_lead: Option<bool>) -> Result<(), Error> {
        if let Some(priority) = priority {
            self.set_priority(priority).await?;
        }
        if let Some(may_lead) = may_lead {
            self.set_may_lead(may_lead).await?;
        }
        Ok(())
    }
}
