//! One server, and one attempt to ask it.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raftkv::transport_kit::Tls;
use tokio::time::Instant;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::connector::{Connections, Connector};
use super::error::{Cause, ClientError};
use super::login::{Bearer, Line};
use super::{ClientOptions, Kind};
use crate::config::HostPort;

/// How long an endpoint that did not say who it is comes last, and is not asked again: what that costs is paid once in this time at
/// most.
const SILENCE: Duration = Duration::from_secs(5);

/// Reads an address as it may stand in `--endpoints`. Its scheme, if it has one, has to be that of what is spoken.
pub(crate) fn parse(text: &str, with_tls: bool) -> Result<HostPort, String> {
    let text = text.trim();
    let bare = match (text.split_once("://"), with_tls) {
        (Some(("http", bare)), false) | (Some(("https", bare)), true) => bare,
        (Some(("https", _)), false) => {
            return Err(format!("{text}: TLS takes the CA that signs the servers' certificates: say --cacert FILE"));
        }
        (Some(("http", bare)), true) => {
            return Err(format!(
                "{text}: there are certificates, and this says to speak without TLS: say https://{bare}"
            ));
        }
        (Some(_) | None, _) => text,
    };
    bare.trim_end_matches('/').parse()
}

fn builder(address: &HostPort, with_tls: bool) -> Result<tonic::transport::Endpoint, String> {
    let builder = Channel::from_shared(format!("http://{address}")).map_err(|e| format!("{address}: {e}"))?;
    if !with_tls {
        return Ok(builder);
    }
    // What HTTP/2 says of the way; the connector makes it.
    Ok(builder.origin(format!("https://{address}").parse().map_err(|e| format!("{address}: {e}"))?))
}

/// One connection to a server that is asked once.
pub(crate) async fn connect(address: &HostPort, limit: Duration, tls: Option<&Tls>) -> Result<Channel, String> {
    let connector = Connector::new(address.clone(), limit, tls.cloned(), Arc::default());
    let connected = builder(address, tls.is_some())?.connect_with_connector(connector).await;
    connected.map_err(|error| error.to_string())
}

#[derive(Debug)]
pub(super) struct Endpoint {
    address: String,
    channel: Line,
    connections: Arc<Connections>,
    /// The node id that it was seen to have; 0 while that is unknown.
    node: AtomicU64,
    /// Until when it is taken for silent, in milliseconds after `born`.
    silent_until: AtomicU64,
    born: Instant,
}

impl Endpoint {
    pub(super) fn new(text: &str, options: &ClientOptions, bearer: &Bearer) -> Result<Self, String> {
        let address = parse(text, options.tls.is_some())?;
        let connections = Arc::new(Connections::default());
        let tls = options.tls.clone();
        let connector = Connector::new(address.clone(), options.connect_timeout, tls, Arc::clone(&connections));
        let channel = builder(&address, options.tls.is_some())?
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .connect_with_connector_lazy(connector);
        let address = address.to_string();
        let channel = InterceptedService::new(channel, bearer.clone());
        let (node, silent_until) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { address, channel, connections, node, silent_until, born: Instant::now() })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn channel(&self) -> Line {
        self.channel.clone()
    }

