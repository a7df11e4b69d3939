//! Lanes over connections that are made up.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, poll_immediate, select};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::super::lane::{Connection, Failure};
use super::super::queue::Outgoing;
use super::*;
use crate::message::{Body, Message, RequestId};
use crate::types::{EntryKind, GroupId, Index, Term};

const CLUSTER: ClusterId = ClusterId(3);
/// A failure for which the code of the connection panics.
const BUG: &str = "a bug";

/// Dials as it is told, and then always succeeds.
#[derive(Clone)]
struct Script(Arc<Told>);

struct Told {
    failures: Mutex<VecDeque<Failure>>,
    attempts: Mutex<Vec<Instant>>,
    /// Ends all connections.
    end: Notify,
    /// What was sent: of each parcel the number of messages.
    sent: mpsc::UnboundedSender<usize>,
    /// Whether connections take anything.
    takes: bool,
}

struct Made {
    told: Arc<Told>,
    outgoing: Outgoing,
}

impl Dial for Script {
    type Connection = Made;

    async fn dial(&self, _: &Peer, _: Kind, outgoing: Outgoing, _: u32) -> Result<Made, Failure> {
        let told = self.0.clone();
        told.attempts.lock().unwrap().push(Instant::now());
        let failure = told.failures.lock().unwrap().pop_front();
        assert!(failure.as_ref().is_none_or(|failure| failure.reason() != BUG), "{BUG} while it is dialled");
        failure.map_or(Ok(Made { told, outgoing }), Err)
    }

    fn max_encoded_len(&self, envelope: &Envelope) -> u64 {
        envelope.message.cost()
    }
}

impl Connection for Made {
    async fn lost(&mut self) -> Failure {
        let Self { told, outgoing } = self;
        loop {
            let next = async { if told.takes { outgoing.next().await } else { std::future::pending().await } };
            match select(std::pin::pin!(told.end.notified()), std::pin::pin!(next)).await {
                Either::Left(_) if told.failures.lock().unwrap().is_empty() => {
                    return Failure::unreachable("as it was told");
                }
                Either::Left(_) => panic!("{BUG} while it is open"),
                Either::Right((Some(parcel), _)) => told.sent.send(parcel.batch.len()).unwrap(),
                Either::Right((None, _)) => std::future::pending().await,
            }
        }
    }
}

struct World {
    lanes: Lanes<Script>,
    told: Arc<Told>,
    sent: mpsc::UnboundedReceiver<usize>,
    peer: Peer,
}

impl World {
    fn new(failures: impl IntoIterator<Item = Failure>, takes: bool, options: Options) -> Self {
        let (sender, sent) = mpsc::unbounded_channel();
        let told = Arc::new(Told {
            failures: Mutex::new(failures.into_iter().collect()),
            attempts: Mutex::default(),
            end: Notify::new(),
            sent: sender,
            takes,
        });
        let local = Local { cluster: CLUSTER, node: Peer::new(1, "a") };
        let lanes = Lanes::new(local, options, Script(told.clone()));
        Self { lanes, told, sent, peer: Peer::new(2, "b") }
    }

    fn message(&self, body: Body) -> Envelope {
        let message = Message { term: Term(1), body };
        Envelope { cluster: CLUSTER, group: GroupId(0), from: NodeId(1), to: self.peer.id, message }
    }

    fn tick(&self) -> Envelope {
        self.message(Body::Commit { index: Index(1) })
    }

    fn load(&self, bytes: usize) -> Envelope {
        let commands = vec![Bytes::from(vec![7; bytes])];
        self.message(Body::Forward { request: RequestId(1), kind: EntryKind::Command, commands })
    }

    fn attempts(&self) -> Vec<Instant> {
        self.told.attempts.lock().unwrap().clone()
    }
}

/// The node asks early for another leader when it hears of this.
#[tokio::test(start_paused = true)]
async fn the_node_learns_of_connections_that_are_lost_or_refused() {
    let mut world = World::new([Failure::refused("a stranger")], true, Options::default());
    let (inbox, mut arrivals) = Inbox::channel(CLUSTER, GroupId(0), NodeId(1));
    world.lanes.report_losses_to(inbox);
    world.lanes.send(&world.peer, vec![world.tick()]).await.unwrap();
    assert_eq!(arrivals.lost().await, Some(NodeId(2)), "refused");
    sleep(Options::default().refused_backoff).await;
    world.lanes.send(&world.peer, vec![world.tick()]).await.unwrap();
    assert_eq!(world.sent.recv().await, Some(1));
    assert_eq!(poll_immediate(arrivals.lost()).await, None, "all is well");
    world.told.end.notify_waiters();
    assert_eq!(arrivals.lost().await, Some(NodeId(2)), "lost");
}

