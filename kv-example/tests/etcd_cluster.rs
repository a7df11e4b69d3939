//! The services over a cluster of three real Raft nodes in one process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod etcd_support;

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_support::connect;
use kv_example::api::etcdserverpb::cluster_client::ClusterClient;
use kv_example::api::etcdserverpb::kv_client::KvClient;
use kv_example::api::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_example::api::etcdserverpb::{
    HashKvRequest, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
    MoveLeaderRequest, PutRequest, RangeRequest, RangeResponse, StatusRequest,
};
use kv_example::api::node::node_client::NodeClient;
use kv_example::api::node::{
    AddMemberRequest, CampaignRequest, NodeStatusRequest, NodeStatusResponse, TransferLeadershipRequest,
};
use kv_example::machine::KvMachine;
use kv_example::service::{Options, RETRY, RETRY_SAFE, RETRY_UNKNOWN, Services};
use raftkv::testing::{MemLog, MemNetwork, MemSnapshots};
use raftkv::{ClusterId, Config, Membership, NodeId, Peer, Raft};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};

struct Node {
    raft: Raft,
    channel: Channel,
    _services: Services,
}

struct Cluster {
    nodes: Vec<Node>,
    network: MemNetwork,
}

impl Cluster {
    async fn start() -> Self {
        let network = MemNetwork::new(0);
        let members = [1, 2, 3].map(|id| Peer::new(id, format!("127.0.0.1:{id}")));
        let limit = Duration::from_secs(1);
        // Nobody is to wait long for a member that is never started.
        let config = Config { write_timeout: limit, read_timeout: limit, catch_up_timeout: limit, ..Config::default() };
        let mut nodes = Vec::new();
        for peer in members.clone() {
            let machine = KvMachine::new();
            let view = machine.view();
            let node =
                Raft::builder(peer.id, ClusterId(5)).config(config.clone()).transport(network.transport(peer.clone()));
            let node = node.log(MemLog::new()).snapshots(MemSnapshots::new()).state_machine(machine);
            let raft = node.start().await.unwrap();
            network.connect(raft.inbox());
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client_address = listener.local_addr().unwrap().to_string();
            let options = Options {
                cluster: ClusterId(5),
                node: peer.id,
                client_address: client_address.clone(),
                client_addresses: BTreeMap::from([(NodeId(3), "127.0.0.3:2379".into())]),
                ..Options::default()
            };
            let services = Services::start(raft.clone(), view, options);
            let server = Server::builder().add_routes(services.routes());
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            nodes.push(Node { raft, channel: connect(&client_address).await, _services: services });
        }
        nodes[0].raft.initialize(Membership::new(members)).await.unwrap();
        Self { nodes, network }
    }

    fn kv(&self, node: usize) -> KvClient<Channel> {
        KvClient::new(self.nodes[node].channel.clone())
    }

    async fn status(&self, node: usize) -> NodeStatusResponse {
        NodeClient::new(self.nodes[node].channel.clone()).status(NodeStatusRequest {}).await.unwrap().into_inner()
    }

    /// The place of the leader, when all that are up agree on it.
    async fn leader(&self) -> usize {
        for _ in 0..200 {
            let status = self.status(0).await;
            if let Some(leader) = (status.leader as usize).checked_sub(1)
                && self.status(leader).await.role == "leader"
            {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no leader");
    }

    async fn stop(self) {
        for node in self.nodes {
            node.raft.shutdown().await;
        }
    }
}

fn put(key: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() }
}

async fn all(mut client: KvClient<Channel>, serializable: bool) -> Result<RangeResponse, Status> {
    let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), serializable, ..Default::default() };
    client.range(all).await.map(tonic::Response::into_inner)
}

/// Calls until the answer is not that the call may be repeated: a busy machine may take a node for dead, or have it vote again, for a moment.
async fn repeated<T>(call: impl AsyncFn() -> Result<tonic::Response<T>, Status>) -> Result<T, Status> {
    for _ in 0..100 {
        match call().await {
            Err(status) if status.metadata().get(RETRY).is_some_and(|retry| retry == RETRY_SAFE) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            answer => return answer.map(tonic::Response::into_inner),
        }
    }
    panic!("it was to be repeated for ever");
}

