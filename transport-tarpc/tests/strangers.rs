//! Peers that do not keep to the protocol: each is refused with a reason, and disturbs nobody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

use std::time::Duration;

use common::{receiver, sender};
use raftkv::testing::conformance::connections::{CLUSTER, Log, Receiver, Stopwatch, load, number, tick, within};
use raftkv::transport_kit::MAX_ADDRESS_BYTES;
use raftkv::transport_kit::listener::OUTWAITED;
use raftkv::{GroupId, Inbox, NodeId, Peer, Transport};
use raftkv_transport_tarpc::{Options, PROTOCOL_VERSION, ServerOptions, TarpcServer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const MAGIC: &[u8] = b"raftkv-t";

/// What a stranger says of itself; see `src/wire/v1.rs`.
#[derive(Clone)]
struct Hello {
    version: u32,
    cluster: u64,
    from: u64,
    address: String,
    to: u64,
    lane: u8,
}

impl Hello {
    fn to(peer: &Peer) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            cluster: CLUSTER.0,
            from: 9,
            address: "127.0.0.1:9".into(),
            to: peer.id.0,
            lane: 1,
        }
    }

    fn frame(&self) -> Vec<u8> {
        let Self { version, cluster, from, address, to, lane } = self;
        let said = encode(&(version, cluster, from, address, to, lane, 1000_u32));
        frame(&[MAGIC, &said].concat())
    }
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    let mut buffer = vec![0; 64 << 10];
    postcard::to_slice(value, &mut buffer).unwrap().to_vec()
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// A request: its id, its patience in milliseconds, the number of its kind, and what follows.
fn ask(id: u64, patience: u32, call: u8, rest: &[u8]) -> Vec<u8> {
    frame(&[&encode(&(id, patience, call)), rest].concat())
}

const DELIVER: u8 = 0;
const PROBE: u8 = 1;
const FAREWELL: u8 = 2;

/// A batch of one message of group 0 that tells a commit index.
fn commit(index: u64) -> Vec<u8> {
    encode(&(1_u8, 0_u8, 3_u8, 13_u8, index))
}

/// A connection that says what it likes.
struct Stranger<S> {
    stream: S,
    heard: Vec<u8>,
}

impl Stranger<TcpStream> {
    async fn connect(to: &Peer) -> Self {
        Self { stream: TcpStream::connect(&*to.address).await.unwrap(), heard: Vec::new() }
    }

    /// One that was welcomed.
    async fn welcomed(to: &Peer) -> Self {
        let mut stranger = Self::connect(to).await;
        stranger.say(&Hello::to(to).frame()).await;
        stranger.answers(1).await;
        stranger
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stranger<S> {
    async fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Reads until this many frames were heard.
    async fn answers(&mut self, count: usize) {
        within("an answer", async {
            while frames(&self.heard) < count {
                let read = self.stream.read_buf(&mut self.heard).await.unwrap();
                assert!(read > 0, "closed after {:?}", self.text());
            }
        })
        .await;
    }

    /// Reads to the end.
    async fn end(&mut self) -> String {
        let _ = within("the end", self.stream.read_to_end(&mut self.heard)).await;
        self.text()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.heard).into_owned()
    }
}

fn frames(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let Some(rest) = rest.get(u32::from_be_bytes(*len) as usize..) else { break };
        (bytes, count) = (rest, count + 1);
    }
    count
}

/// That others are served as if nothing had happened.
async fn is_well(b: &mut Receiver) {
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 77)]).await.unwrap();
    b.until(77).await;
}