/// The lane was dead from then on, for as long as the process lived, and said that the connection was lost.
#[tokio::test(start_paused = true)]
async fn a_connection_that_panics_is_made_anew() {
    let mut world = World::new([Failure::unreachable(BUG)], true, Options::default());
    let _ = world.lanes.send(&world.peer, vec![world.tick()]).await;
    sleep(Duration::from_millis(1)).await;
    let error = world.lanes.send(&world.peer, vec![world.tick()]).await.unwrap_err();
    assert!(error.to_string().contains("panicked: a bug while it is dialled"), "{error}");
    sleep(Options::default().max_backoff).await;
    world.lanes.send(&world.peer, vec![world.tick()]).await.unwrap();
    assert_eq!(world.sent.recv().await, Some(1));
    world.told.failures.lock().unwrap().push_back(Failure::unreachable("not the last one"));
    world.told.end.notify_waiters();
    sleep(Options::default().max_backoff).await;
    world.lanes.send(&world.peer, vec![world.tick()]).await.unwrap();
    assert_eq!(world.sent.recv().await, Some(1));
    assert!(world.attempts().len() > 2, "{:?}", world.attempts());
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_while_a_peer_is_not_there_is_dropped_and_attempts_become_rare() {
    let gone = std::iter::repeat_n(Failure::unreachable("nobody there"), 30);
    let mut world = World::new(gone, true, Options::default());
    let _ = world.lanes.send(&world.peer, vec![world.tick()]).await;
    sleep(Duration::from_millis(1)).await;
    let error = world.lanes.send(&world.peer, vec![world.tick()]).await.unwrap_err();
    assert!(error.to_string().contains("nobody there"), "{error}");
    sleep(Duration::from_secs(30)).await;
    let attempts = world.attempts();
    let pauses: Vec<Duration> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let Options { min_backoff, max_backoff, .. } = Options::default();
    assert!(pauses[0] <= min_backoff, "{pauses:?}");
    assert!(pauses[10..29].iter().all(|pause| (max_backoff / 2..=max_backoff).contains(pause)), "{pauses:?}");
    // It came back by itself, and nothing that was dropped comes late.
    assert_eq!(attempts.len(), 31);
    assert_eq!(poll_immediate(world.sent.recv()).await, None);
    world.lanes.send(&world.peer, vec![world.tick(), world.tick()]).await.unwrap();
    assert_eq!(world.sent.recv().await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_lived_and_is_lost_is_tried_again_at_once() {
    let mut world = World::new([], true, Options::default());
    world.lanes.send(&world.peer, vec![world.tick()]).await.unwrap();
    assert_eq!(world.sent.recv().await, Some(1));
    sleep(Options::default().max_backoff).await;
    let lost = Instant::now();
    world.told.end.notify_waiters();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(world.attempts().last(), Some(&lost));
}

#[tokio::test(start_paused = true)]
async fn only_so_much_waits_for_a_connection_that_takes_nothing() {
    let batches = Options { max_queued_batches: 5, ..Options::default() };
    let bytes = Options { max_queued_bytes: 5000, ..Options::default() };
    for (options, size) in [(batches, 1), (bytes, 1000 - 128)] {
        let world = World::new([], false, options);
        for n in 0..5 {
            let sent = poll_immediate(world.lanes.send(&world.peer, vec![world.load(size)])).await;
            assert!(sent.is_some(), "batch {n} of 5 has to wait");
        }
        assert!(poll_immediate(world.lanes.send(&world.peer, vec![world.load(size)])).await.is_none());
        // The other lane has a queue of its own.
        world.lanes.send(&world.peer, vec![world.tick()]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_beyond_the_limit_is_cut_and_what_is_too_large_alone_is_left_off() {
    let mut world = World::new([], true, Options { max_message_bytes: 1000, ..Options::default() });
    let batch: Vec<_> = [300, 300, 300, 5000, 6000, 700].map(|size| world.load(size)).into();
    let error = world.lanes.send(&world.peer, batch).await.unwrap_err();
    let TransportError::TooLarge { size, limit, .. } = error else { panic!("{error}") };
    assert_eq!((size, limit), (6000 + 128, 1000));
    // 428 bytes each: two fit.
    assert_eq!([world.sent.recv().await, world.sent.recv().await], [Some(2), Some(1)]);
    assert_eq!(world.sent.recv().await, Some(1), "what came after is sent");
}
