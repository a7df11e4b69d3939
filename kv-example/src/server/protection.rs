//! Certificates of a node, for its links to other members and for its clients.

use std::time::Duration;

use raftkv::NodeId;
use raftkv::transport_kit::Tls;
use raftkv::transport_kit::tls::{TlsError, TlsFiles};

use crate::cli::Failure;
use crate::config::ServerConfig;

/// How often the files are looked at while nobody connects, so that the log soon tells what became of new ones.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What the files hold. None: no TLS.
#[derive(Clone)]
pub(super) struct Protection {
    pub(super) peers: Option<Tls>,
    pub(super) clients: Option<Tls>,
}

impl Protection {
    /// Reads the files of a node whose id is known.
    pub(super) fn open(config: &ServerConfig) -> Result<Self, Failure> {
        let peers = config.tls.peers.clone().map(|files| Tls::for_node(files, config.id).map_err(of_peers));
        Ok(Self { peers: peers.transpose()?, clients: clients(config)? })
    }

    /// Has the log tell of files that change.
    pub(super) fn watch(&self) {
        let all: Vec<_> = self.peers.iter().chain(&self.clients).cloned().collect();
        if all.is_empty() {
            return;
        }
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                for tls in &all {
                    tls.refresh().await;
                }
            }
        });
    }
}

/// For clients, and for this node where it is one of other members.
pub(super) fn clients(config: &ServerConfig) -> Result<Option<Tls>, Failure> {
    let files = config.tls.clients.clone();
    let opened = files.map(|files| Tls::for_server(files).map_err(|error| mistake("client", &error)));
    opened.transpose()
}

/// Who a node is that was given no id: its certificate says so.
pub(super) fn node_of(files: &TlsFiles) -> Result<NodeId, Failure> {
    let named = Tls::for_server(files.clone()).map_err(of_peers)?.own_nodes();
    match named[..] {
        [node] => Ok(node),
        [] => Err(Failure::usage(
            "--peer-cert: the certificate names no node, such as node-4.raftkv; have one made for this node's id, and say it with --id",
        )),
        _ => Err(Failure::usage("--peer-cert: the certificate names several nodes; say with --id which one this is")),
    }
}

fn of_peers(error: TlsError) -> Failure {
    mistake("peer", &error)
}

fn mistake(whose: &str, error: &TlsError) -> Failure {
    Failure::usage(format!("--{whose}-cert, --{whose}-key, --{whose}-ca: {error}"))
}
