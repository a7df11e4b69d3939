//! What is sent arrives, unchanged and in order.

use super::*;
use crate::change::{Change, ChangeRefused};
use crate::message::{ChangeOutcome, Part};
use crate::traits::{Published, SnapshotId, SnapshotMeta};
use crate::types::{Membership, NodeId, Peer};

/// An answer to a heartbeat, with a promise for so many nanoseconds.
fn reply(priority: Option<u32>, lease: u64) -> Body {
    let lease = Duration::from_nanos(lease);
    Body::HeartbeatReply { round: 3, matching: Index(12), stored: Index(11), priority, lease }
}

/// Every statement, with empty and full fields.
fn samples() -> Vec<Body> {
    let (id, far) = (LogId::new(6, 41), LogId::new(1 << 40, 1 << 50));
    let request = RequestId(u64::MAX);
    let entry = |index, kind, data: &'static [u8]| Entry { id: LogId::new(6, index), kind, data: Bytes::from(data) };
    let entries = vec![
        entry(42, EntryKind::Noop, b""),
        entry(43, EntryKind::Command, b"\0\xff put"),
        entry(44, EntryKind::Command, b""),
        entry(45, EntryKind::Config, b"members"),
        entry(46, EntryKind::Session, b"once"),
        entry(47, EntryKind::Clock, b"12345678"),
    ];
    let mut samples = vec![
        Body::PreVote { proposed: Term(8), last: far },
        Body::PreVote { proposed: Term(1), last: LogId::ZERO },
        Body::PreVoteReply { proposed: Term(8), granted: true },
        Body::PreVoteReply { proposed: Term(8), granted: false },
        Body::Vote { last: id, transfer: false },
        Body::Vote { last: id, transfer: true },
        Body::VoteReply { granted: true },
        Body::VoteReply { granted: false },
        Body::Append { prev: id, entries, commit: Index(43) },
        Body::Append { prev: LogId::ZERO, entries: Vec::new(), commit: Index::ZERO },
        Body::AppendReply(AppendReply::Accepted { stored: Index(1 << 50) }),
        Body::AppendReply(AppendReply::Rejected { prev: far, hint: LogId::ZERO }),
        Body::Heartbeat { commit: Index(9), round: 1 << 50, lease: Duration::ZERO },
        Body::Heartbeat { commit: Index(9), round: 1, lease: Duration::from_nanos(300_000_001) },
        reply(Some(7), 0),
        reply(None, 1),
        Body::ReadIndex { request, lease: false },
        Body::ReadIndex { request, lease: true },
        Body::ReadIndexReply { request, index: None },
        Body::ReadIndexReply { request, index: Some(Index::ZERO) },
        Body::ReadIndexReply { request, index: Some(Index(5)) },
        Body::Forward {
            request,
            kind: EntryKind::Command,
            commands: vec![Bytes::from_static(b"a"), Bytes::new(), Bytes::from(vec![7; 5000])],
        },
        Body::Forward { request, kind: EntryKind::Session, commands: Vec::new() },
        Body::ForwardReply { request, outcome: ForwardOutcome::Appended { first: id } },
        Body::ForwardReply { request, outcome: ForwardOutcome::Overloaded },
        Body::ForwardReply { request, outcome: ForwardOutcome::NotLeader },
        Body::ForwardReply { request, outcome: ForwardOutcome::Moved },
        Body::Commit { index: Index(77) },
        Body::TimeoutNow,
    ];
    samples.extend(changes(request, id));
    samples.extend(images(id));
    samples
}

