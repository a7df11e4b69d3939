//! What a node is made of, where there is a choice: what the operator names is opened here, and only here does it matter what was compiled in.
//!
//! | option | kinds | cargo feature |
//! |---|---|---|
//! | `--transport` | `grpc` | `grpc`, on by default |
//! |  | `tarpc` | `tarpc` |
//! | `--store` | `file` | `file`, on by default |
//! |  | `redb` | `redb` |
//! | `--engine` | `memory` | always there |
//! |  | `redb` | `redb` |

#[cfg(feature = "redb")]
pub mod redb;

#[cfg(not(any(feature = "file", feature = "redb")))]
compile_error!(
    "kv-example needs at least one kind of store: build it with `--features file` (log and images in files, the default) or `--features redb` (in databases)"
);

#[cfg(not(any(feature = "grpc", feature = "tarpc")))]
compile_error!(
    "kv-example needs at least one way between its nodes: build it with `--features grpc` (the default) or `--features tarpc`"
);

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use raftkv::transport_kit::{Local, Tls};
use raftkv::{ClusterId, Fatal, Inbox, LogStore, NodeId, Snapshot, StateMachine, StorageError, Transport};
use raftkv_storage_file::parts::kind_of;
use raftkv_storage_file::{Identity, OsVfs, Vfs};
use tokio::net::TcpListener;

use crate::config::Limits;
use crate::machine::{KvMachine, KvView};
use crate::room::{self, Entries};

/// How members talk to each other. The same on every node of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportKind {
    /// gRPC streams with protobuf.
    Grpc,
    /// tarpc with postcard.
    Tarpc,
}

impl TransportKind {
    const ALL: [Self; 2] = [Self::Grpc, Self::Tarpc];

    fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Tarpc => "tarpc",
        }
    }

    fn missing(self) -> Option<&'static str> {
        match self {
            Self::Grpc if !cfg!(feature = "grpc") => Some("grpc"),
            Self::Tarpc if !cfg!(feature = "tarpc") => Some("tarpc"),
            Self::Grpc | Self::Tarpc => None,
        }
    }
}

impl Default for TransportKind {
    fn default() -> Self {
        if cfg!(feature = "grpc") { Self::Grpc } else { Self::Tarpc }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TransportKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        choose("a kind of transport", &Self::ALL, Self::name, Self::missing, text)
    }
}

/// The sending half, and how it is told whom to tell of lost connections.
pub(crate) struct Sender {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) report_losses_to: Box<dyn FnOnce(Inbox) + Send>,
}

/// The receiving half at work.
pub(crate) type Serving = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Opens the sending half.
pub(crate) fn open_transport(kind: TransportKind, local: Local, max_message_bytes: usize, tls: Option<Tls>) -> Sender {
    match kind {
        #[cfg(feature = "grpc")]
        TransportKind::Grpc => {
            use raftkv_transport_grpc::{GrpcTransport, Options};
            let options = Options { max_message_bytes, ..Options::default() };
            let transport = Arc::new(match tls {
                Some(tls) => GrpcTransport::with_tls(local, options, tls),
                None => GrpcTransport::new(local, options),
            });
            let reporting = transport.clone();
            Sender { transport, report_losses_to: Box::new(move |inbox| reporting.report_losses_to(inbox)) }
        }
        #[cfg(feature = "tarpc")]
        TransportKind::Tarpc => {
            use raftkv_transport_tarpc::{Options, TarpcTransport};
            let options = Options { max_message_bytes, ..Options::default() };
            let transport = Arc::new(match tls {
                Some(tls) => TarpcTransport::with_tls(local, options, tls),
                None => TarpcTransport::new(local, options),
            });
            let reporting = transport.clone();
            Sender { transport, report_losses_to: Box::new(move |inbox| reporting.report_losses_to(inbox)) }
        }
        #[cfg(not(all(feature = "grpc", feature = "tarpc")))]
        other => unreachable!("the configuration refuses {other}, which was not compiled in"),
    }
}

