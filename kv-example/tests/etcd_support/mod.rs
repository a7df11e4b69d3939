//! A server without Raft, and a real etcd, on ports of their own.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_example::backends::redb::{Options as Database, Owner, RedbMachine};
use kv_example::machine::{KvMachine, KvView};
use kv_example::service::{Options, Replica, Services};
use raftkv::consensus::RoleKind;
use raftkv::{
    Change, ChangeError, ClusterId, Consistency, Error, Index, LogId, NodeId, Once, Peer, SessionId, StateMachine,
    Status, Term, TransferError,
};
use tokio::sync::Mutex;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};

/// A replica of one: what is written is applied at once.
#[derive(Clone)]
pub struct Local {
    pub machine: Arc<Mutex<Box<dyn StateMachine>>>,
    view: KvView,
    index: Arc<AtomicU64>,
    /// What writes and reads fail with.
    pub fails: Arc<std::sync::Mutex<Option<Error>>>,
    /// How fresh the last read was to be.
    pub asked: Arc<std::sync::Mutex<Option<Consistency>>>,
    pub leaderless: Arc<std::sync::atomic::AtomicBool>,
    /// What was written.
    pub log: Arc<std::sync::Mutex<Vec<Bytes>>>,
    /// What is committed and not applied here: the next write, or the next read that must be fresh, applies it first.
    pub behind: Arc<std::sync::Mutex<Vec<Bytes>>>,
}

impl Default for Local {
    /// With a machine in memory.
    fn default() -> Self {
        let machine = KvMachine::new();
        let view = machine.view();
        Self::over(Box::new(machine), view)
    }
}

impl Local {
    /// With a machine over a database.
    pub fn in_database() -> Self {
        let owner = Owner { cluster: ClusterId(77), node: NodeId(9) };
        let medium = redb::backends::InMemoryBackend::new();
        let machine = RedbMachine::open_on(medium, owner, Database::default()).expect("a database");
        let view = machine.view();
        Self::over(Box::new(machine), view)
    }

    fn over(machine: Box<dyn StateMachine>, view: KvView) -> Self {
        Self {
            machine: Arc::new(Mutex::new(machine)),
            view,
            index: Arc::default(),
            fails: Arc::default(),
            asked: Arc::default(),
            leaderless: Arc::default(),
            log: Arc::default(),
            behind: Arc::default(),
        }
    }

    async fn catch_up(&self) -> Result<(), Error> {
        let behind = std::mem::take(&mut *self.behind.lock().expect("no test panicked here"));
        for command in behind {
            self.apply(command).await?;
        }
        Ok(())
    }

    async fn apply(&self, command: Bytes) -> Result<Bytes, Error> {
        let mut machine = self.machine.lock().await;
        let index = self.index.fetch_add(1, Ordering::Relaxed) + 1;
        machine.apply(LogId::new(3, index), command).await.map_err(Error::Stopped)
    }

    fn check(&self) -> Result<(), Error> {
        self.fails.lock().expect("no test panicked here").clone().map_or(Ok(()), Err)
    }

    pub fn fail(&self, error: Option<Error>) {
        *self.fails.lock().expect("no test panicked here") = error;
    }
}

impl Replica for Local {
    async fn write(&self, command: Bytes) -> Result<Bytes, Error> {
        self.check()?;
        self.catch_up().await?;
        self.log.lock().expect("no test panicked here").push(command.clone());
        self.apply(command).await
    }

    async fn write_once(&self, _: Once, command: Bytes) -> Result<Bytes, Error> {
        self.write(command).await
    }

    async fn open_session(&self) -> Result<SessionId, Error> {
        Ok(SessionId(1))
    }

    async fn close_session(&self, _: SessionId) -> Result<(), Error> {
        Ok(())
    }

    async fn read(&self, consistency: Consistency) -> Result<(), Error> {
        *self.asked.lock().expect("no test panicked here") = Some(consistency);
        match self.check() {
            // What may be stale takes nobody else.
            Err(Error::Unavailable) if consistency == Consistency::Stale => Ok(()),
            Ok(()) if consistency == Consistency::Linearizable => self.catch_up().await,
            outcome => outcome,
        }
    }

    async fn status(&self) -> Result<Status, Error> {
        if let Err(error @ Error::Stopped(_)) = self.check() {
            return Err(error);
        }
        let applied = Index(self.index.load(Ordering::Relaxed));
        Ok(Status {
            role: RoleKind::Leader,
            term: Term(3),
            leader: (!self.leaderless.load(Ordering::Relaxed)).then_some(NodeId(9)),
            members: vec![Peer::new(9, "127.0.0.1:1")],
            last: LogId { term: Term(3), index: applied },
            stored: applied,
            commit: applied,
            applied,
            ..Status::of_new(NodeId(9))
        })
    }

    async fn campaign(&self) -> Result<(), Error> {
        self.check()
    }

    async fn change_membership(&self, _: Change) -> Result<LogId, ChangeError> {
        Err(ChangeError::Unavailable)
    }

    async fn transfer_leadership(&self, _: Option<NodeId>) -> Result<NodeId, TransferError> {
        Err(TransferError::NoSuccessor)
    }

    async fn snapshot(&self) -> Result<LogId, Error> {
        Ok(LogId::ZERO)
    }

    async fn prefer(&self, _: Option<u32>, _: Option<bool>) -> Result<(), Error> {
        Ok(())
    }
}

/// A server over a [`Local`] replica.
pub struct Ours {
    pub address: SocketAddr,
    pub replica: Local,
    pub services: Services,
}

impl Ours {
    pub async fn start() -> Self {
        Self::start_with(Local::default()).await
    }

    pub async fn start_with(replica: Local) -> Self {
        Self::start_as(replica, Options::default()).await
    }

    pub async fn start_as(replica: Local, options: Options) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let view = replica.view.clone();
        let options =
            Options { cluster: ClusterId(77), node: NodeId(9), client_address: address.to_string(), ..options };
        let services = Services::start(replica.clone(), view, options);
        let server = Server::builder().add_routes(services.routes());
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, replica, services }
    }

    pub async fn channel(&self) -> Channel {
        connect(&self.address.to_string()).await
    }
}

pub async fn connect(address: &str) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    for _ in 0..200 {
        if let Ok(channel) = endpoint.connect().await {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{address} does not answer");
}

/// Whether a program is there. Says so when it is not, since a test then checks nothing.
pub fn installed(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        eprintln!("SKIPPED: {program} is not installed, so nothing was compared with it");
    }
    there
}

/// An etcd of its own, ended with the value.
pub struct Etcd {
    process: Child,
    pub address: String,
    _data: tempfile::TempDir,
}

impl Etcd {
    pub fn start() -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let (client, peer) = (free(), free());
        let memory = std::path::Path::new("/dev/shm");
        let data =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory");
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(data.path())
            .args(["--listen-client-urls", &format!("http://{client}")])
            .args(["--advertise-client-urls", &format!("http://{client}")])
            .args(["--listen-peer-urls", &format!("http://{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
            .args(["--initial-cluster", &format!("default=http://{peer}")])
            .args(["--log-level", "error", "--logger", "zap"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        Self { process, address: client.to_string(), _data: data }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
