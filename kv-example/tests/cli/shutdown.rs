//! A server that is asked to end finishes what it has begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{Alone, run, wait_for};
use kv_example::client::{Client, ClientError, ClientOptions};
use rustix::process::Signal;

/// Writes of the form `worker/n` until the server refuses; none may be left unclear.
async fn write_until_refused(client: Client, worker: u64, acknowledged: Arc<AtomicU64>) -> u64 {
    for n in 0.. {
        match client.put(format!("load/{worker:03}/{n:09}"), "value").await {
            Ok(_) => acknowledged.fetch_add(1, Ordering::Relaxed),
            Err(ClientError::Safe(_)) => return n,
            Err(error) => panic!("a write in progress was left unclear: {error}"),
        };
    }
    unreachable!("the loop has no end of its own")
}

#[test]
fn a_shutdown_under_load_loses_nothing_and_leaves_nothing_unclear() {
    let server = Alone::new();
    let mut node = server.start(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let acknowledged = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = runtime.block_on(async {
        // Without sessions, for whose writes nothing would be unclear either way.
        let options =
            ClientOptions { timeout: Duration::from_secs(30), exactly_once: false, ..ClientOptions::default() };
        // Several connections with several requests each: every connection has its own end.
        let clients: Vec<_> = (0..24).map(|_| Client::new(&[&server.client], options.clone()).unwrap()).collect();
        let workers = (0..96).zip(clients.iter().cycle());
        workers
            .map(|(n, client)| tokio::spawn(write_until_refused(client.clone(), n, Arc::clone(&acknowledged))))
            .collect()
    });
    wait_for("some load", || (acknowledged.load(Ordering::Relaxed) > 500).then_some(()));
    node.signal(Signal::TERM);
    assert_eq!(node.code(), Some(0), "{}", node.log());
    assert!(node.log().contains("shut down in good order"), "{}", node.log());
    assert!(!node.log().contains("still in progress"), "{}", node.log());
    let mut total = 0;
    for worker in workers {
        total += runtime.block_on(worker).expect("every write has a clear answer");
    }
    assert_eq!(total, acknowledged.load(Ordering::Relaxed));

    let _node = server.start(&[]);
    let counted = run(&["range", "--prefix", "load/", "--count-only", "--json", "--endpoints", &server.client]);
    let counted: serde_json::Value = serde_json::from_slice(&counted.stdout).unwrap();
    assert_eq!(counted["count"].as_u64(), Some(total), "what was acknowledged is there, and nothing else");
}

#[test]
fn a_client_that_keeps_its_connection_does_not_delay_the_shutdown() {
    let server = Alone::new();
    let mut node = server.start(&[]);
    let address = server.client.parse::<std::net::SocketAddr>().unwrap();
    let _idle = std::net::TcpStream::connect(address).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(async { Client::new(&[&server.client], ClientOptions::default()).unwrap() });
    runtime.block_on(client.get("k")).unwrap();
    let begun = std::time::Instant::now();
    node.signal(Signal::TERM);
    assert_eq!(node.code(), Some(0), "{}", node.log());
    assert!(!node.log().contains("still in progress"), "{}", node.log());
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}\n{}", begun.elapsed(), node.log());
}