/// Serves the other members until the shutdown.
pub(crate) fn serve_members(
    kind: TransportKind,
    listener: TcpListener,
    inbox: Inbox,
    tls: Option<Tls>,
    limits: &Limits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Serving {
    let members = &limits.members;
    match kind {
        #[cfg(feature = "grpc")]
        TransportKind::Grpc => {
            use raftkv_transport_grpc::{GrpcServer, ServerOptions};
            let options = ServerOptions {
                max_message_bytes: members.message_bytes,
                window_bytes: members.window_bytes,
                handshake_timeout: limits.handshake_timeout,
                max_connections: limits.peer_connections,
                max_connections_per_address: limits.of_address(limits.peer_connections),
                max_streams: limits.peer_connections,
                max_streams_per_connection: members.streams,
                max_header_bytes: limits.header_bytes,
                ..ServerOptions::default()
            };
            let server = match tls {
                Some(tls) => GrpcServer::with_tls(inbox, options, tls),
                None => GrpcServer::new(inbox, options),
            };
            Box::pin(server.serve(listener, shutdown))
        }
        #[cfg(feature = "tarpc")]
        TransportKind::Tarpc => {
            use raftkv_transport_tarpc::{ServerOptions, TarpcServer};
            let options = ServerOptions {
                max_message_bytes: members.message_bytes,
                window_bytes: members.window_bytes,
                handshake_timeout: limits.handshake_timeout,
                max_connections: limits.peer_connections.div_ceil(2),
                max_connections_per_address: limits.of_address(limits.peer_connections),
                max_requests: members.requests,
                ..ServerOptions::default()
            };
            let server = match tls {
                Some(tls) => TarpcServer::with_tls(inbox, options, tls),
                None => TarpcServer::new(inbox, options),
            };
            Box::pin(server.serve(listener, shutdown))
        }
        #[cfg(not(all(feature = "grpc", feature = "tarpc")))]
        other => unreachable!("the configuration refuses {other}, which was not compiled in"),
    }
}

/// What keeps the log and the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// Files, preallocated and checksummed: the fastest.
    File,
    /// redb databases.
    Redb,
}

impl StoreKind {
    const ALL: [Self; 2] = [Self::File, Self::Redb];

    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Redb => "redb",
        }
    }

    /// What its log calls itself in a directory.
    fn mark(self) -> &'static str {
        match self {
            Self::File => "log",
            Self::Redb => "redb log",
        }
    }

    fn missing(self) -> Option<&'static str> {
        match self {
            Self::File if !cfg!(feature = "file") => Some("file"),
            Self::Redb if !cfg!(feature = "redb") => Some("redb"),
            Self::File | Self::Redb => None,
        }
    }

    /// The kind whose log is in this directory; none where there is no log yet.
    ///
    /// # Errors
    /// The directory can't be read, or holds what this program does not know.
    pub(crate) fn of(files: &dyn Vfs, data: &Path) -> Result<Option<Self>, StorageError> {
        let Some(mark) = kind_of(files, data)? else { return Ok(None) };
        let kind = Self::ALL.into_iter().find(|kind| kind.mark() == mark);
        kind.map(Some).ok_or_else(|| StorageError::Refused {
            path: data.display().to_string(),
            reason: format!("the directory holds a raftkv {mark}, of which this program does not know: name the directory of a node's log"),
        })
    }

    /// What a new directory gets where nobody says.
    fn usual() -> Self {
        if cfg!(feature = "file") { Self::File } else { Self::Redb }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        choose("a kind of store", &Self::ALL, Self::name, Self::missing, text)
    }
}

/// A log and images.
pub(crate) struct Stores {
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) images: Arc<dyn Snapshot>,
    /// How many bytes of entries the log holds, where it counts them.
    pub(crate) entries: Option<Entries>,
}

