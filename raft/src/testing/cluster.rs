//! A cluster in one process.
#![expect(clippy::panic, reason = "a test that can't have its cluster has failed")]

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Crash, MemLog, MemNetwork, MemSnapshots};
use crate::config::Config;
use crate::consensus::RoleKind;
use crate::handle::Raft;
use crate::metrics::Status;
use crate::traits::StateMachine;
use crate::types::{ClusterId, Index, Membership, NodeId, Peer};

/// How long to wait for what should come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster to be.
#[derive(Clone, Debug)]
#[must_use = "nothing runs before `start`"]
pub struct ClusterBuilder {
    nodes: u64,
    config: Config,
    seed: u64,
}

/// Nodes 1 to N in this process, with logs and images in memory that outlive a node, and a network with hooks for faults.
///
/// Its methods panic when what they wait for does not come within half a minute.
#[derive(Debug)]
pub struct Cluster<M> {
    config: Config,
    seed: u64,
    membership: Membership,
    network: MemNetwork,
    make: Make<M>,
    nodes: BTreeMap<NodeId, Node<M>>,
}

struct Make<M>(Box<dyn Fn(NodeId) -> M + Send + Sync>);

impl<M> std::fmt::Debug for Make<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Make")
    }
}

#[derive(Debug)]
struct Node<M> {
    raft: Option<Raft>,
    log: MemLog,
    snapshots: MemSnapshots,
    machine: M,
    runs: u64,
}

impl ClusterBuilder {
    /// Times and limits of all nodes.
    pub fn config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// Decides over everything that is random.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Starts the nodes, each with a state machine from `make`, and initializes them. A node that is restarted gets a new
    /// one, as befits state in memory.
    pub async fn start<M: StateMachine + Clone>(
        self,
        make: impl Fn(NodeId) -> M + Send + Sync + 'static,
    ) -> Cluster<M> {
        let cluster = self.start_empty(make).await;
        for id in cluster.ids() {
            if let Err(error) = cluster.node(id).initialize(cluster.membership.clone()).await {
                panic!("node {id} can't be initialized: {error}");
            }
        }
        cluster
    }

    /// Starts the nodes, and does not initialize them.
    pub async fn start_empty<M: StateMachine + Clone>(
        self,
        make: impl Fn(NodeId) -> M + Send + Sync + 'static,
    ) -> Cluster<M> {
        let membership = Membership::new((1..=self.nodes).map(|id| Peer::new(id, format!("memory:{id}"))));
        let new_node = |id: NodeId| Node {
            raft: None,
            log: MemLog::new(),
            snapshots: MemSnapshots::new(),
            machine: make(id),
            runs: 0,
        };
        let nodes = membership.voters.keys().map(|id| (*id, new_node(*id))).collect();
        let network = MemNetwork::new(self.seed);
        let make = Make(Box::new(make));
        let mut cluster = Cluster { config: self.config, seed: self.seed, membership, network, make, nodes };
        for id in cluster.ids() {
            cluster.restart(id).await;
        }
        cluster
    }
}

impl Cluster<()> {
    /// Describes a cluster of this many nodes, with the default configuration.
    pub fn builder(nodes: u64) -> ClusterBuilder {
        ClusterBuilder { nodes, config: Config::default(), seed: 1 }
    }
}

impl<M: StateMachine + Clone> Cluster<M> {
    /// The ids of all nodes, running or not.
    #[must_use]
    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// The members of the cluster.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The network between the nodes.
    #[must_use]
    pub fn network(&self) -> &MemNetwork {
        &self.network
    }

