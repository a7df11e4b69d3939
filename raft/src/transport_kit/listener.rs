//! Accepting connections, whatever single connections do, until the listener itself breaks.
//!
//! A loop that tries again after any error, without a pause and for ever, makes a server whose listener is broken live on
//! deaf, and one without file descriptors keep a processor busy. This is for other servers of the same process as well.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::shares::Exhausted;

/// How long to wait when the system has no more file descriptors, or the like.
const PAUSE: Duration = Duration::from_millis(50);

/// The connections of a listener, with `TCP_NODELAY` set, and what goes on as long as it can accept any.
///
/// The stream has no end. What passes is logged; after an error that will not pass nothing comes any more, and [`Hearing`] says so.
pub fn connections(listener: TcpListener) -> (impl Stream<Item = (TcpStream, SocketAddr)> + Send + 'static, Hearing) {
    connections_from(listener)
}

/// Why a connection is closed unheard, for the log: the options are those of a server's limits on connections.
#[must_use]
pub fn turned_away(full: Exhausted, in_all: &str, of_address: &str) -> String {
    match full {
        Exhausted::All(limit) => format!("{limit} connections are open here already ({in_all}): closed unheard"),
        Exhausted::Address(address, limit) => {
            format!("{address} has {limit} connections open here already ({of_address}): closed unheard")
        }
    }
}

/// What became of a connection that did not begin, for the log: see [`Entrance`](super::Entrance).
pub const OUTWAITED: &str = "a connection that had not begun was closed, as another one needed the room";

/// Whether a listener still accepts connections; made by [`connections`].
#[derive(Debug)]
pub struct Hearing {
    failure: oneshot::Receiver<io::Error>,
}

impl Hearing {
    /// Runs the server of these connections until it ends, or until the listener can accept none any more.
    ///
    /// # Errors
    /// The server failed, or the listener did: nobody new is heard then, and whoever depends on it should end.
    pub async fn serve<E>(self, server: impl Future<Output = Result<(), E>>) -> io::Result<()>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let broken = async {
            match self.failure.await {
                Ok(error) => error,
                // Its sender went with the listener: the server is ending, and says how.
                Err(_) => pending().await,
            }
        };
        match select(pin!(broken), pin!(server)).await {
            Either::Left((error, _)) => {
                Err(io::Error::new(error.kind(), format!("no connection can be accepted any more: {error}")))
            }
            Either::Right((outcome, _)) => outcome.map_err(io::Error::other),
        }
    }
}

/// What a listener does; in tests, one that fails as it is told.
trait Accept: Send + 'static {
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send {
        Self::accept(self)
    }
}

fn connections_from(listener: impl Accept) -> (impl Stream<Item = (TcpStream, SocketAddr)> + Send + 'static, Hearing) {
    let (failed, failure) = oneshot::channel();
    let connections = stream::unfold((listener, failed), |(mut listener, failed)| async move {
        loop {
            let error = match listener.accept().await {
                Ok((stream, remote)) => {
                    // Without it answers are slower, and right all the same. A peer that is gone already is found out by reading.
                    let _ = stream.set_nodelay(true);
                    return Some(((stream, remote), (listener, failed)));
                }
                Err(error) => error,
            };
            match Fault::of(&error) {
                Fault::Connection => debug!(%error, "a connection ended before it was accepted"),
                Fault::System => {
                    warn!(%error, "a connection could not be accepted");
                    sleep(PAUSE).await;
                }
                Fault::Listener => {
                    // Nobody listens when the server has ended already.
                    let _ = failed.send(error);
                    return pending().await;
                }
            }
        }
    });
    (connections, Hearing { failure })
}

/// Whose fault it is that a connection could not be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// This one's, or its network's (accept(2)): it is gone, and the next one must not wait for that.
    Connection,
    /// The system's: no file descriptors, no memory. That passes, but not at once, and the connection is still there.
    System,
    /// The listener's. It will not pass.
    Listener,
}

impl Fault {
    fn of(error: &io::Error) -> Self {
        use io::ErrorKind;
        use rustix::io::Errno;
        if matches!(Errno::from_io_error(error), Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK)) {
            return Self::Listener;
        }
        let of_connection = matches!(
            error.kind(),
            ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionReset
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::NetworkDown
        );
        if of_connection { Self::Connection } else { Self::System }
    }
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
