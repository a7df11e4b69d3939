//! One node: the stack assembled, served, and taken down in order.
//!
//! ```text
//! clients ── services ── Raft ──┬── FileLog        the node's log, on disk
//!                               ├── KvMachine      what clients see
//! members ── GrpcServer ────────┴── GrpcTransport  the way to the other members
//! ```

mod connection;
mod listen;
mod signals;
mod snapshots;

use std::process::ExitCode;
use std::time::Duration;

use raftkv::{Config, Fatal, FatalKind, GroupId, InitializeError, Peer, Raft, StorageError};
use raftkv_storage_file::{FileLog, Identity};
use raftkv_transport_grpc::{GrpcServer, GrpcTransport, Local};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::cli::Failure;
use crate::config::{ServerConfig, prepare_data_dir};
use crate::machine::KvMachine;
use crate::service::{self, Services};
use crate::store::Limits;
use signals::{Ending, Signals};
use snapshots::NoSnapshots;

/// What a command's envelope adds to the request in it.
const COMMAND_OVERHEAD: u64 = 4096;
/// After a failure: how long clients may take to fetch the answer that tells them.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long the log may take to write what is under way, at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// Runs a node until it is told to stop, or fails.
pub(crate) fn run(config: ServerConfig) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(run_node(config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn run_node(config: ServerConfig) -> Result<(), Failure> {
    // Before anything else, so that no signal is missed.
    let mut signals = Signals::new(config.exit_on_stdin_close)?;
    let node = tokio::select! {
        biased;
        ending = signals.next() => {
            info!("{ending} during the start");
            return Ok(());
        }
        node = Node::start(&config) => node?,
    };
    let ending = tokio::select! {
        biased;
        fatal = node.raft.stopped() => Ending::Failed(fatal),
        ending = signals.next() => ending,
    };
    node.stop(ending, &mut signals, config.shutdown_timeout).await
}

/// A node that is up.
struct Node {
    raft: Raft,
    services: Services,
    /// Tells the two servers to end.
    end_clients: watch::Sender<bool>,
    end_members: watch::Sender<bool>,
    clients: JoinHandle<()>,
    members: JoinHandle<()>,
}

impl Node {
    async fn start(config: &ServerConfig) -> Result<Self, Failure> {
        let cluster = config.cluster_id();
        info!(
            "node n{} of cluster {:?} ({cluster}), version {}",
            config.id.0,
            config.cluster_name,
            env!("CARGO_PKG_VERSION")
        );
        info!("data in {}; members {}", config.data.display(), config.membership);
        prepare_data_dir(&config.data)?;
        // Ports first: a second server on them must not touch the data.
        let for_clients = listen::bind("--listen-client", &config.listen_client).await?;
        let for_members = listen::bind("--listen-peer", &config.listen_peer).await?;
        let log = open_log(config).await?;
        let machine = KvMachine::new();
        let view = machine.view();
        let raft = start_raft(config, log, machine).await?;
        let (end_clients, clients_end) = watch::channel(false);
        let (end_members, members_end) = watch::channel(false);
        let members = tokio::spawn(serve_members(for_members, &raft, config, members_end));
        let services = Services::start(raft.clone(), view, service_options(config));
        let clients = tokio::spawn(listen::serve_clients(for_clients, services.routes(), clients_end));
        info!("serving clients on {}, members on {}", config.listen_client, config.listen_peer);
        Ok(Self { raft, services, end_clients, end_members, clients, members })
    }

    /// Takes the node down in order: no new requests, those in progress get their answers, then the log is closed.
    async fn stop(mut self, ending: Ending, signals: &mut Signals, limit: Duration) -> Result<(), Failure> {
        let (failed, limit) = match &ending {
            Ending::Failed(fatal) => {
                error!("the node has failed and ends: {fatal}");
                (true, LAST_WORDS)
            }
            Ending::Signal(_) | Ending::StdinClosed => {
                info!("{ending}: shutting down; requests in progress have {:.1} s", limit.as_secs_f64());
                (false, limit)
            }
        };
        self.services.not_serving().await;
        self.end_clients.send_replace(true);
        tokio::select! {
            biased;
            _ = &mut self.clients => {}
            () = tokio::time::sleep(limit) => if !failed {
                warn!("some requests are still in progress; they are refused now");
            },
            again = signals.next(), if !failed => warn!("{again} again: not waiting for requests in progress"),
        }
        let (raft, end_members) = (self.raft, self.end_members);
        let stop = async {
            let fatal = raft.shutdown().await;
            end_members.send_replace(true);
            let _ = self.members.await;
            fatal
        };
        let Ok(fatal) = tokio::time::timeout(FLUSH_LIMIT, stop).await else {
            return Err(Failure::runtime(format!(
                "the node did not end within {} s: the disk does not answer; what was acknowledged is on it",
                FLUSH_LIMIT.as_secs()
            )));
        };
        // A client that did not fetch its answer in time is cut off.
        self.clients.abort();
        if fatal.is_shutdown() {
            info!("shut down in good order");
            return Ok(());
        }
        Err(from_fatal(&fatal))
    }
}

async fn open_log(config: &ServerConfig) -> Result<FileLog, Failure> {
    let identity = Identity { cluster: config.cluster_id(), node: config.id, group: GroupId::default() };
    let dir = config.data.clone();
    let opened =
        tokio::task::spawn_blocking(move || FileLog::open(dir, identity, raftkv_storage_file::Options::default()));
    match opened.await {
        Ok(Ok(log)) => Ok(log),
        Ok(Err(error)) => Err(from_storage(&error)),
        Err(error) => Err(Failure::runtime(format!("opening the log failed: {error}"))),
    }
}

async fn start_raft(config: &ServerConfig, log: FileLog, machine: KvMachine) -> Result<Raft, Failure> {
    let local = Local { cluster: config.cluster_id(), node: own_peer(config) };
    let raft = Raft::builder(config.id, config.cluster_id())
        .config(Config { max_command_bytes: config.max_request_bytes + COMMAND_OVERHEAD, ..config.raft.clone() })
        .transport(GrpcTransport::new(local, transport_options(config)))
        .log(log)
        .snapshots(NoSnapshots)
        .state_machine(machine)
        .start()
        .await
        .map_err(|fatal| from_fatal(&fatal))?;
    match raft.initialize(config.membership.clone()).await {
        Ok(()) => Ok(raft),
        Err(InitializeError::Stopped(fatal)) => Err(from_fatal(&fatal)),
        Err(error) => {
            raft.shutdown().await;
            Err(Failure::usage(format!("--data {}, --peers {}: {error}", config.data.display(), config.membership)))
        }
    }
}

fn own_peer(config: &ServerConfig) -> Peer {
    let own = config.membership.get(config.id).cloned();
    own.unwrap_or_else(|| Peer::new(config.id.0, config.listen_peer.to_string()))
}

/// Room for the largest batch that the node may send.
fn message_limit(config: &ServerConfig) -> usize {
    let largest = config.raft.max_append_bytes.max(config.max_request_bytes + COMMAND_OVERHEAD);
    usize::try_from(largest.saturating_mul(2)).unwrap_or(usize::MAX).max(16 << 20)
}

fn transport_options(config: &ServerConfig) -> raftkv_transport_grpc::Options {
    raftkv_transport_grpc::Options { max_message_bytes: message_limit(config), ..Default::default() }
}

fn serve_members(
    listener: TcpListener,
    raft: &Raft,
    config: &ServerConfig,
    mut end: watch::Receiver<bool>,
) -> impl Future<Output = ()> + use<> {
    let options =
        raftkv_transport_grpc::ServerOptions { max_message_bytes: message_limit(config), ..Default::default() };
    let server = GrpcServer::new(raft.inbox(), options);
    async move {
        let ended = async move {
            // Fails when the node is gone: an end as well.
            let _ = end.wait_for(|end| *end).await;
        };
        if let Err(error) = server.serve(listener, ended).await {
            error!(%error, "the server for members has failed; this node hears nothing more");
        }
    }
}

fn service_options(config: &ServerConfig) -> service::Options {
    let own = config.client_addresses.get(&config.id).cloned();
    service::Options {
        cluster: config.cluster_id(),
        node: config.id,
        client_address: own.unwrap_or_else(|| config.listen_client.to_string()),
        client_addresses: config.client_addresses.clone(),
        limits: Limits {
            request_bytes: usize::try_from(config.max_request_bytes).unwrap_or(usize::MAX),
            ..Limits::default()
        },
    }
}

/// What the operator can mend by another configuration is told apart from what went wrong.
fn from_storage(error: &StorageError) -> Failure {
    if let StorageError::Io { source, .. } = error
        && is_forbidden(source)
    {
        return Failure::usage(format!("{error}; choose a directory with --data that this user may read and write"));
    }
    if matches!(error, StorageError::Refused { .. }) {
        return Failure::usage(error.to_string());
    }
    Failure::runtime(error.to_string())
}

fn is_forbidden(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory)
}

fn from_fatal(fatal: &Fatal) -> Failure {
    if let FatalKind::Storage(error) = fatal.kind() {
        return from_storage(error);
    }
    if let FatalKind::Config(reason) = fatal.kind() {
        return Failure::usage(reason.clone());
    }
    Failure::runtime(format!("the node has failed: {fatal}"))
}
