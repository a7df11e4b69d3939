//! A client that is told who leads goes there next.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_example::api::etcdserverpb::PutRequest;
use kv_example::client::{Client, ClientError, ClientOptions};
use kv_example::machine::KvMachine;
use kv_example::service::{Options, Replica, Services};
use kv_example::store::Limits;
use raftkv::{
    Change, ChangeError, ClusterId, Consistency, Error, LogId, NodeId, Once, Peer, SessionId, StateMachine, Status,
    Term, TransferError,
};
use tokio::sync::Mutex;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// A node that answers writes by itself, or points to the one that it takes for the leader.
#[derive(Clone)]
struct Node {
    id: u64,
    leader: Arc<AtomicU64>,
    /// Whether it loses track of what it was asked.
    forgetful: bool,
    asked: Arc<AtomicU64>,
    /// The session that is open.
    session: Arc<AtomicU64>,
    sent: Arc<std::sync::Mutex<Vec<Once>>>,
    machine: Arc<Mutex<KvMachine>>,
}

impl Replica for Node {
    async fn write(&self, command: Bytes) -> Result<Bytes, Error> {
        let index = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if self.forgetful {
            return Err(Error::OutcomeUnknown);
        }
        let leader = self.leader.load(Ordering::Relaxed);
        if leader != self.id {
            return Err(Error::NotLeader { leader: Some(Peer::new(leader, "127.0.0.1:1")) });
        }
        self.machine.lock().await.apply(LogId::new(1, index), command).await.map_err(Error::Stopped)
    }

    async fn write_once(&self, once: Once, command: Bytes) -> Result<Bytes, Error> {
        if once.session.0 != self.session.load(Ordering::Relaxed) {
            return Err(Error::SessionExpired);
        }
        self.sent.lock().unwrap().push(once);
        self.write(command).await
    }

    async fn open_session(&self) -> Result<SessionId, Error> {
        Ok(SessionId(self.session.load(Ordering::Relaxed)))
    }

    async fn close_session(&self, _: SessionId) -> Result<(), Error> {
        Ok(())
    }

    async fn read(&self, _: Consistency) -> Result<(), Error> {
        Ok(())
    }

    async fn status(&self) -> Result<Status, Error> {
        Ok(Status {
            term: Term(1),
            leader: Some(NodeId(self.leader.load(Ordering::Relaxed))),
            members: vec![Peer::new(self.id, "127.0.0.1:1")],
            ..Status::of_new(NodeId(self.id))
        })
    }

