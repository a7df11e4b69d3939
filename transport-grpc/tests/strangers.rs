//! Peers that do not keep to the protocol: each is refused with a reason, and disturbs nobody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

/// The client stub, generated as for the crate itself.
#[allow(clippy::pedantic, missing_docs, unreachable_pub, dead_code)]
mod pb {
    include!("../src/generated/raftkv.v1.rs");
}

/// The generated code asks for its codec by this name.
mod codec {
    pub(crate) use tonic_prost::ProstCodec as Codec;
}

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use common::{receiver, sender};
use futures_util::{Stream, StreamExt, stream};
use pb::peers_client::PeersClient;
use raftkv::testing::conformance::connections::{CLUSTER, Stopwatch, number, tick, within};
use raftkv::{Peer, Transport};
use raftkv_transport_grpc::{GrpcServer, Options, PROTOCOL_VERSION, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

fn hello(to: &Peer) -> pb::Hello {
    pb::Hello {
        version: PROTOCOL_VERSION,
        cluster: CLUSTER.0,
        from: 9,
        from_address: "127.0.0.1:9".into(),
        to: to.id.0,
        lane: pb::Lane::Control as i32,
    }
}

fn opening(hello: pb::Hello) -> pb::Frame {
    pb::Frame { hello: Some(hello), envelopes: vec![] }
}

async fn channel(peer: &Peer) -> Channel {
    Endpoint::from_shared(format!("http://{}", peer.address)).unwrap().connect().await.expect("a live peer")
}

/// Opens a stream with these frames, leaves it open, and tells how the server ends it.
async fn end_of(peer: &Peer, frames: Vec<pb::Frame>) -> Status {
    let frames = stream::iter(frames).chain(stream::pending());
    let mut client = PeersClient::new(channel(peer).await);
    let mut replies = match within("the call", client.open_lane(frames)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status,
    };
    loop {
        match within("the end", replies.message()).await {
            Ok(Some(welcome)) => assert_eq!(welcome.version, PROTOCOL_VERSION),
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_hello_that_does_not_fit_is_refused_with_its_reason() {
    let b = receiver(2, ServerOptions::default()).await;
    let good = hello(&b.peer);
    let cases = [
        (pb::Hello { version: 2, ..good.clone() }, "this node speaks version 1 of the protocol, not 2"),
        (pb::Hello { cluster: 0xbad, ..good.clone() }, "this is cluster 00000000000000c1, not 0000000000000bad"),
        (pb::Hello { to: 3, ..good.clone() }, "this is node n2, not n3"),
        (pb::Hello { from: 0, ..good.clone() }, "names no node"),
        (pb::Hello { from_address: String::new(), ..good.clone() }, "no address"),
        (pb::Hello { from_address: "x".repeat(500), ..good.clone() }, "no address"),
        (pb::Hello { lane: 0, ..good.clone() }, "names no lane"),
        (pb::Hello { lane: 77, ..good.clone() }, "names no lane, but 77"),
    ];
    for (hello, reason) in cases {
        let status = end_of(&b.peer, vec![opening(hello)]).await;
        assert!(matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument), "{status}");
        assert!(status.message().contains(reason), "{status} instead of {reason}");
    }
}

#[tokio::test]
async fn a_stream_must_begin_with_one_hello_alone() {
    let b = receiver(2, ServerOptions::default()).await;
    let envelope = pb::Envelope { group: 0, term: 1, body: None };
    let batch = pb::Frame { hello: None, envelopes: vec![envelope.clone()] };
    let both = pb::Frame { hello: Some(hello(&b.peer)), envelopes: vec![envelope] };
    let empty = pb::Frame { hello: None, envelopes: vec![] };
    for first in [batch, both, empty] {
        let status = end_of(&b.peer, vec![first]).await;
        assert!(status.message().contains("does not begin with a hello"), "{status}");
    }
    let twice = vec![opening(hello(&b.peer)), opening(hello(&b.peer))];
    let status = end_of(&b.peer, twice).await;
    assert!(status.message().contains("a second hello"), "{status}");
}

/// A stranger could make the node gather as many bytes as a message may have, on each stream that it opens.
#[tokio::test]
async fn no_more_is_gathered_of_a_stranger_than_a_hello_takes() {
    let mut b = receiver(2, ServerOptions::default()).await;
    let status =
        end_of(&b.peer, vec![opening(pb::Hello { from_address: "x".repeat(1 << 20), ..hello(&b.peer) })]).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    let words = "the stream does not begin with a hello: its first message has 10486";
    assert!(status.message().starts_with(words), "{status}");
    // What it has not even sent yet is not waited for.
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/raftkv.v1.Peers/OpenLane");
    let mut client = tonic::client::Grpc::new(channel(&b.peer).await);
    client.ready().await.unwrap();
    let endless = stream::once(std::future::ready(Bytes::from(vec![0; 2 << 10]))).chain(stream::pending());
    let status = within("the call", client.streaming(Request::new(endless), path, Raw)).await;
    let status = match status {
        Ok(replies) => within("the end", replies.into_inner().message()).await.unwrap_err(),
        Err(status) => status,
    };
    assert!(status.message().contains("its first message has 2048 bytes, and a hello at most 1024"), "{status}");
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    b.until(2).await;
}

/// HTTP/2 makes further ones wait.
#[tokio::test]
async fn a_connection_has_as_many_streams_as_it_may() {
    let b = receiver(2, ServerOptions { max_streams_per_connection: 2, ..ServerOptions::default() }).await;
    let channel = channel(&b.peer).await;
    let mut ends = Vec::new();
    for _ in 0..2 {
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let frames = stream::iter([opening(hello(&b.peer))]).chain(stream::pending().take_until(ended));
        let mut replies = PeersClient::new(channel.clone()).open_lane(frames).await.unwrap().into_inner();
        replies.message().await.unwrap().expect("a welcome");
        ends.push((end, replies));
    }
    let mut client = PeersClient::new(channel);
    let mut third = std::pin::pin!(client.open_lane(stream::iter([opening(hello(&b.peer))]).chain(stream::pending())));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut third).await.is_err(), "it does not wait");
    drop(ends);
    within("its turn", third).await.unwrap();
}

#[tokio::test]
async fn a_header_beyond_the_limit_is_refused() {
    let b = receiver(2, ServerOptions { max_header_bytes: 2 << 10, ..ServerOptions::default() }).await;
    let mut client = PeersClient::new(channel(&b.peer).await);
    let request = |bytes: usize| {
        let mut request = Request::new(stream::iter([opening(hello(&b.peer))]));
        request.metadata_mut().insert("x", "y".repeat(bytes).parse().unwrap());
        request
    };
    within("a call", client.open_lane(request(1 << 10))).await.unwrap();
    let mut replies = within("a call", client.open_lane(request(3 << 10))).await.unwrap().into_inner();
    let status = within("its end", replies.message()).await.unwrap_err();
    assert!(status.message().contains("431"), "{status}");
}

/// It sends probes, and reads none of the answers: they, and whatever else would be written to it, must not wait for ever.
#[tokio::test]
async fn a_peer_that_takes_nothing_is_left() {
    let options = ServerOptions {
        keep_alive_interval: Duration::from_millis(100),
        keep_alive_timeout: Duration::from_millis(200),
        handshake_timeout: Duration::from_secs(60),
        ..ServerOptions::default()
    };
    let mut b = receiver(2, options).await;
    let mut stream = TcpStream::connect(&*b.peer.address).await.unwrap();
    // An HTTP/2 connection begins so; then come pings.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let pings = b"\0\0\x08\x06\0\0\0\0\0deadbeef".repeat(1000);
    let error = within("the hang-up", async {
        loop {
            if let Err(error) = stream.write_all(&pings).await {
                return error;
            }
        }
    });
    let error = error.await;
    assert!(matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "{error}");
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    b.until(2).await;
}

#[tokio::test]
async fn a_message_that_makes_no_sense_ends_its_stream_alone() {
    let mut b = receiver(2, ServerOptions::default()).await;
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 1)]).await.unwrap();
    b.until(1).await;

    let good = pb::envelope::Body::Commit(pb::Commit { index: 4 });
    let bad = pb::envelope::Body::Vote(pb::Vote { last: None, transfer: false });
    let envelope = |body| pb::Envelope { group: 0, term: 3, body: Some(body) };
    let frame = pb::Frame { hello: None, envelopes: vec![envelope(good), envelope(bad)] };
    let status = end_of(&b.peer, vec![opening(hello(&b.peer)), frame]).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("without `last`"), "{status}");

    // Nothing of the bad batch was delivered, and others go on.
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    assert_eq!(number(&b.next().await[0]), Some(2));
}

