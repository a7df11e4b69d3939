//! What a server is told, from four places: command line, environment, a TOML file, and defaults, in this order of precedence.
//!
//! Every mistake becomes one [`ConfigError`] that says what is wrong, where it was said, and what to do.

mod address;
mod auth;
mod engine;
mod file;
mod join;
mod limits;
mod raft;
mod tls;
mod workers;

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use raftkv::{ClusterId, Config, Membership, NodeId};
use thiserror::Error;

use crate::backends::{EngineKind, StoreKind, TransportKind};

pub use address::HostPort;
pub use auth::Secret;
use file::FileConfig;
pub use join::Join;
use join::Place;
pub use limits::{LimitArgs, Limits, MemberLimits};
pub use tls::{TlsArgs, TlsConfig};

/// A mistake in the configuration: what, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// A mistake, in words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// The options of `kv-example server`, as they were typed.
///
/// Values are read in [`ServerConfig::load`], so that a mistake in the environment or in a file gets as good an answer as one
/// on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct ServerArgs {
    /// TOML file with any of the options below; the key is the option without its dashes (`listen-client = "…"`),
    /// and `peers` may be a table [env: RAFTKV_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// This node's number, one of those in --peers; with --join it may be left out, and the cluster chooses one [env: RAFTKV_ID]
    #[arg(long, value_name = "N")]
    pub id: Option<String>,

    /// Directory for this node's log; created when it is missing, and bound to this node of this cluster from then on
    /// [env: RAFTKV_DATA]
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,

    /// The members that the cluster begins with, this one included, with the addresses at which they reach each other: the same list on
    /// every node, and for ever, also when members have changed since [env: RAFTKV_PEERS]
    #[arg(long, value_name = "ID=HOST:PORT,…")]
    pub peers: Option<String>,

    /// Instead of --peers: join the cluster whose members serve clients here. On an empty directory the node becomes a member, if it is none
    /// yet, and votes once it has caught up; later it just starts [env: RAFTKV_JOIN]
    #[arg(long, value_name = "HOST:PORT,…")]
    pub join: Option<String>,

    /// With --join: never vote, unless promoted by `kv-example member promote` [env: RAFTKV_LEARNER]
    #[arg(long)]
    pub learner: bool,

    /// With --join, where authentication is enabled: as whom the node asks; root, unless the node was added by `member add` before. Better in the
    /// environment or in a file than here, where it can be seen in the list of processes [env: RAFTKV_JOIN_USER]
    #[arg(long, value_name = "NAME:PASSWORD")]
    pub join_user: Option<Secret>,

    /// With --join: where the other members will reach this node [default: --listen-peer] [env: RAFTKV_ADVERTISE_PEER]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_peer: Option<String>,

    /// Address for clients [env: RAFTKV_LISTEN_CLIENT]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen_client: Option<String>,

    /// Address for the other members [default: this node's own entry in --peers] [env: RAFTKV_LISTEN_PEER]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen_peer: Option<String>,

    /// Address at which to serve metrics for Prometheus, over HTTP at /metrics: without encryption, and to anybody [default: none are
    /// served] [env: RAFTKV_LISTEN_METRICS]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen_metrics: Option<String>,

    /// Where members serve clients, for `member-list` and for clients that ask the cluster for its addresses
    /// [default: only this node's: its --listen-client, and where that is 0.0.0.0, its host in --peers] [env: RAFTKV_ADVERTISE_CLIENTS]
    #[arg(long, value_name = "ID=HOST:PORT,…")]
    pub advertise_clients: Option<String>,

    /// Keeps clusters apart that meet by mistake; the same on every node [default: raftkv] [env: RAFTKV_CLUSTER_NAME]
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<String>,

    /// How long a follower waits for its leader before it campaigns, in milliseconds; each wait is drawn from once to
    /// twice this [default: 300] [env: RAFTKV_ELECTION_TIMEOUT_MS]
    #[arg(long, value_name = "MS", help_heading = "Raft")]
    pub election_timeout_ms: Option<String>,

    /// Of the voters that can, the one with the highest priority leads: a leader hands over to one with a higher priority once that one has kept
    /// up for some seconds [default: 0] [env: RAFTKV_PRIORITY]
    #[arg(long, value_name = "N", help_heading = "Raft")]
    pub priority: Option<String>,

    /// Never lead: follow and vote only. If all nodes that are up to date are told so, nobody leads [env: RAFTKV_NO_LEAD]
    #[arg(long, help_heading = "Raft")]
    pub no_lead: bool,

    /// How often an idle leader speaks, in milliseconds; at most half of --election-timeout-ms [default: 100, or a third of --election-timeout-ms if that is less]
    /// [env: RAFTKV_HEARTBEAT_MS]
    #[arg(long, value_name = "MS", help_heading = "Raft")]
    pub heartbeat_ms: Option<String>,

    /// Let the leader answer reads by its clock, without asking a quorum each time, while a quorum has promised to elect nobody else. The number is
    /// what you vouch for: no member's clock gains more milliseconds than this on another's in a second. 10 is far beyond what healthy
    /// machines do; a virtual machine that is stopped and continued breaks it, and may then read what is stale. The same on every node.
    /// Requests may insist on a quorum with the header `raftkv-consistency: linearizable` [default: no leases] [env: RAFTKV_LEASE_DRIFT_MS]
    #[arg(long, value_name = "MS", help_heading = "Raft")]
    pub lease_drift_ms: Option<String>,

    /// How long a thread that serves looks again and again for the next request of clients who have just been answered, before it sleeps; in microseconds, and only
    /// where it came in that time before: for few clients, and machines with cores to spare (200, say) [default: 0, never] [env: RAFTKV_BUSY_POLL_US]
    #[arg(long, value_name = "US", help_heading = "Raft")]
    pub busy_poll_us: Option<String>,

    /// How long a request may wait for the cluster, in milliseconds; less than clients wait (5 s, as etcdctl's), so that they learn
    /// whether it took effect [default: 4000] [env: RAFTKV_REQUEST_TIMEOUT_MS]
    #[arg(long, value_name = "MS", help_heading = "Raft")]
    pub request_timeout_ms: Option<String>,

    /// An image of the contents is taken, and the log cut behind it, after so many entries, or --snapshot-mib of them [default: 100000]
    /// [env: RAFTKV_SNAPSHOT_ENTRIES]
    #[arg(long, value_name = "N", help_heading = "Raft")]
    pub snapshot_entries: Option<String>,

    /// An image is taken after so many MiB of entries, or --snapshot-entries of them [default: 256] [env: RAFTKV_SNAPSHOT_MIB]
    #[arg(long, value_name = "MIB", help_heading = "Raft")]
    pub snapshot_mib: Option<String>,

    /// How many entries in front of an image stay in the log, so that a follower that is a little behind needs no image
    /// [default: 10000] [env: RAFTKV_TRAILING_ENTRIES]
    #[arg(long, value_name = "N", help_heading = "Raft")]
    pub trailing_entries: Option<String>,

    /// How much of an image this node receives in a second at most, in KiB [default: as fast as it goes]
    /// [env: RAFTKV_SNAPSHOT_KIB_PER_SECOND]
    #[arg(long, value_name = "KIB", help_heading = "Raft")]
    pub snapshot_kib_per_second: Option<String>,
    /// How much of the time a node that writes an image is busy with that, in percent; the rest of it is the clients' [default: 20]
    /// [env: RAFTKV_SNAPSHOT_BUSY_PERCENT]
    #[arg(long, value_name = "PERCENT", help_heading = "Raft")]
    pub snapshot_busy_percent: Option<String>,

    /// The largest request, in bytes [default: 1572864] [env: RAFTKV_MAX_REQUEST_BYTES]
    #[arg(long, value_name = "BYTES", help_heading = "Raft")]
    pub max_request_bytes: Option<String>,

    /// How many requests may be in progress before clients are told to slow down [default: 65536]
    /// [env: RAFTKV_MAX_PENDING_REQUESTS]
    #[arg(long, value_name = "COUNT", help_heading = "Raft")]
    pub max_pending_requests: Option<String>,

    /// How members talk to each other: over `grpc` or over `tarpc`. The same on every node [default: grpc] [env: RAFTKV_TRANSPORT]
    #[arg(long, value_name = "KIND")]
    pub transport: Option<String>,

    /// Where the log and the images are, in --data: in files (`file`), or in redb databases (`redb`), which take longer. A directory keeps the
    /// kind that it was made with [default: what is there; else file] [env: RAFTKV_STORE]
    #[arg(long, value_name = "KIND")]
    pub store: Option<String>,

    /// With --store redb: how much memory the log's database may take for what it has read or is to write, in MiB. More helps only where members are
    /// far behind for long [default: 64] [env: RAFTKV_STORE_CACHE_MIB]
    #[arg(long, value_name = "MIB")]
    pub store_cache_mib: Option<String>,

    /// Where the contents are: `memory`, or `redb`, a database in --data. Over redb they may exceed the memory, and a start reads nothing again;
    /// writes take longer. It may be changed from one start to the next, and each node may have its own [default: memory] [env: RAFTKV_ENGINE]
    #[arg(long, value_name = "KIND")]
    pub engine: Option<String>,

    /// With --engine redb: how much memory the database may take for what it has read or is to write, in MiB [default: 256]
    /// [env: RAFTKV_ENGINE_CACHE_MIB]
    #[arg(long, value_name = "MIB")]
    pub engine_cache_mib: Option<String>,

    /// Threads that serve clients and members and decide for Raft; what waits for the disk has threads of its own. More serve more where cores are
    /// left, and where all are busy, fewer lose less time with waking each other [default: half of the cores] [env: RAFTKV_WORKERS]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,

    /// How long a login holds, in seconds, where authentication is enabled: then a client logs in again. By the clock of the node that is asked, so
    /// machines whose clocks go wrong by more than this refuse each other's logins. Nodes may be told different times [default: 300]
    /// [env: RAFTKV_AUTH_TOKEN_TTL]
    #[arg(long, value_name = "SECONDS")]
    pub auth_token_ttl: Option<String>,

    /// How long a shutdown waits for requests in progress, in milliseconds [default: 5000]
    /// [env: RAFTKV_SHUTDOWN_TIMEOUT_MS]
    #[arg(long, value_name = "MS")]
    pub shutdown_timeout_ms: Option<String>,

    /// What to log to stderr: error, warn, info, debug, trace, or directives such as `info,raftkv=debug`
    /// [default: RUST_LOG, else info] [env: RAFTKV_LOG_LEVEL]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Shut down when stdin ends: a watchdog for the process that started this one
    #[arg(long, hide = true)]
    pub exit_on_stdin_close: bool,

    /// Where certificates are.
    #[command(flatten)]
    pub tls: TlsArgs,

    // The last, since what comes after it would come under its heading.
    /// Limits on what is taken of this node.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// What a command's envelope adds to the request in it.
