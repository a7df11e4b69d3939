//! One attempt at one server, through the etcd API, and what its failure proves.
//!
//! This client is the tests' own, and keeps no secrets: no retries, no second endpoint.

mod versions;

use std::error::Error;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use kv_example::api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kv_example::api::etcdserverpb::kv_client::KvClient;
use kv_example::api::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_example::api::etcdserverpb::{
    Compare, HashKvRequest, PutRequest, RangeRequest, RequestOp, StatusRequest, StatusResponse, TxnRequest,
    TxnResponse, request_op, response_op,
};
use kv_example::api::mvccpb::KeyValue;
use kv_example::api::node::node_client::NodeClient;
use kv_example::api::node::{NodeStatusRequest, NodeStatusResponse};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

const MAX_MESSAGE: usize = 256 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// The metadata with which the server says whether a failed request took no effect.
const RETRY: &str = "raftkv-retry";

/// Why an attempt failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Whether it is certain that nothing took effect and nothing will.
    pub certain: bool,
    /// The gRPC code.
    pub code: Code,
    /// The reason given.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = if self.certain { "no effect" } else { "effect unknown" };
        write!(f, "{:?} ({effect}): {}", self.code, self.message)
    }
}

impl Error for Failure {}

/// What a read found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The revision of the store that answered.
    pub revision: i64,
    /// The member that answered.
    pub member: u64,
    /// The keys.
    pub kvs: Vec<KeyValue>,
}

/// One server's client address.
#[derive(Clone, Debug)]
pub struct Endpoint {
    address: String,
    channel: Channel,
}

impl Endpoint {
    /// A server at `HOST:PORT`. Connects when it is first asked, and again when the connection was lost.
    ///
    /// # Errors
    /// It is no address.
    pub fn new(address: &str) -> anyhow::Result<Self> {
        let channel = Channel::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(Self { address: address.to_owned(), channel })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Writes a key, and returns the revision of the write.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn put(&self, key: &str, value: &str, limit: Duration) -> Result<i64, Failure> {
        let request = PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() };
        let answer = within(limit, self.kv().put(request)).await?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    /// Writes a key unless it is there already, and returns the revision of the write that made it. May be tried again: it
    /// takes effect once.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn create(&self, key: &str, value: &str, limit: Duration) -> Result<i64, Failure> {
        let missing = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Version.into(),
            key: bytes(key),
            target_union: Some(TargetUnion::Version(0)),
            range_end: Bytes::new(),
        };
        let put = PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() };
        let get = RangeRequest { key: bytes(key), ..RangeRequest::default() };
        let request = TxnRequest {
            compare: vec![missing],
            success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
            failure: vec![RequestOp { request: Some(request_op::Request::RequestRange(get)) }],
        };
        let answer = within(limit, self.kv().txn(request)).await?;
        created_revision(&answer).ok_or_else(|| Failure {
            certain: false,
            code: Code::Internal,
            message: format!("an answer that makes no sense: {answer:?}"),
        })
    }

    /// Reads a key: linearizably, or whatever this server has.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn get(&self, key: &str, serializable: bool, limit: Duration) -> Result<Found, Failure> {
        self.range(RangeRequest { key: bytes(key), serializable, ..RangeRequest::default() }, limit).await
    }

    /// Reads all keys that begin with `prefix`, which must not be empty: linearizably, or whatever this server has.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn list(&self, prefix: &str, serializable: bool, limit: Duration) -> Result<Found, Failure> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let range_end = Bytes::from(end);
        self.range(RangeRequest { key: bytes(prefix), range_end, serializable, ..RangeRequest::default() }, limit).await
    }

    async fn range(&self, request: RangeRequest, limit: Duration) -> Result<Found, Failure> {
        let answer = within(limit, self.kv().range(request)).await?;
        let (revision, member) = answer.header.map_or((0, 0), |header| (header.revision, header.member_id));
        Ok(Found { revision, member, kvs: answer.kvs })
    }

    /// What the server says of itself.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn status(&self, limit: Duration) -> Result<NodeStatusResponse, Failure> {
        within(limit, NodeClient::new(self.channel.clone()).status(NodeStatusRequest {})).await
    }

    /// What etcd's API has the server say of itself, ours or etcd's.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn etcd_status(&self, limit: Duration) -> Result<StatusResponse, Failure> {
        within(limit, MaintenanceClient::new(self.channel.clone()).status(StatusRequest {})).await
    }

    /// The revision of this server's store, and a checksum of all it holds.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn hash(&self, limit: Duration) -> Result<(i64, u32), Failure> {
        let request = HashKvRequest { revision: 0 };
        let answer = within(limit, MaintenanceClient::new(self.channel.clone()).hash_kv(request)).await?;
        Ok((answer.hash_revision, answer.hash))
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn created_revision(answer: &TxnResponse) -> Option<i64> {
    if answer.succeeded {
        return answer.header.as_ref().map(|header| header.revision);
    }
    match answer.responses.first()?.response.as_ref()? {
        response_op::Response::ResponseRange(range) => range.kvs.first().map(|kv| kv.mod_revision),
        response_op::Response::ResponsePut(_)
        | response_op::Response::ResponseDeleteRange(_)
        | response_op::Response::ResponseTxn(_) => None,
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Failure {
            certain: never_sent(&status) || status.metadata().get(RETRY).is_some_and(|value| value == "safe"),
            code: status.code(),
            message: words(&status),
        }),
        Err(_) => Err(Failure {
            certain: false,
            code: Code::DeadlineExceeded,
            message: format!("no answer within {limit:?}"),
        }),
    }
}

fn never_sent(status: &Status) -> bool {
    sources(status).any(|error| error.is::<tonic::ConnectError>())
}

fn words(status: &Status) -> String {
    sources(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

fn sources(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Port;

    #[tokio::test]
    async fn a_request_that_found_no_server_certainly_took_no_effect() {
        let port = Port::reserve().unwrap();
        let failure = Endpoint::new(&port.address()).unwrap().put("k", "v", Duration::from_secs(5)).await.unwrap_err();
        assert!(failure.certain, "{failure}");
    }

    #[tokio::test]
    async fn a_request_without_an_answer_proves_nothing() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::new(&silent.local_addr().unwrap().to_string()).unwrap();
        let failure = endpoint.put("k", "v", Duration::from_millis(200)).await.unwrap_err();
        assert!(!failure.certain, "{failure}");
    }
}