/// Changes of the configuration, and what becomes of them.
fn changes(request: RequestId, id: LogId) -> Vec<Body> {
    let peer = |id: u64| Peer::new(id, format!("h{id}"));
    let node = NodeId(7);
    let edits = Change::new().add_voter(peer(1)).add_learner(peer(2)).promote(3).demote(4).remove(5);
    let target = Membership::new([peer(1), peer(2)]).with_learners([peer(3)]);
    let refused = [
        ChangeRefused::InProgress { at: id },
        ChangeRefused::NotReady,
        ChangeRefused::Mismatch { actual: id },
        ChangeRefused::UnknownNode { id: node },
        ChangeRefused::NoVoters,
        ChangeRefused::NoDifference,
        ChangeRefused::AddressConflict { address: "h1".into(), nodes: [NodeId(1), node] },
        ChangeRefused::NotCaughtUp { id: node, matched: Index(3), last: Index(9) },
        ChangeRefused::Unreachable { silent: vec![NodeId(1), node] },
        ChangeRefused::Invalid { reason: "as told".into() },
    ];
    let asked = [edits.replace(6, peer(7)).set_address(peer(8)), Change::to(target).only_if(id), Change::new()];
    let outcomes = [ChangeOutcome::Done { id }, ChangeOutcome::NotLeader, ChangeOutcome::Unknown];
    let outcomes = outcomes.into_iter().chain(refused.into_iter().map(ChangeOutcome::Refused));
    let asked = asked.into_iter().map(|change| Body::Change { request, change });
    asked.chain(outcomes.map(|outcome| Body::ChangeReply { request, outcome })).collect()
}

/// An image on its way.
fn images(last: LogId) -> [Body; 4] {
    let image = SnapshotId(u64::MAX - 3);
    let membership = Membership::new([Peer::new(1, "h1")]).with_learners([Peer::new(2, "h2")]);
    let meta = SnapshotMeta { id: image, last, membership, membership_at: LogId::new(1, 2) };
    let part = Part { data: Bytes::from_static(b"a part"), checksum: u32::MAX - 7 };
    [
        Body::Offer { image: Published { meta, len: 1 << 40, checksum: u32::MAX - 5 } },
        Body::Fetch { image, offset: 1 << 33, max: 1 << 20 },
        Body::Chunk { image, offset: 0, part: Some(part) },
        Body::Chunk { image, offset: 9, part: None },
    ]
}

/// Numbers the kinds of statements from 0, so that the compiler asks for a sample of each new one.
fn kind(body: &Body) -> usize {
    match body {
        Body::PreVote { .. } => 0,
        Body::PreVoteReply { .. } => 1,
        Body::Vote { .. } => 2,
        Body::VoteReply { .. } => 3,
        Body::Append { .. } => 4,
        Body::AppendReply(_) => 5,
        Body::Heartbeat { .. } => 6,
        Body::HeartbeatReply { .. } => 7,
        Body::ReadIndex { .. } => 8,
        Body::ReadIndexReply { .. } => 9,
        Body::Forward { .. } => 10,
        Body::ForwardReply { .. } => 11,
        Body::Commit { .. } => 12,
        Body::Change { .. } => 13,
        Body::ChangeReply { .. } => 14,
        Body::TimeoutNow => 15,
        Body::Offer { .. } => 16,
        Body::Fetch { .. } => 17,
        Body::Chunk { .. } => 18,
    }
}
const KINDS: usize = 19;

/// Nothing about a message changes on its way.
pub async fn every_kind_of_message_arrives_unchanged(network: &dyn Network) {
    let sampled: BTreeSet<usize> = samples().iter().map(kind).collect();
    assert_eq!(sampled, (0..KINDS).collect(), "the samples miss a kind of message");
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    for body in samples() {
        let sent = a.envelope(&b.peer, body);
        within("a send", a.transport.send(&b.peer, vec![sent.clone()])).await.expect("a live peer");
        assert_eq!(b.receive(1).await, [sent]);
    }
}

