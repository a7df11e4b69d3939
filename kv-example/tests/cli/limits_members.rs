//! As limits.rs at the members' port: strangers who never say who they are, and those who know the id of the cluster, and so are members where there is no
//! TLS.

use crate::limits_support::member::{self, Ask, Member, OPEN_LANE, Told, ask};
use crate::limits_support::{Abuser, Flood, MIB, Node, Rude, announced, closed};
use tokio::io::AsyncWriteExt;
use tonic::Code;

const LIMIT: &str = "raftkv_peers_refused_total{reason=\"limit\"}";
const ERROR: &str = "raftkv_peers_refused_total{reason=\"error\"}";
const SILENCE: &str = "raftkv_peers_refused_total{reason=\"silence\"}";

/// What they send before they have said who they are is not kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_over_grpc() {
    let limits = ["--max-peer-connections", "40", "--handshake-timeout-ms", "10000"];
    let node = Node::start(&[&limits[..], &["--transport", "grpc"]].concat()).await;
    let watched = node.watched().await;
    let mut abusers = Vec::new();
    for _ in 0..20 {
        let mut abuser = Abuser::connect_to(&node.members(), 1).await;
        for _ in 0..8 {
            let mut call = abuser.call(OPEN_LANE).await;
            // An announcement of the largest message, and as much of it as fits.
            call.send(announced(16 << 20, &vec![7; 1 << 20]));
            let status = call.status().await;
            assert!(status.message().contains("and a hello at most 1024"), "{status:?}");
        }
        abusers.push(abuser);
    }
    closed(&mut node.connect_to(&node.members(), 1).await).await;
    watched.bears_it(32 * MIB).await;
    assert!(node.counted(LIMIT) >= 1);
    assert!(node.counted(ERROR) >= 160);
    // The end of those who never said who they are.
    node.until_counted(SILENCE, 20).await;
}

