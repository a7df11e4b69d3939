//! The gRPC services: etcd's `KV`, `Maintenance`, `Cluster` and `Auth`, our own `Node`, and the standard health service.
//!
//! A request is checked before it is proposed, so that nothing malformed enters the log. Reads wait for a read barrier and
//! then look at the local store; serializable reads skip the barrier, but not before the node has caught up with the
//! cluster once: a node that has just started would otherwise answer from a state that lacks most of its past.

pub(crate) mod auth;
mod cluster;
pub(crate) mod direct;
mod freshness;
mod health;
mod kv;
mod maintenance;
mod members;
mod node;
pub(crate) mod once;
mod pause;
pub(crate) mod refused;
mod replica;
mod steward;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use raftkv::transport_kit::Tls;
use raftkv::{ClusterId, Consistency, NodeId};
use tokio::task::AbortHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Response, Uri};
use tonic::metadata::MetadataMap;
use tonic::service::Routes;

use self::direct::DirectLayer;
use crate::api::etcdserverpb::ResponseHeader;
use crate::api::etcdserverpb::auth_server::AuthServer;
use crate::api::etcdserverpb::cluster_server::ClusterServer;
use crate::api::etcdserverpb::kv_server::KvServer;
use crate::api::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::api::node::node_server::NodeServer;
use crate::machine::KvView;
use crate::room::Room;
use crate::store::Limits;

pub use freshness::{CONSISTENCY, Freshness};
pub use once::ONCE;
pub use refused::{DECIDED, DETAIL, LEADER, RETRY, RETRY_SAFE, RETRY_UNKNOWN, SESSION_EXPIRED};
pub use replica::Replica;

/// How long a token holds, unless it is said: as in etcd.
pub const DEFAULT_TOKEN_TTL: Duration = Duration::from_secs(300);
/// How long a write waits for a node that has just started to catch up, before it is sent elsewhere.
const CATCH_UP_LIMIT: Duration = Duration::from_millis(500);

/// What the services are told of the node that they serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's id, in every answer's header.
    pub cluster: ClusterId,
    /// This node's id, in every answer's header: etcd's member id.
    pub node: NodeId,
    /// Where this node serves clients, as `host:port`.
    pub client_address: String,
    /// Where the other nodes serve clients, as far as it is known: for `MemberList`.
    pub client_addresses: BTreeMap<NodeId, String>,
    /// What a request may hold.
    pub limits: Limits,
    /// How many members there may be: the node's `Config::max_members`.
    pub max_members: usize,
    /// Whether the node keeps the list of members: tells the others where it serves clients, and promotes new members that have caught up.
    pub keeps_members: bool,
    /// How long the node waits for the outcome of a write. One whose outcome is unknown sooner was lost with its leader.
    pub write_timeout: Duration,
    /// Whether reads are answered by the leader's lease where a request does not say otherwise ([`CONSISTENCY`]).
    pub lease_reads: bool,
    /// How long a token holds, by the clocks of the nodes that are shown it.
    pub token_ttl: Duration,
    /// How many of those who may log in at the same time one address may be, in percent.
    pub address_percent: usize,
    /// Whether the node has learned in an earlier run that it was removed. Nobody tells it again.
    pub was_removed: bool,
    /// Whether the links between members are TLS, for the scheme of their addresses.
    pub peers_have_tls: bool,
    /// What clients' connections are protected with, and those on which this node passes requests on to others. None: no TLS.
    pub clients_tls: Option<Tls>,
    /// What tells how much of the disk the node takes. None where nobody does.
    pub room: Option<Room>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster: ClusterId::default(),
            node: NodeId::default(),
            client_address: String::new(),
            client_addresses: BTreeMap::new(),
            limits: Limits::default(),
            max_members: raftkv::Config::default().max_members,
            keeps_members: false,
            write_timeout: Duration::ZERO,
            lease_reads: false,
            token_ttl: DEFAULT_TOKEN_TTL,
            address_percent: 50,
            was_removed: false,
            peers_have_tls: false,
            clients_tls: None,
            room: None,
        }
    }
}

/// The services of one node, running. Dropped, they stop watching the node.
#[derive(Debug)]
pub struct Services {
    routes: Routes,
    kv: DirectLayer,
    health: health::Health,
    watcher: AbortHandle,
    steward: Option<AbortHandle>,
}

impl Services {
    /// Makes the services, and starts to watch the node for the health service. `view` must be the view of the very machine
    /// that `replica` applies to. Must be called within a tokio runtime.
    ///
    /// A [`Raft`](raftkv::Raft) is a replica. The services hold handles of it, so a node that serves ends by
    /// [`Raft::shutdown`](raftkv::Raft::shutdown).
    pub fn start<R: Replica>(replica: R, view: KvView, options: Options) -> Self {
        let decode = options.limits.request_bytes.saturating_add(refused::OVERSIZE);
        let percent = options.address_percent;
        let context = Arc::new(Context {
            replica,
            view,
            options,
            passwords: auth::Passwords::new(|all| (all * percent.min(100) / 100).max(1)),
            term: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            standing: AtomicU8::new(Standing::Member as u8),
        });
        let (health, health_server) = health::Health::new();
        let watcher = tokio::spawn(health::watch(Arc::clone(&context), health.clone())).abort_handle();
        let steward =
            context.options.keeps_members.then(|| tokio::spawn(steward::keep(Arc::clone(&context))).abort_handle());
        let kv = KvServer::from_arc(Arc::clone(&context)).max_decoding_message_size(decode);
        let routes = Routes::new(health_server)
            .add_service(kv.clone())
            .add_service(MaintenanceServer::from_arc(Arc::clone(&context)))
            .add_service(ClusterServer::from_arc(Arc::clone(&context)))
            .add_service(AuthServer::from_arc(Arc::clone(&context)))
            .add_service(NodeServer::from_arc(context));
        // For all services that are not here, of etcd's or anybody's.
        let routes = Routes::from(routes.into_axum_router().fallback(not_served)).prepare();
        Self { routes, kv: DirectLayer::new(kv), health, watcher, steward }
    }

