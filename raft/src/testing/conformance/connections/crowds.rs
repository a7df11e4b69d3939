//! More connections than there may be.

use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

use super::*;

/// A connection on which nothing is said, from this address of the loopback network: 127.0.0.N.
pub async fn stranger(to: &Peer, n: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, n], 0).into()).unwrap();
    socket.connect(to.address.parse().unwrap()).await.unwrap()
}

/// Waits until the other end has closed it. What comes before that does not matter.
pub async fn closed(stream: &mut TcpStream) {
    within("the hang-up", async {
        // A reset is an end as well.
        while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
    })
    .await;
}

/// Opens as many connections from this address as there may be, and one more, which is closed at once.
async fn crowd(to: &Peer, n: u8, room: usize) -> Vec<TcpStream> {
    let mut open = Vec::new();
    for _ in 0..=room {
        open.push(stranger(to, n).await);
    }
    closed(&mut open.pop().unwrap()).await;
    // What came before that one was decided before.
    for stream in &mut open {
        assert!(timeout(Duration::from_millis(1), closed(stream)).await.is_err(), "there is room for {room}");
    }
    open
}

/// Neither the other nodes, nor, when it is gone, itself. Whoever is turned away is counted, and the log says why.
pub async fn whoever_connects_again_and_again_keeps_nobody_else_out(halves: &dyn Halves) {
    let limits = Limits { connections: (8, 3), handshake: Duration::from_secs(60), ..Limits::default() };
    let mut b = Receiver::start(halves, 2, Some(limits)).await;
    let log = Log::default();
    let _guard = log.start();
    let mut crowded = crowd(&b.peer, 2, 3).await;
    assert_eq!(log.lines(&["WARN", "refused a peer", "127.0.0.2 has 3 connections open here already"]).len(), 1);

    let (peer, transport) = (b.peer.clone(), sender(halves, quick()));
    transport.send(&peer, vec![tick(&peer, 7)]).await.unwrap();
    b.until(7).await;
    // Nor do all addresses together that say nothing: half of the places may be such, and those that have waited longest make room.
    for n in [3, 4] {
        for _ in 0..3 {
            crowded.push(stranger(&peer, n).await);
        }
    }
    for stream in &mut crowded[..5] {
        closed(stream).await;
    }
    assert_eq!(log.lines(&["WARN", "refused a peer", "a connection that had not begun was closed"]).len(), 1);
    assert!(b.arrivals.refused().limit >= 6, "{:?}", b.arrivals.refused());
    // Who was there before goes on.
    transport.send(&peer, vec![tick(&peer, 8)]).await.unwrap();
    b.until(8).await;
    // And whoever comes gets in, while the others are still there.
    let newcomer = sender(halves, quick());
    newcomer.send(&peer, vec![tick(&peer, 9)]).await.unwrap();
    b.until(9).await;
}

/// They take places that others could have.
pub async fn strangers_who_say_nothing_are_hung_up_on_and_counted(halves: &dyn Halves) {
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let mut b = Receiver::start(halves, 2, Some(limits)).await;
    let (peer, transport) = (b.peer.clone(), sender(halves, quick()));
    transport.send(&peer, vec![tick(&peer, 1)]).await.unwrap();
    b.until(1).await;
    let begin = Instant::now();
    for _ in 0..3 {
        closed(&mut stranger(&peer, 2).await).await;
    }
    assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
    within("the count", async {
        while b.arrivals.refused().silence < 3 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    transport.send(&peer, vec![tick(&peer, 2)]).await.unwrap();
    assert_eq!(number(&b.next().await[0]), Some(2));
}
