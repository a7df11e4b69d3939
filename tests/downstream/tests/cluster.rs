//! Three nodes on these backends: one ends and comes back from its files, while the others go on.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use downstream::{Accounts, Images, Ledger, OneFile, Tcp, Transfer, serve};
use raftkv::{ClusterId, Config, Consistency, Membership, Peer, Raft, Session};
use raftkv_storage_file::OsVfs;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const CLUSTER: ClusterId = ClusterId(0x10ca1);

struct Node {
    raft: Raft,
    ledger: Ledger,
    serving: JoinHandle<()>,
}

impl Node {
    async fn start(me: &Peer, dir: &Path, listener: TcpListener) -> Self {
        let dir = dir.join(me.id.0.to_string());
        std::fs::create_dir_all(&dir).expect("a directory");
        let ledger = Ledger::default();
        // Little of the log is kept, so that whoever was away gets an image.
        let config = Config { snapshot_entries: 20, trailing_entries: 5, ..Config::default() };
        let node = Raft::builder(me.id, CLUSTER).config(config).transport(Tcp::new(CLUSTER, me.clone()));
        let node = node.log(OneFile::open(Arc::new(OsVfs), dir.join("log")).expect("a log"));
        let node = node
            .snapshots(Images::open(Arc::new(OsVfs), dir.join("images")).expect("images"))
            .state_machine(ledger.clone());
        let raft = node.start().await.expect("a node");
        Self { serving: tokio::spawn(serve(listener, raft.inbox())), raft, ledger }
    }

    async fn stop(self) {
        self.raft.shutdown().await;
        self.serving.abort();
    }

    async fn total(&self) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = self.raft.read(Consistency::Linearizable).await {
            assert!(Instant::now() < deadline, "no read: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let accounts = self.ledger.0.lock().expect("no panic").clone();
        (0..4).map(|account| accounts.balance(account)).sum()
    }
}

async fn transfers(session: &Session, count: u8) {
    for n in 0..count {
        let transfer = Transfer { from: n % 4, to: (n + 1) % 4, amount: 7 };
        let command = postcard::to_stdvec(&transfer).expect("a command");
        session.write(command.into()).await.expect("an answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn money_stays_the_same_while_a_node_is_away_and_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut peers, mut nodes) = (Vec::new(), Vec::new());
    for id in 1..=3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = Peer::new(id, listener.local_addr().expect("an address").to_string());
        nodes.push(Node::start(&peer, dir.path(), listener).await);
        peers.push(peer);
    }
    nodes[0].raft.initialize(Membership::new(peers.clone())).await.expect("a cluster");
    let session = nodes[0].raft.session();
    transfers(&session, 30).await;
    nodes.pop().expect("three").stop().await;
    transfers(&session, 60).await;

    let listener = TcpListener::bind(&*peers[2].address).await.expect("its port");
    nodes.push(Node::start(&peers[2], dir.path(), listener).await);
    transfers(&session, 10).await;
    let first = nodes[0].ledger.0.lock().expect("no panic").clone();
    for node in &nodes {
        assert_eq!(node.total().await, 4 * Accounts::FIRST);
        assert_eq!(*node.ledger.0.lock().expect("no panic"), first, "every node holds the same");
    }
    let image = nodes[2].raft.status().await.expect("a status").snapshot.expect("an image");
    assert!(image.last.index.0 > 50, "it came back through an image, or took one: {image:?}");
    for node in nodes {
        node.stop().await;
    }
}
