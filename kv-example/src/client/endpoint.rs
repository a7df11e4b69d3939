//! One server, and one attempt to ask it.

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
            Ok(Err(status)) => Err(match self.connections.refused() {
                // Nobody looked at the request.
                Some(reason) => ClientError::Safe(Cause::new(&self.address, status.code(), reason)),
                None => ClientError::from_status(kind, &self.address, &status),
            }),
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
}