#[tokio::test]
async fn a_hello_that_does_not_fit_is_refused_with_its_reason() {
    let mut b = receiver(2, ServerOptions::default()).await;
    let good = Hello::to(&b.peer);
    let cases = [
        (
            Hello { version: 2, ..good.clone() },
            "this node speaks version 1 of the protocol, not 2: upgrade the older one",
        ),
        (Hello { cluster: 0xbad, ..good.clone() }, "this is cluster 00000000000000c1, not 0000000000000bad"),
        (Hello { to: 3, ..good.clone() }, "this is node n2, not n3"),
        (Hello { from: 0, ..good.clone() }, "names no node"),
        (Hello { address: String::new(), ..good.clone() }, "no address"),
        (Hello { address: "x".repeat(500), ..good.clone() }, "no address"),
        (Hello { lane: 0, ..good.clone() }, "names no lane, but 0"),
        (Hello { lane: 77, ..good.clone() }, "names no lane, but 77"),
    ];
    let log = Log::default();
    let _guard = log.start();
    for (hello, reason) in cases {
        let mut stranger = Stranger::connect(&b.peer).await;
        stranger.say(&hello.frame()).await;
        stranger.answers(1).await;
        assert!(stranger.text().contains(reason), "{:?} instead of {reason}", stranger.text());
        // Once for each reason.
        assert_eq!(log.lines(&["WARN", "refused a peer", reason]).len(), 1, "{:?}", log.lines(&[]));
    }
    is_well(&mut b).await;
}

#[tokio::test]
async fn a_connection_must_begin_with_a_hello() {
    let mut b = receiver(2, ServerOptions::default()).await;
    let mut wrong = Hello::to(&b.peer).frame();
    wrong[6] ^= 1;
    let cut = frame(&Hello::to(&b.peer).frame()[4..20]);
    for opening in [ask(0, 1000, DELIVER, &commit(4)), wrong, cut, frame(b"")] {
        let mut stranger = Stranger::connect(&b.peer).await;
        stranger.say(&opening).await;
        assert_eq!(stranger.end().await, "", "there is nothing to be said to {opening:?}");
    }
    is_well(&mut b).await;
}

#[tokio::test]
async fn a_message_that_makes_no_sense_ends_its_connection_alone() {
    let mut b = receiver(2, ServerOptions::default()).await;
    let absurd = encode(&(2_u8, 0_u8, 3_u8, 13_u8, 4_u64, 0_u8, 3_u8, 13_u8, u64::MAX));
    let unknown = vec![1, 0, 3, 99];
    for (batch, reason) in [(absurd, "an absurd index"), (unknown, "of a kind that this version does not know")] {
        let mut stranger = Stranger::welcomed(&b.peer).await;
        stranger.say(&ask(1, 100_000, FAREWELL, b"")).await;
        stranger.say(&ask(2, 100_000, DELIVER, &batch)).await;
        // The answer, and the farewell.
        stranger.answers(3).await;
        assert_eq!(stranger.text().matches(reason).count(), 2, "{:?}", stranger.text());
    }
    // Nothing of the bad batches was delivered, and others go on.
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    assert_eq!(number(&b.next().await[0]), Some(2));
}

#[tokio::test]
async fn a_request_that_makes_no_sense_ends_its_connection_alone() {
    let mut b = receiver(2, ServerOptions::default()).await;
    for request in [ask(2, 1000, 99, b""), frame(b""), frame(&[0xff; 30])] {
        let mut stranger = Stranger::welcomed(&b.peer).await;
        stranger.say(&ask(1, 100_000, FAREWELL, b"")).await;
        stranger.say(&request).await;
        stranger.answers(2).await;
        assert!(stranger.text().contains("a request that can't be decoded"), "{:?}", stranger.text());
    }
    is_well(&mut b).await;
}

#[tokio::test]
async fn a_message_for_another_group_is_refused() {
    let b = receiver(2, ServerOptions::default()).await;
    let mut stranger = Stranger::welcomed(&b.peer).await;
    stranger.say(&ask(1, 100_000, DELIVER, &encode(&(1_u8, 5_u8, 3_u8, 13_u8, 4_u64)))).await;
    stranger.answers(2).await;
    assert!(stranger.text().contains("no group g5"), "{:?}", stranger.text());
}

