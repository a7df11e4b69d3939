//! What clients, members and whoever else connects may take.

use std::time::Duration;

use clap::Args;

use super::file::FileConfig;
use super::{ConfigError, Given, Layers};

/// The options for limits, as they were typed.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// How many connections of clients there may be; more are closed as they come. At most as many as there are file descriptors for. Half of them may
    /// be such on which nothing was asked yet: of these the one that has waited longest makes room for the next [default: 8192] [env: RAFTKV_MAX_CLIENT_CONNECTIONS]
    #[arg(long, value_name = "COUNT")]
    pub max_client_connections: Option<String>,

    /// How many connections there may be at --listen-peer, where each member needs two; more are closed as they come. Half of them may be such on
    /// which nobody has said who it is: of these the one that has waited longest makes room for the next [default: 1024] [env: RAFTKV_MAX_PEER_CONNECTIONS]
    #[arg(long, value_name = "COUNT")]
    pub max_peer_connections: Option<String>,

    /// The largest message between members, in MiB; the same on all nodes. It has to hold twice what --max-request-bytes lets a client send
    /// [default: 16, or as much as that takes] [env: RAFTKV_MAX_PEER_MESSAGE_MIB]
    #[arg(long, value_name = "MIB")]
    pub max_peer_message_mib: Option<String>,

    /// How much of a connection at --listen-peer may be under way before it is taken, in MiB: what a member can fill the link with, and make this node
    /// hold. A larger message passes alone [default: 8] [env: RAFTKV_MAX_PEER_WINDOW_MIB]
    #[arg(long, value_name = "MIB")]
    pub max_peer_window_mib: Option<String>,

    /// With --transport tarpc: how many batches of messages of a connection at --listen-peer may be under way, and how many probes beside them; members
    /// are told, and keep to it; not below 1024 while there are some of a build without this option [default: 1024] [env: RAFTKV_MAX_PEER_REQUESTS]
    #[arg(long, value_name = "COUNT")]
    pub max_peer_requests: Option<String>,

    /// With --transport grpc: how many streams a connection at --listen-peer may have open, where a member needs one; HTTP/2 refuses more
    /// [default: 8] [env: RAFTKV_MAX_PEER_STREAMS]
    #[arg(long, value_name = "COUNT")]
    pub max_peer_streams: Option<String>,

    /// How many connections there may be at --listen-metrics; more are closed as they come [default: 16]
    /// [env: RAFTKV_MAX_METRICS_CONNECTIONS]
    #[arg(long, value_name = "COUNT")]
    pub max_metrics_connections: Option<String>,

    /// How much one address may have of what is limited, in percent: of connections, of clients' requests in progress, of the memory for
    /// them, and of logins. 100 where all clients come from one address, as from a proxy [default: 50] [env: RAFTKV_MAX_ADDRESS_PERCENT]
    #[arg(long, value_name = "PERCENT")]
    pub max_address_percent: Option<String>,

    /// How long whoever connects may take to say what for: to begin HTTP/2, to say which member it is, or to ask for metrics, in milliseconds
    /// [default: 5000] [env: RAFTKV_HANDSHAKE_TIMEOUT_MS]
    #[arg(long, value_name = "MS")]
    pub handshake_timeout_ms: Option<String>,

    /// How long a client may leave a probe unanswered, or take nothing of what is sent to it, before its connection is ended, in milliseconds
    /// [default: 20000] [env: RAFTKV_CLIENT_SILENCE_MS]
    #[arg(long, value_name = "MS")]
    pub client_silence_ms: Option<String>,

    /// How long a client's request may take until it is here as a whole, in milliseconds [default: 30000] [env: RAFTKV_RECEIVE_TIMEOUT_MS]
    #[arg(long, value_name = "MS")]
    pub receive_timeout_ms: Option<String>,

    /// The largest header of a request on any of the three ports, in bytes, with 32 for each field; from 8192 on [default: 16384] [env: RAFTKV_MAX_HEADER_BYTES]
    #[arg(long, value_name = "BYTES")]
    pub max_header_bytes: Option<String>,

    /// How many requests a client's connection may have in progress; HTTP/2 makes further ones wait [default: 1024]
    /// [env: RAFTKV_MAX_CONNECTION_REQUESTS]
    #[arg(long, value_name = "COUNT")]
    pub max_connection_requests: Option<String>,

    /// How much of a client's connection may be under way before it is looked at, in MiB, and a quarter of that of one request: what a client can fill the link with,
    /// and make this node hold beside --max-pending-mib [default: 4] [env: RAFTKV_MAX_CLIENT_WINDOW_MIB]
    #[arg(long, value_name = "MIB")]
    pub max_client_window_mib: Option<String>,

    /// How many watches of health there may be (`Health.Watch`), which last for as long as their clients like; they are no requests in progress
    /// [default: 128] [env: RAFTKV_MAX_HEALTH_WATCHES]
    #[arg(long, value_name = "COUNT")]
    pub max_health_watches: Option<String>,

    /// How much memory clients' requests in progress may hold, with the answers that were not fetched yet, in MiB [default: 512]
    /// [env: RAFTKV_MAX_PENDING_MIB]
    #[arg(long, value_name = "MIB")]
    pub max_pending_mib: Option<String>,

    /// The largest answer, in MiB; whoever wants more asks for less at a time. What one address may have of --max-pending-mib is a limit as well
    /// [default: 256] [env: RAFTKV_MAX_RESPONSE_MIB]
    #[arg(long, value_name = "MIB")]
    pub max_response_mib: Option<String>,
}

