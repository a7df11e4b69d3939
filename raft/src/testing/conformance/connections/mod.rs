//! What every transport must do that keeps connections over TCP, beyond what every [`Transport`] must.
//!
//! Say how the two halves of yours come to be ([`Halves`]), and expand [`connection_conformance!`](crate::connection_conformance) in a
//! test file. Whoever sends with [`Lanes`](crate::transport_kit::Lanes) has most of this done.
//!
//! # What is tested
//!
//! * A peer that vanishes without a word is noticed in time; one that is slow is waited for.
//! * Connections end when nobody uses them, when either half does, and for a reason that both sides log, once.
//! * What can't be sent or taken is refused with a reason, and what is left of a batch goes on.
//!
//! The helpers are for further tests of such transports.

#![allow(clippy::disallowed_methods, reason = "real connections: these tests are no simulations")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

mod crowds;
mod life;
mod log;
mod proxy;
mod refusals;
mod silence;
mod stopwatch;
#[cfg(feature = "dev-certs")]
mod tls;

pub use crowds::*;
pub use life::*;
pub use log::Log;
pub use proxy::{Flow, Proxy};
pub use refusals::*;
pub use silence::*;
pub use stopwatch::Stopwatch;
#[cfg(feature = "dev-certs")]
pub use tls::*;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::transport::{Listener, Network};
use crate::transport_kit::{Local, Options};
use crate::{
    Arrivals, Body, ClusterId, Entry, EntryKind, Envelope, GroupId, Inbox, Index, LogId, Message, NodeId, Peer, Term,
    Transport, TransportError,
};

/// A receiving half, until it ends.
pub type Serving = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;
/// Completes when a receiving half shall end.
pub type Stopped = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The limits of a receiving half that these tests exceed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest message.
    pub message_bytes: usize,
    /// How many connections there may be, and how many of one address.
    pub connections: (usize, usize),
    /// How long a connection may take until somebody has said who it is.
    pub handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { message_bytes: 16 << 20, connections: (1024, 512), handshake: Duration::from_secs(5) }
    }
}

/// How the two halves of a transport come to be.
pub trait Halves: Send + Sync {
    /// The receiving half, with these limits, or those that it has where nobody says anything.
    fn serve(&self, listener: TcpListener, inbox: Inbox, limits: Option<Limits>, stopped: Stopped) -> Serving;

    /// The sending half.
    fn transport(&self, local: Local, options: Options) -> Box<dyn Transport>;
}

/// The same for [`transport_conformance!`](crate::transport_conformance).
pub struct OverTcp<H>(pub H);

#[async_trait]
impl<H: Halves> Network for OverTcp<H> {
    async fn listen(&self, inbox: Inbox, address: Option<&str>) -> Listener {
        let listener = TcpListener::bind(address.unwrap_or("127.0.0.1:0")).await.expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = Box::pin(async {
            let _ = stopped.await;
        });
        let server = tokio::spawn(self.0.serve(listener, inbox, None, stopped));
        let stop = Box::pin(async move {
            let _ = stop.send(());
            server.await.expect("no panic").expect("a good end");
        });
        Listener { address: address.into(), stop }
    }

    fn transport(&self, cluster: ClusterId, node: Peer) -> Arc<dyn Transport> {
        self.0.transport(Local { cluster, node }, Options::default()).into()
    }
}

/// Defines one `#[test]` for each case; the argument is an expression that makes the [`Halves`].
#[macro_export]
macro_rules! connection_conformance {
    ($halves:expr) => {
        $crate::connection_conformance! { @protected $halves }
        $crate::connection_conformance! { @cases $halves;
            a_refusal_is_logged_once_on_each_side_and_retried
            a_server_that_is_no_raftkv_node_is_told_from_one
        }
    };
    // What is the same over TLS, which has refusals of its own.
    (@protected $halves:expr) => {
        $crate::connection_conformance! { @cases $halves;
            a_peer_that_accepts_and_never_answers_is_unreachable_after_the_connect_timeout
            a_peer_that_answers_late_is_reached_all_the_same
            a_way_that_goes_silent_is_noticed_by_the_control_lane
            a_way_that_goes_silent_is_noticed_by_the_bulk_lane
            a_way_that_carries_no_answers_is_noticed
            the_default_times_notice_a_vanished_peer_within_a_few_seconds
            a_send_that_waits_for_room_fails_when_the_connection_is_given_up
            a_lane_that_waits_is_tried_at_once_when_the_other_is_connected
            a_connection_that_nobody_uses_is_closed_and_comes_back_when_needed
            a_connection_in_use_is_kept
            a_dropped_transport_closes_its_connections_though_the_peer_takes_nothing
            a_server_that_shuts_down_says_so_and_ends_in_time_though_a_peer_is_silent
            a_stopped_node_is_unreachable_and_says_why
            an_outage_is_logged_once_however_long_it_lasts
            an_address_that_is_none_is_unreachable_and_named
            a_batch_that_claims_to_be_from_elsewhere_is_not_sent
            a_batch_beyond_the_wire_limit_is_split_and_stays_in_order
            a_message_beyond_the_receivers_limit_is_refused_with_a_reason
            a_broken_listener_ends_the_server_with_an_error
            whoever_connects_again_and_again_keeps_nobody_else_out
            strangers_who_say_nothing_are_hung_up_on_and_counted
        }
    };
    (@cases $halves:expr; $($case:ident)+) => {$(
        #[test]
        fn $case() {
            $crate::testing::conformance::run(async {
                $crate::testing::conformance::connections::$case(&$halves).await;
            });
        }
    )+};
}