/// tarpc's own decoder adds what a peer says to the clock, and panics over numbers that are too large.
#[tokio::test]
async fn patience_of_any_length_is_borne() {
    let mut b = receiver(2, ServerOptions::default()).await;
    let mut stranger = Stranger::welcomed(&b.peer).await;
    for (id, patience) in [(1, u32::MAX), (2, 1_000_000)] {
        stranger.say(&ask(id, patience, PROBE, b"")).await;
    }
    stranger.answers(3).await;
    // Nobody waits for this answer, and it does no harm.
    stranger.say(&ask(3, 0, DELIVER, &commit(4))).await;
    stranger.say(&ask(4, u32::MAX, PROBE, b"")).await;
    stranger.answers(4).await;
    is_well(&mut b).await;
}

#[tokio::test]
async fn a_connection_that_never_becomes_a_peers_is_hung_up_on() {
    let options = ServerOptions { handshake_timeout: Duration::from_millis(200), ..ServerOptions::default() };
    let mut b = receiver(2, options).await;
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 1)]).await.unwrap();
    b.until(1).await;
    // Silence, and the beginning of a hello.
    let hello = Hello::to(&b.peer).frame();
    for opening in [&hello[..0], &hello[..4], &hello[..hello.len() - 1]] {
        let (begin, watch) = (Instant::now(), Stopwatch::start());
        let mut stranger = Stranger::connect(&b.peer).await;
        stranger.say(opening).await;
        stranger.end().await;
        assert!(begin.elapsed() > Duration::from_millis(150), "{opening:?}: {:?}", begin.elapsed());
        watch.expect_less_than(Duration::from_secs(3));
    }
    // A real peer's connection outlives the limit.
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    assert_eq!(number(&b.next().await[0]), Some(2));
}

