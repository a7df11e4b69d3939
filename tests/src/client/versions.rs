//! Writes that depend on what is there.

use std::time::Duration;

use bytes::Bytes;
use kv_example::api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_example::api::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op};

use super::{Endpoint, Failure, bytes, within};

impl Endpoint {
    /// Writes a key if its version is this one, where 0 means that it is not there. Returns whether it was written, and the revision of
    /// the store.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn put_if_version(
        &self,
        key: &str,
        version: i64,
        value: &str,
        limit: Duration,
    ) -> Result<(bool, i64), Failure> {
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Version.into(),
            key: bytes(key),
            target_union: Some(TargetUnion::Version(version)),
            range_end: Bytes::new(),
        };
        let put = PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() };
        let success = vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }];
        let request = TxnRequest { compare: vec![compare], success, failure: Vec::new() };
        let answer = within(limit, self.kv().txn(request)).await?;
        Ok((answer.succeeded, answer.header.map_or(0, |header| header.revision)))
    }

    /// Removes a key. Returns whether it was there, and the revision of the store.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn delete(&self, key: &str, limit: Duration) -> Result<(bool, i64), Failure> {
        let request = DeleteRangeRequest { key: bytes(key), ..DeleteRangeRequest::default() };
        let answer = within(limit, self.kv().delete_range(request)).await?;
        Ok((answer.deleted > 0, answer.header.map_or(0, |header| header.revision)))
    }
}
