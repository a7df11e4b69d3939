//! Whoever takes more than a limit allows is told so, costs no memory, and disturbs nobody else. The server is a process of its own, so that its
//! memory can be looked at; whoever abuses it does so from 127.0.0.1, and another client goes on from 127.0.0.2.

use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::limits_support::{self as server, Abuser, MIB, Node, PUT, announced, everything, range_op, within};
use kv_example::api::etcdserverpb::auth_client::AuthClient;
use kv_example::api::etcdserverpb::{AuthenticateRequest, PutRequest, RangeRequest, TxnRequest, request_op};
use kv_example::service::{DECIDED, DETAIL, RETRY, RETRY_SAFE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};

const TOO_LARGE_HEADERS: &str = "raftkv_kv_limits_exceeded_total{limit=\"max-header-bytes\"}";

fn detail(status: &Status) -> String {
    status.metadata().get(DETAIL).map(|text| text.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_too_many_or_never_begin() {
    let limits = ["--max-client-connections", "50", "--max-address-percent", "40", "--handshake-timeout-ms", "5000"];
    let node = Node::start(&limits).await;
    let (watched, begun) = (node.watched().await, Instant::now());
    // Silence, half of what HTTP/2 begins with, all but the end of its first frame.
    let openings = ["", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0"];
    let mut strangers = Vec::new();
    for n in 0..20 {
        let mut stranger = node.connect(1).await;
        stranger.write_all(openings[n % openings.len()].as_bytes()).await.unwrap();
        strangers.push(stranger);
    }
    // As many as one address may have.
    server::closed(&mut node.connect(1).await).await;
    watched.bears_it(8 * MIB).await;
    let last = strangers.pop().unwrap();
    let mut others = strangers.into_iter();
    server::closed(&mut others.next().unwrap()).await;
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    for mut stranger in others.chain([last]) {
        server::closed(&mut stranger).await;
    }
    assert!(node.counted("raftkv_kv_limits_exceeded_total{limit=\"max-address-percent\"}") >= 1);
    assert_eq!(node.counted("raftkv_kv_limits_exceeded_total{limit=\"handshake-timeout-ms\"}"), 20);
    let log = node.log();
    assert!(log.contains("a connection was closed unheard: 127.0.0.1 has 20 of them"), "{log}");
    assert!(log.contains("--max-address-percent") && log.contains("--handshake-timeout-ms"), "{log}");
    watched.bears_it(8 * MIB).await;
    // There is room again.
    let mut client = node.client(1).await;
    client.put(PutRequest { key: "k".into(), ..PutRequest::default() }).await.unwrap();
}

/// Whoever has not begun keeps no place from those who do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_from_several_addresses() {
    let node = Node::start(&["--max-client-connections", "40", "--handshake-timeout-ms", "600000"]).await;
    let watched = node.watched().await;
    let mut strangers = Vec::new();
    for n in 0..40 {
        strangers.push(node.connect(if n % 2 == 0 { 1 } else { 3 }).await);
    }
    watched.bears_it(8 * MIB).await;
    // Half of all there may be can wait, and those that have waited longest go.
    for stranger in &mut strangers[..20] {
        server::closed(stranger).await;
    }
    let gone = node.counted("raftkv_kv_limits_exceeded_total{limit=\"max-client-connections\"}");
    assert!(gone >= 20, "{gone}");
    let log = node.log();
    assert!(log.contains("a connection that had not begun was closed, as another one needed the room"), "{log}");
}

/// That somebody speaks HTTP/2 is no reason yet to keep others out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_ask_for_nothing() {
    let node = Node::start(&["--max-client-connections", "40"]).await;
    let watched = node.watched().await;
    let mut honest = Abuser::connect(&node, 4).await;
    let mut get = async || {
        let mut call = honest.call("/etcdserverpb.KV/Range").await;
        call.send_all(server::framed(&everything()));
        call.refusal().await
    };
    assert!(get().await.is_none(), "it is answered");
    let mut idle = Vec::new();
    for n in 0..40 {
        let mut stream = node.connect(if n % 2 == 0 { 1 } else { 3 }).await;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        // The settings of the server.
        within("an answer", stream.read_exact(&mut [0; 9])).await.unwrap();
        idle.push(stream);
    }
    watched.bears_it(8 * MIB).await;
    for stream in &mut idle[..20] {
        server::closed(stream).await;
    }
    assert!(get().await.is_none(), "whoever has asked for something keeps its place");
    let gone = node.counted("raftkv_kv_limits_exceeded_total{limit=\"max-client-connections\"}");
    assert!(gone >= 20, "{gone}");
    // There is time for those that are left.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let mut last = idle.pop().unwrap();
    last.write_all(b"\0\0\x08\x06\0\0\0\0\0deadbeef").await.unwrap();
    within("an answer", last.read_exact(&mut [0; 17])).await.unwrap();
}

/// Pings are answered, and who sends them never reads the answers: a probe of the server can't be written either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_is_left() {
    let node = Node::start(&["--client-silence-ms", "1000"]).await;
    let watched = node.watched().await;
    let mut stream = node.connect(1).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let pings = b"\0\0\x08\x06\0\0\0\0\0deadbeef".repeat(1000);
    within("the hang-up", async { while stream.write_all(&pings).await.is_ok() {} }).await;
    watched.bears_it(8 * MIB).await;
    // One that takes everything, and answers no probe.
    let mut deaf = node.connect(1).await;
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let begun = Instant::now();
    server::closed(&mut deaf).await;
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
    watched.bears_it(8 * MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_too_many_or_never_arrive() {
    let node = Node::start(&["--max-pending-requests", "16", "--receive-timeout-ms", "3000"]).await;
    let watched = node.watched().await;
    let mut abuser = Abuser::connect(&node, 1).await;
    let begun = Instant::now();
    let mut halves = abuser.half_puts(8).await;
    node.until_in_progress(8).await;
    let mut ninth = abuser.call("/etcdserverpb.KV/Put").await;
    let refused = ninth.status().await;
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "etcdserver: too many requests"));
    let words = "requests in progress: 127.0.0.1 has 8 of them, as much as one address may (--max-address-percent of \
                 --max-pending-requests; try again later)";
    assert!(detail(&refused).starts_with(words), "{refused:?}");
    watched.bears_it(8 * MIB).await;
    for call in &mut halves {
        let status = call.status().await;
        assert_eq!(
            (status.code(), status.message()),
            (Code::DeadlineExceeded, "raftkv: the request did not arrive in time")
        );
        assert!(detail(&status).contains("(--receive-timeout-ms)"), "{status:?}");
    }
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(node.counted("raftkv_kv_limits_exceeded_total{limit=\"receive-timeout-ms\"}"), 8);
    assert_eq!(node.counted("raftkv_kv_requests_total{method=\"KV.Put\",code=\"RESOURCE_EXHAUSTED\"}"), 1);
    // There is room again.
    let mut client = node.client(1).await;
    client.put(PutRequest { key: "k".into(), ..PutRequest::default() }).await.unwrap();
}