/// A peer that was welcomed, and then vanished without a word: no FIN, no probe.
#[tokio::test]
async fn a_peer_that_gives_no_sign_of_life_is_given_up() {
    let options = ServerOptions { keep_alive_timeout: Duration::from_millis(1500), ..ServerOptions::default() };
    let mut b = receiver(2, options).await;
    let log = Log::default();
    let _guard = log.start();
    // It said that it would probe once a second.
    let mut stranger = Stranger::welcomed(&b.peer).await;
    let (begin, watch) = (Instant::now(), Stopwatch::start());
    for id in 1..4 {
        sleep(Duration::from_secs(1)).await;
        stranger.say(&ask(id, 1000, PROBE, b"")).await;
        stranger.answers(1 + usize::try_from(id).unwrap()).await;
    }
    stranger.end().await;
    assert!(begin.elapsed() > Duration::from_millis(5200), "given up after {:?}", begin.elapsed());
    watch.expect_less_than(Duration::from_millis(7500));
    within("the line", async {
        while log.lines(&["peer disconnected", "nothing was heard from it for 2.5s"]).is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // The node may want to know.
    assert_eq!(within("the hint", b.arrivals.lost()).await, Some(NodeId(9)));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_make_room_when_they_end() {
    let options =
        ServerOptions { max_connections: 2, handshake_timeout: Duration::from_secs(60), ..ServerOptions::default() };
    let b = receiver(2, options).await;
    let open = [Stranger::welcomed(&b.peer).await, Stranger::welcomed(&b.peer).await];
    let mut third = Stranger::connect(&b.peer).await;
    third.say(&Hello::to(&b.peer).frame()).await;
    third.answers(1).await;
    assert!(third.text().contains("2 connections are open here already"), "{:?}", third.text());
    drop(third);
    // As many again may be there without having said who they are. For the next one the one that has waited longest has to go.
    let log = Log::default();
    let _guard = log.start();
    let mut waiting = vec![Stranger::connect(&b.peer).await];
    while timeout(Duration::from_millis(300), waiting[0].end()).await.is_err() {
        // The one that was refused may still be among them, and goes first then.
        assert!(waiting.len() < 4, "all of {} are listened to", waiting.len());
        waiting.push(Stranger::connect(&b.peer).await);
    }
    for next in waiting.iter_mut().rev().take(2) {
        timeout(Duration::from_millis(300), next.end()).await.unwrap_err();
    }
    assert!(!log.lines(&["WARN", "refused a peer", OUTWAITED]).is_empty(), "{:?}", log.lines(&[]));
    drop(waiting);
    drop(open);
    within("a place", async {
        loop {
            let mut next = Stranger::connect(&b.peer).await;
            next.say(&Hello::to(&b.peer).frame()).await;
            next.stream.shutdown().await.unwrap();
            if next.end().await.contains("raftkv-t") && !next.text().contains("open here already") {
                return;
            }
        }
    })
    .await;
}

/// The receiver takes nothing, and a peer that knows its window goes on sending.
#[tokio::test]
async fn more_than_the_window_is_not_taken() {
    let options = ServerOptions { window_bytes: 1 << 20, ..ServerOptions::default() };
    let b = receiver(2, options).await;
    let mut stranger = Stranger::welcomed(&b.peer).await;
    stranger.say(&ask(1, 100_000, FAREWELL, b"")).await;
    // Forwarded commands of 32 KiB, a message each.
    let command = encode(&(1_u8, 0_u8, 3_u8, 11_u8, 1_u64, 2_u8, [serde_bytes::Bytes::new(&[7; 32 << 10])].as_slice()));
    // What the inbox holds, and some more than the window.
    for id in 2..1200 {
        stranger.say(&ask(id, 100_000, DELIVER, &command)).await;
    }
    within("the farewell", async {
        while !stranger.text().contains("more than 1048576 bytes are under way at once") {
            stranger.stream.read_buf(&mut stranger.heard).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn more_requests_than_are_allowed_are_not_taken() {
    // Fewer than the fewest are as many as these.
    for (max_requests, most) in [(1024, 1024), (16, 16), (1, ServerOptions::FEWEST_REQUESTS)] {
        let mut b = receiver(2, ServerOptions { max_requests, ..ServerOptions::default() }).await;
        let mut stranger = Stranger::welcomed(&b.peer).await;
        let farewells: Vec<u8> = (1..u64::from(most) * 2).flat_map(|id| ask(id, 100_000, FAREWELL, b"")).collect();
        stranger.say(&farewells).await;
        stranger.answers(2).await;
        let words = format!("more than {most} requests are under way at once (`max_requests`)");
        assert!(stranger.text().contains(&words), "{:?}", stranger.text());
        is_well(&mut b).await;
    }
}

/// A peer is told how many requests it may have, and keeps to it, however much it has to send and however long nothing of it is taken.
#[tokio::test]
async fn a_peer_keeps_to_the_requests_that_it_may_have() {
    let options = ServerOptions { max_requests: ServerOptions::FEWEST_REQUESTS, ..ServerOptions::default() };
    let mut b = receiver(2, options).await;
    let log = Log::default();
    let _guard = log.start();
    let transport = sender(Options { keep_alive_interval: Duration::from_millis(50), ..Options::default() });
    // More than the inbox and the window hold, each in a batch of its own.
    const MESSAGES: u64 = 200;
    let to = b.peer.clone();
    let sending = tokio::spawn(async move {
        for n in 0..MESSAGES {
            transport.send(&to, vec![load(&to, n, 256 << 10)]).await.unwrap();
        }
        transport
    });
    // Meanwhile it probes.
    sleep(Duration::from_secs(1)).await;
    assert!(!sending.is_finished(), "nothing of it had to wait");
    for n in 0..MESSAGES {
        assert_eq!(number(&b.next().await[0]), Some(n));
    }
    let _transport = sending.await.unwrap();
    assert!(log.lines(&["refused"]).is_empty() && log.lines(&["disconnected"]).is_empty(), "{:?}", log.lines(&[]));
}

/// The largest hello that there can be is a small part of what is read of one; more is not waited for.
#[tokio::test]
async fn no_more_is_read_of_a_stranger_than_a_hello_takes() {
    let mut b = receiver(2, ServerOptions::default()).await;
    let largest = Hello { from: u64::MAX, address: "x".repeat(MAX_ADDRESS_BYTES), ..Hello::to(&b.peer) };
    // The version, the cluster and the receiver may all take some bytes more.
    assert!(largest.frame().len() <= 4 + 351, "{} bytes", largest.frame().len());
    let mut stranger = Stranger::connect(&b.peer).await;
    stranger.say(&largest.frame()).await;
    stranger.answers(1).await;
    assert!(!stranger.text().contains("no address"), "{:?}", stranger.text());
    let log = Log::default();
    let _guard = log.start();
    for bytes in [1025, 16 << 20, u32::MAX] {
        let mut stranger = Stranger::connect(&b.peer).await;
        // The beginning of a good one.
        stranger.say(&[&bytes.to_be_bytes(), &Hello::to(&b.peer).frame()[4..]].concat()).await;
        assert_eq!(stranger.end().await, "");
        let words = format!("its first frame has {bytes} bytes, and a hello at most 1024");
        assert_eq!(log.lines(&["WARN", "refused a peer", &words]).len(), 1, "{:?}", log.lines(&[]));
    }
    is_well(&mut b).await;
}

/// Bytes need not come from a listener of this crate, nor over TCP.
#[tokio::test]
async fn connections_that_are_accepted_elsewhere_are_attended_until_the_server_is_closed() {
    let (inbox, mut arrivals) = Inbox::channel(CLUSTER, GroupId(0), NodeId(2));
    let server = TarpcServer::new(inbox, ServerOptions::default());
    let (near, far) = tokio::io::duplex(1 << 10);
    let attending = server.clone();
    let attending = tokio::spawn(async move { attending.attend(far, None).await });
    let mut stranger = Stranger { stream: near, heard: Vec::new() };
    stranger.say(&Hello::to(&Peer::new(2, "")).frame()).await;
    stranger.say(&ask(1, 100_000, FAREWELL, b"")).await;
    stranger.say(&ask(2, 100_000, DELIVER, &commit(4))).await;
    stranger.answers(2).await;
    assert_eq!(within("the batch", arrivals.next()).await.unwrap().1.len(), 1);
    server.close();
    stranger.answers(3).await;
    assert!(stranger.text().contains("node 2 is shutting down"), "{:?}", stranger.text());
    drop(stranger);
    within("the end", attending).await.unwrap();
    let (near, far) = tokio::io::duplex(1 << 10);
    let mut again = Stranger { stream: near, heard: Vec::new() };
    again.say(&Hello::to(&Peer::new(2, "")).frame()).await;
    let attending = tokio::spawn(async move { server.attend(far, None).await });
    again.answers(1).await;
    assert!(again.text().contains("node 2 is shutting down"), "{:?}", again.text());
    drop(again);
    within("the end", attending).await.unwrap();
}

#[tokio::test]
async fn bytes_that_are_no_frames_are_refused() {
    let mut b = receiver(2, ServerOptions::default()).await;
    let good = Hello::to(&b.peer).frame();
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..200_u64 {
        let garbage: Vec<u8> = (0..1 + random() % 64).map(|_| random() as u8).collect();
        // Before the hello, after it, and in a frame of its own after it.
        let bytes = match round % 3 {
            0 => garbage.clone(),
            1 => [good.clone(), garbage.clone()].concat(),
            _ => [good.clone(), frame(&garbage)].concat(),
        };
        let mut stranger = Stranger::connect(&b.peer).await;
        stranger.say(&bytes).await;
        let _ = stranger.stream.shutdown().await;
        stranger.end().await;
    }
    is_well(&mut b).await;
}

/// A web server's client, gRPC's, and somebody who holds a key down.
#[tokio::test]
async fn clients_of_something_else_are_hung_up_on() {
    let mut b = receiver(2, ServerOptions::default()).await;
    let http = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_bytes();
    for garbage in [http, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0; 4096], &[0xff; 100]] {
        let mut stranger = Stranger::connect(&b.peer).await;
        stranger.say(garbage).await;
        stranger.end().await;
    }
    is_well(&mut b).await;
}