    /// The services, for [`tonic::transport::Server::add_routes`].
    #[must_use]
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// The one that most requests are for. In front of the others it makes no difference but to their speed.
    pub(crate) fn kv(&self) -> DirectLayer {
        self.kv.clone()
    }

    /// Tells health checks that this node is going down. The first step of a graceful shutdown.
    pub async fn not_serving(&self) {
        self.watcher.abort();
        self.steward.iter().for_each(AbortHandle::abort);
        self.health.set(false).await;
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.watcher.abort();
        self.steward.iter().for_each(AbortHandle::abort);
    }
}

/// What all services share.
#[derive(Debug)]
struct Context<R> {
    replica: R,
    view: KvView,
    options: Options,
    passwords: auth::Passwords,
    /// The newest term that the node was seen in.
    term: AtomicU64,
    /// Whether the node has caught up with the cluster since its start.
    ready: AtomicBool,
    /// What the node was seen to be: a [`Standing`].
    standing: AtomicU8,
}

/// What a node is to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It takes part.
    Member = 0,
    /// It waits to be reached, or has not learned yet that it was added.
    Joining = 1,
    /// It was removed.
    Removed = 2,
}

impl<R: Replica> Context<R> {
    /// A header with this revision.
    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.options.cluster.0,
            member_id: self.options.node.0,
            revision,
            raft_term: self.term.load(Ordering::Relaxed).max(self.view.applied().term.0),
        })
    }

    /// Completes a header that has only its revision.
    fn complete(&self, header: Option<ResponseHeader>) -> Option<ResponseHeader> {
        self.header(header.map_or(0, |header| header.revision))
    }

    /// Waits until the local store is fresh enough for a read.
    async fn prepare_read(&self, serializable: bool, metadata: &MetadataMap) -> Result<(), Status> {
        let freshness = Freshness::asked(serializable, metadata, self.options.lease_reads)?;
        self.ensure_member().await?;
        if freshness == Freshness::Stale && !self.ready.load(Ordering::Relaxed) {
            return Err(refused::not_ready());
        }
        let fresh = self.replica.read(freshness.into()).await;
        fresh.map_err(|error| refused::to_status(&error, refused::Intent::Read))?;
        // So the node has caught up: who was just told so need not wait for the next look at its health.
        self.ready.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// A node that was removed takes part in nothing any more, and what it has grows old. One that is not a member yet could answer only at its
    /// deadline, while others can at once.
    async fn ensure_member(&self) -> Result<(), Status> {
        if self.standing() != Standing::Member {
            // That may be old.
            self.status().await?;
        }
        match self.standing() {
            Standing::Member => Ok(()),
            Standing::Joining => Err(refused::not_joined()),
            Standing::Removed => Err(refused::removed()),
        }
    }

    /// A write is answered from what this node has applied. One that has far to catch up since its start would leave it open.
    async fn catch_up(&self) -> Result<(), Status> {
        if self.ready.load(Ordering::Relaxed) {
            return Ok(());
        }
        match tokio::time::timeout(CATCH_UP_LIMIT, self.replica.read(Consistency::Linearizable)).await {
            Ok(Ok(())) => self.ready.store(true, Ordering::Relaxed),
            // The write itself tells what is wrong.
            Ok(Err(_)) => {}
            Err(_) => return Err(refused::not_ready()),
        }
        Ok(())
    }

    fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Relaxed) {
            0 => Standing::Member,
            1 => Standing::Joining,
            _ => Standing::Removed,
        }
    }

    async fn status(&self) -> Result<raftkv::Status, Status> {
        let status = self.replica.status().await.map_err(|error| refused::to_status(&error, refused::Intent::Read))?;
        self.saw(&status);
        Ok(status)
    }

    fn saw(&self, status: &raftkv::Status) {
        self.term.fetch_max(status.term.0, Ordering::Relaxed);
        let standing = if self.is_removed(status) {
            Standing::Removed
        } else if members::configuration(status).contains(status.id) {
            Standing::Member
        } else {
            Standing::Joining
        };
        let before = self.standing.swap(standing as u8, Ordering::Relaxed);
        if standing == Standing::Removed && before != standing as u8 {
            tracing::warn!(
                "this node was removed from the cluster: it serves nothing any more, and does not campaign. Stop it, and delete its data \
                 directory; to come back it needs a new id"
            );
        }
    }
}

/// The answer to a call of a service that is not here: tonic's own names no reason.
async fn not_served(uri: Uri) -> Response<Body> {
    // `/package.Service/Method`
    let path = uri.path().trim_start_matches('/');
    let method = path.split_once('/').map(|(service, method)| {
        let service = service.rsplit('.').next().unwrap_or(service);
        format!("{service}.{method}")
    });
    unsupported(method.as_deref().unwrap_or("the method")).into_http()
}

/// A request of etcd's protocol that this server does not serve.
fn unsupported(what: &str) -> Status {
    Status::unimplemented(format!("etcdserver: {what} is not supported by this server"))
}
