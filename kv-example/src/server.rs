//! One node: the stack assembled, served, and taken down in order.
//!
//! ```text
//! clients ── services ── Raft ──┬── FileLog        the node's log, on disk, or RedbLog
//!                               ├── FileSnapshots  images of the machine, beside it, or RedbSnapshots
//!                               ├── KvMachine      what clients see, or RedbMachine
//! members ── GrpcServer ────────┴── GrpcTransport  the way to the other members, or TarpcServer and TarpcTransport
//! ```

pub(crate) mod authority;
mod connection;
mod expiry;
mod join;
mod listen;
mod main_thread;
mod protection;
mod removal;
mod signals;
#[cfg(test)]
mod tests;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use raftkv::transport_kit::Local;
use raftkv::{Config, Fatal, FatalKind, GroupId, InitializeError, LogId, Peer, Raft, StorageError};
use raftkv_storage_file::{Identity, Vfs};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tracing::{error, info, warn};

use crate::backends::{self, Machine, Sender, Stores};
use crate::cli::Failure;
use crate::config::{COMMAND_OVERHEAD, ServerConfig, prepare_data_dir};
use crate::gate::Gate;
use crate::metrics::{self, MeterLayer, RequestMeter};
use crate::room::Room;
use crate::service::{self, Services};
use crate::store::Limits;
pub(crate) use main_thread::Patience;
use main_thread::{LAST_WORDS, Main, Orders, Word};
use protection::Protection;
use signals::Ending;

/// Runs a node until it is told to stop, or fails.
pub(crate) fn run(config: ServerConfig, files: Arc<dyn Vfs>) -> Result<ExitCode, Failure> {
    let patience = Patience::of(&config);
    let (runtime, exit_on_stdin_close) = (runtime(config.workers)?, config.exit_on_stdin_close);
    let node = move |orders| run_node(config, files, orders);
    main_thread::run(runtime, patience, exit_on_stdin_close, node).map(|()| ExitCode::SUCCESS)
}

/// With one worker the threads' scheduler would do more than is needed, and treat requests unequally: a worker's own queue of tasks holds 256, and what does not
/// fit is looked at only now and then, so that of 1024 clients some waited twenty times as long as others.
fn runtime(workers: usize) -> io::Result<Runtime> {
    if workers == 1 {
        // What other threads wake has every other turn: that the disk is done is what everybody waits for.
        return Builder::new_current_thread().global_queue_interval(2).enable_all().build();
    }
    Builder::new_multi_thread().worker_threads(workers).enable_all().build()
}

async fn run_node(config: ServerConfig, files: Arc<dyn Vfs>, mut orders: Orders) -> Result<(), Failure> {
    let limit = config.shutdown_timeout;
    let main = orders.main.clone();
    let node = async {
        let config = join::settle(config).await?;
        Node::start(&config, files, Listeners::bind(&config).await?, &main).await
    };
    let node = tokio::select! {
        biased;
        ending = orders.next() => {
            info!("{ending} during the start");
            return Ok(());
        }
        node = node => node?,
    };
    node.run(&mut orders, limit).await
}

/// The node's ears.
struct Listeners {
    clients: TcpListener,
    members: TcpListener,
    metrics: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &ServerConfig) -> Result<Self, Failure> {
        let clients = listen::bind("--listen-client", &config.listen_client).await?;
        let members = listen::bind("--listen-peer", &config.listen_peer).await?;
        let metrics = match &config.listen_metrics {
            Some(address) => Some(listen::bind("--listen-metrics", address).await?),
            None => None,
        };
        Ok(Self { clients, members, metrics })
    }
}

/// A node that is up.
struct Node {
    raft: Raft,
    services: Services,
    /// Tells the two servers to end.
    end_clients: watch::Sender<bool>,
    end_members: watch::Sender<bool>,
    clients: JoinHandle<io::Result<()>>,
    members: JoinHandle<io::Result<()>>,
}