/// They last for as long as their clients like, so they must not have the places of requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_health_that_are_too_many() {
    let node = Node::start(&["--max-pending-requests", "8", "--max-health-watches", "6"]).await;
    let watched = node.watched().await;
    let mut abuser = Abuser::connect(&node, 1).await;
    let mut watches = Vec::new();
    for n in 0..4 {
        let mut watch = abuser.call("/grpc.health.v1.Health/Watch").await;
        watch.send_all(announced(0, &[]));
        let refusal = watch.refusal().await;
        if n < 3 {
            assert!(refusal.is_none(), "{refusal:?}");
        } else {
            let refused = refusal.expect("a refusal");
            assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "etcdserver: too many requests"));
            let words = "watches of health: 127.0.0.1 has 3 of them, as much as one address may (--max-address-percent of \
                         --max-health-watches; try again later)";
            assert_eq!(detail(&refused), words);
        }
        watches.push(watch);
    }
    watched.bears_it(8 * MIB).await;
    // As many requests of that address as without them.
    let _halves = abuser.half_puts(4).await;
    node.until_in_progress(4).await;
    let mut fifth = abuser.call("/etcdserverpb.KV/Put").await;
    assert!(detail(&fifth.status().await).starts_with("requests in progress: 127.0.0.1 has 4 of them"));
    drop((abuser, watches));
    // There is room again.
    let mut abuser = Abuser::connect(&node, 1).await;
    within("room", async {
        loop {
            let mut watch = abuser.call("/grpc.health.v1.Health/Watch").await;
            watch.send_all(announced(0, &[]));
            if watch.refusal().await.is_none() {
                return;
            }
        }
    })
    .await;
}

