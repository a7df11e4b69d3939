//! As limits.rs where clients speak TLS: what comes before anybody has shown a certificate.

use std::time::{Duration, Instant};

use crate::limits_support::{Abuser, MIB, Node, PUT, closed, within};
use kv_example::api::etcdserverpb::PutRequest;
use raftkv::transport_kit::Tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

const HANDSHAKE: &str = "raftkv_kv_limits_exceeded_total{limit=\"handshake-timeout-ms\"}";
const CONNECTIONS: &str = "raftkv_kv_limits_exceeded_total{limit=\"max-client-connections\"}";

/// A node whose clients speak TLS, and the directory of its certificates.
async fn protected(options: &[&str]) -> (Node, tempfile::TempDir) {
    let certs = tempfile::tempdir().unwrap();
    let out = certs.path().display().to_string();
    let made = crate::support::run(&["certs", "--out", &out, "--nodes", "1"]);
    assert!(made.status.success(), "{}", crate::support::stderr(&made));
    (Node::protected(options, certs.path()).await, certs)
}

/// What an honest client says first: a record of TLS, with its `ClientHello`.
async fn client_hello(tls: &Tls) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut other, _) = listener.accept().await.unwrap();
    let tls = tls.clone();
    let connecting = tokio::spawn(async move { tls.connect_to_host(stream, "127.0.0.1", b"h2").await.is_ok() });
    let mut record = vec![0; 5];
    within("a record", other.read_exact(&mut record)).await.unwrap();
    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
    within("a record", other.read_exact(&mut record[5..])).await.unwrap();
    connecting.abort();
    record
}

async fn writes(client: &mut Abuser) {
    let status = client.ask(PUT, &PutRequest { key: "k".into(), ..PutRequest::default() }).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_trickle_or_are_never_finished() {
    let limits = ["--max-client-connections", "50", "--max-address-percent", "40", "--handshake-timeout-ms", "4000"];
    let (node, _certs) = protected(&limits).await;
    let hello = client_hello(node.tls()).await;
    let watched = node.watched().await;
    let begun = Instant::now();
    let (mut strangers, mut trickles) = (Vec::new(), Vec::new());
    // Silence, the beginning of what a client says first, all of it and no answer to what the node says to that.
    let openings = [&hello[..0], &hello[..hello.len() / 2], &hello];
    for n in 0..15 {
        let mut stranger = node.connect(3).await;
        stranger.write_all(openings[n % openings.len()]).await.unwrap();
        strangers.push(stranger);
    }
    // A byte now and then, for much longer than there is time.
    for _ in 0..5 {
        let (mut stranger, hello) = (node.connect(3).await, hello.clone());
        trickles.push(tokio::spawn(async move {
            for byte in hello {
                if stranger.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            closed(&mut stranger).await;
        }));
    }
    // As many as one address may have.
    closed(&mut node.connect(3).await).await;
    watched.bears_it(8 * MIB).await;
    for stranger in &mut strangers {
        closed(stranger).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
    node.until_counted(HANDSHAKE, 20).await;
    let log = node.log();
    let words = "a connection did not make the handshake of TLS in time (--handshake-timeout-ms)";
    assert!(log.contains(words), "{log}");
    for trickle in trickles {
        within("the end of a trickle", trickle).await.unwrap();
    }
    // There is room again; and whoever shows a certificate has as much time again for HTTP/2, and no more.
    writes(&mut Abuser::connect(&node, 3).await).await;
    let mut silent = node.link(3).await;
    within("the hang-up", async { while matches!(silent.read(&mut [0; 1024]).await, Ok(1..)) {} }).await;
    node.until_counted(HANDSHAKE, 21).await;
    watched.bears_it(8 * MIB).await;
}

/// Whoever has not shown a certificate keeps no place from those who do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_of_several_addresses_that_are_never_finished() {
    let (node, _certs) = protected(&["--max-client-connections", "40", "--handshake-timeout-ms", "600000"]).await;
    let hello = client_hello(node.tls()).await;
    let watched = node.watched().await;
    let mut honest = Abuser::connect(&node, 4).await;
    writes(&mut honest).await;
    let mut strangers = Vec::new();
    for n in 0..40 {
        let mut stranger = node.connect(if n % 2 == 0 { 1 } else { 3 }).await;
        stranger.write_all(&hello).await.unwrap();
        strangers.push(stranger);
    }
    watched.bears_it(8 * MIB).await;
    // Half of all there may be can wait, and those that have waited longest go.
    for stranger in &mut strangers[..20] {
        closed(stranger).await;
    }
    writes(&mut honest).await;
    let gone = node.counted(CONNECTIONS);
    assert!(gone >= 20, "{gone}");
}

/// What a client says first may be long, and is not gathered for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_is_too_long() {
    let (node, _certs) = protected(&["--handshake-timeout-ms", "600000"]).await;
    let watched = node.watched().await;
    // A record of a handshake that holds the beginning of a `ClientHello` of 16 MiB, and more records.
    let [first, more] = [&[1, 0xff, 0xff, 0xff][..], &[]].map(|beginning| {
        let payload = [beginning, &vec![7; (1 << 14) - beginning.len()]].concat();
        [&[22, 3, 1, 0x40, 0][..], &payload].concat()
    });
    for _ in 0..20 {
        let mut stranger = node.connect(3).await;
        // It may have hung up by the end.
        let _ = stranger.write_all(&[&first[..], &more.repeat(100)].concat()).await;
        closed(&mut stranger).await;
    }
    watched.bears_it(8 * MIB).await;
    let log = node.log();
    assert!(log.contains("refused a client"), "{log}");
}