/// What a log in a database takes of the memory if nobody says: as in `raftkv_storage_redb::Options`, which this may be built without.
pub(crate) const STORE_CACHE_BYTES: u64 = 64 << 20;

/// Opens a node's log and images in its data directory: those of this kind, or of the kind that is there. Blocks. Tells the kind. `cache_bytes` is the memory
/// that a database of the log may take for pages.
pub(crate) fn open_stores(
    kind: Option<StoreKind>,
    cache_bytes: u64,
    files: Arc<dyn Vfs>,
    data: &Path,
    identity: Identity,
) -> Result<(StoreKind, Stores), StorageError> {
    let kind = match kind {
        Some(kind) => kind,
        None => StoreKind::of(&*files, data)?.unwrap_or_else(StoreKind::usual),
    };
    if let Some(feature) = kind.missing() {
        return Err(StorageError::Refused {
            path: data.display().to_string(),
            reason: built_without(kind.name(), feature, &there(&StoreKind::ALL, StoreKind::name, StoreKind::missing)),
        });
    }
    let stores = match kind {
        StoreKind::File => open_files(files, data, identity),
        StoreKind::Redb => open_databases(cache_bytes, files, data, identity),
    };
    Ok((kind, stores?))
}

#[cfg(feature = "file")]
fn open_files(files: Arc<dyn Vfs>, data: &Path, identity: Identity) -> Result<Stores, StorageError> {
    use raftkv_storage_file::{FileLog, FileSnapshots, Options};
    let log = FileLog::open_on(files.clone(), data, identity, Options::default())?;
    let images = FileSnapshots::open_on(files, data.join(room::IMAGES), identity, true)?;
    Ok(Stores { log: Arc::new(log), images: Arc::new(images), entries: None })
}

#[cfg(not(feature = "file"))]
fn open_files(_: Arc<dyn Vfs>, data: &Path, _: Identity) -> Result<Stores, StorageError> {
    Err(StorageError::Refused { path: data.display().to_string(), reason: built_without("file", "file", "redb") })
}

#[cfg(feature = "redb")]
fn open_databases(
    cache_bytes: u64,
    files: Arc<dyn Vfs>,
    data: &Path,
    identity: Identity,
) -> Result<Stores, StorageError> {
    use raftkv_storage_redb::{Options, RedbLog, RedbSnapshots, SnapshotOptions};
    let options = Options { cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX), ..Options::default() };
    let log = Arc::new(RedbLog::open_on(files.clone(), data, identity, options)?);
    let images = RedbSnapshots::open_on(files, data.join(room::IMAGES), identity, SnapshotOptions::default())?;
    // The log is closed when the node lets go of it, whoever may still ask.
    let counted = Arc::downgrade(&log);
    let entries = move || counted.upgrade()?.stats().ok().map(|stats| stats.entry_bytes);
    Ok(Stores { log, images: Arc::new(images), entries: Some(Arc::new(entries)) })
}

#[cfg(not(feature = "redb"))]
fn open_databases(_: u64, _: Arc<dyn Vfs>, data: &Path, _: Identity) -> Result<Stores, StorageError> {
    Err(StorageError::Refused { path: data.display().to_string(), reason: built_without("redb", "redb", "file") })
}

/// Goes through a node's log and gives each line of what is there, and whether it is sound in the end. Changes nothing. Blocks.
pub(crate) fn dump_log(data: &Path, each: &mut dyn FnMut(&dyn fmt::Display)) -> Result<bool, StorageError> {
    // What can't be made out is told by whoever opens it.
    match StoreKind::of(&OsVfs, data) {
        Ok(Some(StoreKind::Redb)) => dump_database(data, each),
        Ok(Some(StoreKind::File) | None) | Err(_) => dump_files(data, each),
    }
}

fn dump_files(data: &Path, each: &mut dyn FnMut(&dyn fmt::Display)) -> Result<bool, StorageError> {
    use raftkv_storage_file::{DumpLine, DumpVerdict, dump};
    let mut sound = false;
    dump(data, |line| {
        sound = matches!(line, DumpLine::Verdict(DumpVerdict::Sound { .. }));
        each(&line);
    })?;
    Ok(sound)
}