/// HTTP/2 tells a client how many it may have. One that keeps to it waits, and is refused nothing; of one that doesn't only those beyond are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_on_one_connection_that_are_too_many() {
    let node = Node::start(&["--max-connection-requests", "4"]).await;
    let watched = node.watched().await;
    let mut abuser = Abuser::connect(&node, 1).await;
    let mut halves = abuser.half_puts(4).await;
    node.until_in_progress(4).await;
    let mut fifth = abuser.call("/etcdserverpb.KV/Put").await;
    fifth.send_all(server::framed(&PutRequest { key: "fifth".into(), ..PutRequest::default() }));
    watched.bears_it(8 * MIB).await;
    let get = RangeRequest { key: "fifth".into(), ..RangeRequest::default() };
    let mut client = node.client(2).await;
    assert_eq!(client.range(get.clone()).await.unwrap().into_inner().count, 0, "the fifth did not wait");
    let mut rude = server::Rude::connect(&node, 3).await;
    for stream in [1, 3, 5, 7] {
        rude.begin(stream, PUT).await;
    }
    node.until_in_progress(8).await;
    rude.begin(9, PUT).await;
    assert_eq!(rude.refused().await, (9, h2::Reason::REFUSED_STREAM));
    node.until_counted("raftkv_kv_limits_exceeded_total{limit=\"max-connection-requests\"}", 1).await;
    assert_eq!(node.counted("raftkv_kv_requests_in_progress"), 8);
    watched.bears_it(8 * MIB).await;
    // As soon as one of the four is done.
    halves.pop().unwrap().reset();
    assert!(fifth.refusal().await.is_none(), "it is answered");
    assert_eq!(client.range(get).await.unwrap().into_inner().count, 1);
}

/// From all addresses together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_from_everywhere_that_are_too_many() {
    let node = Node::start(&["--max-pending-requests", "4"]).await;
    let watched = node.watched().await;
    let (mut halves, mut abusers) = (Vec::new(), Vec::new());
    for address in [1, 3] {
        let mut abuser = Abuser::connect(&node, address).await;
        halves.append(&mut abuser.half_puts(2).await);
        node.until_in_progress(halves.len() as u64).await;
        abusers.push(abuser);
    }
    let mut client = node.client(2).await;
    let refused = client.range(everything()).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: too many requests");
    let words = "requests in progress: all 4 are taken (--max-pending-requests; try again later, or at another node)";
    assert_eq!(detail(&refused), words);
    watched.holds(8 * MIB);
    drop((halves, abusers));
    within("room", async { while client.range(everything()).await.is_err() {} }).await;
    watched.bears_it(8 * MIB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_too_large() {
    let node = Node::start(&["--max-request-bytes", "100000"]).await;
    let watched = node.watched().await;
    let mut abuser = Abuser::connect(&node, 1).await;
    for bytes in [200_000, 700_000, 500 << 20, u32::MAX] {
        let mut call = abuser.call("/etcdserverpb.KV/Put").await;
        if bytes == 200_000 {
            // The services themselves refuse this one.
            let put = PutRequest { key: "k".into(), value: vec![7; 199_990].into(), ..PutRequest::default() };
            call.send_all(server::framed(&put));
        } else {
            call.send(announced(bytes, &[0; 1000]));
        }
        let status = call.status().await;
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "etcdserver: request is too large"),
            "{bytes}"
        );
    }
    watched.bears_it(8 * MIB).await;
    assert_eq!(node.counted("raftkv_kv_limits_exceeded_total{limit=\"max-request-bytes\"}"), 4);
}