pub(crate) const COMMAND_OVERHEAD: u64 = 4096;

/// A complete, checked configuration of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// This node; 0 for one that joins, until the cluster has said.
    pub id: NodeId,
    /// Where it keeps its log.
    pub data: PathBuf,
    /// The members that the cluster begins with, this one included; none for a node that joins.
    pub membership: Membership,
    /// For a node that joins: where and how.
    pub join: Option<Join>,
    /// The cluster that it joined.
    pub cluster: Option<ClusterId>,
    /// The cluster's name.
    pub cluster_name: String,
    /// Where clients connect.
    pub listen_client: HostPort,
    /// Where members connect.
    pub listen_peer: HostPort,
    /// Where metrics are served, if they are.
    pub listen_metrics: Option<HostPort>,
    /// Where clients reach this node.
    pub client_address: String,
    /// Where members serve clients, as far as it was said. This node itself is always among them, once its id is known.
    pub client_addresses: BTreeMap<NodeId, String>,
    /// What clients, members and others may take.
    pub limits: Limits,
    /// The largest request, in bytes.
    pub max_request_bytes: u64,
    /// How members talk to each other.
    pub transport: TransportKind,
    /// What keeps log and images; none: what is there.
    pub store: Option<StoreKind>,
    /// How much memory a log in a database may take for its cache, in bytes.
    pub store_cache_bytes: u64,
    /// What keeps the contents.
    pub engine: EngineKind,
    /// How much memory it may take for what is kept elsewhere, in bytes.
    pub engine_cache_bytes: u64,
    /// Raft's times and limits.
    pub raft: Config,
    /// How many threads serve.
    pub workers: usize,
    /// How long a login holds.
    pub auth_token_ttl: Duration,
    /// How long a shutdown waits for requests in progress.
    pub shutdown_timeout: Duration,
    /// Log directives, when they were given.
    pub log_level: Option<String>,
    /// Whether to shut down when stdin ends.
    pub exit_on_stdin_close: bool,
    /// Where certificates are.
    pub tls: TlsConfig,
}