/// Limits on what is taken of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many connections of clients there may be.
    pub client_connections: usize,
    /// How many connections there may be for members.
    pub peer_connections: usize,
    /// How many connections there may be for metrics.
    pub metrics_connections: usize,
    /// How much of each limit one address may have, in percent.
    pub address_percent: usize,
    /// How long whoever connects may take to say what for.
    pub handshake_timeout: Duration,
    /// How long a client may leave a probe unanswered, or take nothing.
    pub client_silence: Duration,
    /// How long a request may take until it is here as a whole.
    pub receive_timeout: Duration,
    /// The largest header.
    pub header_bytes: u32,
    /// How many requests a connection may have in progress.
    pub connection_requests: u32,
    /// How much of a connection may be under way before it is looked at.
    pub connection_window_bytes: u32,
    /// How many watches of health there may be.
    pub health_watches: usize,
    /// What requests in progress may hold.
    pub pending_bytes: usize,
    /// The largest answer.
    pub response_bytes: usize,
    /// What members may take.
    pub members: MemberLimits,
}

/// Limits on what members may take, once they have said who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberLimits {
    /// The largest message.
    pub message_bytes: usize,
    /// How much of a connection may be under way before it is taken.
    pub window_bytes: u32,
    /// Over tarpc: how many requests of a connection may be.
    pub requests: u32,
    /// Over gRPC: how many streams a connection may have open.
    pub streams: u32,
}

impl MemberLimits {
    /// `largest` is what one message has to hold, in bytes.
    fn load(args: &LimitArgs, layers: &Layers<'_>, largest: u64) -> Result<Self, ConfigError> {
        let a = args;
        let needed = largest.saturating_mul(2).div_ceil(MIB);
        let message = layers.number(
            "max-peer-message-mib",
            a.max_peer_message_mib.as_ref(),
            |f| f.max_peer_message_mib,
            needed.max(16),
        )?;
        if message.value < needed {
            return Err(ConfigError(format!(
                "{}: {} MiB are too few for what members send each other, which grows with --max-request-bytes: say at least {needed}",
                message.origin, message.value
            )));
        }
        let window = window_bytes(layers.number(
            "max-peer-window-mib",
            a.max_peer_window_mib.as_ref(),
            |f| f.max_peer_window_mib,
            8,
        )?)?;
        let requests =
            layers.number("max-peer-requests", a.max_peer_requests.as_ref(), |f| f.max_peer_requests, 1024)?;
        if requests.value < FEWEST_PEER_REQUESTS {
            return Err(ConfigError(format!(
                "{}: {} are too few for what a member has to ask at the same time: say at least {FEWEST_PEER_REQUESTS}",
                requests.origin, requests.value
            )));
        }
        let streams = layers.number("max-peer-streams", a.max_peer_streams.as_ref(), |f| f.max_peer_streams, 8)?;
        Ok(Self {
            message_bytes: usize::try_from(message.value.saturating_mul(MIB)).unwrap_or(usize::MAX),
            window_bytes: window,
            requests: small(requests.value),
            streams: small(streams.value),
        })
    }
}