#[tokio::test]
async fn a_message_for_another_group_is_refused() {
    let b = receiver(2, ServerOptions::default()).await;
    let body = Some(pb::envelope::Body::Commit(pb::Commit { index: 4 }));
    let frame = pb::Frame { hello: None, envelopes: vec![pb::Envelope { group: 5, term: 3, body }] };
    let status = end_of(&b.peer, vec![opening(hello(&b.peer)), frame]).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("no group g5"), "{status}");
}

#[tokio::test]
async fn a_stream_without_a_hello_ends_in_time() {
    let options = ServerOptions { handshake_timeout: Duration::from_millis(200), ..ServerOptions::default() };
    let b = receiver(2, options).await;
    let watch = Stopwatch::start();
    let status = end_of(&b.peer, vec![]).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    watch.expect_less_than(Duration::from_secs(2));
}

#[tokio::test]
async fn a_connection_that_never_becomes_a_peers_is_hung_up_on() {
    let options = ServerOptions { handshake_timeout: Duration::from_millis(150), ..ServerOptions::default() };
    let mut b = receiver(2, options).await;
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 1)]).await.unwrap();
    b.until(1).await;
    // Silence, and the beginning of an HTTP/2 connection.
    for opening in ["", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        let (begin, watch) = (Instant::now(), Stopwatch::start());
        let mut stream = TcpStream::connect(&*b.peer.address).await.unwrap();
        stream.write_all(opening.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = within("the hang-up", stream.read_to_end(&mut rest)).await;
        assert!(begin.elapsed() > Duration::from_millis(250), "{opening:?}: {:?}", begin.elapsed());
        watch.expect_less_than(Duration::from_secs(3));
    }
    // A real peer's connection outlives the limit.
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    assert_eq!(number(&b.next().await[0]), Some(2));
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_make_room_when_they_end() {
    let b = receiver(2, ServerOptions { max_streams: 2, ..ServerOptions::default() }).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let frames = stream::iter([opening(hello(&b.peer))]).chain(stream::pending().take_until(ended));
        let mut client = PeersClient::new(channel(&b.peer).await);
        let mut replies = client.open_lane(frames).await.unwrap().into_inner();
        replies.message().await.unwrap().expect("a welcome");
        open.push(end);
    }
    let status = end_of(&b.peer, vec![opening(hello(&b.peer))]).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    drop(open);
    within("a place", async {
        let mut client = PeersClient::new(channel(&b.peer).await);
        loop {
            let frames = stream::iter([opening(hello(&b.peer))]).chain(stream::pending());
            match client.open_lane(frames).await {
                Ok(_) => break,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
            }
        }
    })
    .await;
}