/// The cluster of these tests.
pub const CLUSTER: ClusterId = ClusterId(0xc1);
/// Long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A receiving half, running.
pub struct Receiver {
    /// Where it is.
    pub peer: Peer,
    /// What came.
    pub arrivals: Arrivals,
    stop: oneshot::Sender<()>,
    server: JoinHandle<io::Result<()>>,
}

impl Receiver {
    /// The receiving half of this node.
    pub async fn start(halves: &dyn Halves, id: u64, limits: Option<Limits>) -> Self {
        Self::serving(id, |listener, inbox, stopped| halves.serve(listener, inbox, limits, stopped)).await
    }

    /// The same with settings of its own.
    pub async fn serving(id: u64, serve: impl FnOnce(TcpListener, Inbox, Stopped) -> Serving) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let peer = Peer::new(id, listener.local_addr().expect("its address").to_string());
        let (inbox, arrivals) = Inbox::channel(CLUSTER, GroupId(0), NodeId(id));
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = Box::pin(async {
            let _ = stopped.await;
        });
        Self { peer, arrivals, stop, server: tokio::spawn(serve(listener, inbox, stopped)) }
    }

    /// The next batch.
    pub async fn next(&mut self) -> Vec<Envelope> {
        let (_, batch) = within("the next arrival", self.arrivals.next()).await.expect("an open inbox");
        batch
    }

    /// Takes what is there until this number comes.
    pub async fn until(&mut self, wanted: u64) {
        while !self.next().await.iter().any(|e| number(e) == Some(wanted)) {}
    }

    /// Ends it.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        within("the server's end", self.server).await.expect("no panic").expect("a good end");
    }
}

/// Node 1, in whose name these tests send.
#[must_use]
pub fn local() -> Local {
    Local { cluster: CLUSTER, node: Peer::new(1, "127.0.0.1:1") }
}

fn sender(halves: &dyn Halves, options: Options) -> Box<dyn Transport> {
    halves.transport(local(), options)
}

/// Times small enough for a test, and large enough for a busy machine.
fn quick() -> Options {
    Options {
        keep_alive_interval: Duration::from_millis(200),
        control_keep_alive_timeout: Duration::from_millis(500),
        bulk_keep_alive_timeout: Duration::from_millis(1000),
        connect_timeout: Duration::from_millis(500),
        max_backoff: Duration::from_millis(200),
        refused_backoff: Duration::from_millis(50),
        ..Options::default()
    }
}

fn unreachable(error: &TransportError) -> &str {
    if let TransportError::Unreachable { reason, .. } = error { reason } else { panic!("not unreachable: {error}") }
}

fn refused(error: &TransportError) -> &str {
    if let TransportError::Refused { reason, .. } = error { reason } else { panic!("not refused: {error}") }
}

/// A control message with a number.
#[must_use]
pub fn tick(to: &Peer, number: u64) -> Envelope {
    envelope(to, Body::Heartbeat { commit: Index(0), round: number, lease: Duration::ZERO })
}

/// A bulk message with a number.
#[must_use]
pub fn load(to: &Peer, number: u64, size: usize) -> Envelope {
    let data = Bytes::from(vec![7; size]);
    let entries = vec![Entry { id: LogId::new(1, number + 1), kind: EntryKind::Command, data }];
    envelope(to, Body::Append { prev: LogId::new(1, number), entries, commit: Index(0) })
}

fn envelope(to: &Peer, body: Body) -> Envelope {
    let message = Message { term: Term(1), body };
    Envelope { cluster: CLUSTER, group: GroupId(0), from: NodeId(1), to: to.id, message }
}

/// The number of a message.
#[must_use]
pub fn number(envelope: &Envelope) -> Option<u64> {
    if let Body::Heartbeat { round, .. } = envelope.message.body {
        return Some(round);
    }
    if let Body::Append { prev, .. } = envelope.message.body { Some(prev.index.0) } else { None }
}

/// Waits for something that must not take long.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come to an end"),
    }
}

/// Sends numbered messages, one every 5 ms, until one fails; tells the error.
pub async fn until_it_fails(transport: &dyn Transport, to: &Peer, message: impl Fn(u64) -> Envelope) -> TransportError {
    let deadline = Instant::now() + PATIENCE;
    for n in 1_000_000.. {
        if let Err(error) = within("a send", transport.send(to, vec![message(n)])).await {
            return error;
        }
        assert!(Instant::now() < deadline, "every send to {to} succeeds");
        sleep(Duration::from_millis(5)).await;
    }
    panic!("the numbers have no end")
}

/// Sends one message again and again until it does not fail.
pub async fn until_it_works(transport: &dyn Transport, to: &Peer, message: Envelope) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = within("a send", transport.send(to, vec![message.clone()])).await {
        assert!(Instant::now() < deadline, "{to} never comes back: {error}");
        sleep(Duration::from_millis(5)).await;
    }
}
