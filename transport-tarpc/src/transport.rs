use async_trait::async_trait;
use raftkv::transport_kit::{Lanes, Tls};
use raftkv::{Envelope, Inbox, Peer, Transport, TransportError};

pub use raftkv::transport_kit::Local;

use crate::connection::Dialer;
use crate::options::Options;

/// Sends to peers over long-lived tarpc connections: one for each peer and lane.
///
/// Connections open with the first message, and come back by themselves. While a peer is connected, `send` waits for room
/// in its queue; while it is not, messages to it are dropped at once with `Unreachable` or `Refused`. Dropping the
/// transport closes all connections and drops what is queued.
///
/// Must be used within a tokio runtime.
pub struct TarpcTransport {
    lanes: Lanes<Dialer>,
}

impl TarpcTransport {
    /// A transport for this node. Opens nothing yet.
    #[must_use]
    pub fn new(local: Local, options: Options) -> Self {
        Self::over(None, local, options)
    }

    /// A transport for this node that speaks TLS alone, and to peers alone that prove which nodes they are. Opens nothing yet. (Feature `tls` of `raftkv` has
    /// what it takes to make a [`Tls`].)
    #[must_use]
    pub fn with_tls(local: Local, options: Options, tls: Tls) -> Self {
        Self::over(Some(tls), local, options)
    }

    fn over(tls: Option<Tls>, local: Local, options: Options) -> Self {
        let dialer = Dialer { local: local.clone(), options: options.clone(), tls };
        Self { lanes: Lanes::new(local, options, dialer) }
    }

    /// Tells this node of connections that are lost or refused ([`Inbox::peer_lost`]), so that it notices at once when its leader's
    /// process dies. Without it the node learns of that from the leader's own connections alone ([`serve`](crate::serve)). Only the first call
    /// counts.
    pub fn report_losses_to(&self, inbox: Inbox) {
        self.lanes.report_losses_to(inbox);
    }
}

#[async_trait]
impl Transport for TarpcTransport {
    async fn send(&self, to: &Peer, batch: Vec<Envelope>) -> Result<(), TransportError> {
        self.lanes.send(to, batch).await
    }
}
