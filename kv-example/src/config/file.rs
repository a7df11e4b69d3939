//! The TOML file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{ConfigError, Secret};

/// The file's keys: those of the command line.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct FileConfig {
    pub(super) id: Option<u64>,
    pub(super) data: Option<String>,
    pub(super) peers: Option<FilePeers>,
    pub(super) join: Option<String>,
    pub(super) learner: Option<bool>,
    pub(super) join_user: Option<Secret>,
    pub(super) advertise_peer: Option<String>,
    pub(super) listen_client: Option<String>,
    pub(super) listen_peer: Option<String>,
    pub(super) listen_metrics: Option<String>,
    pub(super) advertise_clients: Option<FilePeers>,
    pub(super) cluster_name: Option<String>,
    pub(super) election_timeout_ms: Option<u64>,
    pub(super) heartbeat_ms: Option<u64>,
    pub(super) priority: Option<u32>,
    pub(super) no_lead: Option<bool>,
    pub(super) lease_drift_ms: Option<u64>,
    pub(super) busy_poll_us: Option<u64>,
    pub(super) request_timeout_ms: Option<u64>,
    pub(super) snapshot_entries: Option<u64>,
    pub(super) snapshot_mib: Option<u64>,
    pub(super) trailing_entries: Option<u64>,
    pub(super) snapshot_kib_per_second: Option<u64>,
    pub(super) snapshot_busy_percent: Option<u64>,
    pub(super) transport: Option<String>,
    pub(super) store: Option<String>,
    pub(super) store_cache_mib: Option<u64>,
    pub(super) engine: Option<String>,
    pub(super) engine_cache_mib: Option<u64>,
    pub(super) workers: Option<u64>,
    pub(super) auth_token_ttl: Option<u64>,
    pub(super) max_request_bytes: Option<u64>,
    pub(super) max_pending_requests: Option<u64>,
    pub(super) max_client_connections: Option<u64>,
    pub(super) max_peer_connections: Option<u64>,
    pub(super) max_peer_message_mib: Option<u64>,
    pub(super) max_peer_window_mib: Option<u64>,
    pub(super) max_peer_requests: Option<u64>,
    pub(super) max_peer_streams: Option<u64>,
    pub(super) max_metrics_connections: Option<u64>,
    pub(super) max_address_percent: Option<u64>,
    pub(super) handshake_timeout_ms: Option<u64>,
    pub(super) client_silence_ms: Option<u64>,
    pub(super) receive_timeout_ms: Option<u64>,
    pub(super) max_header_bytes: Option<u64>,
    pub(super) max_connection_requests: Option<u64>,
    pub(super) max_client_window_mib: Option<u64>,
    pub(super) max_health_watches: Option<u64>,
    pub(super) max_pending_mib: Option<u64>,
    pub(super) max_response_mib: Option<u64>,
    pub(super) shutdown_timeout_ms: Option<u64>,
    pub(super) log_level: Option<String>,
    pub(super) peer_cert: Option<String>,
    pub(super) peer_key: Option<String>,
    pub(super) peer_ca: Option<String>,
    pub(super) client_cert: Option<String>,
    pub(super) client_key: Option<String>,
    pub(super) client_ca: Option<String>,
}

/// Members: as on the command line, or a table of id and address.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "this must be a table of ID = \"HOST:PORT\", or a string \"ID=HOST:PORT,…\"")]
pub(super) enum FilePeers {
    Line(String),
    Table(BTreeMap<String, String>),
}

impl FilePeers {
    /// In the command line's form.
    pub(super) fn joined(&self) -> String {
        match self {
            Self::Line(line) => line.clone(),
            Self::Table(table) => {
                table.iter().map(|(id, address)| format!("{id}={address}")).collect::<Vec<_>>().join(",")
            }
        }
    }
}

impl FileConfig {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError(format!("--config {}: can't read the file: {e}", path.display())))?;
        Self::parse(&text, path)
    }

    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|e| {
            let what = if is_shown(text, &e) { e.to_string() } else { format!("{}{}", place(text, &e), e.message()) };
            ConfigError(format!("--config {}: {what}", path.display()))
        })
    }
}

/// Whether the line in which a mistake is may be shown with it. Not where it may hold the password of `join-user`: that is any line, unless it is known what
/// stands in it.
fn is_shown(text: &str, error: &toml::de::Error) -> bool {
    let Ok(table) = text.parse::<toml::Table>() else { return false };
    // The value of a key of ours has another type than it should, so the line is that key's.
    !error.message().starts_with("unknown field") && table.get("join-user").is_none_or(toml::Value::is_str)
}

/// Where a mistake is, without what is there.
fn place(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    before.map_or_else(String::new, |before| {
        let (line, column) =
            (before.matches('\n').count() + 1, before.chars().rev().take_while(|c| *c != '\n').count() + 1);
        format!("line {line}, column {column}: ")
    })
}
