//! A node whose ears fail, and one with more clients than it may have.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use super::*;
use crate::client::{Client, ClientError, ClientOptions};
use crate::config::{LimitArgs, ServerArgs};

const PATIENCE: Duration = Duration::from_secs(30);

/// A node of a cluster of one, on ports of its own.
struct Place {
    dir: tempfile::TempDir,
    clients: std::net::TcpListener,
    members: std::net::TcpListener,
}

impl Place {
    fn new() -> Self {
        let bind = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        Self { dir: tempfile::tempdir().unwrap(), clients: bind(), members: bind() }
    }

    fn config(&self) -> ServerConfig {
        let args = ServerArgs {
            id: Some("1".into()),
            data: Some(self.dir.path().join("data").display().to_string()),
            peers: Some(format!("1={}", self.members.local_addr().unwrap())),
            listen_client: Some(self.clients.local_addr().unwrap().to_string()),
            limits: LimitArgs {
                max_client_connections: Some("2".into()),
                max_address_percent: Some("100".into()),
                ..LimitArgs::default()
            },
            ..ServerArgs::default()
        };
        ServerConfig::load(&args, &|_| None).unwrap()
    }

    async fn node(&self) -> Node {
        let same = |listener: &std::net::TcpListener| TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
        let listeners = Listeners { clients: same(&self.clients), members: same(&self.members), metrics: None };
        Node::start(&self.config(), Arc::new(raftkv_storage_file::OsVfs), listeners, &main_thread::orders().2.main)
            .await
            .unwrap()
    }

    async fn start(&self) -> JoinHandle<Result<(), Failure>> {
        let node = self.node().await;
        tokio::spawn(async move { node.run(&mut main_thread::orders().2, PATIENCE).await })
    }

    fn client(&self, timeout: Duration) -> Client {
        let options = ClientOptions { timeout, ..ClientOptions::default() };
        Client::new(&[self.clients.local_addr().unwrap().to_string()], options).unwrap()
    }
}

/// Makes `accept` fail on it, whoever holds it.
fn shut_down(listener: &std::net::TcpListener) {
    let socket = std::net::TcpStream::from(OwnedFd::from(listener.try_clone().unwrap()));
    socket.shutdown(Shutdown::Both).unwrap();
}

async fn failure(node: JoinHandle<Result<(), Failure>>) -> String {
    let ended = tokio::time::timeout(PATIENCE, node).await.expect("it lives on as a zombie").unwrap();
    format!("{:?}", ended.unwrap_err())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_clients_no_more_ends_and_says_so() {
    let place = Place::new();
    let node = place.start().await;
    place.client(PATIENCE).put("k", "v").await.unwrap();
    shut_down(&place.clients);
    let words = failure(node).await;
    assert!(words.contains("server for clients has failed: no connection can be accepted any more"), "{words}");
    // The log was closed in good order, and can be opened again at once.
    place.start().await.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_members_no_more_ends_and_says_so() {
    let place = Place::new();
    let node = place.start().await;
    place.client(PATIENCE).put("k", "v").await.unwrap();
    shut_down(&place.members);
    let words = failure(node).await;
    assert!(words.contains("server for members has failed: no connection can be accepted any more"), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_server_dies_of_something_else_ends_as_well() {
    let place = Place::new();
    let node = place.node().await;
    node.clients.abort();
    let node = tokio::spawn(async move { node.run(&mut main_thread::orders().2, PATIENCE).await });
    let words = failure(node).await;
    assert!(words.contains("server for clients has failed"), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_are_turned_away_and_room_is_given_again() {
    let place = Place::new();
    let node = place.start().await;
    let first = place.client(PATIENCE);
    let second = place.client(PATIENCE);
    first.put("k", "v").await.unwrap();
    second.put("k", "v").await.unwrap();
    let error = place.client(Duration::from_millis(700)).get("k").await.unwrap_err();
    assert!(matches!(error, ClientError::Safe(_)), "{error:?}");
    // Those who were there first don't notice.
    first.put("k", "v").await.unwrap();
    second.put("k", "v").await.unwrap();
    drop(first);
    place.client(PATIENCE).get("k").await.unwrap();
    node.abort();
}

/// A worker of the threads' scheduler has a queue of 256 tasks; what is beyond it got a turn in 61, and of 1024 clients some waited twenty times as long as others.
#[test]
fn of_many_requests_none_waits_longer_than_others() {
    const TASKS: usize = 1024;
    const TURNS: usize = 50;
    let turns: Arc<[AtomicUsize]> = (0..TASKS).map(|_| AtomicUsize::new(0)).collect();
    runtime(1).unwrap().block_on(async {
        for task in 0..TASKS {
            let turns = turns.clone();
            tokio::spawn(std::future::poll_fn(move |cx| {
                turns[task].fetch_add(1, Ordering::Relaxed);
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            }));
        }
        while turns[0].load(Ordering::Relaxed) < TURNS {
            tokio::task::yield_now().await;
        }
    });
    let counts = || turns.iter().map(|turns| turns.load(Ordering::Relaxed));
    let (least, most) = (counts().min().unwrap(), counts().max().unwrap());
    assert!(most - least <= 1, "from {least} to {most} turns");
}