/// Where a value was said, for messages about it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Flag(&'static str),
    Env(String),
    File(&'static str, PathBuf),
    Default(&'static str),
}

impl Origin {
    fn is_default(&self) -> bool {
        matches!(self, Self::Default(_))
    }

    /// What has a lower one overrides the others.
    fn rank(&self) -> u8 {
        match self {
            Self::Flag(_) => 0,
            Self::Env(_) => 1,
            Self::File(..) => 2,
            Self::Default(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::File(name, path) => write!(f, "`{name}` in {}", path.display()),
            Self::Default(name) => write!(f, "the default of --{name}"),
        }
    }
}

/// A value, and where it was said.
#[derive(Clone, Debug)]
struct Given<T> {
    value: T,
    origin: Origin,
}

impl Given<String> {
    fn parse<T: FromStr>(self, expected: &str) -> Result<Given<T>, ConfigError> {
        match self.value.trim().parse() {
            Ok(value) => Ok(Given { value, origin: self.origin }),
            Err(_) => Err(ConfigError(format!("{}: {:?} is not {expected}", self.origin, self.value))),
        }
    }
}

/// The three layers above the defaults.
struct Layers<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    file: Option<(PathBuf, FileConfig)>,
}

impl Layers<'_> {
    fn text(
        &self,
        name: &'static str,
        flag: Option<&String>,
        file: impl FnOnce(&FileConfig) -> Option<String>,
    ) -> Option<Given<String>> {
        if let Some(value) = flag {
            return Some(Given { value: value.clone(), origin: Origin::Flag(name) });
        }
        let variable = env_name(name);
        if let Some(value) = (self.env)(&variable) {
            return Some(Given { value, origin: Origin::Env(variable) });
        }
        let (path, config) = self.file.as_ref()?;
        Some(Given { value: file(config)?, origin: Origin::File(name, path.clone()) })
    }

    fn number(
        &self,
        name: &'static str,
        flag: Option<&String>,
        file: impl FnOnce(&FileConfig) -> Option<u64>,
        default: u64,
    ) -> Result<Given<u64>, ConfigError> {
        let given = match self.text(name, flag, |config| file(config).map(|n| n.to_string())) {
            Some(given) => given.parse("a whole number")?,
            None => Given { value: default, origin: Origin::Default(name) },
        };
        if given.value == 0 {
            return Err(ConfigError(format!("{}: must be at least 1", given.origin)));
        }
        Ok(given)
    }
}

