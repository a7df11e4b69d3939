//! A connection over a pipe in memory, on a clock that is told what time it is.

use std::time::Duration;

use bytes::Bytes;
use raftkv::transport_kit::Connection as _;
use raftkv::{Arrivals, Body, ClusterId, EntryKind, GroupId, Inbox, Message, NodeId, RequestId, Term};
use tokio::io::duplex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::options::ServerOptions;
use crate::server::TarpcServer;

const CLUSTER: ClusterId = ClusterId(3);

fn load(bytes: usize) -> Envelope {
    let commands = vec![Bytes::from(vec![7; bytes])];
    let body = Body::Forward { request: RequestId(1), kind: EntryKind::Command, commands };
    let message = Message { term: Term(1), body };
    Envelope { cluster: CLUSTER, group: GroupId(0), from: NodeId(1), to: NodeId(2), message }
}

/// Both ends, the receiver's inbox, and a sender that has these messages to send, each in a parcel of its own.
async fn connected(messages: &[usize]) -> (Connection, Inbox, Arrivals, JoinHandle<()>) {
    let (inbox, arrivals) = Inbox::channel(CLUSTER, GroupId(0), NodeId(2));
    let server = TarpcServer::new(inbox.clone(), ServerOptions::default());
    let (near, far) = duplex(1 << 16);
    let attending = tokio::spawn(async move { server.attend(far, None).await });
    let local = Local { cluster: CLUSTER, node: Peer::new(1, "a") };
    let dialer = Dialer { local, options: Options::default(), tls: None };
    let parcel = |bytes: &usize| {
        let batch = vec![load(*bytes)];
        let bytes = batch.iter().map(wire::max_encoded_len).sum::<u64>() as usize;
        Parcel { batch, bytes }
    };
    let outgoing = Outgoing::holding(messages.iter().map(parcel).collect());
    let connection =
        dialer.open(near, &Peer::new(2, "b"), Lane::Bulk, outgoing, 1).await.map_err(|e| e.reason().to_owned());
    (connection.expect("a welcome"), inbox, arrivals, attending)
}

/// Parcels that wait go together, until that is enough.
#[tokio::test(start_paused = true)]
async fn what_waits_is_sent_as_one_batch() {
    let (mut connection, _inbox, mut arrivals, _attending) = connected(&[10, 20, 30, 200_000, 40]).await;
    let running = tokio::spawn(async move { connection.lost().await });
    let mut batches = Vec::new();
    while batches.iter().sum::<usize>() < 5 {
        batches.push(arrivals.next().await.expect("an open inbox").1.len());
    }
    assert_eq!(batches, [4, 1]);
    running.abort();
}

/// Probes are answered all the time, and nothing is taken: an hour later the connection is given up. The farewell, whose time is over first, is asked
/// for again.
#[tokio::test(start_paused = true)]
async fn a_receiver_that_lives_and_takes_nothing_is_given_up_in_the_end() {
    let (mut connection, inbox, _arrivals, _attending) = connected(&[10]).await;
    // Larger than the whole inbox: it passes alone, and nothing fits behind it.
    inbox.deliver(&Peer::new(1, "a"), vec![load(64 << 20)]).await.expect("an open inbox");
    sleep(Duration::from_millis(1)).await;
    let begun = Instant::now();
    let failure = connection.lost().await;
    assert_eq!(failure.reason(), "it took nothing for 3600s");
    let took = begun.elapsed();
    assert!((DEADLINE..DEADLINE + Duration::from_secs(1)).contains(&took), "{took:?}");
}