    fn get(&self, id: NodeId) -> &Node<M> {
        self.nodes.get(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    /// A node that is running.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Raft {
        self.get(id).raft.as_ref().unwrap_or_else(|| panic!("node {id} is not running"))
    }

    /// A node's log.
    #[must_use]
    pub fn log(&self, id: NodeId) -> &MemLog {
        &self.get(id).log
    }

    /// A node's state machine, as of its last start.
    #[must_use]
    pub fn machine(&self, id: NodeId) -> &M {
        &self.get(id).machine
    }

    /// The nodes that are running.
    pub fn running(&self) -> impl Iterator<Item = (NodeId, &Raft)> {
        self.nodes.iter().filter_map(|(id, node)| node.raft.as_ref().map(|raft| (*id, raft)))
    }

    /// What the running nodes know; a node that has stopped by itself is left out.
    pub async fn statuses(&self) -> Vec<Status> {
        let mut statuses = Vec::new();
        for (_, raft) in self.running() {
            statuses.extend(raft.status().await.ok());
        }
        statuses
    }

    /// Waits until `done` is true of the running nodes' statuses.
    pub async fn wait_until(&self, what: &str, done: impl Fn(&[Status]) -> bool) {
        let began = Instant::now();
        loop {
            let statuses = self.statuses().await;
            if done(&statuses) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain until {what}; the nodes: {statuses:#?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for a leader that a majority of all nodes follows, and names it.
    pub async fn leader(&self) -> NodeId {
        let quorum = self.nodes.len() / 2 + 1;
        let followed = |statuses: &[Status]| {
            let leaders = statuses.iter().filter(|status| status.role == RoleKind::Leader);
            let newest = leaders.max_by_key(|status| status.term)?;
            let follows = |status: &&Status| status.leader == Some(newest.id) && status.term == newest.term;
            (statuses.iter().filter(follows).count() >= quorum).then_some(newest.id)
        };
        self.wait_until("there is a leader", |statuses| followed(statuses).is_some()).await;
        followed(&self.statuses().await).unwrap_or_else(|| panic!("the leader went away at once"))
    }

    /// A running node that does not lead.
    pub async fn follower(&self) -> NodeId {
        let leader = self.leader().await;
        let mut others = self.running().map(|(id, _)| id).filter(|id| *id != leader);
        others.next().unwrap_or_else(|| panic!("there is no follower"))
    }

    /// Waits until all running nodes have applied up to `index`.
    pub async fn applied(&self, index: Index) {
        self.wait_until("all have applied", |all| all.iter().all(|status| status.applied >= index)).await;
    }

    /// Waits until all running nodes have applied everything that the leader has.
    pub async fn converge(&self) {
        self.leader().await;
        let same = |all: &[Status]| all.windows(2).all(|two| two[0].applied == two[1].applied);
        let settled = |all: &[Status]| all.iter().all(|status| status.applied == status.last.index);
        self.wait_until("all nodes are equal", |all| same(all) && settled(all)).await;
    }

    /// Ends a node in good order.
    pub async fn stop(&mut self, id: NodeId) {
        if let Some(raft) = self.nodes.get_mut(&id).and_then(|node| node.raft.take()) {
            raft.shutdown().await;
            self.network.disconnect(id);
        }
    }

    /// Takes the power from a node: what was not durable is gone, save what `crash` says.
    pub async fn crash(&mut self, id: NodeId, crash: Crash) {
        self.network.disconnect(id);
        self.get(id).log.crash(crash);
        if let Some(raft) = self.nodes.get_mut(&id).and_then(|node| node.raft.take()) {
            raft.shutdown_now().await;
        }
    }

    /// Starts a node that knows nothing, with an id of its own: a member to be. Names it.
    pub async fn add_node(&mut self) -> NodeId {
        let id = NodeId(self.nodes.keys().map(|id| id.0).max().unwrap_or_default() + 1);
        let machine = (self.make.0)(id);
        self.nodes
            .insert(id, Node { raft: None, log: MemLog::new(), snapshots: MemSnapshots::new(), machine, runs: 0 });
        self.restart(id).await;
        id
    }

    /// A node, and where the others reach it.
    #[must_use]
    pub fn peer(&self, id: NodeId) -> Peer {
        Peer::new(id.0, format!("memory:{id}"))
    }

    /// Starts a node again, with the log and the images that it left.
    pub async fn restart(&mut self, id: NodeId) {
        self.stop(id).await;
        let machine = (self.make.0)(id);
        let transport = self.network.transport(self.peer(id));
        let Some(node) = self.nodes.get_mut(&id) else { panic!("there is no node {id}") };
        node.runs += 1;
        node.machine = machine.clone();
        // Each run of each node has a seed of its own.
        let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(id.0 << 32).wrapping_add(node.runs);
        let started = Raft::builder(id, ClusterId(1))
            .config(self.config.clone())
            .seed(seed)
            .transport(transport)
            .log(node.log.reopen())
            .snapshots(node.snapshots.clone())
            .state_machine(machine)
            .start()
            .await;
        let raft = started.unwrap_or_else(|fatal| panic!("node {id} can't start: {fatal}"));
        self.network.connect(raft.inbox());
        node.raft = Some(raft);
    }

    /// Ends all nodes in good order.
    pub async fn shutdown(mut self) {
        for id in self.ids() {
            self.stop(id).await;
        }
    }
}