/// The environment variable for an option.
fn env_name(option: &str) -> String {
    format!("RAFTKV_{}", option.to_uppercase().replace('-', "_"))
}

impl ServerConfig {
    /// Puts the layers together and checks the whole. `env` looks up an environment variable.
    ///
    /// # Errors
    /// The first mistake found.
    pub fn load(args: &ServerArgs, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let path = args.config.clone().or_else(|| env("RAFTKV_CONFIG").map(PathBuf::from));
        let file = path.map(|path| FileConfig::read(&path).map(|config| (path, config))).transpose()?;
        Self::assemble(args, &Layers { env, file })
    }

    /// As [`ServerConfig::load`] with a file of this text and no environment, for fuzzing.
    #[cfg(feature = "testing")]
    pub(crate) fn from_text(args: &ServerArgs, text: &str, path: &std::path::Path) -> Result<Self, ConfigError> {
        let file = Some((path.to_owned(), FileConfig::parse(text, path)?));
        Self::assemble(args, &Layers { env: &|_| None, file })
    }

    fn assemble(args: &ServerArgs, layers: &Layers<'_>) -> Result<Self, ConfigError> {
        let tls = TlsConfig::of(&args.tls, layers)?;
        let place = Place::of(args, layers, &tls)?;
        let data = required(layers.text("data", args.data.as_ref(), |f| f.data.clone()), "data", "/var/lib/raftkv")?;
        if data.value.is_empty() {
            return Err(ConfigError(format!(
                "{}: the directory is empty; name one, such as ./kv-data/n1",
                data.origin
            )));
        }
        let listen_client = required(
            layers.text("listen-client", args.listen_client.as_ref(), |f| f.listen_client.clone()),
            "listen-client",
            "127.0.0.1:2379",
        )?;
        let listen_client = address::parse(&listen_client)?;
        let listen_peer = &place.listen_peer;
        if listen_client.value == listen_peer.value {
            return Err(ConfigError(format!(
                "{} and the address for members ({}) are both {}; clients and members need a port each",
                listen_client.origin, listen_peer.origin, listen_client.value
            )));
        }
        let listen_metrics = address::of_metrics(args, layers, &[&listen_client, listen_peer])?;
        let advertised = layers.text("advertise-clients", args.advertise_clients.as_ref(), |f| {
            f.advertise_clients.as_ref().map(file::FilePeers::joined)
        });
        let mut client_addresses = place.clients(advertised.as_ref())?;
        let own_client = client_addresses.get(&place.id).cloned();
        let client_address = own_client.unwrap_or_else(|| reachable(&listen_client.value, &place.own).to_string());
        if place.id != NodeId(0) {
            client_addresses.insert(place.id, client_address.clone());
        }
        let max_request =
            layers.number("max-request-bytes", args.max_request_bytes.as_ref(), |f| f.max_request_bytes, 1_572_864)?;
        let raft = raft::config(args, layers)?;
        let largest = raft.max_append_bytes.max(max_request.value.saturating_add(COMMAND_OVERHEAD));
        let name = layers.text("cluster-name", args.cluster_name.as_ref(), |f| f.cluster_name.clone());
        let shutdown =
            layers.number("shutdown-timeout-ms", args.shutdown_timeout_ms.as_ref(), |f| f.shutdown_timeout_ms, 5000)?;
        let transport = engine::transport(args, layers)?;
        let (store, store_cache_bytes) = engine::store(args, layers)?;
        let (engine, engine_cache_bytes) = engine::chosen(args, layers)?;
        Ok(Self {
            id: place.id,
            data: PathBuf::from(data.value),
            membership: place.membership,
            join: place.join,
            cluster: None,
            cluster_name: name.map_or_else(|| "raftkv".to_owned(), |given| given.value),
            listen_client: listen_client.value,
            listen_peer: place.listen_peer.value,
            listen_metrics,
            client_address,
            client_addresses,
            limits: Limits::load(&args.limits, layers, largest)?,
            max_request_bytes: max_request.value,
            transport,
            store,
            store_cache_bytes,
            engine,
            engine_cache_bytes,
            raft,
            workers: workers::count(args, layers)?,
            auth_token_ttl: auth::token_ttl(args, layers)?,
            shutdown_timeout: Duration::from_millis(shutdown.value),
            log_level: log_level(args, layers)?,
            exit_on_stdin_close: args.exit_on_stdin_close,
            tls,
        })
    }

