//! What the services need of a Raft node, so that they can be tested without one.

use std::future::Future;

use bytes::Bytes;
use raftkv::{Error, Status};

/// A node that replicates commands to a [`KvMachine`](crate::machine::KvMachine).
pub trait Replica: Clone + Send + Sync + 'static {
    /// Replicates a command and applies it here. Returns the machine's answer.
    fn write(&self, command: Bytes) -> impl Future<Output = Result<Bytes, Error>> + Send;

    /// Returns when all that was acknowledged anywhere before this call is applied here.
    fn read_barrier(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// The node's view of itself and its group.
    fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send;

    /// Stands for election.
    fn campaign(&self) -> impl Future<Output = Result<(), Error>> + Send;
}

impl Replica for raftkv::Raft {
    async fn write(&self, command: Bytes) -> Result<Bytes, Error> {
        Self::write(self, command).await
    }

    async fn read_barrier(&self) -> Result<(), Error> {
        self.read(raftkv::Consistency::Linearizable).await
    }

    async fn status(&self) -> Result<Status, Error> {
        Self::status(self).await
    }

    async fn campaign(&self) -> Result<(), Error> {
        Self::campaign(self).await
    }
}
