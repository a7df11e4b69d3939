//! The receiving half: who connects, and how many.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use raftkv::Inbox;
use raftkv::metrics::RefusedFor;
use raftkv::transport_kit::listener::{OUTWAITED, connections, turned_away};
use raftkv::transport_kit::{Entrance, Gate, RefusalLog, Tls, Visitor};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use crate::connection::ALPN;
use crate::options::ServerOptions;
use crate::session::attend;

/// Receives peers' connections, and delivers what they carry to an [`Inbox`]. Cheap to clone.
#[derive(Clone)]
pub struct TarpcServer {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) inbox: Inbox,
    pub(crate) options: ServerOptions,
    pub(crate) closed: watch::Sender<bool>,
    pub(crate) gate: Gate,
    pub(crate) refusals: RefusalLog,
    /// For peers that have said who they are.
    seats: Arc<Semaphore>,
    /// For all who come: a connection keeps its place here for as long as it is open.
    entrance: Entrance,
}

/// Serves `inbox` on a listener until `shutdown` completes; then refuses new connections, ends the open ones, and returns.
///
/// # Errors
/// The listener can accept no connection any more: the node hears nobody then, and should end.
pub async fn serve(
    listener: TcpListener,
    inbox: Inbox,
    options: ServerOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    TarpcServer::new(inbox, options).serve(listener, shutdown).await
}

impl TarpcServer {
    /// A server for this letter box.
    #[must_use]
    pub fn new(inbox: Inbox, options: ServerOptions) -> Self {
        Self::behind(None, inbox, options)
    }

    /// A server for this letter box that demands TLS, and that each peer prove which node it is. (Feature `tls` of `raftkv` has what it takes to make a
    /// [`Tls`].)
    #[must_use]
    pub fn with_tls(inbox: Inbox, options: ServerOptions, tls: Tls) -> Self {
        Self::behind(Some(tls), inbox, options)
    }

    fn behind(tls: Option<Tls>, inbox: Inbox, mut options: ServerOptions) -> Self {
        options.max_requests = options.max_requests.max(ServerOptions::FEWEST_REQUESTS);
        let seats = Arc::new(Semaphore::new(options.max_connections.min(Semaphore::MAX_PERMITS)));
        let most = options.max_connections;
        // As many that have not said yet who they are as there may be peers.
        let entrance = Entrance::new(most.saturating_mul(2), options.max_connections_per_address, most);
        let (closed, _) = watch::channel(false);
        let gate = Gate { tls, protocol: ALPN, limit: options.handshake_timeout };
        let refusals = RefusalLog::new(inbox.clone());
        Self { shared: Arc::new(Shared { inbox, options, closed, gate, refusals, seats, entrance }) }
    }

    /// The peer that a hello names, for fuzzing.
    #[cfg(feature = "testing")]
    pub(crate) fn check(&self, greeting: &crate::service::Greeting) -> Result<raftkv::Peer, String> {
        self.shared.check(greeting).map(|(peer, _, _)| peer)
    }

    /// Ends all connections, and refuses new ones. The peers are told.
    pub fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    /// Serves one connection until it ends: for those who accept connections in their own way, or wrap something around their bytes.
    ///
    /// Whoever does so sets `TCP_NODELAY`, and calls [`TarpcServer::close`] in the end: peers never end their connections by themselves. A server with TLS is not
    /// for that: it refuses peers whose connections [`TarpcServer::serve`] has not accepted.
    pub async fn attend<S>(&self, stream: S, remote: Option<SocketAddr>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if let Some(visitor) = self.enter(remote) {
            attend(&self.shared, stream, remote, None, visitor).await;
        }
    }

    /// The same for a connection of a listener, which has to pass the gate first.
    async fn accept(&self, stream: TcpStream, remote: SocketAddr) {
        let Some(mut visitor) = self.enter(Some(remote)) else { return };
        let passed = tokio::select! {
            biased;
            () = &mut visitor.eviction => return,
            passed = self.shared.gate.pass(stream, remote) => passed,
        };
        match passed {
            Ok(arrival) => attend(&self.shared, arrival.link, Some(remote), arrival.identity, visitor).await,
            Err(why) => self.shared.refusals.denied(remote, &why),
        }
    }

    /// A place for a connection, as long as it is open.
    fn enter(&self, remote: Option<SocketAddr>) -> Option<Visitor> {
        let refusals = &self.shared.refusals;
        match self.shared.entrance.enter(remote.map(|remote| remote.ip())) {
            Ok((visitor, made_room)) => {
                if made_room {
                    refusals.refused(RefusedFor::Limit, None, OUTWAITED);
                }
                Some(visitor)
            }
            Err(full) => {
                let reason = turned_away(full, "twice `max_connections`", "`max_connections_per_address`");
                refusals.refused(RefusedFor::Limit, remote, &reason);
                None
            }
        }
    }

    /// Serves on a listener until `shutdown` completes; see [`serve`].
    ///
    /// # Errors
    /// Those of [`serve`].
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let (connections, hearing) = connections(listener);
        let mut connections = std::pin::pin!(connections);
        let mut sessions = JoinSet::new();
        let accepting = async {
            loop {
                tokio::select! {
                    biased;
                    Some(ended) = sessions.join_next(), if !sessions.is_empty() => {
                        if let Err(error) = ended {
                            warn!(%error, "a connection ended in a panic");
                        }
                    }
                    connection = connections.next() => {
                        let Some((stream, remote)) = connection else { return pending::<io::Result<()>>().await };
                        let server = self.clone();
                        sessions.spawn(async move { server.accept(stream, remote).await });
                    }
                }
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = hearing.serve(accepting) => outcome,
            () = shutdown => Ok(()),
        };
        self.close();
        // Those that take longer are cut off when this is dropped.
        let _ =
            timeout(self.shared.options.shutdown_grace, async { while sessions.join_next().await.is_some() {} }).await;
        outcome
    }
}

impl Shared {
    /// A place for a peer.
    pub(crate) fn seat(&self) -> Option<OwnedSemaphorePermit> {
        self.seats.clone().try_acquire_owned().ok()
    }
}