    /// The cluster's identity.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster.unwrap_or_else(|| ClusterId::derive(&self.cluster_name, &self.membership))
    }
}

/// What to log, if it is said.
fn log_level(args: &ServerArgs, layers: &Layers<'_>) -> Result<Option<String>, ConfigError> {
    let given = layers.text("log-level", args.log_level.as_ref(), |f| f.log_level.clone());
    if let Some(given) = &given {
        crate::telemetry::check_directives(&given.value).map_err(|e| ConfigError(format!("{}: {e}", given.origin)))?;
    }
    Ok(given.map(|given| given.value))
}

fn required(given: Option<Given<String>>, name: &'static str, example: &str) -> Result<Given<String>, ConfigError> {
    given.ok_or_else(|| {
        ConfigError(format!(
            "--{name} is missing: say --{name} {example}, or {}={example}, or `{name}` in the file of --config",
            env_name(name)
        ))
    })
}

fn own_address(id: &Given<u64>, membership: &Membership, peers: &Origin) -> Result<HostPort, ConfigError> {
    let Some(peer) = membership.get(NodeId(id.value)) else {
        let known: Vec<_> = membership.voters.keys().map(|id| id.0.to_string()).collect();
        return Err(ConfigError(format!(
            "{}: node {} is not in {peers}, which names {}; add {}=HOST:PORT there, or use one of these ids",
            id.origin,
            id.value,
            known.join(", "),
            id.value
        )));
    };
    peer.address.parse().map_err(|e| ConfigError(format!("{peers}: {e}")))
}

/// Where others reach what listens here: on all addresses of a machine that members reach at `own`, or on one.
fn reachable(listen: &HostPort, own: &HostPort) -> HostPort {
    if listen.is_unspecified() { listen.at_host_of(own) } else { listen.clone() }
}

/// Creates the data directory, so that a mistake in its path is told as such. Has the log tell of one that is there, and open to others.
///
/// # Errors
/// It can't be created, or is not a directory.
pub fn prepare_data_dir(path: &Path) -> Result<(), ConfigError> {
    // What is in it are the contents, and the secrets that users log in with.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| {
        ConfigError(format!(
            "--data {}: can't create the directory: {e}; choose a directory that this user may write to",
            path.display()
        ))
    })?;
    let mode = std::fs::metadata(path).map_or(0, |found| found.permissions().mode() & 0o7777);
    if mode & 0o077 != 0 {
        tracing::warn!(
            data = %path.display(), mode = format_args!("{mode:04o}"),
            "the data directory is open to others: it holds the contents, the hashes of passwords, and the key that signs logins; take that from them (chmod go= DIRECTORY)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