/// What HTTP/2 can count.
fn window_bytes(window: Given<u64>) -> Result<u32, ConfigError> {
    if window.value > MAX_WINDOW_MIB {
        return Err(ConfigError(format!(
            "{}: {} MiB are more than a window can have: say at most {MAX_WINDOW_MIB}",
            window.origin, window.value
        )));
    }
    Ok(small(window.value * MIB))
}

fn small(given: u64) -> u32 {
    u32::try_from(given).unwrap_or(u32::MAX)
}

impl Limits {
    /// What one address may have of this: something.
    #[must_use]
    pub fn of_address(&self, limit: usize) -> usize {
        (limit / 100 * self.address_percent + limit % 100 * self.address_percent / 100).max(1)
    }

    /// `largest` is what one message between members has to hold, in bytes.
    pub(super) fn load(args: &LimitArgs, layers: &Layers<'_>, largest: u64) -> Result<Self, ConfigError> {
        let number = |name, flag: &Option<String>, file: fn(&FileConfig) -> Option<u64>, default| {
            layers.number(name, flag.as_ref(), file, default)
        };
        let count = |given: u64| usize::try_from(given).unwrap_or(usize::MAX);
        let mib = |given: u64| count(given.saturating_mul(MIB));
        let a = args;
        let percent = number("max-address-percent", &a.max_address_percent, |f| f.max_address_percent, 50)?;
        if percent.value > 100 {
            return Err(ConfigError(format!(
                "{}: {} is not a percentage: say at most 100",
                percent.origin, percent.value
            )));
        }
        let header = number("max-header-bytes", &a.max_header_bytes, |f| f.max_header_bytes, 16 << 10)?;
        if header.value < MIN_HEADER_BYTES {
            let told = header.value;
            return Err(ConfigError(format!(
                "{}: {told} bytes are too few for what clients say of themselves: say at least {MIN_HEADER_BYTES}",
                header.origin
            )));
        }
        let clients = number("max-client-connections", &a.max_client_connections, |f| f.max_client_connections, 8192)?;
        let peers = number("max-peer-connections", &a.max_peer_connections, |f| f.max_peer_connections, 1024)?;
        let metrics = number("max-metrics-connections", &a.max_metrics_connections, |f| f.max_metrics_connections, 16)?;
        let handshake = number("handshake-timeout-ms", &a.handshake_timeout_ms, |f| f.handshake_timeout_ms, 5000)?;
        let silence = number("client-silence-ms", &a.client_silence_ms, |f| f.client_silence_ms, 20_000)?;
        let receive = number("receive-timeout-ms", &a.receive_timeout_ms, |f| f.receive_timeout_ms, 30_000)?;
        let streams =
            number("max-connection-requests", &a.max_connection_requests, |f| f.max_connection_requests, 1024)?;
        let window = number("max-client-window-mib", &a.max_client_window_mib, |f| f.max_client_window_mib, 4)?;
        let watches = number("max-health-watches", &a.max_health_watches, |f| f.max_health_watches, 128)?;
        let pending = number("max-pending-mib", &a.max_pending_mib, |f| f.max_pending_mib, 512)?;
        let response = number("max-response-mib", &a.max_response_mib, |f| f.max_response_mib, 256)?;
        Ok(Self {
            client_connections: count(clients.value),
            peer_connections: count(peers.value),
            metrics_connections: count(metrics.value),
            address_percent: count(percent.value),
            handshake_timeout: Duration::from_millis(handshake.value),
            client_silence: Duration::from_millis(silence.value),
            receive_timeout: Duration::from_millis(receive.value),
            header_bytes: small(header.value),
            connection_requests: small(streams.value),
            connection_window_bytes: window_bytes(window)?,
            health_watches: count(watches.value),
            pending_bytes: mib(pending.value),
            response_bytes: mib(response.value),
            members: MemberLimits::load(args, layers, largest)?,
        })
    }
}

const MIB: u64 = 1 << 20;
/// Less does for no client.
const MIN_HEADER_BYTES: u64 = 8 << 10;
/// HTTP/2 counts windows in 31 bits.
const MAX_WINDOW_MIB: u64 = 2047;
/// With fewer a member could not deliver, give a sign of life and wait for a farewell.
const FEWEST_PEER_REQUESTS: u64 = 4;
