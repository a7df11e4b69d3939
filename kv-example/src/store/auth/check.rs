//! Whether somebody may do something.

use super::super::keys::Keys;
use super::super::{Refusal, Room, Span, Store};
use super::{Auth, Author, Role, ranges};
use crate::api::command::command::Body;
use crate::api::etcdserverpb::request_op::Request;
use crate::api::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};

/// What somebody may do.
#[derive(Clone, Debug)]
pub(crate) enum Rights<'a> {
    /// Everything.
    All,
    /// What these roles permit together.
    Roles(Vec<&'a Role>),
}

impl Auth {
    /// What the author of a request may do.
    ///
    /// # Errors
    /// There is no author, or none any more whom the node meant that knew the author.
    pub(crate) fn rights(&self, author: Option<&Author>) -> Result<Rights<'_>, Refusal> {
        if !self.enabled {
            return Ok(Rights::All);
        }
        let author = author.filter(|author| !author.user.is_empty()).ok_or(Refusal::UserEmpty)?;
        let user = self.users.get(&author.user).ok_or(Refusal::PermissionDenied)?;
        if author.revision < self.since.max(user.since) {
            return Err(Refusal::AuthOldRevision);
        }
        if user.is_root() {
            return Ok(Rights::All);
        }
        Ok(Rights::Roles(user.roles.iter().filter_map(|role| self.roles.get(role)).collect()))
    }

    /// Whether the author may have this command applied.
    ///
    /// # Errors
    /// No, and why.
    pub(crate) fn check(&self, author: Option<&Author>, body: &Body) -> Result<(), Refusal> {
        match body {
            // Nodes make these notes, and no client can: who may change the members is asked by the node that makes the change.
            Body::Member(_) => Ok(()),
            Body::Put(put) => self.rights(author)?.put(put),
            Body::DeleteRange(delete) => self.rights(author)?.delete(delete),
            Body::Txn(txn) => self.rights(author)?.txn(txn),
            Body::Compact(_) | Body::Auth(_) => self.rights(author)?.everything(),
        }
    }
}

impl Rights<'_> {
    /// What only root may do.
    pub(crate) fn everything(&self) -> Result<(), Refusal> {
        match self {
            Self::All => Ok(()),
            Self::Roles(_) => Err(Refusal::PermissionDenied),
        }
    }

    fn may_read(&self, key: &[u8], range_end: &[u8]) -> Result<(), Refusal> {
        self.cover(key, range_end, |role| &role.readable)
    }

    fn may_write(&self, key: &[u8], range_end: &[u8]) -> Result<(), Refusal> {
        self.cover(key, range_end, |role| &role.writable)
    }

    fn cover(&self, key: &[u8], end: &[u8], of: impl Fn(&Role) -> &ranges::Ranges + Clone) -> Result<(), Refusal> {
        let covered = match self {
            Self::All => true,
            Self::Roles(roles) => ranges::cover(roles.iter().map(|role| of(role)), Span::new(key, end)),
        };
        if covered { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> Result<(), Refusal> {
        self.may_read(&request.key, &request.range_end)
    }

    fn put(&self, request: &PutRequest) -> Result<(), Refusal> {
        self.may_write(&request.key, &[])?;
        if request.prev_kv { self.may_read(&request.key, &[]) } else { Ok(()) }
    }

    fn delete(&self, request: &DeleteRangeRequest) -> Result<(), Refusal> {
        self.may_write(&request.key, &request.range_end)?;
        if request.prev_kv { self.may_read(&request.key, &request.range_end) } else { Ok(()) }
    }

    /// All that a transaction may come to: its comparisons, both branches, and all that is nested in them.
    pub(crate) fn txn(&self, request: &TxnRequest) -> Result<(), Refusal> {
        request.compare.iter().try_for_each(|Compare { key, range_end, .. }| self.may_read(key, range_end))?;
        request.success.iter().chain(&request.failure).try_for_each(|op| self.operation(op))
    }

    fn operation(&self, op: &RequestOp) -> Result<(), Refusal> {
        match &op.request {
            Some(Request::RequestRange(range)) => self.range(range),
            Some(Request::RequestPut(put)) => self.put(put),
            Some(Request::RequestDeleteRange(delete)) => self.delete(delete),
            Some(Request::RequestTxn(txn)) => self.txn(txn),
            None => Ok(()),
        }
    }
}

impl<K: Keys> Store<K> {
    /// Answers a read, if its author may read that.
    ///
    /// # Errors
    /// The author may not; or as [`Store::range`].
    pub(crate) fn range_as(
        &self,
        author: Option<&Author>,
        request: &RangeRequest,
        room: impl Into<Room>,
    ) -> Result<RangeResponse, Refusal> {
        self.head.auth.rights(author)?.range(request)?;
        self.range(request, room)
    }

    /// Answers a transaction that only reads, if its author may read that.
    ///
    /// # Errors
    /// The author may not; or as [`Store::read_txn`].
    pub(crate) fn read_txn_as(
        &self,
        author: Option<&Author>,
        request: &TxnRequest,
        room: impl Into<Room>,
    ) -> Result<TxnResponse, Refusal> {
        self.head.auth.rights(author)?.txn(request)?;
        self.read_txn(request, room.into())
    }
}
