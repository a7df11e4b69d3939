//! A listener that fails as it is told.

use std::collections::VecDeque;

use futures_util::StreamExt;
use rustix::io::Errno;
use tokio::time::{Instant, timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Fails with these errors first, one a call; then it is the listener that it holds.
struct Failing {
    errors: VecDeque<Errno>,
    listener: TcpListener,
}

impl Accept for Failing {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.errors.pop_front() {
            Some(errno) => Err(errno.into()),
            None => TcpListener::accept(&self.listener).await,
        }
    }
}

/// How long a connection waits for its turn behind these errors.
async fn wait_behind(errors: impl IntoIterator<Item = Errno>) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (connections, _hearing) = connections_from(Failing { errors: errors.into_iter().collect(), listener });
    let begun = Instant::now();
    timeout(PATIENCE, pin!(connections).next()).await.expect("it is accepted").expect("no end");
    begun.elapsed()
}

/// One peer after the other that is gone when its turn comes: whoever comes then does not wait for them.
#[tokio::test]
async fn peers_that_are_gone_already_cost_no_pause() {
    for errno in [Errno::CONNABORTED, Errno::CONNRESET, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::NETDOWN] {
        let waited = wait_behind(std::iter::repeat_n(errno, 1000)).await;
        assert!(waited < PAUSE * 100, "1000 times {errno:?} cost {waited:?}");
    }
}

/// The connection that could not be accepted is still there: without a pause, the next call fails at once, and so on for ever.
#[tokio::test]
async fn a_system_at_its_limits_is_given_time() {
    for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
        let waited = wait_behind([errno; 3]).await;
        assert!(waited >= PAUSE * 3, "3 times {errno:?} cost {waited:?}");
    }
}

#[tokio::test]
async fn a_broken_listener_ends_the_server_with_the_reason() {
    for errno in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (connections, hearing) = connections_from(Failing { errors: [Errno::CONNABORTED, errno].into(), listener });
        // A server that never ends by itself, like tonic's.
        let server = async {
            connections.for_each(async |_| ()).await;
            Ok::<_, io::Error>(())
        };
        let error = timeout(PATIENCE, hearing.serve(server)).await.expect("it lives on, deaf").unwrap_err();
        let expected = format!("no connection can be accepted any more: {}", io::Error::from(errno));
        assert_eq!((error.to_string(), error.kind()), (expected, io::Error::from(errno).kind()));
    }
}

/// The stream goes with the server, and so does the sender of bad news: that is no bad news.
#[tokio::test]
async fn a_server_that_ends_in_good_order_is_no_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (connections, hearing) = connections(listener);
    let server = async move {
        drop(connections);
        tokio::task::yield_now().await;
        Ok::<_, io::Error>(())
    };
    timeout(PATIENCE, hearing.serve(server)).await.expect("an end").expect("a good one");
}