    async fn campaign(&self) -> Result<(), Error> {
        Ok(())
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

struct Running {
    node: Node,
    address: String,
    _services: Services,
}

impl Running {
    async fn start(id: u64, leader: u64) -> Self {
        Self::start_node(id, leader, false).await
    }

    async fn start_node(id: u64, leader: u64, forgetful: bool) -> Self {
        Self::start_with(id, leader, forgetful, Limits::default()).await
    }

    async fn start_with(id: u64, leader: u64, forgetful: bool, limits: Limits) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let machine = KvMachine::new();
        let view = machine.view();
        let machine = Arc::new(Mutex::new(machine));
        let (leader, session) = (Arc::new(AtomicU64::new(leader)), Arc::new(AtomicU64::new(1)));
        let (asked, sent) = Default::default();
        let node = Node { id, leader, forgetful, asked, session, sent, machine };
        let client_address = address.clone();
        let options =
            Options { cluster: ClusterId(77), node: NodeId(id), client_address, limits, ..Options::default() };
        let services = Services::start(node.clone(), view, options);
        let server = Server::builder().add_routes(services.routes());
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { node, address, _services: services }
    }

    fn asked(&self) -> u64 {
        self.node.asked.load(Ordering::Relaxed)
    }
}

fn client(endpoints: &[&str], seconds: f64) -> Client {
    let options = ClientOptions { timeout: Duration::from_secs_f64(seconds), ..ClientOptions::default() };
    Client::new(endpoints, options).unwrap()
}

/// Five nodes that all name node 5: one refusal, and the leader's answer.
#[tokio::test]
async fn the_next_attempt_goes_to_the_leader() {
    let mut nodes = Vec::new();
    for id in 1..=5 {
        nodes.push(Running::start(id, 5).await);
    }
    let endpoints: Vec<_> = nodes.iter().map(|node| &*node.address).collect();
    let client = client(&endpoints, 20.0);
    client.put("k", "v").await.unwrap();
    assert_eq!(nodes.iter().map(Running::asked).collect::<Vec<_>>(), [1, 0, 0, 0, 1]);
    // From then on the leader comes first.
    client.put("k", "w").await.unwrap();
    assert_eq!(nodes.iter().map(Running::asked).collect::<Vec<_>>(), [1, 0, 0, 0, 2]);
    // The lead moves: again one refusal, and what was learnt before is still known.
    for node in &nodes {
        node.node.leader.store(2, Ordering::Relaxed);
    }
    client.put("k", "x").await.unwrap();
    assert_eq!(nodes.iter().map(Running::asked).collect::<Vec<_>>(), [1, 1, 0, 0, 3]);
}

/// The leader is none of the endpoints that the client was given: it tries those it has, and no others.
#[tokio::test]
async fn a_leader_that_is_no_endpoint_is_not_looked_for_elsewhere() {
    let (first, second, leader) = (Running::start(1, 3).await, Running::start(2, 3).await, Running::start(3, 3).await);
    let error = client(&[&first.address, &second.address], 1.0).put("k", "v").await.unwrap_err();
    assert!(matches!(error, ClientError::Safe(_)), "{error:?}");
    assert_eq!(error.cause().leader, Some(3));
    assert_eq!(leader.asked(), 0);
    assert!(first.asked() > 1 && second.asked() > 1, "both are tried, in turn, until time is over");
}

/// Two nodes that take each other for the leader: the client pauses between rounds, and gives up in time.
#[tokio::test]
async fn nodes_that_point_to_each_other_are_not_asked_without_a_pause() {
    let (first, second) = (Running::start(1, 2).await, Running::start(2, 1).await);
    let begun = Instant::now();
    let error = client(&[&first.address, &second.address], 1.0).put("k", "v").await.unwrap_err();
    assert!(matches!(error, ClientError::Safe(_)), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(first.asked() + second.asked() < 40, "{} and {} attempts", first.asked(), second.asked());
}

/// An endpoint where nobody answers does not keep the client from the leader.
#[tokio::test]
async fn a_silent_endpoint_does_not_hide_the_leader() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().map(|address| (silent, address.to_string())).unwrap();
    let (first, leader) = (Running::start(1, 3).await, Running::start(3, 3).await);
    let begun = Instant::now();
    client(&[&first.address, &silent.1, &leader.address], 20.0).put("k", "v").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "in turn, the silent one would have used up the time");
    assert_eq!((first.asked(), leader.asked()), (1, 1));
}

/// A dead node is named as the leader, as happens until its end is noticed, and its endpoint does not answer: to ask that who it
/// is costs something once, and not with every refusal.
#[tokio::test]
async fn a_silent_endpoint_is_not_asked_with_every_refusal() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().map(|address| (silent, address.to_string())).unwrap();
    let (first, second) = (Running::start(1, 3).await, Running::start(2, 2).await);
    let client = client(&[&first.address, &second.address, &silent.1], 20.0);
    let begun = Instant::now();
    client.put("k", "v").await.unwrap();
    let first_call = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..20 {
        // Whoever answered last is asked first; it refuses, and the other one answers.
        for (refuser, other) in [(&second, &first), (&first, &second)] {
            other.node.leader.store(other.node.id, Ordering::Relaxed);
            refuser.node.leader.store(3, Ordering::Relaxed);
            client.put("k", "v").await.unwrap();
        }
    }
    let others = begun.elapsed();
    assert_eq!(first.asked() + second.asked(), 2 + 2 * 40, "one refusal and one answer a call");
    assert!(others < Duration::from_secs(5), "40 calls took {others:?}, and the first one {first_call:?}");
}

/// A client that wants no session.
fn plain_client(endpoints: &[&str]) -> Client {
    let options = ClientOptions { exactly_once: false, ..ClientOptions::default() };
    Client::new(endpoints, options).unwrap()
}

