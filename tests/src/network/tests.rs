//! This process plays node 1, and listens as node 2.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(5);
const A_WHILE: Duration = Duration::from_millis(150);

struct Bench {
    network: Network,
    ports: Vec<Port>,
    listener: TcpListener,
}

impl Bench {
    async fn new() -> Option<Self> {
        if !Network::is_supported() {
            return None;
        }
        let ports: Vec<_> = (0..4).map(|_| Port::reserve().unwrap()).collect();
        let network = Network::new([(1, &ports[0], &ports[1]), (2, &ports[2], &ports[3])]).unwrap();
        network.introduce(1, std::process::id());
        let listener = TcpListener::bind(ports[3].address()).await.unwrap();
        Some(Self { network, ports, listener })
    }

    async fn connect(&self) -> (TcpStream, TcpStream) {
        let outer = TcpStream::connect(self.ports[2].address()).await.unwrap();
        let (inner, _) = timeout(SOON, self.listener.accept()).await.unwrap().unwrap();
        (outer, inner)
    }
}

async fn passes(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"x").await.unwrap();
    assert_eq!(timeout(SOON, to.read_u8()).await.unwrap().unwrap(), b'x');
}

async fn is_held(to: &mut TcpStream) {
    assert!(timeout(A_WHILE, to.read_u8()).await.is_err(), "a byte or an end came through");
}

#[tokio::test]
async fn bytes_pass_both_ways() {
    let Some(bench) = Bench::new().await else { return };
    let (mut outer, mut inner) = bench.connect().await;
    passes(&mut outer, &mut inner).await;
    passes(&mut inner, &mut outer).await;
}

#[tokio::test]
async fn a_cut_holds_one_direction_and_healing_delivers() {
    let Some(bench) = Bench::new().await else { return };
    let (mut outer, mut inner) = bench.connect().await;
    bench.network.cut_one_way(1, 2);
    outer.write_all(b"x").await.unwrap();
    is_held(&mut inner).await;
    passes(&mut inner, &mut outer).await;
    bench.network.heal();
    assert_eq!(timeout(SOON, inner.read_u8()).await.unwrap().unwrap(), b'x');
}

#[tokio::test]
async fn a_cut_holds_new_connections_too() {
    let Some(bench) = Bench::new().await else { return };
    bench.network.cut_one_way(1, 2);
    let (mut outer, mut inner) = bench.connect().await;
    outer.write_all(b"x").await.unwrap();
    is_held(&mut inner).await;
}

#[tokio::test]
async fn the_end_of_a_connection_does_not_pass_a_cut() {
    let Some(bench) = Bench::new().await else { return };
    let (outer, mut inner) = bench.connect().await;
    bench.network.cut_one_way(1, 2);
    drop(outer);
    // Writing makes the proxy notice that node 1 is gone; node 2 must not.
    inner.write_all(b"abc").await.unwrap();
    is_held(&mut inner).await;
    bench.network.heal();
    let end = timeout(SOON, inner.read_u8()).await.unwrap();
    assert!(end.is_err(), "the end comes when the cut heals");
}

#[tokio::test]
async fn a_delay_delays() {
    let Some(bench) = Bench::new().await else { return };
    let (mut outer, mut inner) = bench.connect().await;
    bench.network.delay(2, A_WHILE);
    let start = Instant::now();
    passes(&mut outer, &mut inner).await;
    passes(&mut inner, &mut outer).await;
    assert!(start.elapsed() >= 2 * A_WHILE);
}

#[tokio::test]
async fn a_narrow_link_takes_its_time_and_healing_widens_it() {
    let Some(bench) = Bench::new().await else { return };
    let (mut outer, mut inner) = bench.connect().await;
    bench.network.throttle(2, 100_000);
    let start = Instant::now();
    outer.write_all(&[0; 20_000]).await.unwrap();
    let mut received = vec![0; 20_000];
    timeout(SOON, inner.read_exact(&mut received)).await.unwrap().unwrap();
    assert!(start.elapsed() >= A_WHILE, "{:?} instead of 200 ms", start.elapsed());
    // An hour's worth, were it not for the healing.
    bench.network.throttle(2, 1);
    outer.write_all(&[0; 4000]).await.unwrap();
    is_held(&mut inner).await;
    bench.network.heal();
    timeout(SOON, inner.read_exact(&mut received[..4000])).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_part_of_the_nodes_is_cut_from_the_rest() {
    let Some(bench) = Bench::new().await else { return };
    let (mut outer, mut inner) = bench.connect().await;
    bench.network.part(&[1, 2]);
    passes(&mut outer, &mut inner).await;
    bench.network.part(&[1]);
    outer.write_all(b"x").await.unwrap();
    is_held(&mut inner).await;
}

#[tokio::test]
async fn a_reset_closes_and_lets_connect_again() {
    let Some(bench) = Bench::new().await else { return };
    let (mut outer, mut inner) = bench.connect().await;
    passes(&mut outer, &mut inner).await;
    bench.network.reset(1);
    assert!(timeout(SOON, inner.read_u8()).await.unwrap().is_err());
    assert!(timeout(SOON, outer.read_u8()).await.unwrap().is_err());
    let (mut outer, mut inner) = bench.connect().await;
    passes(&mut outer, &mut inner).await;
}
