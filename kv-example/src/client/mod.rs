//! A client for this server, and for the same calls of any etcd v3 server.
//!
//! It keeps one connection to each endpoint, tries them in turn, and retries what is safe to retry until its timeout. A node that
//! refuses a request and knows the leader says which it is: then the leader's endpoint comes next. A write whose outcome is
//! unknown is sent again in the client's session, in which it takes effect once; where the servers have no sessions, the caller gets
//! [`ClientError::Unknown`] and decides.

mod backoff;
pub(crate) mod connector;
pub(crate) mod endpoint;
mod error;
mod leader;
mod login;
mod members;
mod session;
mod users;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use raftkv::transport_kit::Tls;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use crate::api::etcdserverpb::cluster_client::ClusterClient;
use crate::api::etcdserverpb::kv_client::KvClient;
use crate::api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, MemberListRequest,
    MemberListResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use crate::api::mvccpb::KeyValue;
use crate::api::node::node_client::NodeClient;
use crate::api::node::{NodeStatusRequest, NodeStatusResponse};

use crate::service::{CONSISTENCY, Freshness};

use backoff::Backoff;
use endpoint::Endpoint;
pub use error::{Cause, ClientError};
use leader::{LeaderSearch, Turns};
pub use login::Credentials;
use login::{Bearer, Line, Login};
use session::Session;

/// The largest answer that is accepted, in bytes.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Once an endpoint has refused a write, it is not sent to another with less time left than this: it would be cut off before its answer.
const LEAST_ATTEMPT: Duration = Duration::from_millis(100);

/// Times and limits of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// How long a call may take, with all its retries. Default: 5 s.
    pub timeout: Duration,
    /// How long one endpoint may take to accept a connection before the next is tried. Default: 1 s.
    pub connect_timeout: Duration,
    /// Whether writes are made in a session, so that they can be sent again until their outcome is known, and take effect once. Default: yes.
    /// That costs one more call before the first write.
    pub exactly_once: bool,
    /// Certificates, to speak TLS: [`Tls::for_client`]. Default: none, and no TLS.
    pub tls: Option<Tls>,
    /// Who the client is, where the servers want to know. Default: nobody.
    pub credentials: Option<Credentials>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            exactly_once: true,
            tls: None,
            credentials: None,
        }
    }
}

/// Talks to a cluster. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoints: Vec<Endpoint>,
    /// The endpoint that answered last: the first to try.
    preferred: AtomicUsize,
    options: ClientOptions,
    session: Session,
    login: Login,
}

/// Whether a call may take effect twice if it is sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// A write that takes effect once however often it is sent.
    Once,
}