/// Without a session, a write whose outcome is unknown goes nowhere else, not even to a known leader.
#[tokio::test]
async fn a_write_of_unknown_outcome_is_not_sent_to_the_leader() {
    let (first, leader) = (Running::start_node(1, 2, true).await, Running::start(2, 2).await);
    let error = plain_client(&[&first.address, &leader.address]).put("k", "v").await.unwrap_err();
    assert!(matches!(error, ClientError::Unknown(_)), "{error:?}");
    assert_eq!((first.asked(), leader.asked()), (1, 0));
}

/// In a session it takes effect once, so it is sent again until somebody knows.
#[tokio::test]
async fn a_sessions_write_of_unknown_outcome_is_sent_again() {
    let (first, leader) = (Running::start_node(1, 2, true).await, Running::start(2, 2).await);
    let client = client(&[&first.address, &leader.address], 20.0);
    client.put("k", "v").await.unwrap();
    assert_eq!((first.asked(), leader.asked()), (1, 1));
    let sent: Vec<_> = [&first, &leader].map(|node| node.node.sent.lock().unwrap().clone()).concat();
    let once = Once { session: SessionId(1), sequence: 0, answered: 0 };
    assert_eq!(sent, [once, once], "under the same name");
    client.put("k", "w").await.unwrap();
    assert_eq!(leader.node.sent.lock().unwrap().last(), Some(&Once { sequence: 1, answered: 1, ..once }));
}

#[tokio::test]
async fn a_sessions_write_that_nobody_knows_of_is_unknown_when_time_is_over() {
    let first = Running::start_node(1, 1, true).await;
    let error = client(&[&first.address], 0.7).put("k", "v").await.unwrap_err();
    assert!(matches!(error, ClientError::Unknown(_)), "{error:?}");
    assert!(first.asked() > 1, "it was sent again until then");
}

/// A session that expired unused is opened anew, and the write goes on in it.
#[tokio::test]
async fn a_session_that_has_expired_is_opened_anew() {
    let node = Running::start(1, 1).await;
    let client = client(&[&node.address], 20.0);
    client.put("k", "v").await.unwrap();
    node.node.session.store(2, Ordering::Relaxed);
    client.put("k", "w").await.unwrap();
    let last = *node.node.sent.lock().unwrap().last().unwrap();
    assert_eq!(last, Once { session: SessionId(2), sequence: 0, answered: 0 });
    // In the middle of a write nobody can tell whether it was done in the old one.
    let forgetful = Running::start_node(1, 1, true).await;
    let client = self::client(&[&forgetful.address], 20.0);
    let expiring = forgetful.node.clone();
    tokio::spawn(async move {
        while expiring.asked.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        expiring.session.store(2, Ordering::Relaxed);
    });
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(error, ClientError::Unknown(_)) && error.to_string().contains("session"), "{error}");
}

/// One attempt's outcome is unknown, and the next node refuses to take the request at all: that says nothing about the first.
#[tokio::test]
async fn a_refusal_of_the_second_attempt_does_not_hide_that_the_first_may_have_been_the_one() {
    let first = Running::start_node(1, 2, true).await;
    let limits = Limits { request_bytes: 1, ..Limits::default() };
    let strict = Running::start_with(2, 2, false, limits).await;
    let error = client(&[&first.address, &strict.address], 20.0).put("k", "v").await.unwrap_err();
    assert!(matches!(error, ClientError::Unknown(_)) && error.to_string().contains("too large"), "{error:?}");
    // Alone, it is a refusal.
    let error = client(&[&strict.address], 20.0).put("k", "v").await.unwrap_err();
    assert!(matches!(error, ClientError::Other(_)), "{error:?}");
    assert_eq!((first.asked(), strict.asked()), (1, 0));
}

/// What the state machine refuses, it refuses at every attempt of the write: that is its outcome.
#[tokio::test]
async fn the_state_machines_own_refusal_is_the_outcome_of_a_write_that_was_sent_again() {
    let (first, leader) = (Running::start_node(1, 2, true).await, Running::start(2, 2).await);
    let client = client(&[&first.address, &leader.address], 20.0);
    let missing = PutRequest { key: "missing".into(), ignore_value: true, ..PutRequest::default() };
    let error = client.put_request(missing).await.unwrap_err();
    assert!(matches!(error, ClientError::Other(_)) && error.to_string().contains("key not found"), "{error:?}");
    assert_eq!((first.asked(), leader.asked()), (1, 1));
}