/// Places were taken before anybody said who it is, and held for as long as a hello may take: a stranger with a few connections kept all peers out.
#[tokio::test]
async fn silent_streams_of_one_address_keep_no_peer_out() {
    let options = ServerOptions {
        max_streams: 4,
        max_streams_per_connection: 8,
        max_connections_per_address: 4,
        handshake_timeout: Duration::from_secs(60),
        ..ServerOptions::default()
    };
    let mut b = receiver(2, options).await;
    let stranger = Endpoint::from_shared(format!("http://{}", b.peer.address)).unwrap();
    let stranger = stranger.local_address(Some([127, 0, 0, 2].into())).connect().await.unwrap();
    let mut client = PeersClient::new(stranger);
    let mut silent = Vec::new();
    for _ in 0..4 {
        let mut client = client.clone();
        let mut call = Box::pin(async move { client.open_lane(stream::pending()).await });
        // It leaves, and is not answered.
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut call).await.is_err());
        silent.push(call);
    }
    let status = within("a refusal", client.open_lane(stream::pending())).await.unwrap_err();
    let words = "127.0.0.2 has 4 streams open here on which nobody has said who it is";
    let peer = PeersClient::new(channel(&b.peer).await).open_lane(stream::iter([opening(hello(&b.peer))])).await;
    assert!(peer.is_ok(), "{peer:?}");
    assert!(status.code() == Code::ResourceExhausted && status.message().contains(words), "{status}");
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    b.until(2).await;
}

