//! The bodies of requests, as they come through the gate.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tonic::body::Body;
use tonic::{Code, Status};

use super::{Gate, Holding, body};
use crate::config::{Limits, MemberLimits};
use crate::store;

fn message(length: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
    bytes.resize(5 + length, 7);
    bytes
}

fn gate() -> Arc<Gate> {
    let second = Duration::from_secs(1);
    let limits = Limits {
        client_connections: 10,
        peer_connections: 10,
        metrics_connections: 10,
        address_percent: 100,
        handshake_timeout: second,
        client_silence: second,
        receive_timeout: second,
        header_bytes: 8192,
        connection_requests: 10,
        connection_window_bytes: 4 << 20,
        health_watches: 10,
        pending_bytes: 1 << 20,
        response_bytes: 1 << 20,
        members: MemberLimits { message_bytes: 1 << 20, window_bytes: 1 << 20, requests: 10, streams: 10 },
    };
    let of_request = store::Limits { request_bytes: 1 << 20, ..store::Limits::default() };
    Arc::new(Gate::new(limits, 10, 10, of_request))
}

/// What becomes of a request that comes in these pieces, and what it holds at its end.
async fn passes(pieces: Vec<Vec<u8>>, is_streamed: bool) -> Result<usize, Status> {
    let gate = gate();
    let ticket = Arc::new(gate.admit(None, "/etcdserverpb.KV/Range", 0)?);
    let before = gate.held_bytes();
    let frames = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from(piece))));
    let request = body::received(Body::new(StreamBody::new(stream::iter(frames))), ticket.clone(), is_streamed, None);
    request.collect().await?;
    Ok(gate.held_bytes() - before)
}

#[tokio::test]
async fn room_is_made_for_a_message_however_it_is_cut() {
    let whole = message(1000);
    for at in [0, 1, 4, 5, 6, 500, 1005] {
        let (first, rest) = whole.split_at(at);
        assert_eq!(passes(vec![first.to_vec(), rest.to_vec()], false).await.unwrap(), 1000, "cut at {at}");
    }
    assert_eq!(passes(vec![], false).await.unwrap(), 0);
}

/// Room was made for the first, and what came behind it was gathered all the same.
#[tokio::test]
async fn a_second_message_is_not_gathered() {
    for pieces in [vec![message(0), message(1000)], vec![[message(3), message(1000)].concat()]] {
        let status = passes(pieces, false).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("more than one message"), "{status}");
    }
    passes(vec![message(3), message(1000)], true).await.unwrap();
}

/// HTTP/2 drops a body once it has all of its data, and the data once that is written.
#[tokio::test]
async fn an_answer_counts_for_as_long_as_its_data_is_somewhere() {
    let gate = gate();
    let ticket = Arc::new(gate.admit(None, "/etcdserverpb.KV/Range", 0).unwrap());
    ticket.hold(3000).unwrap();
    let held = gate.held_bytes();
    let frames = [vec![1; 1000], vec![2; 2000]].map(|data| Ok::<_, Infallible>(Frame::data(Bytes::from(data))));
    let mut answer = body::answered(Body::new(StreamBody::new(stream::iter(frames))), ticket);
    let mut data = Vec::new();
    while let Some(frame) = answer.frame().await {
        data.push(frame.unwrap().into_data().unwrap());
    }
    drop(answer);
    assert_eq!(data, [vec![1; 1000], vec![2; 2000]]);
    let mut rest = data.pop().unwrap();
    let written = rest.split_to(1500);
    drop((data, written));
    assert_eq!(gate.held_bytes(), held);
    drop(rest);
    assert_eq!(gate.held_bytes(), 0);
}

#[test]
fn room_for_an_answer_is_taken_while_it_is_gathered_and_given_back_when_it_is_smaller() {
    let gate = gate();
    let ticket = Arc::new(gate.admit(None, "/etcdserverpb.KV/Range", 0).unwrap());
    let before = gate.held_bytes();
    let mut request = tonic::Extensions::new();
    request.insert(ticket);
    let holding = Holding::of(&request);
    assert!(holding.take(300_000) && holding.clone().take(300_000));
    assert_eq!(gate.held_bytes(), before + 600_000);
    assert!(!holding.take(600_000));
    let refused = holding.refused().unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "etcdserver: too many requests"));
    holding.settle(1000).unwrap();
    assert_eq!(gate.held_bytes(), before + 1000);
    drop(request);
    assert_eq!(gate.held_bytes(), 0);
    // Whoever gives up meanwhile gives it back as well.
    let ticket = Arc::new(gate.admit(None, "/etcdserverpb.KV/Range", 0).unwrap());
    let mut request = tonic::Extensions::new();
    request.insert(ticket);
    let holding = Holding::of(&request);
    assert!(holding.take(300_000));
    drop((request, holding));
    assert_eq!(gate.held_bytes(), 0);
}
