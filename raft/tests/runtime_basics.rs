//! What a node does when nothing is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::time::Duration;

use raftkv::consensus::RoleKind;
use raftkv::testing::{Cluster, Counter, Crash, Recorder};
use raftkv::{
    ClusterId, Config, Consistency, Error, Event, Fatal, Index, InitializeError, Membership, NodeId, Peer, Raft,
};

#[tokio::test(start_paused = true)]
async fn any_node_takes_writes_and_serves_linearizable_reads() {
    let cluster = Cluster::builder(3).start(|_| Counter::default()).await;
    cluster.leader().await;
    let mut sum = 0;
    for id in [1, 2, 3, 1, 2, 3].map(NodeId) {
        sum += id.0;
        let answer = cluster.node(id).write(id.0.to_string().into()).await.unwrap();
        assert_eq!(answer, sum.to_string());
        for reader in cluster.ids() {
            cluster.node(reader).read(Consistency::Linearizable).await.unwrap();
            assert_eq!(cluster.machine(reader).value(), sum, "{reader} reads what was just written at {id}");
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn many_clients_on_all_nodes_each_get_their_own_answer() {
    let cluster = Cluster::builder(3).start(|_| Recorder::default()).await;
    cluster.leader().await;
    let mut clients = Vec::new();
    for client in 0..60 {
        let node = cluster.node(NodeId(1 + client % 3)).clone();
        clients.push(tokio::spawn(async move {
            for n in 0..20 {
                let command = format!("{client}/{n}");
                assert_eq!(node.write(command.clone().into()).await.unwrap(), command);
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    cluster.converge().await;
    let commands = cluster.machine(NodeId(1)).commands();
    assert_eq!(commands.len(), 60 * 20);
    assert_eq!(commands, cluster.machine(NodeId(2)).commands());
    assert_eq!(commands, cluster.machine(NodeId(3)).commands());
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_applied_in_order_with_nothing_between() {
    let cluster = Cluster::builder(3).start(|_| Recorder::default()).await;
    let nodes = [cluster.leader().await, cluster.follower().await];
    let mut clients = Vec::new();
    for client in 0..20 {
        let node = cluster.node(nodes[client % 2]).clone();
        clients.push(tokio::spawn(async move {
            let commands: Vec<_> = (0..5).map(|n| format!("{client}/{n}").into()).collect();
            assert_eq!(node.write_many(commands.clone()).await.unwrap(), commands);
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    let commands = cluster.machine(cluster.leader().await).commands();
    assert_eq!(commands.len(), 100);
    for batch in commands.chunks(5) {
        let texts: Vec<_> = batch.iter().map(|(_, text)| std::str::from_utf8(text).unwrap()).collect();
        let client = texts[0].split('/').next().unwrap();
        assert!((0..5).all(|n| texts[n] == format!("{client}/{n}")), "{texts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn commands_beyond_the_limit_are_refused_alone_and_in_batches() {
    let config = Config { max_command_bytes: 100, ..Config::default() };
    let cluster = Cluster::builder(1).config(config).start(|_| Recorder::default()).await;
    let node = cluster.node(cluster.leader().await);
    node.write(vec![0; 100].into()).await.unwrap();
    let refused = node.write(vec![0; 101].into()).await;
    assert!(matches!(refused, Err(Error::TooLarge { size: 101, limit: 100 })), "{refused:?}");
    let refused = node.write_many(vec![vec![0; 30].into(), vec![0; 30].into()]).await;
    assert!(matches!(refused, Err(Error::TooLarge { size: 124, limit: 100 })), "{refused:?}");
    assert_eq!(node.write_many(Vec::new()).await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_single_voter_works_and_has_all_its_data_after_restarts_and_crashes() {
    let mut cluster = Cluster::builder(1).start(|_| Counter::default()).await;
    let id = cluster.leader().await;
    for round in 1..=5 {
        cluster.leader().await;
        let sum = cluster.node(id).write("1".into()).await.unwrap();
        assert_eq!(sum, round.to_string());
        if round % 2 == 0 {
            cluster.crash(id, Crash::Lost).await;
        }
        cluster.restart(id).await;
        // A stale read may come before the log was applied again; a linearizable one must not.
        cluster.node(id).read(Consistency::Linearizable).await.unwrap();
        assert_eq!(cluster.machine(id).value(), round);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_was_stopped_goes_on_with_everything() {
    let mut cluster = Cluster::builder(3).start(|_| Counter::default()).await;
    cluster.leader().await;
    for _ in 0..10 {
        cluster.node(NodeId(1)).write("1".into()).await.unwrap();
    }
    for id in cluster.ids() {
        cluster.stop(id).await;
    }
    for id in cluster.ids() {
        cluster.restart(id).await;
    }
    // Asked at once: waits until there is a leader again.
    assert_eq!(cluster.node(NodeId(2)).write("1".into()).await.unwrap(), "11");
}

#[tokio::test(start_paused = true)]
async fn initialize_is_idempotent_and_refused_on_a_node_with_other_state() {
    let mut cluster = Cluster::builder(3).start_empty(|_| Counter::default()).await;
    let members = cluster.membership().clone();
    let node = cluster.node(NodeId(1)).clone();
    let nobody = node.initialize(Membership::default()).await;
    assert!(matches!(nobody, Err(InitializeError::Invalid(_))), "{nobody:?}");
    let strangers = node.initialize(Membership::new([Peer::new(8, "h"), Peer::new(9, "i")])).await;
    assert!(matches!(strangers, Err(InitializeError::Invalid(_))), "{strangers:?}");
    node.initialize(members.clone()).await.unwrap();
    node.initialize(members.clone()).await.unwrap();
    cluster.node(NodeId(2)).initialize(members.clone()).await.unwrap();
    let others = Membership::new([Peer::new(1, "memory:1"), Peer::new(4, "memory:4")]);
    let refused = node.initialize(others.clone()).await;
    assert!(matches!(refused, Err(InitializeError::NotEmpty { .. })), "{refused:?}");
    // The third was told nothing: it learns of the cluster from its leader.
    cluster.wait_until("all three are members", |all| all.iter().all(|status| status.leader.is_some())).await;
    let third = Membership::new([Peer::new(3, "memory:3")]);
    let refused = cluster.node(NodeId(3)).initialize(third).await;
    assert!(matches!(refused, Err(InitializeError::NotEmpty { .. })), "{refused:?}");
    cluster.restart(NodeId(1)).await;
    cluster.node(NodeId(1)).initialize(members).await.unwrap();
    let refused = cluster.node(NodeId(1)).initialize(others).await;
    assert!(matches!(refused, Err(InitializeError::NotEmpty { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_cluster_answers_unavailable_in_time() {
    let cluster = Cluster::builder(3).start_empty(|_| Counter::default()).await;
    let began = tokio::time::Instant::now();
    let node = cluster.node(NodeId(1));
    let (write, read) = tokio::join!(node.write("1".into()), node.read(Consistency::Linearizable));
    assert!(matches!(write, Err(Error::Unavailable)), "{write:?}");
    assert!(matches!(read, Err(Error::Unavailable)), "{read:?}");
    assert!(began.elapsed() < Duration::from_millis(5100));
    node.read(Consistency::Stale).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn events_tell_the_life_of_a_node_in_order() {
    let cluster = Cluster::builder(1).start_empty(|_| Counter::default()).await;
    let node = cluster.node(NodeId(1)).clone();
    let mut events = node.events();
    node.initialize(cluster.membership().clone()).await.unwrap();
    node.campaign().await.unwrap();
    node.read(Consistency::Linearizable).await.unwrap();
    cluster.shutdown().await;
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        seen.push(match event {
            Event::Membership { index, .. } => format!("membership {}", index.0),
            Event::Role { role, .. } => role.to_string(),
            Event::Leader { leader, .. } => format!("leader {}", leader.map_or(0, |id| id.0)),
            Event::Stopped(fatal) => format!("stopped: {}", fatal.is_shutdown()),
            Event::Truncated { .. } | Event::Removed { .. } | Event::Missed { .. } => panic!("nothing was lost"),
            other @ (Event::SnapshotTaken { .. } | _) => panic!("an event that this test does not know: {other:?}"),
        });
    }
    let tail = ["leader", "leader 1", "stopped: true"];
    assert_eq!(seen.first().map(String::as_str), Some("membership 1"), "{seen:?}");
    assert!(seen.ends_with(&tail.map(String::from)), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_campaign_does_not_disturb_a_live_leader() {
    let cluster = Cluster::builder(3).start(|_| Counter::default()).await;
    let leader = cluster.leader().await;
    let term = cluster.node(leader).status().await.unwrap().term;
    cluster.node(cluster.follower().await).campaign().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = cluster.node(leader).status().await.unwrap();
    assert_eq!((status.role, status.term), (RoleKind::Leader, term));
}

#[tokio::test(start_paused = true)]
async fn status_tells_of_the_log_and_the_peers() {
    let cluster = Cluster::builder(3).start(|_| Counter::default()).await;
    let leader = cluster.leader().await;
    for _ in 0..7 {
        cluster.node(leader).write("1".into()).await.unwrap();
    }
    cluster.converge().await;
    let status = cluster.node(leader).status().await.unwrap();
    // The configuration, the no-op of the term, and seven commands.
    assert_eq!(
        (status.last.index, status.commit, status.applied, status.stored),
        (Index(9), Index(9), Index(9), Index(9))
    );
    assert_eq!((status.members.len(), status.peers.len(), status.leader), (3, 2, Some(leader)));
    assert!(status.peers.iter().all(|peer| peer.matched == Index(9)), "{status:?}");
}

#[tokio::test]
async fn a_node_that_cannot_be_is_refused_with_the_reason() {
    let start = |id: u64, config: Config| {
        Raft::builder(NodeId(id), ClusterId(1))
            .config(config)
            .transport(raftkv::testing::MemNetwork::new(1).transport(Peer::new(1, "a")))
            .log(raftkv::testing::MemLog::new())
            .snapshots(raftkv::testing::MemSnapshots::new())
            .state_machine(Counter::default())
            .start()
    };
    let says = |started: Result<Raft, Fatal>, text: &str| {
        let fatal = started.unwrap_err();
        assert!(fatal.to_string().contains(text), "{fatal}");
    };
    says(start(0, Config::default()).await, "node id 0");
    says(start(1, Config { max_append_bytes: 0, ..Config::default() }).await, "max_append_bytes");
}