#[tokio::test]
async fn a_service_in_a_router_of_ones_own_closes_on_demand() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::new(2, listener.local_addr().unwrap().to_string());
    let (inbox, _arrivals) = raftkv::Inbox::channel(CLUSTER, raftkv::GroupId(0), peer.id);
    let server = GrpcServer::new(inbox, ServerOptions::default());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let router = tonic::transport::Server::builder().add_service(server.service());
    let running = tokio::spawn(router.serve_with_incoming(incoming));
    let ending = end_of(&peer, vec![opening(hello(&peer))]);
    let closing = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.close();
    };
    let (status, ()) = futures_util::future::join(ending, closing).await;
    assert!(status.message().contains("node 2 is shutting down"), "{status}");
    let again = end_of(&peer, vec![opening(hello(&peer))]).await;
    assert!(again.message().contains("node 2 is shutting down"), "{again}");
    running.abort();
}

/// Puts bytes on a stream as they are.
#[derive(Default)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

/// Opens a stream with these frames' bytes and tells how it ends.
async fn end_of_raw(channel: Channel, frames: impl Stream<Item = Bytes> + Send + 'static) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("a live connection");
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/raftkv.v1.Peers/OpenLane");
    let mut replies = client.streaming(Request::new(frames), path, Raw).await?.into_inner();
    while within("the end", replies.message()).await?.is_some() {}
    Ok(())
}

#[tokio::test]
async fn bytes_that_are_no_frames_are_refused() {
    use prost::Message;
    let mut b = receiver(2, ServerOptions::default()).await;
    let good = Bytes::from(opening(hello(&b.peer)).encode_to_vec());
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let channel = channel(&b.peer).await;
    for round in 0..200_u64 {
        let garbage: Bytes = (0..1 + random() % 64).map(|_| random() as u8).collect::<Vec<_>>().into();
        // Before the hello, or after it.
        let frames = if round % 2 == 0 { vec![garbage.clone()] } else { vec![good.clone(), garbage.clone()] };
        let outcome = end_of_raw(channel.clone(), stream::iter(frames)).await;
        match outcome {
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{status} for {garbage:?}"),
            // Unknown fields alone are an empty batch.
            Ok(()) => assert!(round % 2 == 1 && pb::Frame::decode(garbage.clone()).is_ok(), "{garbage:?} was taken"),
        }
    }
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    b.until(2).await;
}

#[tokio::test]
async fn bytes_that_are_no_http2_at_all_are_hung_up_on() {
    let mut b = receiver(2, ServerOptions::default()).await;
    for garbage in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_bytes(), &[0; 4096], &[0xff; 100]] {
        let mut stream = TcpStream::connect(&*b.peer.address).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let mut rest = Vec::new();
        let _ = within("the hang-up", stream.read_to_end(&mut rest)).await;
    }
    let transport = sender(Options::default());
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    b.until(2).await;
}