    /// The node that serves there, as far as it is known.
    pub(super) fn node(&self) -> Option<u64> {
        Some(self.node.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    pub(super) fn set_node(&self, id: Option<u64>) {
        self.node.store(id.unwrap_or(0), Ordering::Relaxed);
    }

    /// It was asked who it is, and did not say; or it has answered after all.
    pub(super) fn set_silent(&self, silent: bool) {
        let until = if silent { self.age() + SILENCE.as_millis() as u64 } else { 0 };
        self.silent_until.store(until, Ordering::Relaxed);
    }

    pub(super) fn is_silent(&self) -> bool {
        self.age() < self.silent_until.load(Ordering::Relaxed)
    }

    fn age(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    /// Asks once, and says what a failure means.
    pub(super) async fn attempt<R>(
        &self,
        kind: Kind,
        limit: Duration,
        call: impl Future<Output = Result<Response<R>, Status>>,
    ) -> Result<R, ClientError> {
        let watch = self.connections.watch();
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failed(kind, &status)),
            Err(_) => {
                let never_sent = watch.saw_none();
                let lacking = if never_sent { "connection" } else { "answer" };
                let words = format!("no {lacking} within {:.1} s", limit.as_secs_f64());
                let cause = Cause::new(&self.address, tonic::Code::DeadlineExceeded, words);
                Err(match kind {
                    Kind::Write | Kind::Once if !never_sent => ClientError::Unknown(cause),
                    Kind::Read | Kind::Write | Kind::Once => ClientError::Safe(cause),
                })
            }
        }
    }

    /// What a failure means, which is up to the connection that was asked. That another one was refused changes nothing of that; where no server has said
    /// anything it is what a person has to know.
    fn failed(&self, kind: Kind, status: &Status) -> ClientError {
        match (ClientError::from_status(kind, &self.address, status), self.connections.refused()) {
            (ClientError::Safe(cause), Some(message)) if status.source().is_some() => {
                ClientError::Safe(Cause { message, ..cause })
            }
            (error, _) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use raftkv::testing::certs::Desk;
    use raftkv::transport_kit::Link;
    use raftkv::transport_kit::tls::dev::{DevCa, Validity};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::api::etcdserverpb::kv_client::KvClient;
    use crate::api::etcdserverpb::{PutRequest, PutResponse};
    use crate::client::connector::ALPN;
    use crate::service::RETRY;

    const LIMIT: Duration = Duration::from_secs(60);
    const VALUE: &str = "a value to be recognized";

    /// Somebody whose certificate is signed by a CA that not every server knows.
    fn client(desk: &Desk, strange: &DevCa, address: &str) -> Endpoint {
        let issued = Desk::issue(strange, 9, Validity::days(1));
        let tls = Tls::for_client(desk.lay("client", &issued, &[&desk.ca])).unwrap();
        let options = ClientOptions { tls: Some(tls), ..ClientOptions::default() };
        Endpoint::new(address, &options, &Bearer::default()).unwrap()
    }

    fn server(desk: &Desk, name: &str, issuer: &DevCa, trusted: &[&DevCa]) -> Tls {
        let issued = Desk::issue(issuer, 1, Validity::days(1));
        Tls::for_server(desk.lay(name, &issued, trusted)).unwrap()
    }

    async fn let_in(listener: &TcpListener, tls: &Tls) -> Result<Link, String> {
        let (stream, _) = listener.accept().await.unwrap();
        tls.accept(stream, ALPN, LIMIT).await.map(|(link, _)| link).map_err(|why| why.reason().to_owned())
    }

    async fn put(endpoint: &Endpoint, kind: Kind, limit: Duration) -> Result<PutResponse, ClientError> {
        let request = PutRequest { key: "k".into(), value: VALUE.into(), ..PutRequest::default() };
        let mut kv = KvClient::new(endpoint.channel());
        endpoint.attempt(kind, limit, async move { kv.put(request).await }).await
    }

    /// The server has done it by then.
    #[tokio::test]
    async fn damage_to_the_first_word_of_an_answer_leaves_a_write_unknown() {
        let (desk, strange) = (Desk::new(), Desk::other_ca());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = client(&desk, &strange, &listener.local_addr().unwrap().to_string());
        let tls = server(&desk, "a", &desk.ca, &[&desk.ca, &strange]);
        for kind in [Kind::Write, Kind::Once] {
            let answering = async {
                let mut link = let_in(&listener, &tls).await.unwrap();
                let mut read = Vec::new();
                while !read.windows(VALUE.len()).any(|window| window == VALUE.as_bytes()) {
                    assert_ne!(link.read_buf(&mut read).await.unwrap(), 0, "the client closed first");
                }
                // A record of TLS that nobody has encrypted.
                link.tcp().try_write(&[&[0x17, 3, 3, 0, 32][..], &[7; 32]].concat()).unwrap();
                link
            };
            let (outcome, _link) = futures_util::future::join(put(&endpoint, kind, LIMIT), answering).await;
            let error = outcome.unwrap_err();
            assert!(matches!(error, ClientError::Unknown(_)), "{error:?}");
        }
    }

    /// A connection that a server is about to end still brings its answers, while others are refused already.
    #[tokio::test]
    async fn what_a_server_says_of_a_write_holds_whatever_becomes_of_the_next_connection() {
        let (desk, strange) = (Desk::new(), Desk::other_ca());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = client(&desk, &strange, &listener.local_addr().unwrap().to_string());
        let (kind_one, strict) =
            (server(&desk, "a", &desk.ca, &[&desk.ca, &strange]), server(&desk, "b", &desk.ca, &[&desk.ca]));
        let others = async {
            let mut first = h2::server::handshake(let_in(&listener, &kind_one).await.unwrap()).await.unwrap();
            let (_request, mut respond) = first.accept().await.unwrap().unwrap();
            first.graceful_shutdown();
            let first = tokio::spawn(async move { while first.accept().await.is_some() {} });
            let refusing = tokio::spawn(async move {
                loop {
                    let_in(&listener, &strict).await.unwrap_err();
                }
            });
            // Those that still come to the first connection are not answered.
            while endpoint.connections.refused().is_none() {
                let _ = put(&endpoint, Kind::Read, Duration::from_millis(300)).await;
            }
            for kind in [Kind::Read, Kind::Write, Kind::Once] {
                let error = put(&endpoint, kind, LIMIT).await.unwrap_err();
                let told = error.to_string().contains("it does not accept this side's certificate");
                assert!(told && matches!(error, ClientError::Safe(_)), "{error:?}");
            }
            let answer = http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "14")
                .header("grpc-message", "no leader any more")
                .header(RETRY, "unknown");
            respond.send_response(answer.body(()).unwrap(), true).unwrap();
            first.await.unwrap();
            refusing.abort();
        };
        let (outcome, ()) = futures_util::future::join(put(&endpoint, Kind::Write, LIMIT), others).await;
        let error = outcome.unwrap_err();
        let theirs = error.to_string().contains("no leader any more");
        assert!(theirs && matches!(error, ClientError::Unknown(_)), "{error:?}");
    }
}