/// The same over tarpc, where a frame is announced by its length alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_over_tarpc() {
    let limits = ["--max-peer-connections", "40", "--handshake-timeout-ms", "10000"];
    let node = Node::start(&[&limits[..], &["--transport", "tarpc"]].concat()).await;
    let watched = node.watched().await;
    let beginning = |bytes: u32| [&bytes.to_be_bytes()[..], b"raftkv-t\x01"].concat();
    let payload = vec![7; 1 << 20];
    for round in 0..160 {
        let mut stranger = node.connect_to(&node.members(), 1).await;
        // The largest message there can be, one byte more than a hello, and as much of it as is taken.
        stranger.write_all(&beginning(if round % 2 == 0 { 16 << 20 } else { 1025 })).await.unwrap();
        let _ = stranger.write_all(&payload).await;
        closed(&mut stranger).await;
    }
    // All but the last byte of a hello, and nothing at all: as many as one address may have.
    let mut silent = Vec::new();
    for round in 0..20 {
        let mut stranger = node.connect_to(&node.members(), 3).await;
        if round % 2 == 0 {
            stranger.write_all(&[&beginning(1024)[..], &[7; 1014]].concat()).await.unwrap();
        }
        silent.push(stranger);
    }
    closed(&mut node.connect_to(&node.members(), 3).await).await;
    watched.bears_it(8 * MIB).await;
    assert!(node.counted(LIMIT) >= 1);
    assert!(node.counted(ERROR) >= 160);
    let log = node.log();
    assert!(log.contains("its first frame has 16777216 bytes, and a hello at most 1024"), "{log}");
    for stranger in &mut silent {
        closed(stranger).await;
    }
    node.until_counted(SILENCE, 20).await;
    watched.bears_it(8 * MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_take_more_than_they_may_over_grpc() {
    let limits = ["--max-peer-message-mib", "4", "--max-peer-window-mib", "1", "--max-peer-streams", "2"];
    let node = Node::start(&[&limits[..], &["--transport", "grpc"]].concat()).await;
    let watched = node.watched().await;
    let mut rude = Rude::connect_to(&node.members(), 3).await;
    // As RFC 9113 numbers them: streams at a time, and the window of each.
    let settings = rude.settings().await;
    assert!(settings.contains(&(3, 2)) && settings.contains(&(4, 1 << 20)), "{settings:?}");
    for stream in [1, 3, 5] {
        rude.begin(stream, OPEN_LANE).await;
    }
    assert_eq!(rude.refused().await, (5, h2::Reason::REFUSED_STREAM));
    let mut abusers = Vec::new();
    for bytes in [(4 << 20) + 1, u32::MAX] {
        let mut abuser = Abuser::connect_to(&node.members(), 1).await;
        let mut call = abuser.call(OPEN_LANE).await;
        call.send(member::hello(&node));
        call.send(announced(bytes, &vec![7; 1 << 20]));
        let status = call.status().await;
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
        assert!(status.message().contains("the limit is: 4194304 bytes"), "{status:?}");
        abusers.push(abuser);
    }
    // All but the last bytes of messages that are not too large.
    for _ in 0..4 {
        let mut abuser = Abuser::connect_to(&node.members(), 1).await;
        let mut call = abuser.call(OPEN_LANE).await;
        call.send(member::hello(&node));
        call.send(announced(4 << 20, &vec![7; 4000 << 10]));
        assert!(call.refusal().await.is_none(), "it is welcome");
        abusers.push(abuser);
    }
    watched.bears_it(4 * 4 * MIB + 16 * MIB).await;
    // The stream beyond those that it may have, and two messages.
    node.until_counted(LIMIT, 3).await;
    let log = node.log();
    assert!(log.contains("refused a peer") && log.contains("the limit is: 4194304 bytes"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_take_more_than_they_may_over_tarpc() {
    let limits = ["--max-peer-message-mib", "4", "--max-peer-window-mib", "1", "--max-peer-requests", "16"];
    let node = Node::start(&[&limits[..], &["--transport", "tarpc"]].concat()).await;
    let watched = node.watched().await;
    let (mut greedy, told) = Member::welcomed(&node, 1).await;
    assert_eq!(told, Told { window: 1 << 20, message: 4 << 20, requests: 16 });
    // What it is told in the end has to be asked for first.
    let farewells: Vec<_> = (1..=17).flat_map(|id| ask(id, Ask::Farewell, b"")).collect();
    greedy.say(&farewells).await;
    greedy.is_told("more than 16 requests are under way at once (`max_requests`)").await;
    for bytes in [(4 << 20) + 100, u32::MAX] {
        let (mut member, _) = Member::welcomed(&node, 1).await;
        member.say(&ask(1, Ask::Farewell, b"")).await;
        member.say(&bytes.to_be_bytes()).await;
        member.say(&vec![7; 1 << 20]).await;
        member.is_told("is larger than the limit of 4194304 bytes (`max_message_bytes`)").await;
    }
    // All but the last bytes of messages that are not too large.
    let mut slow = Vec::new();
    for _ in 0..4 {
        let (mut member, _) = Member::welcomed(&node, 1).await;
        let whole = ask(1, Ask::Deliver, &vec![7; 4 << 20]);
        member.say(&whole[..whole.len() - 100]).await;
        slow.push(member);
    }
    watched.bears_it(4 * 4 * MIB + 16 * MIB).await;
    node.until_counted(LIMIT, 3).await;
    let log = node.log();
    assert!(log.contains("more than 16 requests are under way at once"), "{log}");
    assert!(log.contains("is larger than the limit of 4194304 bytes"), "{log}");
}

/// `--max-header-bytes` is for this port as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_too_large_or_never_end() {
    let node = Node::start(&["--max-header-bytes", "8192", "--transport", "grpc"]).await;
    let watched = node.watched().await;
    let mut rude = Rude::connect_to(&node.members(), 3).await;
    let settings = rude.settings().await;
    assert!(settings.contains(&(6, 8192)), "{settings:?}");
    rude.call_with_header(1, OPEN_LANE, 9000).await;
    // Its status comes before that.
    assert_eq!(rude.refused().await, (1, h2::Reason::PROTOCOL_ERROR));
    node.until_counted(LIMIT, 1).await;
    for (n, flood) in (2..).zip(Flood::ALL) {
        let mut rude = Rude::connect_to(&node.members(), 3).await;
        rude.flood(OPEN_LANE, flood).await;
        assert_eq!(rude.ends().await, h2::Reason::ENHANCE_YOUR_CALM, "{flood:?}");
        watched.bears_it(8 * MIB).await;
        node.until_counted(LIMIT, n).await;
    }
    let log = node.log();
    assert!(
        log.contains("refused a peer") && log.contains("the header of a request was too large (`max_header_bytes`)"),
        "{log}"
    );
}