impl Client {
    /// A client for these endpoints (`HOST:PORT`, with or without `http://`, or `https://` where there are certificates). Connects when it is first used; needs a tokio runtime.
    ///
    /// # Errors
    /// There is no endpoint, or one is no address, or has the scheme of what is not spoken.
    pub fn new<S: AsRef<str>>(endpoints: &[S], options: ClientOptions) -> Result<Self, String> {
        let bearer = Bearer::default();
        let endpoints = endpoints
            .iter()
            .map(|text| text.as_ref().trim())
            .filter(|text| !text.is_empty())
            .map(|text| Endpoint::new(text, &options, &bearer))
            .collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err("there is no endpoint; name at least one HOST:PORT".into());
        }
        let session = Session::new(options.exactly_once);
        let login = Login::new(options.credentials.clone(), bearer);
        Ok(Self { inner: Arc::new(Inner { endpoints, preferred: AtomicUsize::new(0), options, session, login }) })
    }

    /// What it speaks TLS with, if it does.
    pub(crate) fn tls(&self) -> Option<Tls> {
        self.inner.options.tls.clone()
    }

    /// Writes a key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<PutResponse, ClientError> {
        self.put_request(PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }).await
    }

    /// Writes a key, with all of etcd's options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put_request(&self, request: PutRequest) -> Result<PutResponse, ClientError> {
        self.write(request, |channel, request| async move { kv(channel).put(request).await }).await
    }

    /// Reads a key, linearizably; none when there is no such key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<KeyValue>, ClientError> {
        let answer = self.range(RangeRequest { key: key.into(), ..RangeRequest::default() }).await?;
        Ok(answer.kvs.into_iter().next())
    }

    /// Reads keys, with all of etcd's options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, ClientError> {
        self.range_as(request, None).await
    }

    /// As [`Client::range`], and says how fresh the answer must be; with none, the server decides.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn range_as(
        &self,
        request: RangeRequest,
        freshness: Option<Freshness>,
    ) -> Result<RangeResponse, ClientError> {
        let serializable = freshness.map_or(request.serializable, |freshness| freshness == Freshness::Stale);
        let request = RangeRequest { serializable, ..request };
        self.call(Kind::Read, |channel| {
            let mut request = Request::new(request.clone());
            if let Some(header) = freshness.and_then(Freshness::header) {
                request.metadata_mut().insert(CONSISTENCY, MetadataValue::from_static(header));
            }
            async move { kv(channel).range(request).await }
        })
        .await
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<DeleteRangeResponse, ClientError> {
        self.delete_range(DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() }).await
    }

    /// Deletes keys, with all of etcd's options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, ClientError> {
        self.write(request, |channel, request| async move { kv(channel).delete_range(request).await }).await
    }

    /// Compares, and then writes or reads, in one atomic step.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, ClientError> {
        self.write(request, |channel, request| async move { kv(channel).txn(request).await }).await
    }

    /// Forgets the revisions before this one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn compact(&self, revision: i64) -> Result<CompactionResponse, ClientError> {
        let request = CompactionRequest { revision, ..CompactionRequest::default() };
        self.write(request, |channel, request| async move { kv(channel).compact(request).await }).await
    }

    /// The members of the cluster.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn member_list(&self) -> Result<MemberListResponse, ClientError> {
        self.call(Kind::Read, |channel| async move {
            ClusterClient::new(channel).member_list(MemberListRequest { linearizable: false }).await
        })
        .await
    }

    /// What every endpoint says of itself, or why it says nothing. In the order of the endpoints; all are asked at the
    /// same time, once.
    pub async fn status(&self) -> Vec<(String, Result<NodeStatusResponse, ClientError>)> {
        let limit = self.inner.options.timeout;
        join_all(self.inner.endpoints.iter().map(|endpoint| async move {
            let call = |line: Line| async move { NodeClient::new(line).status(NodeStatusRequest {}).await };
            (endpoint.address().to_owned(), self.attempt_as(endpoint, Kind::Read, limit, &call).await)
        }))
        .await
    }

    /// Tries the endpoints in turn, or as a refusal points to the leader's, as long as that is safe and there is time.
    async fn call<R, F, W>(&self, kind: Kind, work: F) -> Result<R, ClientError>
    where
        F: Fn(Line) -> W,
        W: Future<Output = Result<Response<R>, Status>>,
    {
        self.call_until(Instant::now() + self.inner.options.timeout, kind, &mut false, work).await
    }

    /// The same up to a certain moment. Remembers whether an attempt at a write that takes effect once may have been the one.
    async fn call_until<R, F, W>(
        &self,
        deadline: Instant,
        kind: Kind,
        uncertain: &mut bool,
        work: F,
    ) -> Result<R, ClientError>
    where
        F: Fn(Line) -> W,
        W: Future<Output = Result<Response<R>, Status>>,
    {
        let inner = &*self.inner;
        let mut turns = Turns::new(inner.endpoints.len(), inner.preferred.load(Ordering::Relaxed));
        let mut search = LeaderSearch::default();
        let mut backoff = Backoff::new();
        let mut patience = Duration::ZERO;
        let mut failures: Vec<Option<Cause>> = vec![None; inner.endpoints.len()];
        loop {
            turns.start_round(|n| inner.endpoints[n].is_silent());
            while let Some(n) = turns.next() {
                let endpoint = &inner.endpoints[n];
                let asked = Instant::now();
                let left = deadline.saturating_duration_since(asked);
                // The answer would come too late, and leave unknown what is known so far: nothing was done.
                if kind == Kind::Write && left < patience {
                    return Err(ClientError::Safe(Cause::merged(failures.into_iter().flatten())));
                }
                // What may be sent twice is asked elsewhere when one node is slow. Another write has to wait for its answer.
                let limit = match kind {
                    Kind::Once if inner.endpoints.len() == 1 => left,
                    Kind::Read | Kind::Once => left.min((inner.options.timeout / 3).max(Duration::from_millis(500))),
                    Kind::Write => left,
                };
                match self.attempt_as(endpoint, kind, limit, &work).await {
                    Ok(answer) => {
                        inner.preferred.store(n, Ordering::Relaxed);
                        endpoint.set_silent(false);
                        return Ok(answer);
                    }
                    Err(ClientError::Safe(cause)) => {
                        // It was no connection that took so long to fail: the node waited for a leader, as the next one will.
                        let (took, connecting) = (asked.elapsed(), inner.options.connect_timeout);
                        if took < connecting || took > connecting * 2 {
                            patience = took.max(LEAST_ATTEMPT);
                        }
                        let left = deadline.saturating_duration_since(Instant::now());
                        if let Some(leader) = search.endpoint_of_leader(&inner.endpoints, n, &cause, left).await {
                            turns.prefer(leader);
                        }
                        // An attempt that the end of all time cut short says less than the one before it.
                        if failures[n].is_none() || Instant::now() < deadline {
                            failures[n] = Some(cause);
                        }
                    }
                    Err(ClientError::Unknown(cause)) if kind == Kind::Once => {
                        *uncertain = true;
                        failures[n] = Some(cause);
                    }
                    Err(error @ (ClientError::Unknown(_) | ClientError::Other(_))) => return Err(error),
                }
                if Instant::now() >= deadline {
                    return Err(given_up(*uncertain, failures));
                }
            }
            let pause = backoff.next_pause();
            if Instant::now() + pause >= deadline {
                return Err(given_up(*uncertain, failures));
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// There is no time left for another attempt.
fn given_up(uncertain: bool, failures: Vec<Option<Cause>>) -> ClientError {
    let cause = Cause::merged(failures.into_iter().flatten());
    if uncertain { ClientError::Unknown(cause) } else { ClientError::Safe(cause) }
}

fn kv(channel: Line) -> KvClient<Line> {
    KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// The end of the range of all keys with this prefix, in etcd's form.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    // Empty, or 0xff throughout: everything from the prefix on.
    Bytes::from_static(&[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(&prefix_end(b"ab")[..], b"ac");
        assert_eq!(&prefix_end(b"a\xff")[..], b"b");
        assert_eq!(&prefix_end(b"\xff\xff")[..], b"\0");
        assert_eq!(&prefix_end(b"")[..], b"\0");
    }

    #[tokio::test]
    async fn endpoints_that_are_none_are_refused() {
        assert!(Client::new::<&str>(&[], ClientOptions::default()).unwrap_err().contains("no endpoint"));
        assert!(Client::new(&["nowhere"], ClientOptions::default()).unwrap_err().contains("no port"));
        let text = Client::new(&["https://a:1"], ClientOptions::default()).unwrap_err();
        assert!(text.contains("say --cacert FILE"), "{text}");
        assert!(endpoint::parse("http://a:1", true).unwrap_err().contains("say https://a:1"));
        for (text, with_tls) in [("a:1", false), ("http://a:1/", false), ("a:1", true), ("https://a:1/", true)] {
            assert_eq!(endpoint::parse(text, with_tls).unwrap().to_string(), "a:1");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_safe_and_every_endpoint_is_named() {
        let options = ClientOptions { timeout: Duration::from_millis(200), ..ClientOptions::default() };
        // Nothing listens on a port that was just given back.
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (a, b) = (free(), free());
        let client = Client::new(&[&a, &b], options).unwrap();
        let error = client.put("k", "v").await.unwrap_err();
        assert!(matches!(error, ClientError::Safe(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&a) && text.contains(&b), "{text}");
        assert!(text.to_lowercase().contains("refused"), "{text}");
    }

    #[tokio::test]
    async fn a_write_into_silence_has_an_unknown_outcome_and_a_read_is_safe() {
        let options =
            ClientOptions { exactly_once: false, timeout: Duration::from_millis(600), ..ClientOptions::default() };
        // Accepts connections, and never answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(&[silent.local_addr().unwrap().to_string()], options).unwrap();
        let error = client.put("k", "v").await.unwrap_err();
        assert!(matches!(error, ClientError::Unknown(_)), "{error:?}");
        let error = client.get("k").await.unwrap_err();
        assert!(matches!(error, ClientError::Safe(_)), "{error:?}");
    }

    /// A moment before the end of the time, another attempt was begun, and "no answer within 0.0 s" was all that was said.
    #[tokio::test]
    async fn an_attempt_without_time_does_not_hide_why_those_before_it_failed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            drop(listener.accept().await.unwrap());
            let mut silent = Vec::new();
            loop {
                silent.push(listener.accept().await.unwrap());
            }
        });
        let options = ClientOptions { timeout: Duration::from_millis(400), ..ClientOptions::default() };
        let client = Client::new(&[address], options).unwrap();
        let error = client.get("k").await.unwrap_err();
        assert!(matches!(error, ClientError::Safe(_)), "{error:?}");
        assert!(!error.to_string().contains("within"), "{error}");
        server.abort();
    }

    /// The request has left for sure: the server has read it, and breaks the connection instead of answering.
    #[tokio::test]
    async fn a_connection_that_breaks_in_flight_leaves_a_write_unknown() {
        use tokio::io::AsyncReadExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let value = "a value to be recognized";
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            while !read.windows(value.len()).any(|window| window == value.as_bytes()) {
                assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "the client closed first");
            }
        });
        let options = ClientOptions { exactly_once: false, ..ClientOptions::default() };
        let client = Client::new(&[address], options).unwrap();
        let error = client.put("k", value).await.unwrap_err();
        assert!(matches!(error, ClientError::Unknown(_)), "{error:?}");
        server.await.unwrap();
    }
}