/// A node that is in no configuration known to the receiver can still be answered.
pub async fn the_receiver_learns_where_to_answer(network: &dyn Network) {
    let (mut a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    a.send(&b.peer, vec![tick(1)]).await.expect("a live peer");
    let (sender, _) = within("the arrival", b.arrivals.next()).await.expect("an open inbox");
    assert_eq!(sender, a.peer);
    b.send(&sender, vec![reply(Some(0), 0)]).await.expect("alive");
    assert_eq!(a.receive(1).await[0].from, b.peer.id);
}

/// While nothing fails, nothing is lost, doubled or reordered within a lane, whatever the sizes.
pub async fn messages_of_a_lane_arrive_in_order(network: &dyn Network) {
    const COUNT: u64 = 2000;
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let to = b.peer.clone();
    let sending = async {
        let mut next = 0;
        while next < COUNT {
            let end = COUNT.min(next + 1 + next % 7);
            let batch = (next..end).map(|n| load(n, (n as usize * 37) % 3000)).collect();
            a.send(&to, batch).await.expect("a live peer");
            next = end;
        }
    };
    let ((), arrived) = futures_util::future::join(sending, b.receive(COUNT as usize)).await;
    let numbers: Vec<u64> = arrived.iter().filter_map(number).collect();
    assert_eq!(numbers, (0..COUNT).collect::<Vec<_>>());
}

/// Nodes do not disturb each other, and each one's messages stay in order.
pub async fn many_senders_share_one_receiver(network: &dyn Network) {
    const COUNT: u64 = 100;
    let mut hub = Node::start(network, 1).await;
    let mut senders = Vec::new();
    for id in 2..8 {
        senders.push(Node::start(network, id).await);
    }
    let to = hub.peer.clone();
    let sending = futures_util::future::join_all(senders.iter().map(|node| async {
        for n in 0..COUNT {
            node.send(&to, vec![tick(n)]).await.expect("a live peer");
        }
    }));
    let (_, arrived) = futures_util::future::join(sending, hub.receive(senders.len() * COUNT as usize)).await;
    for node in &senders {
        let rounds: Vec<u64> = arrived.iter().filter(|e| e.from == node.peer.id).filter_map(round).collect();
        assert_eq!(rounds, (0..COUNT).collect::<Vec<_>>(), "from {}", node.peer);
    }
}

/// It is neither an error nor an arrival.
pub async fn an_empty_batch_does_nothing(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    a.send(&b.peer, Vec::new()).await.expect("nothing to fail at");
    a.send(&b.peer, vec![tick(1)]).await.expect("a live peer");
    let (_, batch) = within("the arrival", b.arrivals.next()).await.expect("an open inbox");
    assert_eq!(batch.iter().filter_map(round).collect::<Vec<_>>(), [1]);
}

/// The largest command that `Config` allows by default passes, alone and in a batch with others.
pub async fn a_large_command_arrives(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let size = usize::try_from(crate::Config::default().max_command_bytes).expect("a size of this machine");
    let sent: Vec<Envelope> = (0..4).map(|n| a.envelope(&b.peer, load(n, if n == 0 { 10 } else { size }))).collect();
    let to = b.peer.clone();
    let sending = within("a send", a.transport.send(&to, sent.clone()));
    let (outcome, arrived) = futures_util::future::join(sending, b.receive(sent.len())).await;
    outcome.expect("a live peer");
    assert!(arrived == sent, "a large command changed on its way");
}

/// A transport with a limit says so, and delivers the rest; one without delivers everything.
pub async fn a_message_beyond_the_limit_is_dropped_alone(network: &dyn Network) {
    let (a, mut b) = (Node::start(network, 1).await, Node::start(network, 2).await);
    let to = b.peer.clone();
    let batch = vec![load(0, 10), load(1, 80 << 20), load(2, 10)];
    let (outcome, first) = futures_util::future::join(a.send(&to, batch), b.receive(1)).await;
    assert_eq!(number(&first[0]), Some(0));
    match outcome {
        Ok(()) => assert_eq!(b.receive(2 - (first.len() - 1)).await.len() + first.len(), 3),
        Err(TransportError::TooLarge { size, limit, .. }) => {
            assert!(size >= 80 << 20 && limit < size, "size {size}, limit {limit}");
            let last = if first.len() > 1 { first } else { b.receive(1).await };
            assert_eq!(last.last().and_then(number), Some(2), "the rest of the batch was dropped as well");
        }
        Err(other) => panic!("a message beyond the limit gave: {other}"),
    }
}