impl Node {
    /// Starts it on ports that are open already: a second server on them must not touch the data.
    async fn start(
        config: &ServerConfig,
        files: Arc<dyn Vfs>,
        listeners: Listeners,
        main: &Main,
    ) -> Result<Self, Failure> {
        let cluster = config.cluster_id();
        info!(
            "node n{} of cluster {:?} ({cluster}), version {}",
            config.id.0,
            config.cluster_name,
            env!("CARGO_PKG_VERSION")
        );
        match &config.join {
            Some(join) => info!("data in {}; joins the cluster of {}", config.data.display(), join.endpoints.join(",")),
            None => info!("data in {}; begins with the members {}", config.data.display(), config.membership),
        }
        let protection = Protection::open(config)?;
        prepare_data_dir(&config.data)?;
        let mut stores = open_stores(config, files).await?;
        let room = Room::new(&config.data, stores.entries.take());
        // Told before the log is let go of, which may be on a disk that has failed.
        let failed = |failure: &Failure| main.tell(Word::Failed(failure.message().to_owned()));
        let (machine, view) = open_machine(config).await.inspect_err(failed)?;
        let log = stores.log.clone();
        let raft = start_raft(config, stores, machine, &protection, main).await.inspect_err(failed)?;
        drop(log);
        let (end_clients, clients_end) = watch::channel(false);
        let (end_members, members_end) = watch::channel(false);
        let (requests, gate) = (Arc::new(RequestMeter::default()), Arc::new(gate(config)));
        if let Some(listener) = listeners.metrics {
            let sources = metrics::Sources {
                raft: raft.clone(),
                view: view.clone(),
                requests: requests.clone(),
                certificates: protection.all(),
                gate: gate.clone(),
                room: room.clone(),
            };
            serve_metrics(listener, sources, members_end.clone());
        }
        let members = tokio::spawn(serve_members(listeners.members, &raft, config, &protection, members_end));
        let services = Services::start(raft.clone(), view, service_options(config, &protection, room));
        removal::watch(&raft, &config.data);
        let meter = MeterLayer(requests);
        let tls = protection.clients.clone();
        let clients =
            listen::serve_clients(listeners.clients, tls, (services.kv(), services.routes()), meter, gate, clients_end);
        let clients = tokio::spawn(clients);
        let with_tls = |tls: &Option<_>| if tls.is_some() { " with TLS" } else { "" };
        info!(
            "serving clients on {}{}, members on {} over {}{}",
            config.listen_client,
            with_tls(&protection.clients),
            config.listen_peer,
            config.transport,
            with_tls(&protection.peers)
        );
        protection.watch();
        if let Some(address) = &config.listen_metrics {
            info!("serving metrics on http://{address}/metrics");
        }
        if config.listen_client.is_unspecified()
            && let Some(address) = config.client_addresses.get(&config.id)
        {
            info!("the member list says that clients reach this node at {address}; --advertise-clients changes that");
        }
        Ok(Self { raft, services, end_clients, end_members, clients, members })
    }

    /// Serves until it is told to stop, or can't go on.
    async fn run(mut self, orders: &mut Orders, limit: Duration) -> Result<(), Failure> {
        let ending = tokio::select! {
            biased;
            fatal = self.raft.stopping() => Ending::Failed(fatal),
            outcome = &mut self.clients => Ending::Deaf(format!("the server for clients has failed: {}", why(outcome))),
            outcome = &mut self.members => Ending::Deaf(format!("the server for members has failed: {}", why(outcome))),
            ending = orders.next() => ending,
        };
        self.stop(ending, orders, limit).await
    }

    /// Takes the node down in order: no new requests, those in progress get their answers, then the log is closed.
    async fn stop(self, ending: Ending, orders: &mut Orders, limit: Duration) -> Result<(), Failure> {
        let (failed, limit) = match &ending {
            Ending::Failed(_) | Ending::Deaf(_) => {
                orders.main.tell(Word::Failed(ending.to_string()));
                error!("the node has failed and ends: {ending}");
                (true, LAST_WORDS)
            }
            Ending::Signal(_) | Ending::StdinClosed => {
                info!("{ending}: shutting down; requests in progress have {:.1} s", limit.as_secs_f64());
                (false, limit)
            }
        };
        self.services.not_serving().await;
        self.end_clients.send_replace(true);
        let cut_off = self.clients.abort_handle();
        tokio::select! {
            biased;
            () = ended(self.clients) => {}
            () = tokio::time::sleep(limit) => if !failed {
                warn!("some requests are still in progress; they are refused now");
            },
            again = orders.next(), if !failed => warn!("{again} again: not waiting for requests in progress"),
        }
        orders.main.tell(Word::Closing);
        let fatal = self.raft.shutdown().await;
        self.end_members.send_replace(true);
        ended(self.members).await;
        // A client that did not fetch its answer in time is cut off.
        cut_off.abort();
        if let Ending::Deaf(reason) = ending {
            return Err(Failure::runtime(format!(
                "{reason}; the node could serve no longer, and ended: start it again"
            )));
        }
        if fatal.is_shutdown() {
            info!("shut down in good order");
            return Ok(());
        }
        Err(from_fatal(&fatal))
    }
}

/// Serves metrics beside everything else: a node that can't tell how it is goes on.
fn serve_metrics(listener: TcpListener, sources: metrics::Sources, end: watch::Receiver<bool>) {
    tokio::spawn(async move {
        if let Err(error) = metrics::serve(listener, sources, end).await {
            error!("metrics are not served any more: {error}");
        }
    });
}

/// Waits for a server's end, also when that was seen before.
async fn ended(server: JoinHandle<io::Result<()>>) {
    if !server.is_finished() {
        // How it ends does not matter any more.
        let _ = server.await;
    }
}