/// Two bytes stand for an operation that takes more than a hundred once it is decoded: they are counted before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_very_many_empty_operations() {
    let node = Node::start(&[]).await;
    let watched = node.watched().await;
    let mut abuser = Abuser::connect(&node, 1).await;
    for empty in [b"\x0a\0", b"\x12\0", b"\x1a\0"] {
        let mut call = abuser.call("/etcdserverpb.KV/Txn").await;
        let bytes = empty.repeat(1 << 19);
        call.send_all(announced(bytes.len().try_into().unwrap(), &bytes));
        let status = call.status().await;
        let words = "etcdserver: too many operations in txn request";
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, words));
    }
    watched.bears_it(16 * MIB).await;
}

/// Requests announce what they would hold, and send little of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_requests_would_hold() {
    let node = Node::start(&["--max-pending-mib", "8"]).await;
    let watched = node.watched().await;
    let mut abuser = Abuser::connect(&node, 1).await;
    let mut calls = Vec::new();
    for n in 0..4 {
        let mut call = abuser.call("/etcdserverpb.KV/Put").await;
        call.send(announced(1 << 20, &[0; 10]));
        calls.push(call);
        if n < 3 {
            node.until_in_progress(n + 1).await;
        }
    }
    // Each has some KiB beside its bytes, and so the fourth does not fit into half of 8 MiB.
    let refused = calls[3].status().await;
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "etcdserver: too many requests"));
    let words = "bytes of requests and answers in progress: 127.0.0.1 has 4194304 of them, as much as one address may \
                 (--max-address-percent of --max-pending-mib; try again later)";
    assert!(detail(&refused).starts_with(words), "{refused:?}");
    // As much as is held at most, and as ever.
    watched.bears_it(8 * MIB + 8 * MIB).await;
    assert!(node.counted("raftkv_kv_held_bytes") > 3 << 20);
    drop((calls, abuser));
    within("room", async {
        while node.counted("raftkv_kv_held_bytes") > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Short questions for all there is, whose answers are not fetched: without limits the server would hold 100 times its contents.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_fetches() {
    // How many answers find room is counted for contents in memory; answers out of a database come to it at other times.
    let node = Node::start(&["--max-pending-mib", "64", "--engine", "memory"]).await;
    node.fill(8).await;
    let watched = node.watched().await;
    let mut abuser = Abuser::connect(&node, 1).await;
    let mut calls = Vec::new();
    for _ in 0..100 {
        let mut call = abuser.call("/etcdserverpb.KV/Range").await;
        call.send_all(server::framed(&everything()));
        calls.push(call);
    }
    let mut refused = 0;
    for call in &mut calls {
        // Those that are answered have a body, of which nothing is read.
        if let Some(status) = call.refusal().await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            assert!(detail(&status).contains("--max-pending-mib"), "{status:?}");
            refused += 1;
        }
    }
    assert!((96..=98).contains(&refused), "{refused} of 100 were refused, where 32 MiB have room for 3 answers");
    // There is room for no other before one is made.
    watched.bears_it(64 * MIB + 32 * MIB).await;
    drop((calls, abuser));
    let mut client = node.client(1).await;
    within("room again", async { while client.range(everything()).await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_a_client_with_endless_windows_that_reads_nothing() {
    bears_endless_windows("memory").await;
}

/// There each answer has copies of all values until it is encoded, many are made at once, and the memory of what was freed may stay.
#[cfg(feature = "redb")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_a_database_to_a_client_with_endless_windows_that_reads_nothing() {
    bears_endless_windows("redb").await;
}

/// Windows as large as there are, and nobody who reads: HTTP/2 takes every answer at once, and what it has taken stays here.
async fn bears_endless_windows(engine: &str) {
    let node = Node::start(&["--engine", engine, "--max-pending-mib", "64", "--client-silence-ms", "60000"]).await;
    node.fill(8).await;
    let watched = node.watched().await;
    let mut abusers = Vec::new();
    for n in [1, 3] {
        let (mut abuser, is_deaf) = Abuser::connect_endless(&node, n).await;
        // Its windows are known there once it has an answer.
        abuser.call("/etcdserverpb.KV/Put").await.reset();
        let mut first = abuser.call("/etcdserverpb.KV/Range").await;
        first.send_all(server::framed(&RangeRequest { key: "none".into(), ..RangeRequest::default() }));
        first.refusal().await;
        is_deaf.store(true, Ordering::SeqCst);
        let mut calls = vec![first];
        for _ in 0..50 {
            let mut call = abuser.call("/etcdserverpb.KV/Range").await;
            call.send_all(server::framed(&everything()));
            calls.push(call);
        }
        abusers.push((abuser, calls));
    }
    let limits = ["max-address-percent", "max-pending-mib"];
    let refused = || limits.map(|limit| node.counted(&format!("raftkv_kv_limits_exceeded_total{{limit=\"{limit}\"}}")));
    within("refusals", async {
        while refused().iter().sum::<u64>() < 94 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let held = node.counted("raftkv_kv_held_bytes");
    assert!((32 * MIB..=64 * MIB).contains(&held), "{held} bytes are counted");
    // Writes, and reads of little, need little room.
    watched.bears_it(64 * MIB + 32 * MIB).await;
    drop(abusers);
    let mut client = node.client(1).await;
    within("room again", async { while client.range(everything()).await.is_err() {} }).await;
}

/// Made-up names, as fast as they are answered, and from one address: others wait for what is before them, and root for nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_that_are_too_many() {
    let node = Node::start(&[]).await;
    for name in ["ann", "root"] {
        node.kv_example(&["user", "add", &format!("{name}:secret")]);
    }
    node.kv_example(&["user", "grant", "root", "root"]);
    let watched = node.watched().await;
    node.kv_example(&["auth", "enable"]);
    let (told, mut refusals) = tokio::sync::mpsc::channel(1000);
    let mut flood = tokio::task::JoinSet::new();
    let mut channel = node.channel(1);
    for n in 0..200 {
        if n % 50 == 0 {
            channel = node.channel(1);
        }
        let (mut client, told) = (AuthClient::new(channel.clone()), told.clone());
        flood.spawn(async move {
            loop {
                let request = AuthenticateRequest { name: format!("nobody-{n}"), password: "x".into() };
                let status = client.authenticate(request).await.unwrap_err();
                if status.code() == Code::ResourceExhausted {
                    _ = told.try_send(status);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }
    for _ in 0..200 {
        let status = within("a refusal", refusals.recv()).await.unwrap();
        assert_eq!(status.message(), "etcdserver: too many requests");
        assert_eq!(status.metadata().get(RETRY).unwrap(), RETRY_SAFE, "{status:?}");
        assert!(detail(&status).contains("--max-address-percent"), "{status:?}");
    }
    let login = async |n, name: &str| {
        let request = AuthenticateRequest { name: name.into(), password: "secret".into() };
        within("a login", AuthClient::new(node.channel(n)).authenticate(request)).await
    };
    login(2, "ann").await.expect("a login from another address");
    login(1, "root").await.expect("root's login from the same address");
    // What is too long is not hashed at all, and so is not refused for the flood.
    for (name, password) in [("ann", "x".repeat(2000)), (&*"n".repeat(2000), "x".to_owned())] {
        let request = AuthenticateRequest { name: name.into(), password };
        let status = within("a refusal", AuthClient::new(node.channel(1)).authenticate(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    // Two that are hashed and one of root's take 19 MiB each, besides the connections.
    watched.holds(3 * 19 * MIB + 32 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_too_large() {
    let node = Node::start(&["--max-response-mib", "1"]).await;
    node.fill(3).await;
    let watched = node.watched().await;
    let mut client = node.client(1).await;
    let get = RangeRequest { key: "key-000".into(), ..RangeRequest::default() };
    let delete = kv_example::api::etcdserverpb::DeleteRangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        prev_kv: true,
    };
    let reading = TxnRequest { success: vec![range_op(&get); 20], ..TxnRequest::default() };
    let mut writing = reading.clone();
    let put = PutRequest { key: "other".into(), ..PutRequest::default() };
    writing.success[0].request = Some(request_op::Request::RequestPut(put));
    let refusals = [
        client.range(everything()).await.unwrap_err(),
        client.txn(reading).await.unwrap_err(),
        client.txn(writing).await.unwrap_err(),
        client.delete_range(delete).await.unwrap_err(),
    ];
    for status in refusals {
        let words = "raftkv: the answer would be larger than 1048576 bytes";
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, words));
        assert!(detail(&status).contains("ask for less at a time"), "{status:?}");
    }
    watched.bears_it(16 * MIB).await;
    assert_eq!(node.counted("raftkv_kv_limits_exceeded_total{limit=\"max-response-mib\"}"), 4);
    // Nothing was written, and all of it can be read in parts, or counted.
    let page = client.range(RangeRequest { limit: 10, ..everything() }).await.unwrap().into_inner();
    assert_eq!((page.kvs.len(), page.more, page.count), (10, true, 48 + 1), "the other client's key is there as well");
    let count = client.range(RangeRequest { count_only: true, ..everything() }).await.unwrap().into_inner().count;
    let keys = client.range(RangeRequest { keys_only: true, ..everything() }).await.unwrap().into_inner().kvs.len();
    assert_eq!((count, keys), (49, 49));
    watched.bears_it(16 * MIB).await;
}

/// What a transaction gives back of its own puts is not there yet when it is proposed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_grow_by_what_is_written() {
    let node = Node::start(&["--max-response-mib", "1"]).await;
    let watched = node.watched().await;
    let mut client = node.client(1).await;
    let txn = |times: usize| {
        let put = PutRequest { key: "k".into(), value: vec![7; 100_000].into(), ..PutRequest::default() };
        let get = RangeRequest { key: "k".into(), ..RangeRequest::default() };
        let mut success = vec![range_op(&get); times + 1];
        success[0].request = Some(request_op::Request::RequestPut(put));
        TxnRequest { success, ..TxnRequest::default() }
    };
    let status = client.txn(txn(11)).await.unwrap_err();
    let words = "raftkv: the answer would be larger than 1048576 bytes";
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, words));
    assert_eq!(status.metadata().get(RETRY).unwrap(), DECIDED, "{status:?}");
    assert!(detail(&status).contains("--max-response-mib"), "{status:?}");
    assert_eq!(node.counted("raftkv_kv_limits_exceeded_total{limit=\"max-response-mib\"}"), 1);
    let count = client.range(everything()).await.unwrap().into_inner().count;
    assert_eq!(count, 1, "nothing of it was done, and the other client's key is there");
    watched.bears_it(16 * MIB).await;
    let answer = client.txn(txn(10)).await.unwrap().into_inner();
    assert_eq!(answer.responses.len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_too_large() {
    let node = Node::start(&["--max-header-bytes", "8192"]).await;
    let watched = node.watched().await;
    let mut client = node.client(1).await;
    let request = |bytes: usize| {
        let mut request = tonic::Request::new(everything());
        request.metadata_mut().insert("x-long", "y".repeat(bytes).parse().unwrap());
        request
    };
    client.range(request(7000)).await.unwrap();
    let status = client.range(request(9000)).await.unwrap_err();
    assert!(status.message().contains("431"), "{status:?}");
    watched.bears_it(8 * MIB).await;
    node.until_counted(TOO_LARGE_HEADERS, 1).await;
    client.range(request(7000)).await.unwrap();
    // From the second one on the refusal is written in another way.
    for refused in 2..5 {
        client.range(request(9000)).await.unwrap_err();
        node.until_counted(TOO_LARGE_HEADERS, refused).await;
        client.range(request(7000)).await.unwrap();
    }
    // Metrics have the same limit.
    let answer = node.ask_for_metrics(&format!("X-Long: {}\r\n", "y".repeat(9000)));
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    node.until_counted(TOO_LARGE_HEADERS, 5).await;
    let log = node.log();
    assert!(log.contains("the header of a request was too large (--max-header-bytes)"), "{log}");
    watched.bears_it(8 * MIB).await;
}

/// HTTP/2 holds clients to what it tells them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_how_much_may_be_under_way() {
    let node = Node::start(&["--max-client-window-mib", "1"]).await;
    let mut rude = server::Rude::connect(&node, 3).await;
    let settings = rude.settings().await;
    assert!(settings.contains(&(4, 256 << 10)), "the window of each stream: {settings:?}");
    let grown = rude.window_of_connection().await;
    assert_eq!(grown, (1 << 20) - 65_535, "HTTP/2's own is there from the beginning");
}

/// Headers that come in ever more frames, and such as are little on the wire and much once they are decoded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_never_end() {
    let node = Node::start(&["--max-header-bytes", "8192"]).await;
    let watched = node.watched().await;
    for (n, flood) in (1..).zip(server::Flood::ALL) {
        let mut rude = server::Rude::connect(&node, 3).await;
        rude.flood(PUT, flood).await;
        assert_eq!(rude.ends().await, h2::Reason::ENHANCE_YOUR_CALM, "{flood:?}");
        watched.bears_it(8 * MIB).await;
        node.until_counted(TOO_LARGE_HEADERS, n).await;
    }
}

/// HTTP/2's own limits: whoever opens streams and resets them is told to calm down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_opened_to_be_reset() {
    let node = Node::start(&[]).await;
    let watched = node.watched().await;
    let mut abuser = Abuser::connect(&node, 1).await;
    let error = within("the end", async {
        loop {
            match abuser.try_call("/etcdserverpb.KV/Put").await {
                Ok(mut call) => call.reset(),
                Err(error) => return error,
            }
        }
    })
    .await;
    assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM), "{error}");
    watched.bears_it(16 * MIB).await;
}

/// They ask for nothing, or for too much, while others ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_crowds_the_metrics() {
    let node = Node::start(&["--max-metrics-connections", "4", "--handshake-timeout-ms", "8000"]).await;
    let watched = node.watched().await;
    let silent = [node.connect_to(&node.metrics(), 1).await, node.connect_to(&node.metrics(), 1).await];
    server::closed(&mut node.connect_to(&node.metrics(), 1).await).await;
    let mut other = server::connect_blocking(&node.metrics(), 2);
    other.write_all(b"GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n").unwrap();
    let answer = std::io::read_to_string(other).unwrap();
    assert!(answer.contains("raftkv_kv_limits_exceeded_total{limit=\"max-address-percent\"} 1"), "{answer}");
    for mut stranger in silent {
        server::closed(&mut stranger).await;
    }
    within("the count", async {
        while node.counted("raftkv_kv_limits_exceeded_total{limit=\"handshake-timeout-ms\"}") < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    watched.bears_it(8 * MIB).await;
}

/// Every limit that a refusal may name is an option, and is told of in the README.
#[test]
fn every_limit_is_documented() {
    let help = crate::support::stdout(&crate::support::run(&["server", "--help"]));
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let section = help.split("Limits:\n").nth(1).expect("a section on limits");
    let options: Vec<_> = section.lines().filter_map(|line| line.trim().strip_prefix("--")).collect();
    assert!(options.len() >= 11, "{options:?}");
    for option in options {
        let name = option.split_whitespace().next().unwrap();
        assert!(readme.lines().any(|line| line.starts_with('|') && line.contains(&format!("`--{name}`"))), "--{name}");
    }
}