#[cfg(feature = "redb")]
fn dump_database(data: &Path, each: &mut dyn FnMut(&dyn fmt::Display)) -> Result<bool, StorageError> {
    use raftkv_storage_file::DumpVerdict;
    use raftkv_storage_redb::{DumpLine, dump};
    let mut sound = false;
    dump(data, |line| {
        sound = matches!(line, DumpLine::Verdict(DumpVerdict::Sound { .. }));
        each(&line);
    })?;
    Ok(sound)
}

#[cfg(not(feature = "redb"))]
fn dump_database(data: &Path, _: &mut dyn FnMut(&dyn fmt::Display)) -> Result<bool, StorageError> {
    Err(StorageError::Refused { path: data.display().to_string(), reason: built_without("redb", "redb", "file") })
}

/// What keeps the contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// Memory alone: the fastest. A start reads the newest image and the log after it.
    #[default]
    Memory,
    /// A redb database in the data directory: contents may exceed the memory, and a start reads nothing again.
    Redb,
}

impl EngineKind {
    const ALL: [Self; 2] = [Self::Memory, Self::Redb];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redb => "redb",
        }
    }

    /// The cargo feature that this program was built without, but would need for this.
    fn missing(self) -> Option<&'static str> {
        match self {
            Self::Redb if !cfg!(feature = "redb") => Some("redb"),
            Self::Memory | Self::Redb => None,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        choose("an engine", &Self::ALL, Self::name, Self::missing, text)
    }
}

/// Finds a kind by its name. The error says what there is, or what it would take.
fn choose<K: Copy>(
    what: &str,
    all: &[K],
    name: impl Fn(K) -> &'static str,
    missing: impl Fn(K) -> Option<&'static str>,
    text: &str,
) -> Result<K, String> {
    let Some(kind) = all.iter().copied().find(|kind| name(*kind) == text) else {
        let known: Vec<_> = all.iter().map(|kind| name(*kind)).collect();
        return Err(format!("{text:?} is not {what}; there are {}", known.join(", ")));
    };
    match missing(kind) {
        None => Ok(kind),
        Some(feature) => Err(built_without(text, feature, &there(all, name, missing))),
    }
}

/// The names of those that were compiled in.
fn there<K: Copy>(all: &[K], name: impl Fn(K) -> &'static str, missing: impl Fn(K) -> Option<&'static str>) -> String {
    let names: Vec<_> = all.iter().filter(|kind| missing(**kind).is_none()).map(|kind| name(*kind)).collect();
    names.join(", ")
}

/// The cargo features that this program was built with, of those that matter here.
fn features() -> Vec<&'static str> {
    let all = [
        (cfg!(feature = "grpc"), "grpc"),
        (cfg!(feature = "tarpc"), "tarpc"),
        (cfg!(feature = "file"), "file"),
        (cfg!(feature = "redb"), "redb"),
    ];
    all.into_iter().filter_map(|(is_there, feature)| is_there.then_some(feature)).collect()
}

fn built_without(kind: &str, feature: &str, there: &str) -> String {
    let all: Vec<_> = std::iter::once(feature).chain(features()).collect();
    format!(
        "this program was built without {kind}, and has {there}: to have {kind} as well, build it again with `cargo build --release -p kv-example --features {}`",
        all.join(",")
    )
}

/// A state machine, and how readers see it.
pub(crate) type Machine = (Box<dyn StateMachine>, KvView);

/// Opens the state machine of a node, in its data directory if it keeps anything. `cache_bytes` is the memory that a database may take for pages.
pub(crate) fn open_machine(
    kind: EngineKind,
    data: &Path,
    (cluster, node): (ClusterId, NodeId),
    cache_bytes: u64,
) -> Result<Machine, Fatal> {
    match kind {
        EngineKind::Memory => {
            let machine = KvMachine::new();
            let view = machine.view();
            Ok((Box::new(machine), view))
        }
        EngineKind::Redb => open_redb(&data.join(room::CONTENTS), cluster, node, cache_bytes),
    }
}