async fn put_safely(client: &mut KvClient<Channel>, key: &str) -> i64 {
    repeated(async || client.clone().put(put(key)).await).await.unwrap().header.unwrap().revision
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_writes_and_reads_what_others_wrote() {
    let cluster = Cluster::start().await;
    for n in 0..9 {
        let revision = put_safely(&mut cluster.kv(n % 3), &format!("k{n}")).await;
        assert_eq!(revision, n as i64 + 2);
        let seen = all(cluster.kv((n + 1) % 3), false).await.unwrap();
        assert_eq!((seen.count, seen.header.unwrap().revision), (n as i64 + 1, revision));
    }
    let mut sums = Vec::new();
    for node in &cluster.nodes {
        let mut client = MaintenanceClient::new(node.channel.clone());
        sums.push(client.hash_kv(HashKvRequest { revision: 9 }).await.unwrap().into_inner().hash);
    }
    assert!(sums.windows(2).all(|pair| pair[0] == pair[1]), "{sums:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_roles_progress_and_members() {
    let cluster = Cluster::start().await;
    put_safely(&mut cluster.kv(0), "k").await;
    let leader = cluster.leader().await;
    let status = cluster.status(leader).await;
    assert_eq!((status.id, status.leader, status.peers.len()), (leader as u64 + 1, leader as u64 + 1, 2));
    assert!(status.peers.iter().any(|peer| peer.matched == status.commit && peer.state == "replicate"), "{status:?}");
    let follower = (leader + 1) % 3;
    let status = cluster.status(follower).await;
    assert_eq!((status.role.as_str(), status.leader), ("follower", leader as u64 + 1));

    let channel = cluster.nodes[follower].channel.clone();
    let members =
        ClusterClient::new(channel.clone()).member_list(MemberListRequest { linearizable: true }).await.unwrap();
    let members = members.into_inner().members;
    assert_eq!(members.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(members[2].peer_urls, ["http://127.0.0.1:3"]);
    let status = MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await.unwrap().into_inner();
    let header = status.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id, header.revision), (5, follower as u64 + 1, 2));
    assert!(status.raft_term > 0 && header.raft_term == status.raft_term);
    NodeClient::new(channel).campaign(CampaignRequest {}).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_refuses_linearizable_reads_and_serves_serializable_ones() {
    let cluster = Cluster::start().await;
    put_safely(&mut cluster.kv(0), "k").await;
    let alone = cluster.leader().await;
    // Every node has caught up by now, or will in a moment.
    for _ in 0..100 {
        if all(cluster.kv(alone), true).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.network.disconnect(NodeId(alone as u64 + 1));
    let status = cluster.kv(alone).put(put("lost?")).await.unwrap_err();
    assert!(
        status.metadata().get(RETRY).is_some_and(|retry| retry == RETRY_SAFE || retry == RETRY_UNKNOWN),
        "{status}"
    );
    let status = all(cluster.kv(alone), false).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get(RETRY).unwrap(), RETRY_SAFE);
    assert!(all(cluster.kv(alone), true).await.unwrap().count >= 1);
    assert!(put_safely(&mut cluster.kv((alone + 1) % 3), "others go on").await > 2);
    cluster.stop().await;
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}

/// In etcd's words and codes, whichever node is asked.
#[tokio::test(flavor = "multi_thread")]
async fn members_are_added_moved_and_removed_through_any_node() {
    let cluster = Cluster::start().await;
    put_safely(&mut cluster.kv(0), "k").await;
    let leader = cluster.leader().await;
    let urls = |port: u16| vec![format!("http://127.0.0.1:{port}")];
    for (n, node) in [(leader + 1) % 3, leader].into_iter().enumerate() {
        let client = ClusterClient::new(cluster.nodes[node].channel.clone());
        let (port, id) = (20 + n as u16, 4 + n as u64);
        let add = async |peer_urls| {
            let request = MemberAddRequest { peer_urls, is_learner: false };
            repeated(async || client.clone().member_add(request.clone()).await).await
        };
        let added = add(urls(port)).await.unwrap();
        let member = added.member.unwrap();
        assert_eq!((member.id, member.is_learner, added.members.len()), (id, true, 4));
        let exists = (Code::FailedPrecondition, "etcdserver: Peer URLs already exists".to_owned());
        assert_eq!(refused(add(urls(port)).await), exists);
        let invalid = (Code::InvalidArgument, "etcdserver: given member URLs are invalid".to_owned());
        for peer_urls in [vec![], vec!["nowhere".to_owned()], vec!["https://a:1".to_owned()], urls(0)] {
            assert_eq!(refused(add(peer_urls).await), invalid);
        }
        let not_found = (Code::NotFound, "etcdserver: member not found".to_owned());
        let promote =
            async |id| repeated(async || client.clone().member_promote(MemberPromoteRequest { id }).await).await;
        assert_eq!(refused(promote(99).await), not_found);
        let (code, words) = refused(promote(1).await);
        assert_eq!((code, &*words), (Code::FailedPrecondition, "etcdserver: can only promote a learner member"));
        let (code, words) = refused(promote(id).await);
        assert_eq!(code, Code::FailedPrecondition);
        assert_eq!(words, "etcdserver: can only promote a learner member which is in sync with leader");
        let update = async |id, port| {
            let request = MemberUpdateRequest { id, peer_urls: urls(port) };
            repeated(async || client.clone().member_update(request.clone()).await).await
        };
        let remove = async |id| repeated(async || client.clone().member_remove(MemberRemoveRequest { id }).await).await;
        assert_eq!(refused(update(99, 30).await), not_found);
        assert_eq!(refused(update(id, 2).await), exists);
        let members = update(id, 30).await.unwrap().members;
        assert_eq!(members[3].peer_urls, urls(30));
        update(id, 30).await.unwrap();
        let members = remove(id).await.unwrap().members;
        assert_eq!(members.len(), 3);
        assert_eq!(refused(remove(id).await), not_found);
        // Its id is used, for ever.
        let again = AddMemberRequest { id, address: "127.0.0.1:40".into(), learner: true };
        let node = NodeClient::new(cluster.nodes[node].channel.clone());
        let again = repeated(async || node.clone().add_member(again.clone()).await).await;
        assert_eq!(refused(again), (Code::FailedPrecondition, "etcdserver: member ID already exist".to_owned()));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_and_serves_no_more() {
    let cluster = Cluster::start().await;
    put_safely(&mut cluster.kv(0), "k").await;
    let leader = cluster.leader().await;
    let other = (leader + 1) % 3;
    let mut of_follower = MaintenanceClient::new(cluster.nodes[other].channel.clone());
    let target_id = other as u64 + 1;
    let (code, words) = refused(of_follower.move_leader(MoveLeaderRequest { target_id }).await);
    assert_eq!((code, &*words), (Code::FailedPrecondition, "etcdserver: not leader"));
    let of_leader = MaintenanceClient::new(cluster.nodes[leader].channel.clone());
    let (_, words) = refused(of_leader.clone().move_leader(MoveLeaderRequest { target_id: 99 }).await);
    assert_eq!(words, "etcdserver: bad leader transferee");
    repeated(async || of_leader.clone().move_leader(MoveLeaderRequest { target_id }).await).await.unwrap();
    let leading = NodeClient::new(cluster.nodes[other].channel.clone());
    let transfer = TransferLeadershipRequest { target: leader as u64 + 1 };
    let now = repeated(async || leading.clone().transfer_leadership(transfer).await).await.unwrap();
    assert_eq!(now.leader, leader as u64 + 1);

    let client = ClusterClient::new(cluster.nodes[leader].channel.clone());
    let removal = MemberRemoveRequest { id: leader as u64 + 1 };
    let members = repeated(async || client.clone().member_remove(removal).await).await.unwrap().members;
    assert_eq!(members.len(), 2);
    for _ in 0..200 {
        if cluster.status(leader).await.removed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(cluster.status(leader).await.removed);
    let status = cluster.kv(leader).put(put("no")).await.unwrap_err();
    assert_eq!(status.message(), "etcdserver: the member has been permanently removed from the cluster");
    assert_eq!(status.metadata().get(RETRY).unwrap(), RETRY_SAFE);
    let status = of_leader.clone().status(StatusRequest {}).await.unwrap().into_inner();
    assert!(status.errors[0].contains("permanently removed"), "{status:?}");
    put_safely(&mut cluster.kv(other), "the others go on").await;
    cluster.stop().await;
}