/// Why a server ended that nobody had told to.
fn why(outcome: Result<io::Result<()>, JoinError>) -> String {
    match outcome {
        Ok(Ok(())) => "it ended by itself".into(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

async fn open_stores(config: &ServerConfig, files: Arc<dyn Vfs>) -> Result<Stores, Failure> {
    let identity = Identity { cluster: config.cluster_id(), node: config.id, group: GroupId::default() };
    let (kind, cache, dir) = (config.store, config.store_cache_bytes, config.data.clone());
    let opened = tokio::task::spawn_blocking(move || backends::open_stores(kind, cache, files, &dir, identity));
    match opened.await {
        Ok(Ok((kind, stores))) => {
            info!("log and images in {kind}");
            Ok(stores)
        }
        Ok(Err(error)) => Err(join::explain(config, from_storage(&error))),
        Err(error) => Err(Failure::runtime(format!("opening the log and the snapshots failed: {error}"))),
    }
}

/// After the log, which only one process at a time may have.
async fn open_machine(config: &ServerConfig) -> Result<Machine, Failure> {
    let (engine, data, owner) = (config.engine, config.data.clone(), (config.cluster_id(), config.id));
    let cache = config.engine_cache_bytes;
    let opened = tokio::task::spawn_blocking(move || backends::open_machine(engine, &data, owner, cache)).await;
    let opened = opened.map_err(|error| Failure::runtime(format!("opening the state machine failed: {error}")))?;
    let (machine, view) = opened.map_err(|fatal| from_fatal(&fatal))?;
    info!("contents in {engine}, as of entry {}", view.applied());
    Ok((machine, view))
}

async fn start_raft(
    config: &ServerConfig,
    Stores { log, images, entries: _ }: Stores,
    machine: Box<dyn raftkv::StateMachine>,
    protection: &Protection,
    main: &Main,
) -> Result<Raft, Failure> {
    let local = Local { cluster: config.cluster_id(), node: own_peer(config) };
    let Sender { transport, report_losses_to } = backends::open_transport(
        config.transport,
        local,
        config.limits.members.message_bytes,
        protection.peers.clone(),
    );
    let raft = Raft::builder(config.id, config.cluster_id())
        .config(Config {
            max_command_bytes: config.max_request_bytes.saturating_add(COMMAND_OVERHEAD),
            ..config.raft.clone()
        })
        .transport(transport)
        .log(log)
        .snapshots(images)
        .state_machine(machine)
        .start()
        .await
        .map_err(|fatal| from_fatal(&fatal))?;
    report_losses_to(raft.inbox());
    let status = raft.status().await.map_err(|error| Failure::runtime(error.to_string()))?;
    if config.join.is_some() || status.configuration.is_some() || status.last != LogId::ZERO {
        // It waits for its cluster, or knows it already: members may have changed since it began.
        return Ok(raft);
    }
    match raft.initialize(config.membership.clone()).await {
        Ok(()) => Ok(raft),
        Err(InitializeError::Stopped(fatal)) => Err(from_fatal(&fatal)),
        Err(error) => {
            let reason = format!("--data {}, --peers {}: {error}", config.data.display(), config.membership);
            main.tell(Word::Failed(reason.clone()));
            raft.shutdown().await;
            Err(Failure::usage(reason))
        }
    }
}

fn own_peer(config: &ServerConfig) -> Peer {
    let own = config.membership.get(config.id).cloned();
    let reached = config.join.as_ref().map_or(&config.listen_peer, |join| &join.address);
    own.unwrap_or_else(|| Peer::new(config.id.0, reached.to_string()))
}

fn gate(config: &ServerConfig) -> Gate {
    let connections = listen::connection_limit(config.limits.client_connections);
    Gate::new(config.limits.clone(), connections, config.raft.max_pending_requests, limits_of_requests(config))
}

fn limits_of_requests(config: &ServerConfig) -> Limits {
    Limits {
        request_bytes: usize::try_from(config.max_request_bytes).unwrap_or(usize::MAX),
        response_bytes: config.limits.response_bytes,
        ..Limits::default()
    }
}

fn serve_members(
    listener: TcpListener,
    raft: &Raft,
    config: &ServerConfig,
    protection: &Protection,
    mut end: watch::Receiver<bool>,
) -> backends::Serving {
    let ended = async move {
        // Fails when the node is gone: an end as well.
        let _ = end.wait_for(|end| *end).await;
    };
    let (limits, tls) = (&config.limits, protection.peers.clone());
    backends::serve_members(config.transport, listener, raft.inbox(), tls, limits, ended)
}

fn service_options(config: &ServerConfig, protection: &Protection, room: Room) -> service::Options {
    service::Options {
        cluster: config.cluster_id(),
        node: config.id,
        client_address: config.client_address.clone(),
        client_addresses: config.client_addresses.clone(),
        limits: limits_of_requests(config),
        max_members: config.raft.max_members,
        keeps_members: true,
        write_timeout: config.raft.write_timeout,
        lease_reads: config.raft.lease_drift.is_some(),
        token_ttl: config.auth_token_ttl,
        address_percent: config.limits.address_percent,
        was_removed: removal::is_noted(&config.data),
        peers_have_tls: protection.peers.is_some(),
        clients_tls: protection.clients.clone(),
        room: Some(room),
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