#[cfg(feature = "redb")]
fn open_redb(path: &Path, cluster: ClusterId, node: NodeId, cache_bytes: u64) -> Result<Machine, Fatal> {
    let options =
        redb::Options { cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX), ..redb::Options::default() };
    let machine = redb::RedbMachine::open(path, redb::Owner { cluster, node }, options)?;
    let view = machine.view();
    Ok((Box::new(machine), view))
}

#[cfg(not(feature = "redb"))]
fn open_redb(path: &Path, _: ClusterId, _: NodeId, _: u64) -> Result<Machine, Fatal> {
    // The configuration refused it already.
    Err(Fatal::state_machine(format!("{}: this program was built without the feature redb", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_its_name_and_else_it_is_told_what_there_is() {
        for kind in EngineKind::ALL {
            match kind.missing() {
                None => assert_eq!(kind.to_string().parse(), Ok(kind)),
                Some(feature) => {
                    let error = kind.to_string().parse::<EngineKind>().unwrap_err();
                    assert!(error.contains(&format!("--features {feature}")), "{error}");
                }
            }
        }
        for kind in StoreKind::ALL.into_iter().filter(|kind| kind.missing().is_none()) {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for kind in TransportKind::ALL.into_iter().filter(|kind| kind.missing().is_none()) {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "rocks".parse::<TransportKind>().unwrap_err();
        assert_eq!(error, "\"rocks\" is not a kind of transport; there are grpc, tarpc");
        let error = "rocks".parse::<StoreKind>().unwrap_err();
        assert_eq!(error, "\"rocks\" is not a kind of store; there are file, redb");
        let error = "rocks".parse::<EngineKind>().unwrap_err();
        assert_eq!(error, "\"rocks\" is not an engine; there are memory, redb");
        let missing = |n| (n == 1).then_some("y");
        let missing = choose("an engine", &[1, 2], |n| if n == 1 { "x" } else { "z" }, missing, "x").unwrap_err();
        assert!(missing.contains("built without x, and has z:") && missing.contains("--features y,"), "{missing}");
    }

    #[cfg(feature = "redb")]
    #[test]
    fn the_cache_of_a_log_is_as_large_as_the_store_has_it_by_itself() {
        assert_eq!(STORE_CACHE_BYTES, raftkv_storage_redb::Options::default().cache_bytes as u64);
    }

    /// A directory keeps its kind of store: it is found where nobody says, and no other is begun in it.
    #[test]
    fn a_directory_keeps_the_kind_of_store_that_it_was_made_with() {
        let files: Arc<dyn Vfs> = Arc::new(OsVfs);
        let identity = Identity { cluster: ClusterId(5), node: NodeId(1), group: raftkv::GroupId::default() };
        let there = StoreKind::ALL.into_iter().filter(|kind| kind.missing().is_none()).collect::<Vec<_>>();
        for kind in &there {
            let dir = tempfile::tempdir().unwrap();
            assert_eq!(StoreKind::of(&*files, dir.path()).unwrap(), None);
            drop(open_stores(Some(*kind), STORE_CACHE_BYTES, files.clone(), dir.path(), identity).unwrap());
            assert_eq!(StoreKind::of(&*files, dir.path()).unwrap(), Some(*kind));
            assert_eq!(open_stores(None, STORE_CACHE_BYTES, files.clone(), dir.path(), identity).unwrap().0, *kind);
            for other in there.iter().filter(|other| *other != kind) {
                let refused = open_stores(Some(*other), STORE_CACHE_BYTES, files.clone(), dir.path(), identity)
                    .map(drop)
                    .unwrap_err();
                assert!(refused.to_string().contains("use the store that made it"), "{refused}");
            }
        }
    }
}
